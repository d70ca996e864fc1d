// Describes the compiled structs to Python, which checks them when it loads the library (abi.h says why).
#include "abi.h"

#include <initializer_list>
#include <string>

namespace berthead {
namespace {

template <class T>
constexpr const char* kKind = "unknown";
template <class T>
constexpr const char* kKind<T*> = "pointer";
template <>
constexpr const char* kKind<int32_t> = "int32";
template <>
constexpr const char* kKind<uint32_t> = "uint32";
template <>
constexpr const char* kKind<float> = "float";
template <>
constexpr const char* kKind<double> = "double";
template <>
constexpr const char* kKind<TrainingGrads> = "TrainingGrads";

struct Field {
  const char *name, *kind;
  size_t offset;
};

// One line a fact: its name and its value.
struct Description {
  std::string text;
  void Number(const char* name, int value) { text += std::string(name) + ": " + std::to_string(value) + "\n"; }
  void Struct(const std::string& name, size_t bytes, std::initializer_list<Field> fields) {
    text += name + ": " + std::to_string(bytes) + " bytes\n";
    for (const Field& field : fields)
      text += name + "." + field.name + ": " + field.kind + " at " + std::to_string(field.offset) + "\n";
  }
};

// A field of the struct S. Python finds one that is missing below.
#define FIELD(name) {#name, kKind<decltype(S::name)>, offsetof(S, name)}

void DescribeBlockSpec(Description& description) {
  typedef BlockSpec S;
  description.Struct("BlockSpec", sizeof(S),
                     {FIELD(qkv),
                      FIELD(qkv_bias),
                      FIELD(out),
                      FIELD(out_bias),
                      FIELD(attention_norm),
                      FIELD(attention_norm_bias),
                      FIELD(up),
                      FIELD(up_bias),
                      FIELD(down),
                      FIELD(down_bias),
                      FIELD(mlp_norm),
                      FIELD(mlp_norm_bias),
                      FIELD(cosines),
                      FIELD(sines),
                      FIELD(distance_bias),
                      FIELD(distance_keys),
                      FIELD(distance_queries),
                      FIELD(distance_rows),
                      FIELD(qkv_smoothing),
                      FIELD(up_smoothing),
                      FIELD(down_smoothing),
                      FIELD(qkv_outliers),
                      FIELD(up_outliers),
                      FIELD(down_outliers),
                      FIELD(qkv_outlier_weights),
                      FIELD(up_outlier_weights),
                      FIELD(down_outlier_weights),
                      FIELD(width),
                      FIELD(heads),
                      FIELD(inner),
                      FIELD(activation),
                      FIELD(gated),
                      FIELD(norm_first),
                      FIELD(local),
                      FIELD(max_positions),
                      FIELD(num_distances),
                      FIELD(eps),
                      FIELD(attention_scale)});
}

void DescribeEmbeddingSpec(Description& description) {
  typedef EmbeddingSpec S;
  description.Struct("EmbeddingSpec", sizeof(S),
                     {FIELD(word), FIELD(position), FIELD(segment), FIELD(norm), FIELD(norm_bias), FIELD(width),
                      FIELD(first_position), FIELD(eps)});
}

void DescribeTrainingSpec(Description& description) {
  typedef TrainingSpec S;
  description.Struct("TrainingSpec", sizeof(S),
                     {FIELD(qkv),
                      FIELD(qkv_bias),
                      FIELD(out),
                      FIELD(out_bias),
                      FIELD(attention_norm),
                      FIELD(attention_norm_bias),
                      FIELD(up),
                      FIELD(up_bias),
                      FIELD(down),
                      FIELD(down_bias),
                      FIELD(mlp_norm),
                      FIELD(mlp_norm_bias),
                      FIELD(width),
                      FIELD(heads),
                      FIELD(inner),
                      FIELD(activation),
                      FIELD(eps),
                      FIELD(attention_scale),
                      FIELD(attention_dropout),
                      FIELD(output_dropout),
                      FIELD(mlp_dropout),
                      FIELD(seed)});
}

void DescribeTrainingGrads(Description& description) {
  typedef TrainingGrads S;
  description.Struct(
      "TrainingGrads", sizeof(S),
      {FIELD(qkv), FIELD(qkv_bias), FIELD(out), FIELD(out_bias), FIELD(attention_norm), FIELD(attention_norm_bias),
       FIELD(up), FIELD(up_bias), FIELD(down), FIELD(down_bias), FIELD(mlp_norm), FIELD(mlp_norm_bias)});
}

void DescribeTrainingPass(Description& description) {
  typedef TrainingPass S;
  description.Struct(
      "TrainingPass", sizeof(S),
      {FIELD(input), FIELD(output), FIELD(starts), FIELD(selected), FIELD(selected_starts), FIELD(tokens),
       FIELD(output_tokens), FIELD(sequences), FIELD(needs_input_grad), FIELD(tape), FIELD(arena), FIELD(grads)});
}

void DescribeAdamWSteps(Description& description) {
  typedef AdamWSteps S;
  description.Struct(
      "AdamWSteps", sizeof(S),
      {FIELD(weights), FIELD(exp_avg), FIELD(exp_avg_sq), FIELD(row_steps), FIELD(has_moments), FIELD(row_ids),
       FIELD(grads), FIELD(decay_factor), FIELD(step_size), FIELD(rsqrt_correction), FIELD(decay_product), FIELD(beta1),
       FIELD(beta2), FIELD(count), FIELD(width), FIELD(step), FIELD(eps)});
}

std::string Describe() {
  Description description;
  description.Number("version", kAbiVersion);
  description.Number("fp32", kFP32);
  description.Number("bf16", kBF16);
  description.Number("int8", kINT8);
  description.Number("gelu", kGelu);
  description.Number("gelu_tanh", kGeluTanh);
  description.Number("relu", kRelu);
  description.Number("silu", kSilu);
  description.Number("tanh", kTanh);
  description.Number("outliers", kOutliers);
  description.Number("widest tile", kMaxNR);
  DescribeBlockSpec(description);
  DescribeEmbeddingSpec(description);
  DescribeTrainingSpec(description);
  DescribeTrainingGrads(description);
  DescribeTrainingPass(description);
  DescribeAdamWSteps(description);
  return description.text;
}

}  // namespace
}  // namespace berthead

extern "C" __attribute__((visibility("default"))) const char* berthead_abi() {
  static const std::string text = berthead::Describe();
  return text.c_str();
}
