// What the forward and the backward of norm_act share: which elements belong together, how they are walked, moments.
//
// A feature map is walked in one of two ways. As planes: a statistics group is a few contiguous runs, sums go along
// them (NCHW). As columns: memory is a matrix of `rows` x `columns`, sums go down its columns, and `fold` neighbouring
// columns share a mean (channels_last: a row is a pixel; batch norm of small NCHW planes: a row is an image, a channel
// is P columns).
#pragma once

#include "cpu/activation.h"
#include "cpu/team.h"
#include "cpu/vec.h"
#include "include/params.h"

namespace artkernels::cpu {
namespace {

typedef double vdouble __attribute__((vector_size(VL * 8)));
typedef double vdouble_any __attribute__((vector_size(VL * 8), aligned(8), may_alias));

int64_t round_up(int64_t n, int64_t step) { return (n + step - 1) / step * step; }

constexpr int64_t FETCHED_BYTES = 512 << 10;  // of L2, for a group and the next one each
constexpr int64_t BLOCK = 2048;               // elements of a contiguous run that are handled while they are in L1

// Count, mean and sum of squared distances from it. Never from sums of squares, which cancel when |mean| >> sigma.
struct Moments {
  double n = 0, mean = 0, m2 = 0;

  // Chan, Golub and LeVeque 1979, "Updating formulae and a pairwise algorithm for computing sample variances".
  void merge(double other_n, double other_mean, double other_m2) {
    if (other_n == 0) return;
    const double delta = other_mean - mean, total = n + other_n;
    m2 += other_m2 + delta * delta * n * other_n / total;
    mean += delta * other_n / total;
    n = total;
  }
  void merge(const Moments& other) { merge(other.n, other.mean, other.m2); }
};

// z = (x - mean) * scale + shift. The mean is subtracted first: folded into the shift it would cancel.
struct Coefficients {
  float mean, scale, shift;
};

float rstd_of(const NormAct& p, float var) { return float(1.0 / __builtin_sqrt(double(var) + double(p.eps))); }

float weight_of(const NormAct& p, int64_t image, int64_t channel) {
  return p.weight ? p.weight[image * p.affine_stride + channel] : 1.f;
}

Coefficients coefficients_of(const NormAct& p, int64_t image, int64_t channel, float mean, float rstd) {
  const float bias = p.bias ? p.bias[image * p.affine_stride + channel] : 0.f;
  return {mean, p.alpha * weight_of(p, image, channel) * rstd + (1 - p.alpha), p.alpha * bias + (1 - p.alpha) * mean};
}

int64_t statistics_of(const NormAct& p) { return p.across_batch ? p.groups : p.features.N * p.groups; }

// ---- planes ---------------------------------------------------------------------------------------------------------

// Planes that are handled together, `stride` planes apart: those of one statistic or, when the statistics are given, a
// single one, so that memory is walked in its order.
struct PlaneGroup {
  int64_t statistic, first, count, stride;

  PlaneGroup(const NormAct& p, bool statistics_given, int64_t item) {
    const int64_t C = p.features.C;
    if (statistics_given) {
      statistic = p.across_batch ? item % C : item / (C / p.groups);
      first = item, count = 1, stride = 1;
    } else {
      statistic = item;
      first = p.across_batch ? item : item * (C / p.groups);
      count = p.across_batch ? p.features.N : C / p.groups;
      stride = p.across_batch ? C : 1;
    }
  }

  static int64_t number(const NormAct& p, bool statistics_given) {
    return statistics_given ? p.features.N * p.features.C : statistics_of(p);
  }

  int64_t plane(int64_t index) const { return first + index * stride; }
};

// f(index of the plane in its group, first pixel, pixels) over elements [range) of `planes` planes of P pixels.
template <typename F>
ARTKERNELS_INLINE void for_each_run(Range range, int64_t P, F&& f) {
  for (int64_t at = range.begin; at < range.end;) {
    const int64_t index = at / P, pixel = at % P, left = range.end - at;
    const int64_t pixels = P - pixel < left ? P - pixel : left;
    f(index, pixel, pixels);
    at += pixels;
  }
}
// The same from the end to the beginning: what was read last is still in the cache.
template <typename F>
ARTKERNELS_INLINE void for_each_run_reversed(Range range, int64_t P, F&& f) {
  for (int64_t end = range.end; end > range.begin;) {
    const int64_t index = (end - 1) / P, first = index * P > range.begin ? index * P : range.begin;
    f(index, first % P, end - first);
    end = first;
  }
}

// Elements from a group to the one that a thread handles next, which it fetches while it writes this one: memory is
// then never idle. 0 where the statistics are given, or where both groups do not fit in L2.
int64_t next_group(const NormAct& p, bool statistics_given, int64_t bytes_per_pixel) {
  const PlaneGroup group(p, statistics_given, 0);
  const bool fits = group.count * p.features.P * bytes_per_pixel <= FETCHED_BYTES;
  return statistics_given || !fits ? 0 : p.features.P * (p.across_batch ? 1 : group.count);
}

// ---- columns --------------------------------------------------------------------------------------------------------

// A thread keeps the part of a matrix that it sums in its L2 cache, to read it a second time from there: blocks of
// columns where a slab's rows allow that, else whole rows.
constexpr int64_t SLAB_BYTES = 512 << 10;
// Rows that are summed at a time, before doubles take over: a running float32 sum of more would be less exact than
// torch's own, which goes along planes.
constexpr int64_t ROWS_PER_BLOCK = 16;
constexpr int ROWS_TOGETHER = 4;      // written at a time, with coefficients loaded once
constexpr int COLUMN_VECTORS = 4;     // summed at a time
constexpr int64_t NARROW = 64;        // columns: narrower blocks would waste what a row prefetches
constexpr int64_t SMALL_PLANE = 256;  // pixels: smaller planes are walked as columns by a batch norm

struct Columns {
  int64_t slabs, rows, columns;  // a statistic belongs to one slab
  int64_t fold;                  // neighbouring columns of one statistic
  int64_t channel;               // neighbouring columns of one channel
  int64_t width;                 // columns of a block, a multiple of fold; the last block may have fewer

  Columns(const NormAct& p, int64_t element_size) {
    const FeatureMap& f = p.features;
    if (f.channels_last) {
      slabs = p.across_batch ? 1 : f.N;
      rows = p.across_batch ? f.N * f.P : f.P;
      columns = f.C, fold = f.C / p.groups, channel = 1;
    } else {
      slabs = 1, rows = f.N, columns = f.C * f.P, fold = f.P, channel = f.P;
    }
    const int64_t fitting = SLAB_BYTES / (rows * element_size) / VL * VL / fold * fold;
    width = fitting >= NARROW && fitting < columns ? fitting : columns;
  }

  int64_t blocks() const { return (columns + width - 1) / width; }  // of a slab
};

// Columns [first, first + width) of a slab.
struct ColumnBlock {
  int64_t slab, first, width;

  ColumnBlock(const Columns& c, int64_t item)
      : slab(item / c.blocks()),
        first(item % c.blocks() * c.width),
        width(c.columns - first < c.width ? c.columns - first : c.width) {}

  int64_t statistic(const Columns& c, int64_t column) const {
    return slab * (c.columns / c.fold) + (first + column) / c.fold;
  }
  int64_t channel(const Columns& c, int64_t column) const { return (first + column) / c.channel; }
  int64_t offset(const Columns& c, int64_t row) const { return (slab * c.rows + row) * c.columns + first; }
};

bool walked_as_columns(const NormAct& p) {
  return p.features.channels_last || (p.across_batch && p.features.P <= SMALL_PLANE);
}

ARTKERNELS_INLINE vdouble widen(vfloat v) { return __builtin_convertvector(v, vdouble); }
ARTKERNELS_INLINE void accumulate(double* sums, const vdouble& v) { *(vdouble_any*)sums += v; }

template <int n>
struct Int {
  static constexpr int value = n;
};

int64_t padded(int64_t columns) { return round_up(columns, VL); }

// What a team needs for a block of columns: for each member two rows of sums and `rows_of_values` rows of floats.
template <int rows_of_values>
struct ColumnScratch {
  double* doubles;  // [members, 2, padded width]
  float* floats;    // [members, rows_of_values, padded width]
  int64_t width;    // padded

  static int64_t bytes(int64_t width, int threads) {
    return padded(width) * threads * (2 * sizeof(double) + rows_of_values * sizeof(float));
  }
  // `memory` is that of all threads; the team begins with thread `first`.
  ColumnScratch(void* memory, int64_t columns, int threads, int first) : width(padded(columns)) {
    double* const all_doubles = static_cast<double*>(memory);
    doubles = all_doubles + first * 2 * width;
    floats = reinterpret_cast<float*>(all_doubles + threads * 2 * width) + first * rows_of_values * width;
  }

  double* sums(int member, int which) const { return doubles + (member * 2 + which) * width; }
  float* values(int member, int which) const { return floats + (member * rows_of_values + which) * width; }
};

}  // namespace
}  // namespace artkernels::cpu
