// Threads that do one piece of work together: OpenMP's where the compiler has it, else a pool of our own
// (AppleClang comes without). A body is called once for each thread, with its rank and how many there are.
#pragma once

#include <memory>

#include "barrier.hpp"

#if defined(HASTEN_OPENMP)

#include <omp.h>

namespace hasten {

inline constexpr const char* kThreads = "OpenMP";

template <class Body>
void together(int threads, const Body& body) {
#pragma omp parallel num_threads(threads)
  body(omp_get_thread_num(), omp_get_num_threads());
}

// The body is given a barrier of them all, too.
template <class Body>
void together_with_barrier(int threads, const Body& body) {
  std::unique_ptr<Barrier> barrier;
#pragma omp parallel num_threads(threads)
  {
    const int present = omp_get_num_threads();
#pragma omp single
    { barrier = std::make_unique<Barrier>(present); }
    body(omp_get_thread_num(), present, *barrier);
  }
}

}  // namespace hasten

#else

#include <atomic>
#include <mutex>
#include <thread>

#if !defined(_WIN32)
#include <unistd.h>
#endif

namespace hasten {

inline constexpr const char* kThreads = "own threads";

// Workers that wait for work. They are never ended: at the process's end the system does that.
class Pool {
 public:
  using Call = void (*)(const void* body, int rank, int size);

  static Pool& of_this_process() {
    static std::atomic<Pool*> pool{new Pool};
#if !defined(_WIN32)
    Pool* known = pool.load();
    if (known->process_ != getpid()) {  // a fork has the pool but none of its threads
      Pool* mine = new Pool;
      if (!pool.compare_exchange_strong(known, mine)) delete mine;
    }
#endif
    return *pool.load();
  }

  // Where another thread of the program has the workers, the work is done alone.
  void run(int threads, Call call, const void* body) {
    if (threads < 2 || !busy_.try_lock()) {
      call(body, 0, 1);
      return;
    }
    const std::lock_guard<std::mutex> lock(busy_, std::adopt_lock);
    while (workers_ < threads - 1) {
      ++workers_;
      std::thread(&Pool::work, this, workers_, turn_.load()).detach();
    }
    call_ = call;
    body_ = body;
    size_ = threads;
    left_.store(workers_, std::memory_order_relaxed);
    turn_.fetch_add(1, std::memory_order_release);
    turn_.notify_all();
    call(body, 0, threads);
    for (int spins = 0, left; (left = left_.load(std::memory_order_acquire)) != 0; ++spins)
      if (spins >= kSpins) left_.wait(left, std::memory_order_acquire);
  }

 private:
  static constexpr int kSpins = 4000;

  void work(int rank, int turn) {
    for (;; ++turn) {
      for (int spins = 0; turn_.load(std::memory_order_acquire) == turn; ++spins)
        if (spins >= kSpins) turn_.wait(turn, std::memory_order_acquire);
      // Whoever is not needed says so too: nobody reads what is being written for the next turn.
      if (rank < size_) call_(body_, rank, size_);
      left_.fetch_sub(1, std::memory_order_acq_rel);
      left_.notify_one();
    }
  }

  std::mutex busy_;
  int workers_ = 0;
  Call call_ = nullptr;
  const void* body_ = nullptr;
  int size_ = 0;
  alignas(64) std::atomic<int> turn_{0};
  alignas(64) std::atomic<int> left_{0};
#if !defined(_WIN32)
  const pid_t process_ = getpid();
#endif
};

template <class Body>
void together(int threads, const Body& body) {
  Pool::of_this_process().run(
      threads, [](const void* b, int rank, int size) { (*static_cast<const Body*>(b))(rank, size); }, &body);
}

// The body is given a barrier of them all, too.
template <class Body>
void together_with_barrier(int threads, const Body& body) {
  Barrier all(threads), alone(1);
  together(threads, [&](int rank, int size) { body(rank, size, size == 1 ? alone : all); });
}

}  // namespace hasten

#endif
