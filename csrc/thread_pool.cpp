#include "thread_pool.h"

#include <cstdlib>
#include <system_error>

#if defined(__unix__)
#include <pthread.h>
#endif

namespace berthead {
namespace {

// Few threads, each on its own processor: they poll, which takes a fraction of a microsecond.
void Barrier(Team* team) {
  if (team->size == 1) return;
  const int32_t phase = __atomic_load_n(&team->phase, __ATOMIC_ACQUIRE);
  if (__atomic_add_fetch(&team->arrived, 1, __ATOMIC_ACQ_REL) == team->size) {
    __atomic_store_n(&team->arrived, 0, __ATOMIC_RELAXED);
    __atomic_store_n(&team->phase, phase + 1, __ATOMIC_RELEASE);
    return;
  }
  for (int spins = 0; __atomic_load_n(&team->phase, __ATOMIC_ACQUIRE) == phase; spins++) {
    Pause();
    if (spins > kSpins) std::this_thread::yield();
  }
}

std::unique_ptr<ThreadPool> pool;

#if defined(__unix__)
// A fork waits until other threads have finished computing. Its child has the memory of the pool, but none of its
// threads: it abandons the pool, and makes its own.
void BeforeFork() { pool_mutex.lock(); }
void AfterForkInParent() { pool_mutex.unlock(); }
void AfterForkInChild() {
  (void)pool.release();
  pool_mutex.unlock();
}
[[maybe_unused]] const int at_fork = pthread_atfork(BeforeFork, AfterForkInParent, AfterForkInChild);
#endif

}  // namespace

std::mutex pool_mutex;

Team MakeTeam(int size) {
  Team team{};
  team.size = size;
  team.barrier = Barrier;
  return team;
}

Workspace::~Workspace() {
  for (Buffer* buffer : {&hidden, &input, &scales, &qkv, &context}) free(buffer->data);
}

ThreadState::~ThreadState() {
  for (Buffer* buffer : {&scratch.keys, &scratch.values, &scratch.scores, &scratch.weights, &scratch.c2p, &scratch.p2c,
                         &scratch.inner, &scratch.inputs, &scratch.scales, &scratch.transposed, &scratch.panels})
    free(buffer->data);
}

ThreadPool::ThreadPool(int size) : states_(size) {
  threads_.reserve(size);
  try {
    for (int rank = 1; rank < size; rank++) threads_.emplace_back([this, rank] { Serve(rank); });
  } catch (const std::system_error&) {  // the system gives no more threads: those that there are do the work
  } catch (...) {
    Stop();
    throw;
  }
}

ThreadPool::~ThreadPool() { Stop(); }

void ThreadPool::Stop() {
  {
    const std::lock_guard<std::mutex> guard(mutex_);
    stop_ = true;
    round_.fetch_add(1, std::memory_order_release);
  }
  ready_.notify_all();
  for (std::thread& thread : threads_) thread.join();
}

void ThreadPool::Run(const Task& task) {
  task_ = &task;
  busy_.store((int)threads_.size(), std::memory_order_relaxed);
  {
    const std::lock_guard<std::mutex> guard(mutex_);
    round_.fetch_add(1, std::memory_order_release);
  }
  ready_.notify_all();
  task(0, states_[0]);
  for (int spins = 0; busy_.load(std::memory_order_acquire) > 0; spins++) {
    Pause();
    if (spins > kSpins) std::this_thread::yield();
  }
}

// Polls for the next round first: the next call usually comes soon.
void ThreadPool::Serve(int rank) {
  int64_t seen = 0;
  for (;;) {
    for (int spins = 0; spins < kSpins && round_.load(std::memory_order_acquire) == seen; spins++) Pause();
    if (round_.load(std::memory_order_acquire) == seen) {
      std::unique_lock<std::mutex> guard(mutex_);
      ready_.wait(guard, [&] { return round_.load(std::memory_order_acquire) != seen; });
    }
    seen = round_.load(std::memory_order_acquire);
    if (stop_) return;
    (*task_)(rank, states_[rank]);
    busy_.fetch_sub(1, std::memory_order_release);
  }
}

ThreadPool& Threads(int size) {
  if (!pool || pool->wanted() != size) pool.reset(new ThreadPool(size));
  return *pool;
}

}  // namespace berthead
