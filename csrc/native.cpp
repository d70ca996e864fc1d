// The encoder's blocks in kernels of our own, for whoever calls C: which instructions this processor has, and the
// threads that share a pack between them.
#include <algorithm>
#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <memory>
#include <mutex>
#include <thread>
#include <vector>

#if defined(__unix__)
#include <pthread.h>
#include <sched.h>
#include <unistd.h>
#endif

#include "engine.h"

#if defined(BERTHEAD_AMX)
#include <cpuid.h>
#include <sys/syscall.h>
#endif

namespace berthead {

void* allocate(size_t bytes) {
  void* memory = nullptr;
  const size_t whole = (std::max<size_t>(bytes, 1) + 63) / 64 * 64;
  if (posix_memalign(&memory, 64, whole) != 0) return nullptr;
  memset(memory, 0, whole);
  return memory;
}

bool grow(Buffer& buffer, size_t bytes) {
  if (bytes <= buffer.bytes) return true;
  free(buffer.data);
  // Room beyond the end: a vector may be read whole where only its start counts.
  buffer.data = allocate(bytes + bytes / 4 + 256);
  buffer.bytes = buffer.data ? bytes + bytes / 4 : 0;
  return buffer.data != nullptr;
}

namespace {

void release(Matrix& matrix) {
  free(matrix.packed);
  free(matrix.bias);
  free(matrix.scale);
  free(matrix.sums);
  free(matrix.columns);
}

void release(Matrix* matrices, int count) {
  for (int i = 0; matrices && i < count; i++) release(matrices[i]);
  free(matrices);
}

}  // namespace

void release(Block& block) {
  for (Matrix* matrix : {&block.qkv, &block.out, &block.up, &block.down}) release(*matrix);
  release(block.distance_keys, block.spec.heads);
  release(block.distance_queries, block.spec.heads);
  for (Norm* norm : {&block.attention_norm, &block.mlp_norm}) {
    free(norm->weight);
    free(norm->bias);
  }
}

namespace {

// Tokens of a chunk: what a thread computes through all layers, small enough for its cache.
constexpr int CHUNK_TOKENS = 256;
// Looks at an empty task board before a thread sleeps: some ten microseconds.
constexpr int SPINS = 4000;

inline void relax() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#endif
}

// All wait for the last; few threads, each on a processor of its own, so waiting is looking.
void wait_for_all(Team* team) {
  if (team->size == 1) return;
  const int32_t phase = __atomic_load_n(&team->phase, __ATOMIC_ACQUIRE);
  if (__atomic_add_fetch(&team->arrived, 1, __ATOMIC_ACQ_REL) == team->size) {
    __atomic_store_n(&team->arrived, 0, __ATOMIC_RELAXED);
    __atomic_store_n(&team->phase, phase + 1, __ATOMIC_RELEASE);
    return;
  }
  for (int looks = 0; __atomic_load_n(&team->phase, __ATOMIC_ACQUIRE) == phase; looks++) {
    relax();
    if (looks > SPINS) std::this_thread::yield();
  }
}

// What one thread, or one team, needs for a chunk.
struct Room {
  Buffer hidden{}, input{}, scales{}, qkv{}, context{};
  Chunk picked{};
  std::unique_ptr<Room> of_picked;
  ~Room() {
    for (Buffer* one : {&hidden, &input, &scales, &qkv, &context}) free(one->data);
  }
};

struct Own {
  Room room;
  Scratch scratch{};
  ~Own() {
    for (Buffer* one : {&scratch.keys, &scratch.values, &scratch.scores, &scratch.weights, &scratch.inner,
                        &scratch.inputs, &scratch.scales, &scratch.content, &scratch.places})
      free(one->data);
  }
};

// Threads that stay; the caller is one of them.
class Pool {
 public:
  explicit Pool(int size) : owns_(size) {
    for (int rank = 1; rank < size; rank++) threads_.emplace_back([this, rank] { serve(rank); });
  }

  ~Pool() {
    {
      const std::lock_guard<std::mutex> guard(mutex_);
      stop_ = true;
      round_.fetch_add(1, std::memory_order_release);
    }
    ready_.notify_all();
    for (std::thread& thread : threads_) thread.join();
  }

  int size() const { return (int)owns_.size(); }

  // task(rank, what the thread owns) on every thread.
  void all(const std::function<void(int, Own&)>& task) {
    task_ = &task;
    busy_.store((int)threads_.size(), std::memory_order_relaxed);
    {
      const std::lock_guard<std::mutex> guard(mutex_);
      round_.fetch_add(1, std::memory_order_release);
    }
    ready_.notify_all();
    task(0, owns_[0]);
    for (int looks = 0; busy_.load(std::memory_order_acquire) > 0; looks++) {
      relax();
      if (looks > SPINS) std::this_thread::yield();
    }
  }

  Own& own(int rank) { return owns_[rank]; }

 private:
  void serve(int rank) {
    int64_t seen = 0;
    for (;;) {
      for (int looks = 0; looks < SPINS && round_.load(std::memory_order_acquire) == seen; looks++) relax();
      if (round_.load(std::memory_order_acquire) == seen) {
        std::unique_lock<std::mutex> guard(mutex_);
        ready_.wait(guard, [&] { return round_.load(std::memory_order_acquire) != seen; });
      }
      seen = round_.load(std::memory_order_acquire);
      if (stop_) return;
      (*task_)(rank, owns_[rank]);
      busy_.fetch_sub(1, std::memory_order_release);
    }
  }

  std::vector<Own> owns_;
  std::vector<std::thread> threads_;
  std::mutex mutex_;
  std::condition_variable ready_;
  std::atomic<int64_t> round_{0};
  std::atomic<int> busy_{0};
  bool stop_ = false;
  const std::function<void(int, Own&)>* task_ = nullptr;
};

std::mutex pool_mutex;
std::unique_ptr<Pool> pool;

#if defined(__unix__)
// A fork waits for what another thread computes. Its child has the memory of the pool, but none of its threads: it
// leaves the pool where it is, and makes one of its own.
[[maybe_unused]] const int at_fork = pthread_atfork([] { pool_mutex.lock(); }, [] { pool_mutex.unlock(); },
                                                    [] {
                                                      (void)pool.release();
                                                      pool_mutex.unlock();
                                                    });
#endif

struct Encoder {
  const Kernels* kernels;
  int precision;
  std::vector<Block> blocks;
};

// What is computed by one call.
struct Work {
  const Encoder& encoder;
  const int32_t* order;
  int layers;
  const EmbeddingSpec* embedding;
  const int64_t *ids, *segments, *starts;
  const float* input;
  float* output;
  const int64_t* wanted;  // tokens, ascending; null: all
  std::vector<int64_t> wanted_starts;
};

bool prepare_room(const Work& work, Room& room, Chunk& chunk) {
  const BlockSpec& spec = work.encoder.blocks[0].spec;
  const int precision = work.encoder.precision;
  const Kernels& kernels = *work.encoder.kernels;
  const size_t tokens = chunk.tokens, width = spec.width;
  if (!grow(room.input, tokens * kernels.input_bytes(precision, spec.width)) ||
      !grow(room.scales, (2 + APART) * tokens * sizeof(float)) ||
      !grow(room.qkv, tokens * 3 * width * kernels.qkv_bytes(precision)) ||
      !grow(room.context, tokens * width * sizeof(float)))
    return false;
  chunk.input = room.input.data;
  chunk.scale = (float*)room.scales.data;
  chunk.zero = chunk.scale + tokens;
  chunk.apart = chunk.zero + tokens;
  chunk.qkv = room.qkv.data;
  chunk.context = room.context.data;
  if (!chunk.wanted) return true;
  if (!room.of_picked) room.of_picked.reset(new Room);
  Chunk& picked = room.picked = Chunk{};
  picked.tokens = (int)(chunk.wanted_starts[chunk.rows] - chunk.wanted_starts[0]);
  if (!grow(room.of_picked->hidden, std::max(picked.tokens, 1) * width * sizeof(float))) return false;
  picked.hidden = (float*)room.of_picked->hidden.data;
  chunk.picked = &picked;
  return prepare_room(work, *room.of_picked, picked);
}

Chunk chunk_of(const Work& work, int first, int last) {
  const size_t width = work.encoder.blocks[0].spec.width, from = work.starts[first];
  Chunk chunk{};
  chunk.tokens = (int)(work.starts[last] - work.starts[first]);
  chunk.rows = last - first;
  chunk.starts = work.starts + first;
  chunk.ids = work.ids ? work.ids + from : nullptr;
  chunk.segments = work.segments ? work.segments + from : nullptr;
  chunk.hidden = work.output + from * width;
  if (work.wanted) {
    chunk.wanted_starts = work.wanted_starts.data() + first;
    chunk.wanted = work.wanted + chunk.wanted_starts[0];
  }
  return chunk;
}

bool compute(const Work& work, Chunk& chunk, Team& team, int rank, Scratch& scratch) {
  const Encoder& encoder = work.encoder;
  const Kernels& kernels = *encoder.kernels;
  const size_t width = encoder.blocks[0].spec.width;
  const int first = (int)((int64_t)chunk.tokens * rank / team.size);
  const int last = (int)((int64_t)chunk.tokens * (rank + 1) / team.size);
  if (work.embedding) {
    kernels.embed(*work.embedding, chunk, first, last);
  } else {
    const size_t from = (chunk.starts[0] + first) * width;
    memcpy(work.output + from, work.input + from, (size_t)(last - first) * width * sizeof(float));
  }
  bool sound = true;
  if (work.layers) kernels.start(encoder.blocks[work.order[0]], encoder.precision, chunk, first, last);
  for (int layer = 0; layer < work.layers; layer++) {
    const Block* next = layer + 1 < work.layers ? &encoder.blocks[work.order[layer + 1]] : nullptr;
    sound =
        kernels.block(encoder.blocks[work.order[layer]], encoder.precision, chunk, team, rank, scratch, next) && sound;
  }
  return sound;
}

// The rows as chunks of about one size, as many for each thread: edges of row numbers.
std::vector<int> cut(const int64_t* starts, int rows, int threads) {
  const int64_t tokens = starts[rows] - starts[0];
  const int64_t chunks =
      std::max<int64_t>(1, (tokens + CHUNK_TOKENS * threads - 1) / (CHUNK_TOKENS * threads)) * threads;
  std::vector<int> edges{0};
  for (int64_t chunk = 1; chunk < chunks; chunk++) {
    const int64_t ideal = starts[0] + tokens * chunk / chunks;
    int row = (int)(std::lower_bound(starts, starts + rows, ideal) - starts);
    if (row > 0 && ideal - starts[row - 1] < starts[row] - ideal) row--;
    if (row > edges.back() && row < rows) edges.push_back(row);
  }
  edges.push_back(rows);
  return edges;
}

// The time of the busiest thread, if each takes the next chunk when it is done, over that of an even share.
double unevenness(const int64_t* starts, const std::vector<int>& edges, int threads) {
  std::vector<int64_t> loads(threads, 0);
  for (size_t i = 0; i + 1 < edges.size(); i++)
    *std::min_element(loads.begin(), loads.end()) += starts[edges[i + 1]] - starts[edges[i]];
  const double all = (double)(starts[edges.back()] - starts[0]);
  return (double)*std::max_element(loads.begin(), loads.end()) * threads / all;
}

// The threads; whoever asks holds `pool_mutex`.
void wake(int threads) {
  if (!pool || pool->size() != threads) pool.reset(new Pool(threads));
}

// Words of a row of the tile whose product is timed: with its panel it fits into the nearest cache.
constexpr int PEAK_GROUPS = 128;
constexpr int PEAK_ROUNDS = 500;

// Rows of a table that a thread takes at once.
constexpr int ROWS_AT_ONCE = 16;

// Operations a second of all threads together; 0: no memory.
double peak(const Kernels& kernels, int precision, int threads, double seconds) {
  typedef std::chrono::steady_clock Clock;
  const std::lock_guard<std::mutex> guard(pool_mutex);
  wake(threads);
  std::vector<double> rates(threads, 0.0);
  pool->all([&](int rank, Own&) {
    int32_t* a = (int32_t*)allocate(sizeof(int32_t) * MOST_TILE * PEAK_GROUPS);
    int32_t* b = (int32_t*)allocate(sizeof(int32_t) * MOST_TILE * PEAK_GROUPS);
    float* c = (float*)allocate(sizeof(float) * MOST_TILE * MOST_TILE);
    if (a && b && c) {
      kernels.multiply(precision, a, b, c, PEAK_GROUPS, PEAK_ROUNDS);  // the clock of the core rises
      double done = 0, passed = 0;
      for (const auto begun = Clock::now(); passed < seconds;
           passed = std::chrono::duration<double>(Clock::now() - begun).count())
        done += kernels.multiply(precision, a, b, c, PEAK_GROUPS, PEAK_ROUNDS);
      rates[rank] = done / passed;
    }
    for (void* one : {(void*)a, (void*)b, (void*)c}) free(one);
  });
  double all = 0;
  for (const double rate : rates) all = rate > 0 && all >= 0 ? all + rate : -1;
  return std::max(all, 0.0);
}

int run(const Work& work, int rows, int threads) {
  const std::lock_guard<std::mutex> guard(pool_mutex);
  wake(threads);
  const std::vector<int> edges = cut(work.starts, rows, threads);
  const int chunks = (int)edges.size() - 1;
  std::atomic<bool> sound{true};

  if (threads == 1 || unevenness(work.starts, edges, threads) < 1.2) {
    std::atomic<int> taken{0};
    pool->all([&](int, Own& own) {
      Team alone{};
      alone.size = 1;
      alone.wait = wait_for_all;
      for (int i = taken.fetch_add(1); i < chunks; i = taken.fetch_add(1)) {
        Chunk chunk = chunk_of(work, edges[i], edges[i + 1]);
        if (!prepare_room(work, own.room, chunk) || !compute(work, chunk, alone, 0, own.scratch)) sound = false;
      }
    });
  } else {  // few long rows: all threads on each
    for (int i = 0; i < chunks; i++) {
      Team team{};
      team.size = threads;
      team.wait = wait_for_all;
      Chunk chunk = chunk_of(work, edges[i], edges[i + 1]);
      if (!prepare_room(work, pool->own(0).room, chunk)) return 1;
      pool->all([&](int rank, Own& own) {
        Chunk mine = chunk;
        if (!compute(work, mine, team, rank, own.scratch)) sound = false;
      });
    }
  }
  return sound ? 0 : 1;
}

// What passes of training need for themselves, one after another.
Buffer arena{};

int train(const Kernels& kernels, const TrainingSpec& spec, int precision, Training& pass, bool forward, int threads) {
  const std::lock_guard<std::mutex> guard(pool_mutex);
  wake(threads);
  if (!grow(arena, kernels.arena_bytes(spec, precision, pass.tokens, threads))) return 1;
  pass.arena = (char*)arena.data;
  Team team{};
  team.size = threads;
  team.wait = wait_for_all;
  std::atomic<bool> sound{true};
  pool->all([&](int rank, Own& own) {
    if (!(forward ? kernels.forward : kernels.backward)(spec, precision, pass, team, rank, own.scratch)) sound = false;
  });
  return sound ? 0 : 1;
}

#if defined(BERTHEAD_AMX)
// Whether the processor has tiles of bytes and of bfloat16, and the system lends this process their registers.
// Source: Linux, Documentation/arch/x86/xstate.rst.
bool has_tiles() {
  constexpr unsigned BF16_BIT = 1u << 22, TILE_BIT = 1u << 24, INT8_BIT = 1u << 25,
                     ALL = BF16_BIT | TILE_BIT | INT8_BIT;
  constexpr int REQUEST_PERMISSION = 0x1023, TILE_DATA = 18;
  unsigned a, b, c, d;
  return __get_cpuid_count(7, 0, &a, &b, &c, &d) && (d & ALL) == ALL &&
         syscall(SYS_arch_prctl, REQUEST_PERMISSION, TILE_DATA) == 0;
}
#endif

std::vector<const Kernels*> usable() {
  std::vector<const Kernels*> found;
  const auto offer = [&](bool runs, const Kernels* kernels) {
    if (runs && kernels) found.push_back(kernels);
  };
#if defined(__x86_64__)
  __builtin_cpu_init();
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
  const bool avx512 = avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                      __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq");
  const bool vnni = avx512 && __builtin_cpu_supports("avx512vnni");
  const bool bf16 = vnni && __builtin_cpu_supports("avx512bf16");
  offer(avx2, &avx2_kernels);
  offer(avx512, &avx512_kernels);
  offer(vnni, &avx512_vnni_kernels);
  offer(bf16, &avx512_bf16_kernels);
#endif
#if defined(BERTHEAD_AMX)
  static const bool tiles = has_tiles();
  offer(bf16 && tiles, &avx512_amx_kernels);
#endif
  return found;
}

const Kernels* named(const char* name, int precision) {
  for (const Kernels* kernels : usable())
    if (strcmp(kernels->name, name) == 0 && (kernels->precisions >> precision & 1)) return kernels;
  return nullptr;
}

}  // namespace
}  // namespace berthead

using namespace berthead;

#define EXPORTED __attribute__((visibility("default")))

extern "C" {

// The name of the n-th kernels that this processor can run, the best last; null beyond the end.
EXPORTED const char* berthead_kernels(int n) {
  const auto found = usable();
  return n >= 0 && n < (int)found.size() ? found[n]->name : nullptr;
}

// Bytes of the tape of a pass over so many tokens; 0: these kernels or this precision are not here.
EXPORTED size_t berthead_tape_bytes(const char* name, int precision, const TrainingSpec* spec, int tokens, int going) {
  const Kernels* kernels = named(name, precision);
  return kernels ? kernels->tape_bytes(*spec, precision, tokens, going) : 0;
}

// A block forwards, or backwards. 0: done; 1: no memory.
EXPORTED int berthead_train(const char* name, int precision, const TrainingSpec* spec, Training* pass, int forward,
                            int threads) {
  return train(*named(name, precision), *spec, precision, *pass, forward != 0, threads);
}

// Rows of a table through the steps they have not made; no row twice.
EXPORTED void berthead_advance(const char* name, const TableSteps* steps, int threads) {
  const Kernels* kernels = named(name, FP32);
  const std::lock_guard<std::mutex> guard(pool_mutex);
  wake(threads);
  // In small shares: rows that were read lately have less to make up for.
  std::atomic<int> taken{0};
  pool->all([&](int, Own&) {
    for (int i = taken.fetch_add(ROWS_AT_ONCE); i < steps->count; i = taken.fetch_add(ROWS_AT_ONCE))
      kernels->advance(*steps, i, std::min(i + ROWS_AT_ONCE, steps->count));
  });
}

// A new encoder of no blocks; null: these kernels or this precision are not here.
EXPORTED void* berthead_open(const char* name, int precision) {
  const Kernels* kernels = named(name, precision);
  return kernels ? new Encoder{kernels, precision, {}} : nullptr;
}

// Weights are copied, tables are not. 0: done; 1: no memory.
EXPORTED int berthead_add(void* encoder, const BlockSpec* spec) {
  Encoder& to = *static_cast<Encoder*>(encoder);
  Block block{};
  if (!to.kernels->prepare(*spec, to.precision, block)) {
    release(block);
    return 1;
  }
  to.blocks.push_back(block);
  return 0;
}

// Rows through blocks `order` [layers], from ids or, where there is no embedding, from `input`, to `output`; both
// [tokens, width]. Of wanted tokens, ascending, alone the last vectors have a meaning; null: of all. 0: done; 1: no
// memory.
EXPORTED int berthead_run(void* encoder, const int32_t* order, int layers, const EmbeddingSpec* embedding,
                          const int64_t* ids, const int64_t* segments, const float* input, float* output,
                          const int64_t* starts, int rows, const int64_t* wanted, int wanted_count, int threads) {
  Work work{
      *static_cast<Encoder*>(encoder), order, layers, embedding, ids, segments, starts, input, output, wanted, {}};
  if (wanted)
    for (int row = 0; row <= rows; row++)
      work.wanted_starts.push_back(std::lower_bound(wanted, wanted + wanted_count, starts[row]) - wanted);
  return run(work, rows, threads);
}

// Operations a second (an addition and a multiplication are two) of a tile's product in the nearest cache, on so many
// threads together, over some seconds; 0: these kernels or this precision are not here, or no memory.
EXPORTED double berthead_peak(const char* name, int precision, int threads, double seconds) {
  for (const Kernels* kernels : usable())
    if (strcmp(kernels->name, name) == 0 && (kernels->precisions >> precision & 1))
      return peak(*kernels, precision, threads, seconds);
  return 0;
}

EXPORTED void berthead_close(void* encoder) {
  Encoder* one = static_cast<Encoder*>(encoder);
  for (Block& block : one->blocks) release(block);
  delete one;
}
}
