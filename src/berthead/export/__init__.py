"""A fitted function as others run it: an ONNX graph with what its answers need, or a plain transformers folder."""
