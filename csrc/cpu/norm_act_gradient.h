// What the backward of norm_act does to vectors of elements.
#pragma once

#include "cpu/norm.h"

namespace artkernels::cpu {
namespace {

// grad_input = dz * scale + (x - mean) * slope + offset
struct Gradient {
  Coefficients z;
  float slope, offset;
};

// a1, a2 as in params.h.
Gradient gradient_of(const NormAct& p, const Coefficients& z, float rstd, float a1, float a2) {
  return {z, -p.alpha * rstd * rstd * a2, -p.alpha * rstd * a1};
}

// The same for vectors: of a plane, or of a row's columns.
struct GradientUniform {
  vfloat mean, scale, shift, slope, offset;
  ARTKERNELS_INLINE GradientUniform at(int64_t) const { return *this; }
  ARTKERNELS_INLINE vfloat grad_input(vfloat dz, vfloat centred) const {
    return dz * scale + (centred * slope + offset);
  }
};

GradientUniform uniform(const Gradient& g) {
  return {broadcast(g.z.mean), broadcast(g.z.scale), broadcast(g.z.shift), broadcast(g.slope), broadcast(g.offset)};
}

struct GradientPerColumn {
  const float* values;  // [5, width]: mean, scale, shift, slope, offset
  int64_t width;
  ARTKERNELS_INLINE GradientUniform at(int64_t i) const {
    return {load(values + i), load(values + width + i), load(values + 2 * width + i), load(values + 3 * width + i),
            load(values + 4 * width + i)};
  }
};

// Where a stretch of elements begins in every array; null where there is none.
template <typename scalar_t>
struct Arrays {
  const scalar_t *grad_output, *input, *residual;
  scalar_t *grad_input, *grad_residual;

  explicit Arrays(const NormActBackwardParams& p)
      : grad_output(static_cast<const scalar_t*>(p.grad_output)),
        input(static_cast<const scalar_t*>(p.input)),
        residual(static_cast<const scalar_t*>(p.residual)),
        grad_input(static_cast<scalar_t*>(p.grad_input)),
        grad_residual(static_cast<scalar_t*>(p.grad_residual)) {}

  Arrays from(int64_t at) const {
    Arrays moved = *this;
    moved.grad_output += at, moved.input += at;
    if (residual) moved.residual += at;
    if (grad_input) moved.grad_input += at;
    if (grad_residual) moved.grad_residual += at;
    return moved;
  }
};

struct Sums {
  double dz, dz_centred;
};

template <Activation activation, typename scalar_t, typename Z>
struct Kernel {
  struct Element {
    vfloat dz, centred;
  };
  template <typename Load>
  ARTKERNELS_INLINE static Element element(const Arrays<scalar_t>& a, const GradientUniform& c, int64_t at,
                                           float negative_slope, Load&& load_at) {
    const vfloat centred = load_at(a.input + at) - c.mean;
    vfloat z = centred * c.scale + c.shift;
    if (a.residual) z += load_at(a.residual + at);
    return {activation_backward<activation>(load_at(a.grad_output + at), z, negative_slope), centred};
  }

  // Sums along `count` elements in a row.
  __attribute__((noinline)) static Sums sum_along(const Arrays<scalar_t>& a, int64_t count, const Z& coefficients,
                                                  float negative_slope) noexcept {
    const GradientUniform c = coefficients.at(0);
    Sums total = {};
    for (int64_t begin = 0; begin < count; begin += BLOCK) {
      const int64_t end = count - begin < BLOCK ? count : begin + BLOCK;
      vfloat dz[2] = {}, dz_centred[2] = {};
      int64_t i = begin;
      for (; i + 2 * VL <= end; i += 2 * VL) ARTKERNELS_UNROLL
      for (int u = 0; u < 2; ++u) {
        const Element e =
            element(a, c, i + u * VL, negative_slope, [](const scalar_t* p) ARTKERNELS_LAMBDA { return load(p); });
        dz[u] += e.dz;
        dz_centred[u] += e.dz * e.centred;
      }
      for (; i < end; i += VL) {  // grad_output is 0 beyond the end, and so is dz
        const int64_t rest = end - i;
        const Element e = element(a, c, i, negative_slope,
                                  [rest](const scalar_t* p) ARTKERNELS_LAMBDA { return load_up_to(p, rest); });
        dz[0] += e.dz;
        dz_centred[0] += e.dz * e.centred;
      }
      total.dz += sum(dz[0] + dz[1]);
      total.dz_centred += sum(dz_centred[0] + dz_centred[1]);
    }
    return total;
  }

  // Adds the sums down some rows of `vectors` vectors of columns from column i on, of which `count` columns exist.
  template <int vectors>
  __attribute__((noinline)) static void sum_down(const Arrays<scalar_t>& a, int64_t rows, int64_t stride, int64_t i,
                                                 int64_t count, const Z& coefficients, float negative_slope,
                                                 double* dz_sums, double* dz_centred_sums) noexcept {
    GradientUniform c[vectors];
    vfloat dz[vectors] = {}, dz_centred[vectors] = {};
    for (int v = 0; v < vectors; ++v) c[v] = coefficients.at(i + v * VL);
    for (int64_t row = 0; row < rows; ++row) ARTKERNELS_UNROLL
    for (int v = 0; v < vectors; ++v) {
      const Element e = element(a, c[v], row * stride + i + v * VL, negative_slope,
                                [count](const scalar_t* p)
                                    ARTKERNELS_LAMBDA { return vectors > 1 ? load(p) : load_up_to(p, count); });
      dz[v] += e.dz;
      dz_centred[v] += e.dz * e.centred;
    }
    for (int v = 0; v < vectors; ++v) {
      accumulate(dz_sums + i + v * VL, widen(dz[v]));
      accumulate(dz_centred_sums + i + v * VL, widen(dz_centred[v]));
    }
  }

  // Writes grad_input and grad_residual of some rows of `count` elements; rows together and `next` as in the forward.
  __attribute__((noinline)) static void write(const Arrays<scalar_t>& a, int64_t rows, int64_t stride, int64_t count,
                                              const Z& coefficients, float negative_slope, int64_t next) noexcept {
    auto write_rows = [&](int64_t row, auto together) ARTKERNELS_LAMBDA {
      constexpr int number = decltype(together)::value;
      int64_t i = 0;
      for (; i + VL <= count; i += VL) {
        const GradientUniform c = coefficients.at(i);
        if (next) {
          __builtin_prefetch(a.grad_output + row * stride + i + next, 0, 2);
          __builtin_prefetch(a.input + row * stride + i + next, 0, 2);
        }
        Element elements[number];
        ARTKERNELS_UNROLL
        for (int r = 0; r < number; ++r)
          elements[r] = element(a, c, (row + r) * stride + i, negative_slope,
                                [](const scalar_t* p) ARTKERNELS_LAMBDA { return load(p); });
        ARTKERNELS_UNROLL
        for (int r = 0; r < number; ++r) {
          const int64_t at = (row + r) * stride + i;
          if (a.grad_input) store(a.grad_input + at, c.grad_input(elements[r].dz, elements[r].centred));
          if (a.grad_residual) store(a.grad_residual + at, elements[r].dz);
        }
      }
      const int64_t rest = count - i;
      for (int r = 0; r < number && rest > 0; ++r) {
        const GradientUniform c = coefficients.at(i);
        const int64_t at = (row + r) * stride + i;
        const Element e = element(a, c, at, negative_slope,
                                  [rest](const scalar_t* p) ARTKERNELS_LAMBDA { return load_partial(p, rest); });
        if (a.grad_input) store_partial(a.grad_input + at, c.grad_input(e.dz, e.centred), rest);
        if (a.grad_residual) store_partial(a.grad_residual + at, e.dz, rest);
      }
    };
    int64_t row = 0;
    if constexpr (is_cheap(activation))
      for (; row + ROWS_TOGETHER <= rows; row += ROWS_TOGETHER) write_rows(row, Int<ROWS_TOGETHER>{});
    for (; row < rows; ++row) write_rows(row, Int<1>{});
  }
};

// The functions of one Kernel. What calls them is compiled once for all activations.
template <typename scalar_t, typename Z>
struct KernelTable;

template <typename scalar_t>
struct KernelTable<scalar_t, GradientUniform> {
  using Any = Kernel<Activation::None, scalar_t, GradientUniform>;
  decltype(&Any::sum_along) sum_along;
  decltype(&Any::write) write;

  template <typename K>
  static KernelTable of() {
    return {&K::sum_along, &K::write};
  }
};

template <typename scalar_t>
struct KernelTable<scalar_t, GradientPerColumn> {
  using Any = Kernel<Activation::None, scalar_t, GradientPerColumn>;
  decltype(&Any::template sum_down<1>) sum_down, sum_down_two;
  decltype(&Any::write) write;

  template <typename K>
  static KernelTable of() {
    return {&K::template sum_down<1>, &K::template sum_down<2>, &K::write};
  }
};

template <typename scalar_t, typename Z>
KernelTable<scalar_t, Z> kernel_table(const NormActBackwardParams& p) {
  KernelTable<scalar_t, Z> table = {};
  with_activation(p.activation, [&](auto constant) {
    constexpr Activation activation = decltype(constant)::activation;
    table = KernelTable<scalar_t, Z>::template of<Kernel<activation, scalar_t, Z>>();
  });
  return table;
}

}  // namespace
}  // namespace artkernels::cpu
