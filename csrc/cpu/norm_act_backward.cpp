// Normalisation + activation, backward: SIMD kernels for one instruction set (cpu/isa.h).
//
// Bound: memory. z is computed again from the input, so that the forward keeps nothing but that. A statistics group is
// read once for the sums of dz and dz xhat and, from the cache where it fits, a second time for grad_input. Where
// grad_input does not depend on those sums (given statistics), both are done block by block in one pass.

// A branch in a loop costs a memory-bound kernel nothing; a copy of the loop for either side of it makes the file twice
// as long to compile.
#if !defined(__clang__)
#pragma GCC optimize("no-unswitch-loops")
#endif

#include "cpu/norm_act.h"

#include "cpu/norm_act_gradient.h"
#include "cpu/scratch.h"

namespace artkernels::cpu {
namespace ARTKERNELS_ISA {
namespace {

bool needs_writing(const NormActBackwardParams& p) { return p.grad_input || p.grad_residual; }
// Whether grad_input needs the sums of the whole group, and so a second pass.
bool depends_on_sums(const NormActBackwardParams& p) { return p.grad_input && !p.statistics_given && !p.averages; }

struct Averages {
  float a1, a2;
};

Averages averages_of(const NormActBackwardParams& p, int64_t statistic, double weighted_dz, double weighted_dz_xhat,
                     double elements) {
  if (p.averages) return {p.averages[statistic], p.averages[statistics_of(p) + statistic]};
  if (p.statistics_given) return {0, 0};
  return {float(weighted_dz / elements), float(weighted_dz_xhat / (elements - double(p.correction)))};
}

// p.sums at `at`: an image's channel, or a channel of the whole batch.
void write_sums(const NormActBackwardParams& p, int64_t at, double dz, double dz_xhat) {
  if (!p.sums) return;
  p.sums[at] = float(dz);
  p.sums[(p.across_batch ? 1 : p.features.N) * p.features.C + at] = float(dz_xhat);
}

// ---- planes ---------------------------------------------------------------------------------------------------------

// One statistics group, by one thread or by a team that adds its members' sums in the order of the members.
template <typename scalar_t>
class PlaneGroupBackward {
 public:
  using Kernels = KernelTable<scalar_t, GradientUniform>;

  PlaneGroupBackward(const NormActBackwardParams& p, const Kernels& kernels, int64_t item, Team team, Sums* partial)
      : p_(p),
        kernels_(kernels),
        arrays_(p),
        group_(p, false, item),
        team_(team),
        statistic_(group_.statistic),
        sums_(partial),  // [members, planes with sums of their own]
        range_(team.share(group_.count * p.features.P, VL)),
        next_(next_group(p, !depends_on_sums(p), 2 * sizeof(scalar_t))),
        rstd_(rstd_of(p, p.var[group_.statistic])) {}

  // Planes of a batch norm are of one channel and have one sum.
  static int64_t sums_size(const NormAct& p) { return p.across_batch ? 1 : p.features.C / p.groups; }

  void run() {
    const bool one_pass = !depends_on_sums(p_);
    if (one_pass && !p_.sums) return write(averages_of(p_, statistic_, 0, 0, 1));
    sum(one_pass && needs_writing(p_));
    team_.barrier();
    const Averages averages = finish();
    if (!one_pass) write(averages);
    team_.barrier();  // all have read the sums that the next group overwrites
  }

 private:
  Gradient gradient(int64_t plane, const Averages& averages) const {
    const int64_t C = p_.features.C;
    const Coefficients z = coefficients_of(p_, plane / C, plane % C, p_.mean[statistic_], rstd_);
    return gradient_of(p_, z, rstd_, averages.a1, averages.a2);
  }

  // The team member's share; with `writing`, each block is also written while it is in L1.
  void sum(bool writing) {
    Sums* const mine = sums_ + team_.member * sums_size(p_);
    for (int64_t i = 0; i < sums_size(p_); ++i) mine[i] = {};
    const Averages known = averages_of(p_, statistic_, 0, 0, 1);
    for_each_run(range_, p_.features.P, [&](int64_t index, int64_t pixel, int64_t pixels) {
      const int64_t plane = group_.plane(index);
      const GradientUniform coefficients = uniform(gradient(plane, known));
      for (int64_t i = 0; i < pixels; i += BLOCK) {
        const int64_t count = pixels - i < BLOCK ? pixels - i : BLOCK;
        const Arrays<scalar_t> a = arrays_.from(plane * p_.features.P + pixel + i);
        const Sums s = kernels_.sum_along(a, count, coefficients, p_.negative_slope);
        if (writing) kernels_.write(a, 1, 0, count, coefficients, p_.negative_slope, 0);
        Sums& total = mine[p_.across_batch ? 0 : index];
        total.dz += s.dz, total.dz_centred += s.dz_centred;
      }
    });
  }

  void write(const Averages& averages) const {
    for_each_run_reversed(range_, p_.features.P, [&](int64_t index, int64_t pixel, int64_t pixels) {
      const int64_t plane = group_.plane(index);
      kernels_.write(arrays_.from(plane * p_.features.P + pixel), 1, 0, pixels, uniform(gradient(plane, averages)),
                     p_.negative_slope, next_);
    });
  }

  Averages finish() const {
    const int64_t size = sums_size(p_), C = p_.features.C;
    double weighted_dz = 0, weighted_dz_xhat = 0;
    for (int64_t i = 0; i < size; ++i) {
      double dz = 0, dz_xhat = 0;
      for (int member = 0; member < team_.size; ++member) {
        dz += sums_[member * size + i].dz;
        dz_xhat += sums_[member * size + i].dz_centred * rstd_;
      }
      const int64_t plane = group_.plane(i);
      const float weight = weight_of(p_, plane / C, plane % C);
      weighted_dz += weight * dz, weighted_dz_xhat += weight * dz_xhat;
      if (team_.member == 0) write_sums(p_, plane, dz, dz_xhat);
    }
    return averages_of(p_, statistic_, weighted_dz, weighted_dz_xhat, double(group_.count * p_.features.P));
  }

  const NormActBackwardParams& p_;
  const Kernels kernels_;
  const Arrays<scalar_t> arrays_;
  const PlaneGroup group_;
  const Team team_;
  const int64_t statistic_;
  Sums* const sums_;
  const Range range_;
  const int64_t next_;
  const float rstd_;
};

template <typename scalar_t>
void planes(const NormActBackwardParams& p, int threads) {
  using Group = PlaneGroupBackward<scalar_t>;
  const int64_t size = Group::sums_size(p);
  Sums* const partial = static_cast<Sums*>(thread_scratch(threads * size * sizeof(Sums)));
  const auto kernels = kernel_table<scalar_t, GradientUniform>(p);
#pragma omp parallel num_threads(threads)
  deal(statistics_of(p),
       [&](int64_t statistic, Team team) { Group(p, kernels, statistic, team, partial + team.first * size).run(); });
}

// ---- columns --------------------------------------------------------------------------------------------------------

using Scratch = ColumnScratch<5>;  // the first member's values serve all: mean, scale, shift, slope, offset

template <typename scalar_t>
class ColumnBlockBackward {
 public:
  using Kernels = KernelTable<scalar_t, GradientPerColumn>;

  ColumnBlockBackward(const NormActBackwardParams& p, const Kernels& kernels, const Columns& c, int64_t item, Team team,
                      void* memory, int threads)
      : p_(p),
        kernels_(kernels),
        c_(c),
        block_(c, item),
        arrays_(Arrays<scalar_t>(p).from(block_.offset(c, 0))),
        team_(team),
        scratch_(memory, c.width, threads, team.first),
        rows_(team.share(c.rows)),
        columns_(team.share(block_.width, c.fold)) {}

  void run() const {
    const bool one_pass = !depends_on_sums(p_), summing = p_.sums || !one_pass;
    for_each_channel([&](int64_t k, float rstd) { fill(k, rstd, averages_of(p_, statistic(k), 0, 0, 1)); });
    team_.barrier();
    if (summing) sum(one_pass && needs_writing(p_));
    else write(rows_);
    team_.barrier();
    if (summing) finish();
    if (!one_pass) {
      team_.barrier();
      write(rows_);
    }
    team_.barrier();  // all are done with what the next block overwrites
  }

 private:
  GradientPerColumn coefficients() const { return {scratch_.values(0, 0), scratch_.width}; }
  int64_t statistic(int64_t k) const { return block_.statistic(c_, k); }

  // f(first column of a channel, rstd of its statistic) for this member's columns.
  template <typename F>
  void for_each_channel(F&& f) const {
    for (int64_t first = columns_.begin; first < columns_.end; first += c_.fold) {
      const float rstd = rstd_of(p_, p_.var[statistic(first)]);
      for (int64_t k = first; k < first + c_.fold; k += c_.channel) f(k, rstd);
    }
  }

  // Coefficients of the channel whose first column is k.
  void fill(int64_t k, float rstd, const Averages& averages) const {
    const Coefficients z = coefficients_of(p_, block_.slab, block_.channel(c_, k), p_.mean[statistic(k)], rstd);
    const Gradient g = gradient_of(p_, z, rstd, averages.a1, averages.a2);
    const float values[5] = {g.z.mean, g.z.scale, g.z.shift, g.slope, g.offset};
    for (int which = 0; which < 5; ++which)
      for (int64_t i = k; i < k + c_.channel; ++i) scratch_.values(0, which)[i] = values[which];
  }

  void sum(bool writing) const {
    double *const dz = scratch_.sums(team_.member, 0), *const dz_centred = scratch_.sums(team_.member, 1);
    __builtin_memset(dz, 0, 2 * scratch_.width * sizeof(double));
    for (int64_t row = rows_.begin; row < rows_.end; row += ROWS_PER_BLOCK) {
      const Range some = {row, rows_.end - row < ROWS_PER_BLOCK ? rows_.end : row + ROWS_PER_BLOCK};
      auto sum_down = [&](auto function, int64_t k) {
        function(arrays_.from(row * c_.columns), some.end - row, c_.columns, k, block_.width - k, coefficients(),
                 p_.negative_slope, dz, dz_centred);
      };
      int64_t k = 0;
      for (; k + 2 * VL <= block_.width; k += 2 * VL) sum_down(kernels_.sum_down_two, k);
      for (; k < block_.width; k += VL) sum_down(kernels_.sum_down, k);
      if (writing) write(some);
    }
  }

  void write(Range rows) const {
    for_each_run_reversed(rows, ROWS_PER_BLOCK, [&](int64_t index, int64_t row, int64_t count) {
      kernels_.write(arrays_.from((index * ROWS_PER_BLOCK + row) * c_.columns), count, c_.columns, block_.width,
                     coefficients(), p_.negative_slope, 0);
    });
  }

  // The sums of this member's columns, and with them grad_input's coefficients.
  void finish() const {
    const double elements = double(c_.rows * c_.fold);
    for (int64_t first = columns_.begin; first < columns_.end; first += c_.fold) {
      const float rstd = rstd_of(p_, p_.var[statistic(first)]);
      double weighted_dz = 0, weighted_dz_xhat = 0;
      for (int64_t k = first; k < first + c_.fold; k += c_.channel) {
        double dz = 0, dz_xhat = 0;
        for (int member = 0; member < team_.size; ++member)
          for (int64_t i = k; i < k + c_.channel; ++i) {
            dz += scratch_.sums(member, 0)[i];
            dz_xhat += scratch_.sums(member, 1)[i] * rstd;
          }
        const int64_t channel = block_.channel(c_, k);
        const float weight = weight_of(p_, block_.slab, channel);
        weighted_dz += weight * dz, weighted_dz_xhat += weight * dz_xhat;
        write_sums(p_, block_.slab * p_.features.C + channel, dz, dz_xhat);
      }
      const Averages averages = averages_of(p_, statistic(first), weighted_dz, weighted_dz_xhat, elements);
      for (int64_t k = first; k < first + c_.fold; k += c_.channel) fill(k, rstd, averages);
    }
  }

  const NormActBackwardParams& p_;
  const Kernels kernels_;
  const Columns& c_;
  const ColumnBlock block_;
  const Arrays<scalar_t> arrays_;
  const Team team_;
  const Scratch scratch_;
  const Range rows_, columns_;
};

template <typename scalar_t>
void columns(const NormActBackwardParams& p, int threads) {
  const Columns c(p, 2 * sizeof(scalar_t));
  void* const memory = thread_scratch(Scratch::bytes(c.width, threads));
  const auto kernels = kernel_table<scalar_t, GradientPerColumn>(p);
#pragma omp parallel num_threads(threads)
  deal(c.slabs * c.blocks(), [&](int64_t item, Team team) {
    ColumnBlockBackward<scalar_t>(p, kernels, c, item, team, memory, threads).run();
  });
}

}  // namespace

void norm_act_backward(const NormActBackwardParams& p, int threads) {
  with_scalar_type(p.features.dtype, [&](auto scalar) {
    using scalar_t = decltype(scalar);
    if (walked_as_columns(p)) columns<scalar_t>(p, threads);
    else planes<scalar_t>(p, threads);
  });
}

}  // namespace ARTKERNELS_ISA
}  // namespace artkernels::cpu
