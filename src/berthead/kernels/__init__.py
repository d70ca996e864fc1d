"""The C++ library: loading it, packing weights for it, quantization, training passes."""
