// An encoder whose weights are packed for one instruction set and precision, and the sequences that go through it.
#pragma once

#include <vector>

#include "kernels.h"

namespace berthead {

struct Encoder {
  const Kernels* kernels;
  int precision;
  std::vector<Block> blocks;
};

// One call: sequences through blocks `order` [layers], from token ids or, without an embedding, from `input`.
struct ForwardCall {
  const Encoder& encoder;
  const int32_t* order;
  int layers;
  const EmbeddingSpec* embedding;
  const int64_t *ids, *segments, *starts;
  const float* input;
  float* output;
  const int64_t* selected;  // tokens whose last vectors are read, ascending. Null: all
  std::vector<int64_t> selected_starts;
};

// Returns false when memory runs out.
bool RunForward(const ForwardCall& call, int sequences, int threads);

}  // namespace berthead
