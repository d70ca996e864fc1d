"""PACKS -> LOGITS, prepared for this machine: CPU, CUDA, ONNX Runtime."""
