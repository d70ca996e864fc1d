"""Export of a fitted function: an ONNX graph with what its answers need, or a plain transformers folder."""
