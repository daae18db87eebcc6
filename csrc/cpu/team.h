// How the threads of a parallel region share work.
#pragma once

#include <omp.h>

#include <cstdint>

namespace artkernels::cpu {
namespace {

struct Range {
  int64_t begin, end;
};

// The part-th of `parts` equal shares of [0, n), on multiples of `step`.
Range share(int64_t n, int part, int parts, int64_t step = 1) {
  const int64_t steps = (n + step - 1) / step;
  const int64_t begin = steps * part / parts * step, end = steps * (part + 1) / parts * step;
  return {begin < n ? begin : n, end < n ? end : n};
}

// The threads that work on one item together: `size` of them, from thread `first` on.
struct Team {
  int first, size, member;

  Range share(int64_t n, int64_t step = 1) const { return cpu::share(n, member, size, step); }

  // Waits for the others; every thread of the region is in the team, or the team is one thread.
  void barrier() const {
    if (size > 1) {
#pragma omp barrier
    }
  }
};

// Calls work(item, team) for `items` items of equal work, inside a parallel region: every thread takes the same number
// of whole items, neighbours in memory; what is left over is shared by all threads, one item after the other, once all
// are done with their own.
template <typename F>
void deal(int64_t items, F&& work) {
  const int T = omp_get_num_threads(), t = omp_get_thread_num();
  const int64_t whole = items / T;
  for (int64_t item = t * whole; item < (t + 1) * whole; ++item) work(item, Team{t, 1, 0});
  if (T > 1 && items > T * whole) {
#pragma omp barrier
  }
  for (int64_t item = T * whole; item < items; ++item) work(item, Team{0, T, t});
}

}  // namespace
}  // namespace artkernels::cpu
