// What the encoder's kernels of each instruction set, and the code that calls them, have in common.
//
// No function of the standard library that is a template or inline may be called from a kernels_*.cpp: it would be
// compiled with that file's instructions, and the linker may keep that copy for all.
#pragma once

#include <cstddef>
#include <cstdint>

// Compilers that know the tiles' instructions, and the system that this code asks for their registers.
#if defined(__x86_64__) && defined(__linux__) && defined(__has_include)
#if __has_include(<amxtileintrin.h>)
#define BERTHEAD_AMX
#endif
#endif

namespace berthead {

enum Precision { FP32 = 0, BF16 = 1, INT8 = 2 };
enum { APART = 4 };
enum Activation { GELU = 0, GELU_TANH = 1, RELU = 2, SILU = 3, TANH = 4 };

// One transformer block as Python hands it over: float32, row-major, [outputs, inputs]. Null: there is none.
struct BlockSpec {
  const float *qkv, *qkv_bias, *out, *out_bias, *attention_norm, *attention_norm_bias;
  const float *up, *up_bias, *down, *down_bias, *mlp_norm, *mlp_norm_bias;
  // Rotary positions: [reach, size / 2]. They stay Python's, as do the tables below.
  const float *cosines, *sines;
  // What is added to scaled scores, by the distance key - query: [heads, 2 * reach - 1].
  const float* distance_bias;
  // Disentangled attention: vectors of distances [distances, width], and each distance's row in them [2 * reach - 1].
  const float *distance_keys, *distance_queries;
  const int32_t* distance_rows;
  // int8: what the inputs of the products are multiplied with, a number a channel; the weights are divided by it
  // already.
  const float *qkv_shrink, *up_shrink, *down_shrink;
  // int8: the channels of the inputs that stay float32, [APART], and their weights, [APART, outputs]; null: all are
  // bytes.
  const int32_t *qkv_apart, *up_apart, *down_apart;
  const float *qkv_columns, *up_columns, *down_columns;
  int32_t width, heads, inner, activation, gated, norm_first, local, reach, distances;
  float eps, scale;
};

// The embedding tables, float32; null: there is none.
struct EmbeddingSpec {
  const float *word, *position, *segment, *norm, *norm_bias;
  int32_t width, first_position;
  float eps;
};

// A linear layer's weights in panels of NR outputs, each [groups of inputs][NR][inputs of a group].
struct Matrix {
  int outputs, inputs, panels, groups;
  int32_t* packed;
  float* bias;     // [panels * NR]
  float* scale;    // int8: what a product is multiplied with
  float* sums;     // int8: scale times the sum of the weights
  float* columns;  // int8: weights of the channels that stay float32, [APART][panels * NR]; null: there are none
};

struct Norm {
  float *weight, *bias;  // weight null: what passes stays as it is
};

struct Block {
  Matrix qkv, out, up, down;
  Matrix *distance_keys, *distance_queries;  // one a head
  Norm attention_norm, mlp_norm;
  BlockSpec spec;
};

// The threads that compute one chunk together. `size` 1: a barrier is nothing.
struct Team {
  int size;
  void (*wait)(Team* team);
  alignas(64) int32_t arrived;
  alignas(64) int32_t phase;
};

// Rows of a chunk: tokens laid end to end, and what the threads of a team share while they compute them.
struct Chunk {
  int tokens, rows;
  const int64_t* starts;  // [rows + 1]; the first is that of the first token in `hidden`
  const int64_t *ids, *segments;
  float* hidden;                // [tokens, width]
  void* input;                  // what the next product reads, [tokens, width and some room]
  float *scale, *zero, *apart;  // int8: of each token; of its channels that stay float32, [tokens, APART]
  void* qkv;                    // [tokens, 3 * width]; of picked rows their queries, [tokens, width]
  void* context;                // [tokens, width]
  // The tokens whose last vectors are wanted, in order, and the first of each row; null: all are.
  const int64_t *wanted, *wanted_starts;
  Chunk* picked;  // room for those
};

// A block of memory that only grows.
struct Buffer {
  void* data;
  size_t bytes;
};

// What one thread needs for itself.
struct Scratch {
  Buffer keys, values, scores, weights, inner, inputs, scales, content, places;
};

// A block that learns: its weights as they are now, and the shares that dropout drops.
struct TrainingSpec {
  const float *qkv, *qkv_bias, *out, *out_bias, *attention_norm, *attention_norm_bias;
  const float *up, *up_bias, *down, *down_bias, *mlp_norm, *mlp_norm_bias;
  int32_t width, heads, inner, activation;
  float eps, scale, attention_dropout, output_dropout, mlp_dropout;
  uint32_t seed;
};

// Where the gradients of its weights go; null: it is not wanted.
struct TrainingGrads {
  float *qkv, *qkv_bias, *out, *out_bias, *attention_norm, *attention_norm_bias;
  float *up, *up_bias, *down, *down_bias, *mlp_norm, *mlp_norm_bias;
};

// One pass. Forwards: from the block's input [tokens, width] to its output [going, width]. Backwards: from the output's
// gradient to the input's.
struct Training {
  const float* input;
  float* output;
  const int64_t* starts;  // [rows + 1], from 0
  // The tokens that go on, in order, and the first of each row; null: all do.
  const int64_t *wanted, *wanted_starts;
  int32_t tokens, going, rows, wants_input;
  char* tape;   // what the way back needs of the way there
  char* arena;  // what a pass needs for itself
  TrainingGrads grads;
};

// Rows of a table that learns with AdamW, brought up to a step: in most steps most rows have no gradient.
struct TableSteps {
  float *weights, *first, *second;  // the table and its moments, [rows, width]
  int32_t* done;                    // the step that each row has come to
  uint8_t* moved;                   // whether a row ever had a gradient
  const int64_t* chosen;            // [count] rows; null: the first `count`
  const float* grads;               // [count, width], of the last step; null: none
  // By the step, from 1: what weights are multiplied with, the rate over the first moment's correction, and one over
  // the root of the second's; and what weights were multiplied with by then.
  const float *shrink, *rate, *root;
  const double* shrunk;
  double beta1, beta2;
  int32_t count, width, step;
  float eps;
};

// The functions of one instruction set.
struct Kernels {
  const char* name;
  int precisions;                                   // a bit for each Precision that is worth while here
  size_t (*input_bytes)(int precision, int width);  // of one row that a product reads
  size_t (*qkv_bytes)(int precision);
  bool (*prepare)(const BlockSpec& spec, int precision, Block& block);
  void (*embed)(const EmbeddingSpec& spec, const Chunk& chunk, int first, int last);
  void (*start)(const Block& block, int precision, const Chunk& chunk, int first, int last);
  bool (*block)(const Block& block, int precision, Chunk& chunk, Team& team, int rank, Scratch& scratch,
                const Block* next);
  size_t (*tape_bytes)(const TrainingSpec& spec, int precision, int tokens, int going);
  size_t (*arena_bytes)(const TrainingSpec& spec, int precision, int tokens, int threads);
  bool (*forward)(const TrainingSpec& spec, int precision, const Training& pass, Team& team, int rank,
                  Scratch& scratch);
  bool (*backward)(const TrainingSpec& spec, int precision, const Training& pass, Team& team, int rank,
                   Scratch& scratch);
  void (*advance)(const TableSteps& steps, int first, int last);
  // One tile `rounds` times, from zeros [MOST_TILE * groups]; operations done.
  double (*multiply)(int precision, const int32_t* a, const int32_t* b, float* c, int groups, int rounds);
};

// No tile has more rows or columns.
enum { MOST_TILE = 64 };

void* allocate(size_t bytes);
bool grow(Buffer& buffer, size_t bytes);
void release(Block& block);

// Weak: the address of those that were not built (see setup.py) is null.
#define WEAK __attribute__((weak))
#if defined(__x86_64__)
extern const Kernels avx2_kernels WEAK, avx512_kernels WEAK, avx512_vnni_kernels WEAK, avx512_bf16_kernels WEAK;
#endif
#if defined(BERTHEAD_AMX)
extern const Kernels avx512_amx_kernels WEAK;
#endif
#undef WEAK

}  // namespace berthead
