// The application binary interface: all structs and numbers that Python hands over through ctypes.
//
// Python has a copy of each. abi.cpp describes what was compiled, field by field, and Python compares the two when it
// loads the library. What the description does not show, such as the arguments of a function or the meaning of a field,
// is covered by kAbiVersion: raise it with every such change.
#pragma once

#include <cstddef>
#include <cstdint>

namespace berthead {

constexpr int kAbiVersion = 2;

enum Precision { kFP32 = 0, kBF16 = 1, kINT8 = 2 };
enum Activation { kGelu = 0, kGeluTanh = 1, kRelu = 2, kSilu = 3, kTanh = 4 };

// int8: input channels of a product that stay float32.
constexpr int kOutliers = 4;
// No tile of any instruction set has more columns.
constexpr int kMaxNR = 32;

// One transformer block: float32, row-major, weights [outputs, inputs]. Null: the block has no such part.
struct BlockSpec {
  const float *qkv, *qkv_bias, *out, *out_bias, *attention_norm, *attention_norm_bias;
  const float *up, *up_bias, *down, *down_bias, *mlp_norm, *mlp_norm_bias;
  // The tables from here to distance_rows are read in place; everything else is copied.
  // Rotary positions: [max_positions, head size / 2].
  const float *cosines, *sines;
  // Added to the scaled scores, by the distance key - query: [heads, 2 * max_positions - 1].
  const float* distance_bias;
  // Disentangled attention: vectors of distances [num_distances, width], and the row of each distance in them
  // [2 * max_positions - 1].
  const float *distance_keys, *distance_queries;
  const int32_t* distance_rows;
  // int8: the smoothing scale of each input channel; the weights are divided by it already.
  const float *qkv_smoothing, *up_smoothing, *down_smoothing;
  // int8: the outlier channels [kOutliers], which stay float32, and their weights [kOutliers, outputs].
  const int32_t *qkv_outliers, *up_outliers, *down_outliers;
  const float *qkv_outlier_weights, *up_outlier_weights, *down_outlier_weights;
  int32_t width, heads, inner, activation, gated, norm_first, local, max_positions, num_distances;
  float eps, attention_scale;
};

// The embedding tables, float32. Null: no such table.
struct EmbeddingSpec {
  const float *word, *position, *segment, *norm, *norm_bias;
  int32_t width, first_position;
  float eps;
};

// A block in training: its weights as they are now, and the rates of dropout.
struct TrainingSpec {
  const float *qkv, *qkv_bias, *out, *out_bias, *attention_norm, *attention_norm_bias;
  const float *up, *up_bias, *down, *down_bias, *mlp_norm, *mlp_norm_bias;
  int32_t width, heads, inner, activation;
  float eps, attention_scale, attention_dropout, output_dropout, mlp_dropout;
  uint32_t seed;
};

// Pointers to the gradients of its weights. Null: that gradient is not computed.
struct TrainingGrads {
  float *qkv, *qkv_bias, *out, *out_bias, *attention_norm, *attention_norm_bias;
  float *up, *up_bias, *down, *down_bias, *mlp_norm, *mlp_norm_bias;
};

// One pass through a block. Forward: from its input [tokens, width] to its output [output_tokens, width]. Backward:
// from the gradient of the output to that of the input.
struct TrainingPass {
  const float* input;
  float* output;
  const int64_t* starts;  // [sequences + 1], from 0
  // The tokens that have an output, ascending, and the first of each sequence among them. Null: all tokens.
  const int64_t *selected, *selected_starts;
  int32_t tokens, output_tokens, sequences, needs_input_grad;
  char* tape;   // what the forward pass keeps for the backward pass
  char* arena;  // working memory of the pass; set by the library
  TrainingGrads grads;
};

// Rows of an embedding table trained with AdamW, brought up to a step. In most steps most rows have no gradient,
// and such a row catches up when it is needed again.
struct AdamWSteps {
  float *weights, *exp_avg, *exp_avg_sq;  // the table and its moments, [rows, width]
  int32_t* row_steps;                     // the last step of each row
  uint8_t* has_moments;                   // whether a row ever had a gradient
  const int64_t* row_ids;                 // [count] rows, none twice. Null: the first `count`
  const float* grads;                     // [count, width], of the last step. Null: none
  // By step, from 1: the factor of weight decay; the learning rate over the first moment's bias correction; one
  // over the root of the second moment's; and the product of the decay factors up to that step.
  const float *decay_factor, *step_size, *rsqrt_correction;
  const double* decay_product;
  double beta1, beta2;
  int32_t count, width, step;
  float eps;
};

}  // namespace berthead
