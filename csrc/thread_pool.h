// The pool of computing threads. They stay between calls, and the caller is one of them.
#pragma once

#include <atomic>
#include <condition_variable>
#include <functional>
#include <memory>
#include <mutex>
#include <thread>
#include <vector>

#include "kernels.h"

namespace berthead {

// Lets a processor's other thread work while this one polls.
inline void Pause() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#endif
}

// Polls before a waiting thread gives up its processor: some ten microseconds.
constexpr int kSpins = 4000;

// A team with a barrier: no thread continues before all have arrived.
Team MakeTeam(int size);

// The activations of one chunk.
struct Workspace {
  Buffer hidden{}, input{}, scales{}, qkv{}, context{};
  Chunk gathered{};
  std::unique_ptr<Workspace> of_gathered;
  ~Workspace();
};

// Memory that one thread keeps between calls.
struct ThreadState {
  Workspace workspace;
  Scratch scratch{};
  ~ThreadState();
};

class ThreadPool {
 public:
  typedef std::function<void(int rank, ThreadState& state)> Task;

  explicit ThreadPool(int size);
  ~ThreadPool();

  // The threads that it was made for, and those that there are: fewer where the system gave no more.
  int wanted() const { return (int)states_.size(); }
  int size() const { return (int)threads_.size() + 1; }
  ThreadState& state(int rank) { return states_[rank]; }

  // Runs a task on every thread, and returns when all are done.
  void Run(const Task& task);

 private:
  void Serve(int rank);
  void Stop();

  std::vector<ThreadState> states_;
  std::vector<std::thread> threads_;
  std::mutex mutex_;
  std::condition_variable ready_;
  std::atomic<int64_t> round_{0};
  std::atomic<int> busy_{0};
  bool stop_ = false;
  const Task* task_ = nullptr;
};

// One call computes at a time: a user of the pool holds this, and so does a fork.
extern std::mutex pool_mutex;

// The process's pool for this many threads; its `size` says how many there are. The caller holds `pool_mutex`.
ThreadPool& Threads(int size);

}  // namespace berthead
