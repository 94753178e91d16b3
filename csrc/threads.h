// Division of work among threads.
//
// The threads are GNU OpenMP's if the process has them. Torch on Linux brings them, and they spin for a while after
// each operation of torch, so that threads of our own would have to share the cores with them. In a process without
// them `StartThreads` decides. A call of the mixture takes milliseconds, so that starting threads pays. A call of the
// bottleneck takes tenths of a millisecond, and started threads made it slower than one thread.
#ifndef IBVIT_THREADS_H
#define IBVIT_THREADS_H

#include <dlfcn.h>
#include <stdint.h>

#include <algorithm>
#include <atomic>
#include <exception>
#include <thread>
#include <vector>

enum class StartThreads { kNever, kWithoutOpenMP };

// Runs body(data) on at most `threads` threads, the calling one included, and waits for them. Body does not throw.
inline void run_threads(void (*body)(void*), void* data, int32_t threads, StartThreads start) {
  if (threads <= 1) return body(data);
  using Parallel = void (*)(void (*)(void*), void*, unsigned, unsigned);
  static std::atomic<Parallel> address{nullptr};
  Parallel parallel = address;
  if (parallel == nullptr) {  // torch may have been loaded since the last call
    address = parallel = Parallel(dlsym(RTLD_DEFAULT, "GOMP_parallel"));
  }
  if (parallel != nullptr) return parallel(body, data, unsigned(threads), 0);
  std::vector<std::thread> helpers;
  try {
    for (int32_t t = 1; start == StartThreads::kWithoutOpenMP && t < threads; ++t) helpers.emplace_back(body, data);
  } catch (...) {
    // The threads that could be started do all the work.
  }
  body(data);
  for (std::thread& helper : helpers) helper.join();
}

// Kept out of line: inlined into a block that catches exceptions, GCC compiles the work to slower code.
template <typename Work>
__attribute__((noinline)) void run_parts(
    int64_t parts, std::atomic<int64_t>& next_part, float* scratch, const Work& work) {
  for (int64_t part = next_part++; part < parts; part = next_part++) work(part, scratch);
}

// Runs work(part, scratch) for parts 0 ... parts - 1 on at most `threads` threads. `scratch` is memory of the thread's
// own. If a part throws, no thread begins another part, and the exception is thrown here after all threads have ended.
template <typename Work>
void for_parts(int64_t parts, int64_t scratch_floats, int32_t threads, StartThreads start, const Work& work) {
  struct alignas(64) CacheLine {  // no two threads write to the same one
    float floats[16];
  };
  const int64_t lines = (scratch_floats + 15) / 16;
  threads = int32_t(std::max<int64_t>(1, std::min<int64_t>(threads, parts)));
  std::vector<CacheLine> scratch(threads * lines);
  std::atomic<int64_t> next_part{0}, next_thread{0};
  std::atomic_flag failed = ATOMIC_FLAG_INIT;
  std::exception_ptr failure;
  auto body = [&] {
    float* thread_scratch = reinterpret_cast<float*>(scratch.data()) + next_thread++ * lines * 16;
    try {
      run_parts(parts, next_part, thread_scratch, work);
    } catch (...) {
      if (!failed.test_and_set()) failure = std::current_exception();
      next_part = parts;
    }
  };
  run_threads([](void* data) { (*static_cast<decltype(body)*>(data))(); }, &body, threads, start);
  if (failure) std::rethrow_exception(failure);
}

#endif
