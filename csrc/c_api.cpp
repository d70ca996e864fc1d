// The functions that Python calls through ctypes (src/berthead: library.py), and what threads do for training and for
// measuring the machine.
#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdlib>
#include <exception>
#include <new>

#include "encoder.h"
#include "instruction_sets.h"
#include "thread_pool.h"

namespace berthead {
namespace {

// Rows of an embedding table that a thread takes at once: few, because recently read rows catch up faster.
constexpr int kRowsAtOnce = 16;
// Groups of the product that is timed: a tile's rows and its panel fit into the L1 cache.
constexpr int kPeakGroups = 128;
constexpr int kPeakRounds = 500;

int RunTraining(const Kernels& kernels, const TrainingSpec& spec, int precision, TrainingPass& pass, bool forward,
                int threads) {
  static Buffer arena{};  // of one pass after another
  const std::lock_guard<std::mutex> guard(pool_mutex);
  ThreadPool& pool = Threads(threads);
  threads = pool.size();
  if (!Grow(arena, kernels.arena_bytes(spec, precision, pass.tokens, threads))) return 1;
  pass.arena = (char*)arena.data;
  Team team = MakeTeam(threads);
  std::atomic<bool> ok{true};
  pool.Run([&](int rank, ThreadState& state) {
    const auto train = forward ? kernels.train_forward : kernels.train_backward;
    if (!train(spec, precision, pass, team, rank, state.scratch)) ok = false;
  });
  return ok ? 0 : 1;
}

// A caller through ctypes cannot catch an exception: without memory or threads a call returns an error.
template <class Result, class Function>
Result Caught(Result failed, Function function) noexcept {
  try {
    return function();
  } catch (const std::exception&) {
    return failed;
  }
}

// One thread's operations per second, measured over this many seconds; 0: no memory.
double MeasureThread(const Kernels& kernels, int precision, double seconds) {
  typedef std::chrono::steady_clock Clock;
  int32_t* a = (int32_t*)Allocate(sizeof(int32_t) * kMaxTile * kPeakGroups);
  int32_t* b = (int32_t*)Allocate(sizeof(int32_t) * kMaxTile * kPeakGroups);
  float* c = (float*)Allocate(sizeof(float) * kMaxTile * kMaxTile);
  double done = 0, passed = 1;
  if (a && b && c) {
    kernels.multiply_tile(precision, a, b, c, kPeakGroups, kPeakRounds);  // the core's clock rises
    passed = 0;
    for (const auto begun = Clock::now(); passed < seconds;
         passed = std::chrono::duration<double>(Clock::now() - begun).count())
      done += kernels.multiply_tile(precision, a, b, c, kPeakGroups, kPeakRounds);
  }
  for (void* memory : {(void*)a, (void*)b, (void*)c}) free(memory);
  return done / passed;
}

}  // namespace
}  // namespace berthead

using namespace berthead;

#define EXPORTED __attribute__((visibility("default")))

extern "C" {

// The name of the n-th kernels that this processor can run, the best last. Null: there are no more.
EXPORTED const char* berthead_kernel_name(int n) {
  const KernelList& usable = UsableKernels();
  return n >= 0 && n < usable.end() - usable.begin() ? usable.begin()[n]->name : nullptr;
}

// A new encoder without blocks. Null: this processor has no such kernels, or they do not compute this precision, or no
// memory.
EXPORTED void* berthead_encoder_new(const char* name, int precision) {
  const Kernels* kernels = FindKernels(name, precision);
  return kernels ? new (std::nothrow) Encoder{kernels, precision, {}} : nullptr;
}

// Adds a block. Weights are copied; tables are not, and must stay alive. 0: done; 1: no memory.
EXPORTED int berthead_encoder_add_block(void* encoder, const BlockSpec* spec) {
  Encoder& to = *static_cast<Encoder*>(encoder);
  return Caught(1, [&] {
    to.blocks.emplace_back();
    if (to.kernels->prepare_block(*spec, to.precision, to.blocks.back())) return 0;
    Release(to.blocks.back());
    to.blocks.pop_back();
    return 1;
  });
}

// Sequences through blocks `order` [layers], from ids or, without an embedding, from `input`, to `output`; both
// [tokens, width]. The output is the last vector for `selected` tokens (ascending), and undefined for others. Null:
// all are selected. 0: done; 1: no memory.
EXPORTED int berthead_encoder_run(void* encoder, const int32_t* order, int layers, const EmbeddingSpec* embedding,
                                  const int64_t* ids, const int64_t* segments, const float* input, float* output,
                                  const int64_t* starts, int sequences, const int64_t* selected, int selected_count,
                                  int threads) {
  return Caught(1, [&] {
    ForwardCall call{
        *static_cast<Encoder*>(encoder), order, layers, embedding, ids, segments, starts, input, output, selected, {}};
    if (selected)
      for (int i = 0; i <= sequences; i++)
        call.selected_starts.push_back(std::lower_bound(selected, selected + selected_count, starts[i]) - selected);
    return RunForward(call, sequences, threads) ? 0 : 1;
  });
}

EXPORTED void berthead_encoder_free(void* encoder) {
  Encoder* freed = static_cast<Encoder*>(encoder);
  for (Block& block : freed->blocks) Release(block);
  delete freed;
}

// Bytes of the tape of a pass over this many tokens. 0: this processor has no such kernels, or not in this precision.
EXPORTED size_t berthead_tape_bytes(const char* name, int precision, const TrainingSpec* spec, int tokens,
                                    int output_tokens) {
  const Kernels* kernels = FindKernels(name, precision);
  return kernels ? kernels->tape_bytes(*spec, precision, tokens, output_tokens) : 0;
}

// A block forward, or backward. 0: done; 1: no memory.
EXPORTED int berthead_train(const char* name, int precision, const TrainingSpec* spec, TrainingPass* pass, int forward,
                            int threads) {
  return Caught(
      1, [&] { return RunTraining(*FindKernels(name, precision), *spec, precision, *pass, forward != 0, threads); });
}

// Brings rows of an embedding table up to date. 0: done; 1: no memory.
EXPORTED int berthead_adamw(const char* name, const AdamWSteps* steps, int threads) {
  return Caught(1, [&] {
    const Kernels* kernels = FindKernels(name, kFP32);
    const std::lock_guard<std::mutex> guard(pool_mutex);
    ThreadPool& pool = Threads(threads);
    std::atomic<int> taken{0};
    pool.Run([&](int, ThreadState&) {
      for (int i = taken.fetch_add(kRowsAtOnce); i < steps->count; i = taken.fetch_add(kRowsAtOnce))
        kernels->adamw(*steps, i, std::min(i + kRowsAtOnce, steps->count));
    });
    return 0;
  });
}

// Operations per second (an addition and a multiplication are two) of a tile's product in the L1 cache, of all
// threads together. 0: this processor has no such kernels, or not in this precision, or no memory.
EXPORTED double berthead_peak(const char* name, int precision, int threads, double seconds) {
  return Caught(0.0, [&] {
    const Kernels* kernels = FindKernels(name, precision);
    if (!kernels) return 0.0;
    const std::lock_guard<std::mutex> guard(pool_mutex);
    ThreadPool& pool = Threads(threads);
    std::vector<double> rates(pool.size(), 0.0);
    pool.Run([&](int rank, ThreadState&) { rates[rank] = MeasureThread(*kernels, precision, seconds); });
    double total = 0;
    for (const double rate : rates) {
      if (rate <= 0) return 0.0;
      total += rate;
    }
    return total;
  });
}
}
