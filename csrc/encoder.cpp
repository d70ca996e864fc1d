// Divides the sequences of a pack among threads. Sequences are independent, so a pack is cut into chunks, and each
// thread takes a chunk through all layers: its data stays in its cache, and no thread waits. Only if a pack is a few
// long sequences, all threads compute each chunk together.
#include "encoder.h"

#include <algorithm>
#include <atomic>
#include <cstring>
#include <new>

#include "thread_pool.h"

namespace berthead {
namespace {

// Tokens of a chunk: their activations fit into a core's L2 cache.
constexpr int kChunkTokens = 256;
// Threads take separate chunks if the busiest one has at most this many times the work of an even split.
constexpr double kMostImbalance = 1.2;

bool PrepareWorkspace(const ForwardCall& call, Workspace& workspace, Chunk& chunk) {
  const BlockSpec& spec = call.encoder.blocks[0].spec;
  const int precision = call.encoder.precision;
  const Kernels& kernels = *call.encoder.kernels;
  const size_t tokens = chunk.tokens, width = spec.width;
  if (!Grow(workspace.input, tokens * kernels.input_bytes(precision, spec.width)) ||
      !Grow(workspace.scales, (2 + kOutliers) * tokens * sizeof(float)) ||
      !Grow(workspace.qkv, tokens * 3 * width * kernels.qkv_bytes(precision)) ||
      !Grow(workspace.context, tokens * width * sizeof(float)))
    return false;
  chunk.input = workspace.input.data;
  chunk.scale = (float*)workspace.scales.data;
  chunk.zero_point = chunk.scale + tokens;
  chunk.outliers = chunk.zero_point + tokens;
  chunk.qkv = workspace.qkv.data;
  chunk.context = workspace.context.data;
  if (!chunk.selected) return true;
  // A pool thread may run this: an exception there would end the process.
  if (!workspace.of_gathered) workspace.of_gathered.reset(new (std::nothrow) Workspace);
  if (!workspace.of_gathered) return false;
  Chunk& gathered = workspace.gathered = Chunk{};
  gathered.tokens = (int)(chunk.selected_starts[chunk.sequences] - chunk.selected_starts[0]);
  if (!Grow(workspace.of_gathered->hidden, std::max(gathered.tokens, 1) * width * sizeof(float))) return false;
  gathered.hidden = (float*)workspace.of_gathered->hidden.data;
  chunk.gathered = &gathered;
  return PrepareWorkspace(call, *workspace.of_gathered, gathered);
}

// The sequences from `first` to below `last`.
Chunk MakeChunk(const ForwardCall& call, int first, int last) {
  const size_t width = call.encoder.blocks[0].spec.width, from = call.starts[first];
  Chunk chunk{};
  chunk.tokens = (int)(call.starts[last] - call.starts[first]);
  chunk.sequences = last - first;
  chunk.starts = call.starts + first;
  chunk.ids = call.ids ? call.ids + from : nullptr;
  chunk.segments = call.segments ? call.segments + from : nullptr;
  chunk.hidden = call.output + from * width;
  if (call.selected) {
    chunk.selected_starts = call.selected_starts.data() + first;
    chunk.selected = call.selected + chunk.selected_starts[0];
  }
  return chunk;
}

// One thread's part of a chunk, through all layers.
bool RunChunk(const ForwardCall& call, Chunk& chunk, Team& team, int rank, Scratch& scratch) {
  const Encoder& encoder = call.encoder;
  const Kernels& kernels = *encoder.kernels;
  const size_t width = encoder.blocks[0].spec.width;
  const int first = (int)((int64_t)chunk.tokens * rank / team.size);
  const int last = (int)((int64_t)chunk.tokens * (rank + 1) / team.size);
  if (call.embedding) {
    kernels.embed(*call.embedding, chunk, first, last);
  } else {
    const size_t from = (chunk.starts[0] + first) * width;
    memcpy(call.output + from, call.input + from, (size_t)(last - first) * width * sizeof(float));
  }
  bool ok = call.layers == 0 ||
            kernels.prepare_first_input(encoder.blocks[call.order[0]], encoder.precision, chunk, first, last);
  for (int layer = 0; layer < call.layers; layer++) {
    const Block& block = encoder.blocks[call.order[layer]];
    const Block* next = layer + 1 < call.layers ? &encoder.blocks[call.order[layer + 1]] : nullptr;
    ok = kernels.run_block(block, encoder.precision, chunk, team, rank, scratch, next) && ok;
  }
  return ok;
}

// Chunks of about one size, the same number for each thread: the first sequence of each, and the end of the last.
std::vector<int> CutIntoChunks(const int64_t* starts, int sequences, int threads) {
  const int64_t tokens = starts[sequences] - starts[0];
  const int64_t round = kChunkTokens * threads;
  const int64_t chunks = std::max<int64_t>(1, (tokens + round - 1) / round) * threads;
  std::vector<int> edges{0};
  for (int64_t chunk = 1; chunk < chunks; chunk++) {
    const int64_t ideal = starts[0] + tokens * chunk / chunks;
    int edge = (int)(std::lower_bound(starts, starts + sequences, ideal) - starts);
    if (edge > 0 && ideal - starts[edge - 1] < starts[edge] - ideal) edge--;
    if (edge > edges.back() && edge < sequences) edges.push_back(edge);
  }
  edges.push_back(sequences);
  return edges;
}

// The busiest thread's tokens, if each takes the next chunk when it is done, over those of an even split.
double Imbalance(const int64_t* starts, const std::vector<int>& edges, int threads) {
  std::vector<int64_t> loads(threads, 0);
  for (size_t i = 0; i + 1 < edges.size(); i++)
    *std::min_element(loads.begin(), loads.end()) += starts[edges[i + 1]] - starts[edges[i]];
  const double tokens = (double)(starts[edges.back()] - starts[0]);
  return (double)*std::max_element(loads.begin(), loads.end()) * threads / tokens;
}

}  // namespace

bool RunForward(const ForwardCall& call, int sequences, int threads) {
  const std::lock_guard<std::mutex> guard(pool_mutex);
  ThreadPool& pool = Threads(threads);
  threads = pool.size();
  const std::vector<int> edges = CutIntoChunks(call.starts, sequences, threads);
  const int chunks = (int)edges.size() - 1;
  std::atomic<bool> ok{true};

  if (threads == 1 || Imbalance(call.starts, edges, threads) < kMostImbalance) {
    std::atomic<int> taken{0};
    pool.Run([&](int, ThreadState& state) {
      Team alone = MakeTeam(1);
      for (int i = taken.fetch_add(1); i < chunks; i = taken.fetch_add(1)) {
        Chunk chunk = MakeChunk(call, edges[i], edges[i + 1]);
        if (!PrepareWorkspace(call, state.workspace, chunk) || !RunChunk(call, chunk, alone, 0, state.scratch))
          ok = false;
      }
    });
  } else {
    for (int i = 0; i < chunks; i++) {
      Team team = MakeTeam(threads);
      Chunk chunk = MakeChunk(call, edges[i], edges[i + 1]);
      if (!PrepareWorkspace(call, pool.state(0).workspace, chunk)) return false;
      pool.Run([&](int rank, ThreadState& state) {
        Chunk own = chunk;
        if (!RunChunk(call, own, team, rank, state.scratch)) ok = false;
      });
    }
  }
  return ok;
}

}  // namespace berthead
