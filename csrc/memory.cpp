// Memory of weights and activations.
#include <algorithm>
#include <cstdlib>
#include <cstring>

#include "kernels.h"

namespace berthead {

void* Allocate(size_t bytes) {
  void* memory = nullptr;
  const size_t lines = (std::max<size_t>(bytes, 1) + 63) / 64 * 64;
  if (posix_memalign(&memory, 64, lines) != 0) return nullptr;
  memset(memory, 0, lines);
  return memory;
}

bool Grow(Buffer& buffer, size_t bytes) {
  if (bytes <= buffer.bytes) return true;
  free(buffer.data);
  // Room beyond the end: a whole vector may be read even if only its first lanes count.
  buffer.data = Allocate(bytes + bytes / 4 + 256);
  buffer.bytes = buffer.data ? bytes + bytes / 4 : 0;
  return buffer.data != nullptr;
}

namespace {

void Release(PackedMatrix& matrix) {
  free(matrix.packed);
  free(matrix.bias);
  free(matrix.scale);
  free(matrix.scaled_sums);
  free(matrix.outlier_weights);
}

void Release(PackedMatrix* matrices, int count) {
  for (int i = 0; matrices && i < count; i++) Release(matrices[i]);
  free(matrices);
}

}  // namespace

void Release(Block& block) {
  for (PackedMatrix* matrix : {&block.qkv, &block.out, &block.up, &block.down}) Release(*matrix);
  Release(block.distance_keys, block.spec.heads);
  Release(block.distance_queries, block.spec.heads);
  for (NormWeights* norm : {&block.attention_norm, &block.mlp_norm}) {
    free(norm->weight);
    free(norm->bias);
  }
}

}  // namespace berthead
