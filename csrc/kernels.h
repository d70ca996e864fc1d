// What the kernels of every instruction set share with the code that calls them: packed weights, the work of a thread,
// and the table of functions that each instruction set fills in (dispatch.inc).
//
// No function of the standard library that is a template or inline may be called from a kernels_*.cpp: it would be
// compiled with that file's instructions, and the linker may keep that copy for all.
#pragma once

#include "abi.h"

// AMX needs a compiler that knows its instructions, and Linux, which this code asks for the tile registers.
#if defined(__x86_64__) && defined(__linux__) && defined(__has_include)
#if __has_include(<amxtileintrin.h>)
#define BERTHEAD_AMX
#endif
#endif

namespace berthead {

// A linear layer's weights as the products read them (pack_weights.inc): in panels of kNR outputs, each
// [groups of inputs][kNR][inputs of a group].
struct PackedMatrix {
  int outputs, inputs, panels, groups;
  int32_t* packed;
  float* bias;             // [panels * kNR]
  float* scale;            // int8: the step of each output's weights, [panels * kNR]
  float* scaled_sums;      // int8: that step times the sum of the output's weights, [panels * kNR]
  float* outlier_weights;  // int8: weights of the outlier channels, [kOutliers][panels * kNR]. Null: there are none
};

struct NormWeights {
  float *weight, *bias;  // weight null: no norm
};

struct Block {
  PackedMatrix qkv, out, up, down;
  PackedMatrix *distance_keys, *distance_queries;  // one a head
  NormWeights attention_norm, mlp_norm;
  BlockSpec spec;
};

// The threads that compute one chunk together; for one thread the barrier does nothing.
struct Team {
  int size;
  void (*barrier)(Team* team);
  alignas(64) int32_t arrived;
  alignas(64) int32_t phase;
};

// Some sequences of a pack, their tokens laid end to end, and the activations that the threads of a team share.
struct Chunk {
  int tokens, sequences;
  const int64_t* starts;  // [sequences + 1]; starts[0] is that of the first token in `hidden`
  const int64_t *ids, *segments;
  float* hidden;              // the residual stream, [tokens, width]
  void* input;                // what the next product reads, [tokens, RowStride(width)]
  float *scale, *zero_point;  // int8: of each token's input
  float* outliers;            // int8: its outlier channels, [tokens, kOutliers]
  void* qkv;                  // [tokens, 3 * width]; of gathered tokens the queries alone, [tokens, width]
  void* context;              // attention's output, [tokens, width]
  // The tokens whose last vectors are read, ascending, and the first of each sequence among them. Null: all tokens.
  const int64_t *selected, *selected_starts;
  Chunk* gathered;  // room for the selected tokens side by side
};

// Memory that only grows.
struct Buffer {
  void* data;
  size_t bytes;
};

// Working memory of one thread.
struct Scratch {
  Buffer keys, values, scores, weights;  // attention: the packed keys and values of a head, and a strip of rows
  Buffer c2p, p2c;                       // disentangled attention: content-to-position and position-to-content scores
  Buffer inner, inputs, scales;          // feed-forward network: float32, and as its second product reads it
  Buffer transposed, panels;             // training: operands that are transposed or packed for one product
};

// The functions of one instruction set. Those that return bool return false when memory runs out.
struct Kernels {
  const char* name;
  int precisions;  // bit p: these kernels compute Precision p

  size_t (*input_bytes)(int precision, int width);  // of one row that a product reads
  size_t (*qkv_bytes)(int precision);               // of one number in Chunk::qkv
  bool (*prepare_block)(const BlockSpec& spec, int precision, Block& block);
  void (*embed)(const EmbeddingSpec& spec, const Chunk& chunk, int first, int last);
  bool (*prepare_first_input)(const Block& block, int precision, const Chunk& chunk, int first, int last);
  bool (*run_block)(const Block& block, int precision, Chunk& chunk, Team& team, int rank, Scratch& scratch,
                    const Block* next);

  size_t (*tape_bytes)(const TrainingSpec& spec, int precision, int tokens, int output_tokens);
  size_t (*arena_bytes)(const TrainingSpec& spec, int precision, int tokens, int threads);
  bool (*train_forward)(const TrainingSpec& spec, int precision, const TrainingPass& pass, Team& team, int rank,
                        Scratch& scratch);
  bool (*train_backward)(const TrainingSpec& spec, int precision, const TrainingPass& pass, Team& team, int rank,
                         Scratch& scratch);
  void (*adamw)(const AdamWSteps& steps, int first, int last);

  // Multiplies one tile `rounds` times; a, b and c have room for the largest tile. Returns the operations done.
  double (*multiply_tile)(int precision, const int32_t* a, const int32_t* b, float* c, int groups, int rounds);
};

// The most rows and columns of a tile.
constexpr int kMaxTile = 64;

// Zeros, aligned to a cache line, for free(). Null: no memory.
void* Allocate(size_t bytes);
// Makes a buffer hold at least this many bytes; its content is lost. A vector may be read past its end.
bool Grow(Buffer& buffer, size_t bytes);
void Release(Block& block);

// Weak symbols: null for kernels that were not built (see setup.py).
#define BERTHEAD_OPTIONAL extern __attribute__((weak)) const Kernels
#if defined(__x86_64__)
BERTHEAD_OPTIONAL avx2_kernels, avx512_kernels, avx512_vnni_kernels, avx512_bf16_kernels;
#endif
#if defined(BERTHEAD_AMX)
BERTHEAD_OPTIONAL avx512_amx_kernels;
#endif

}  // namespace berthead
