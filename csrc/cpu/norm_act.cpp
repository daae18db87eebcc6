// Normalisation + activation, forward: SIMD kernels for one instruction set (cpu/isa.h).
//
// Bound: memory. A statistics group is read once for its moments and, from the cache where it fits, a second time to be
// normalised and written; both passes of the moments themselves are over a block in L1 or L2.

// A branch in a loop costs a memory-bound kernel nothing; a copy of the loop for either side of it makes the file twice
// as long to compile.
#if !defined(__clang__)
#pragma GCC optimize("no-unswitch-loops")
#endif

#include "cpu/norm_act.h"

#include "cpu/norm.h"
#include "cpu/scratch.h"

namespace artkernels::cpu {
namespace ARTKERNELS_ISA {
namespace {

// ---- elementwise ----------------------------------------------------------------------------------------------------

struct Uniform {  // coefficients of a plane
  vfloat mean, scale, shift;
  ARTKERNELS_INLINE Uniform at(int64_t) const { return *this; }
};

Uniform uniform(const Coefficients& c) { return {broadcast(c.mean), broadcast(c.scale), broadcast(c.shift)}; }

struct PerColumn {  // coefficients of a row: [width] each, padded to whole vectors
  const float *mean, *scale, *shift;
  ARTKERNELS_INLINE Uniform at(int64_t i) const { return {load(mean + i), load(scale + i), load(shift + i)}; }
};

// Some rows of `count` elements, `stride` apart.
struct Rows {
  int64_t rows, stride, count;
};

// output = activation(z) with the residual, null where there is none. A few rows go together, so that a column's
// coefficients are loaded once for them, unless the activation is what takes the time. What lies `next` elements ahead
// in the input is fetched into L2 meanwhile, unless that is 0.
template <Activation activation, typename scalar_t, typename Z>
__attribute__((noinline)) void map(const scalar_t* input, const scalar_t* residual, Residual mode, scalar_t* output,
                                   Rows shape, Z coefficients, float negative_slope, int64_t next) noexcept {
  auto value = [&](const Uniform& c, int64_t at, auto&& load_at) ARTKERNELS_LAMBDA {
    vfloat z = (load_at(input + at) - c.mean) * c.scale + c.shift;
    if (mode == Residual::BeforeActivation) z += load_at(residual + at);
    z = activate<activation>(z, negative_slope);
    if (mode == Residual::AfterActivation) z += load_at(residual + at);
    return z;
  };
  auto map_rows = [&](int64_t row, auto together) ARTKERNELS_LAMBDA {
    constexpr int rows = decltype(together)::value;
    int64_t i = 0;
    for (; i + VL <= shape.count; i += VL) {
      const Uniform c = coefficients.at(i);
      if (next) __builtin_prefetch(input + row * shape.stride + i + next, 0, 2);
      vfloat values[rows];
      ARTKERNELS_UNROLL
      for (int r = 0; r < rows; ++r)
        values[r] = value(c, (row + r) * shape.stride + i, [](const scalar_t* p) ARTKERNELS_LAMBDA { return load(p); });
      ARTKERNELS_UNROLL
      for (int r = 0; r < rows; ++r) store(output + (row + r) * shape.stride + i, values[r]);
    }
    const int64_t rest = shape.count - i;
    for (int r = 0; r < rows && rest > 0; ++r) {
      const int64_t at = (row + r) * shape.stride + i;
      const vfloat last =
          value(coefficients.at(i), at, [rest](const scalar_t* p) ARTKERNELS_LAMBDA { return load_partial(p, rest); });
      store_partial(output + at, last, rest);
    }
  };
  int64_t row = 0;
  if constexpr (is_cheap(activation))
    for (; row + ROWS_TOGETHER <= shape.rows; row += ROWS_TOGETHER) map_rows(row, Int<ROWS_TOGETHER>{});
  for (; row < shape.rows; ++row) map_rows(row, Int<1>{});
}

// The map of the call's activation. What calls it is compiled once for all of them.
template <typename scalar_t, typename Z>
auto map_of(Activation activation) {
  auto chosen = &map<Activation::None, scalar_t, Z>;
  with_activation(activation, [&](auto constant) { chosen = &map<decltype(constant)::activation, scalar_t, Z>; });
  return chosen;
}

// ---- planes ---------------------------------------------------------------------------------------------------------

// Calls add(accumulator, vector, index) for all elements, on four accumulators in turn; elements beyond the end are
// `beyond`.
template <typename scalar_t, typename F>
ARTKERNELS_INLINE void for_each_vector(const scalar_t* x, int64_t count, float beyond, F&& add) {
  int64_t i = 0;
  for (; i + 4 * VL <= count; i += 4 * VL) ARTKERNELS_UNROLL
  for (int u = 0; u < 4; ++u) add(u, load(x + i + u * VL), i + u * VL);
  for (; i + VL <= count; i += VL) add(0, load(x + i), i);
  if (i < count) {
    vfloat last = load_partial(x + i, count - i);
    for (int j = count - i; j < VL; ++j) last[j] = beyond;
    add(0, last, i);
  }
}

ARTKERNELS_INLINE float sum_of_four(const vfloat (&v)[4]) { return sum((v[0] + v[1]) + (v[2] + v[3])); }

// The mean of a block first, then the distances from it and their squares (the distances make up for the rounding of
// the mean). Memory would be idle while a block is read the second time, from L1: so the next one is fetched meanwhile.
// `ahead` is what lies a block ahead, there or not.
template <typename scalar_t>
void add_moments(const scalar_t* x, int64_t count, const scalar_t* ahead, Moments& moments) {
  for (int64_t i = 0; i < count; i += BLOCK) {
    const int64_t n = count - i < BLOCK ? count - i : BLOCK;
    vfloat sums[4] = {}, distances[4] = {}, squares[4] = {};
    for_each_vector(x + i, n, 0.f, [&](int u, vfloat v, int64_t) ARTKERNELS_LAMBDA { sums[u] += v; });
    const float mean = sum_of_four(sums) / n;
    for_each_vector(x + i, n, mean, [&](int u, vfloat v, int64_t at) ARTKERNELS_LAMBDA {
      __builtin_prefetch(ahead + i + at);
      const vfloat distance = v - mean;
      distances[u] += distance;
      squares[u] += distance * distance;
    });
    const double rest = sum_of_four(distances);
    moments.merge(n, mean + rest / n, sum_of_four(squares) - rest * rest / n);
  }
}

// The moments of a thread's share of a group.
template <typename scalar_t>
Moments share_moments(const NormActParams& p, const PlaneGroup& group, Range range) {
  const int64_t P = p.features.P, run = group.stride == 1 ? group.count * P : P;  // neighbouring planes are one run
  const scalar_t* const x = static_cast<const scalar_t*>(p.input);
  Moments moments;
  for_each_run(range, run, [&](int64_t index, int64_t pixel, int64_t pixels) {
    const scalar_t* const source = x + group.plane(index) * P + pixel;
    add_moments(source, pixels, pixels > BLOCK ? source + BLOCK : x + group.plane(index + 1) * P, moments);
  });
  return moments;
}

// The members' moments, added in their order.
Moments team_moments(Moments mine, const Team& team, Moments* partial) {
  if (team.size == 1) return mine;
  partial[team.member] = mine;
  team.barrier();
  Moments moments;
  for (int member = 0; member < team.size; ++member) moments.merge(partial[member]);
  team.barrier();  // all have read what the next group overwrites
  return moments;
}

template <typename scalar_t>
void planes(const NormActParams& p, int threads) {
  const int64_t C = p.features.C, P = p.features.P;
  const scalar_t *const x = static_cast<const scalar_t*>(p.input), *const r = static_cast<const scalar_t*>(p.residual);
  scalar_t* const y = static_cast<scalar_t*>(p.output);
  const int64_t next = next_group(p, p.statistics_given, sizeof(scalar_t));
  Moments* const partial = static_cast<Moments*>(thread_scratch(threads * sizeof(Moments)));
  const auto map = map_of<scalar_t, Uniform>(p.activation);
#pragma omp parallel num_threads(threads)
  deal(PlaneGroup::number(p, p.statistics_given), [&](int64_t item, Team team) {
    const PlaneGroup group(p, p.statistics_given, item);
    const Range range = team.share(group.count * P, VL);
    float mean, var;
    if (p.statistics_given) {
      mean = p.mean[group.statistic], var = p.var[group.statistic];
    } else {
      const Moments moments = team_moments(share_moments<scalar_t>(p, group, range), team, partial);
      mean = float(moments.mean);
      var = float(moments.m2 / (moments.n - double(p.correction)));
      if (team.member == 0) p.mean[group.statistic] = mean, p.var[group.statistic] = var;
    }
    if (!y) return;
    const float rstd = rstd_of(p, var);
    for_each_run_reversed(range, P, [&](int64_t index, int64_t pixel, int64_t pixels) {
      const int64_t plane = group.plane(index), at = plane * P + pixel;
      const Uniform coefficients = uniform(coefficients_of(p, plane / C, plane % C, mean, rstd));
      map(x + at, r ? r + at : nullptr, p.residual_mode, y + at, Rows{1, 0, pixels}, coefficients, p.negative_slope,
          next);
    });
  });
}

// ---- columns --------------------------------------------------------------------------------------------------------

// Of some rows of each column of a block: sums of the distances from `shift`, and of their squares.
struct ColumnSums {
  double *sums, *squares;  // [padded width]
  const float* shift;      // [padded width], the same for all columns of a statistic, not far from their mean
};

// One block of rows, `vectors` vectors of columns: its own mean first, then the distances from it, as in add_moments.
template <int vectors, typename scalar_t>
void add_column_moments(const scalar_t* x, int64_t stride, int64_t rows, int64_t count, const ColumnSums& out) {
  auto load_row = [&](int64_t row, int v) ARTKERNELS_LAMBDA {
    const scalar_t* const p = x + row * stride + v * VL;
    return vectors > 1 ? load(p) : load_up_to(p, count);
  };
  vfloat mean[vectors] = {}, rest[vectors] = {}, squares[vectors] = {};
  for (int64_t row = 0; row < rows; ++row) ARTKERNELS_UNROLL
  for (int v = 0; v < vectors; ++v) mean[v] += load_row(row, v);
  for (int v = 0; v < vectors; ++v) mean[v] /= float(rows);
  for (int64_t row = 0; row < rows; ++row) ARTKERNELS_UNROLL
  for (int v = 0; v < vectors; ++v) {
    const vfloat distance = load_row(row, v) - mean[v];
    rest[v] += distance;
    squares[v] += distance * distance;
  }
  for (int v = 0; v < vectors; ++v) {
    const vdouble delta = widen(mean[v] - load(out.shift + v * VL)), sum = delta * double(rows) + widen(rest[v]);
    accumulate(out.sums + v * VL, sum);
    accumulate(out.squares + v * VL, widen(squares[v]) + delta * (sum + widen(rest[v])));
  }
}

template <typename scalar_t>
void column_sums(const scalar_t* x, int64_t stride, int64_t rows, int64_t width, const ColumnSums& out) {
  __builtin_memset(out.sums, 0, padded(width) * sizeof(double));
  __builtin_memset(out.squares, 0, padded(width) * sizeof(double));
  for (int64_t row = 0; row < rows; row += ROWS_PER_BLOCK) {
    const int64_t count = rows - row < ROWS_PER_BLOCK ? rows - row : ROWS_PER_BLOCK;
    auto at = [&](int64_t k) { return ColumnSums{out.sums + k, out.squares + k, out.shift + k}; };
    int64_t k = 0;
    for (; k + COLUMN_VECTORS * VL <= width; k += COLUMN_VECTORS * VL)
      add_column_moments<COLUMN_VECTORS>(x + row * stride + k, stride, count, VL, at(k));
    for (; k < width; k += VL) add_column_moments<1>(x + row * stride + k, stride, count, width - k, at(k));
  }
}

// Rows of values: mean, scale and shift of the first member serve all; each member has a `shift` of its own, the
// fourth.
struct Scratch : ColumnScratch<4> {
  using ColumnScratch::ColumnScratch;
  float* shift(int member) const { return values(member, 3); }
  ColumnSums of(int member) const { return {sums(member, 0), sums(member, 1), shift(member)}; }
  PerColumn coefficients() const { return {values(0, 0), values(0, 1), values(0, 2)}; }
};

// The mean, over the columns of each statistic, of the slab's first row.
template <typename scalar_t>
void fill_shift(const scalar_t* row, int64_t width, int64_t fold, float* shift) {
  for (int64_t k = 0; k < width; k += VL) store(shift + k, load_up_to(row + k, width - k));
  if (fold == 1) return;
  for (int64_t first = 0; first < width; first += fold) {
    float total = 0;
    for (int64_t k = first; k < first + fold; ++k) total += shift[k];
    for (int64_t k = first; k < first + fold; ++k) shift[k] = total / fold;
  }
}

// Mean and variance of the columns [range) from the sums of all members, a statistic at a time.
void finish_columns(const NormActParams& p, const Columns& c, const ColumnBlock& block, Range range, int members,
                    const Scratch& scratch) {
  const double n = double(c.rows * c.fold);
  for (int64_t first = range.begin; first < range.end; first += c.fold) {
    double total = 0, squares = 0;
    for (int member = 0; member < members; ++member) {
      const ColumnSums s = scratch.of(member);
      for (int64_t k = first; k < first + c.fold; ++k) total += s.sums[k], squares += s.squares[k];
    }
    const double difference = squares - total * total / n, m2 = difference < 0 ? 0 : difference;  // NaN stays
    const int64_t statistic = block.statistic(c, first);
    p.mean[statistic] = float(scratch.shift(0)[first] + total / n);
    p.var[statistic] = float(m2 / (n - double(p.correction)));
  }
}

void fill_coefficients(const NormActParams& p, const Columns& c, const ColumnBlock& block, Range range,
                       const Scratch& scratch) {
  float *const means = scratch.values(0, 0), *const scales = scratch.values(0, 1), *const shifts = scratch.values(0, 2);
  for (int64_t first = range.begin; first < range.end; first += c.fold) {
    const int64_t statistic = block.statistic(c, first);
    const float mean = p.mean[statistic], rstd = rstd_of(p, p.var[statistic]);
    for (int64_t channel = first; channel < first + c.fold; channel += c.channel) {
      const Coefficients value = coefficients_of(p, block.slab, block.channel(c, channel), mean, rstd);
      for (int64_t k = channel; k < channel + c.channel; ++k) {
        means[k] = value.mean;
        scales[k] = value.scale;
        shifts[k] = value.shift;
      }
    }
  }
}

template <typename scalar_t>
void columns(const NormActParams& p, int threads) {
  const Columns c(p, sizeof(scalar_t));
  const scalar_t *const x = static_cast<const scalar_t*>(p.input), *const r = static_cast<const scalar_t*>(p.residual);
  scalar_t* const y = static_cast<scalar_t*>(p.output);
  void* const memory = thread_scratch(Scratch::bytes(c.width, threads));
  const auto map = map_of<scalar_t, PerColumn>(p.activation);
#pragma omp parallel num_threads(threads)
  deal(c.slabs * c.blocks(), [&](int64_t item, Team team) {
    const ColumnBlock block(c, item);
    const Scratch scratch(memory, c.width, threads, team.first);
    const Range rows = team.share(c.rows), mine = team.share(block.width, c.fold);
    if (!p.statistics_given) {
      fill_shift(x + block.offset(c, 0), block.width, c.fold, scratch.shift(team.member));
      column_sums(x + block.offset(c, rows.begin), c.columns, rows.end - rows.begin, block.width,
                  scratch.of(team.member));
      team.barrier();
      finish_columns(p, c, block, mine, team.size, scratch);
    }
    if (p.output) {
      fill_coefficients(p, c, block, mine, scratch);
      team.barrier();
      for_each_run_reversed(rows, ROWS_PER_BLOCK, [&](int64_t index, int64_t row, int64_t count) {
        const int64_t at = block.offset(c, index * ROWS_PER_BLOCK + row);
        map(x + at, r ? r + at : nullptr, p.residual_mode, y + at, Rows{count, c.columns, block.width},
            scratch.coefficients(), p.negative_slope, 0);
      });
    }
    team.barrier();  // all are done with what the next block overwrites
  });
}

}  // namespace

void norm_act(const NormActParams& p, int threads) {
  with_scalar_type(p.features.dtype, [&](auto scalar) {
    using scalar_t = decltype(scalar);
    if (walked_as_columns(p)) columns<scalar_t>(p, threads);
    else planes<scalar_t>(p, threads);
  });
}

}  // namespace ARTKERNELS_ISA
}  // namespace artkernels::cpu
