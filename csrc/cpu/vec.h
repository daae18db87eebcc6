// Vectors of the instruction set a kernel file is compiled for, on the compilers' vector extensions: VL float lanes,
// loads and stores of float32, bfloat16 and float16 memory, a transpose. Everything here is inlined and has internal
// linkage.
#pragma once

#include <cstdint>

#include "include/params.h"

namespace artkernels::cpu {
namespace {

#if defined(__AVX512F__)
constexpr int VL = 16;
#elif defined(__AVX2__)
constexpr int VL = 8;
#else
constexpr int VL = 4;
#endif

#define ARTKERNELS_INLINE inline __attribute__((always_inline))
#define ARTKERNELS_LAMBDA __attribute__((always_inline))  // after a lambda's parameters
#define ARTKERNELS_UNROLL _Pragma("GCC unroll 16")

typedef float vfloat __attribute__((vector_size(VL * 4)));
typedef uint32_t vuint __attribute__((vector_size(VL * 4)));
typedef uint16_t vuint16 __attribute__((vector_size(VL * 2)));
// The same at any element's address.
typedef float vfloat_any __attribute__((vector_size(VL * 4), aligned(4), may_alias));
typedef uint16_t vuint16_any __attribute__((vector_size(VL * 2), aligned(2), may_alias));

// Memory formats of 16-bit floats; arithmetic is always float32.
struct BFloat16 {
  uint16_t bits;
};
struct Half {
  uint16_t bits;
};

// f(a value of the memory format), from the run-time value to a template's argument.
template <typename F>
ARTKERNELS_INLINE void with_scalar_type(ScalarType dtype, F&& f) {
  switch (dtype) {
    case ScalarType::Float: return f(float{});
    case ScalarType::BFloat16: return f(BFloat16{});
    case ScalarType::Half: return f(Half{});
  }
}

ARTKERNELS_INLINE vfloat broadcast(float value) { return value - vfloat{}; }
ARTKERNELS_INLINE vuint broadcast_bits(uint32_t value) { return value - vuint{}; }
ARTKERNELS_INLINE float sum(vfloat v) {
  float total = 0;
  for (int i = 0; i < VL; ++i) total += v[i];
  return total;
}

ARTKERNELS_INLINE vfloat widen(BFloat16, vuint16 v) { return (vfloat)(__builtin_convertvector(v, vuint) << 16); }

ARTKERNELS_INLINE vfloat widen(Half, vuint16 v) {
  const vuint h = __builtin_convertvector(v, vuint);
  const vuint sign = (h & 0x8000u) << 16, magnitude = (h & 0x7fffu) << 13, exponent = magnitude & 0x0f800000u;
  const vuint normal = magnitude + ((127u - 15u) << 23);
  // Subnormals: put the implicit bit of 2^-14 in front, then subtract it as a float, which normalises.
  const vfloat subnormal = (vfloat)(normal + (1u << 23)) - (vfloat)broadcast_bits(113u << 23);
  const vuint infinite = normal + ((128u - 16u) << 23);
  const vuint bits = exponent == 0 ? (vuint)subnormal : (exponent == 0x0f800000u ? infinite : normal);
  return (vfloat)(bits | sign);
}

// Both round to nearest, ties to even, as torch does.
ARTKERNELS_INLINE vuint16 narrow(BFloat16, vfloat v) {
  const vuint bits = (vuint)v;
  const vuint rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
  const vuint nan = (bits >> 16) | 0x40u;
  return __builtin_convertvector((bits & 0x7fffffffu) > 0x7f800000u ? nan : rounded, vuint16);
}

ARTKERNELS_INLINE vuint16 narrow(Half, vfloat v) {
  const vuint sign = (vuint)v & 0x80000000u, bits = (vuint)v ^ sign;
  const vuint normal = (bits - ((127u - 15u) << 23) + 0xfffu + ((bits >> 13) & 1u)) >> 13;
  const vfloat magic = (vfloat)broadcast_bits((127u - 15u + 23u - 10u + 1u) << 23);  // aligns a subnormal's 10 bits
  const vuint subnormal = (vuint)((vfloat)bits + magic) - (vuint)magic;
  const vuint special = bits > 0x7f800000u ? broadcast_bits(0x7e00u) : broadcast_bits(0x7c00u);
  const vuint half = bits >= ((127u + 16u) << 23) ? special : (bits < (113u << 23) ? subnormal : normal);
  return __builtin_convertvector(half | (sign >> 16), vuint16);
}

ARTKERNELS_INLINE vfloat load(const float* p) { return *(const vfloat_any*)p; }
ARTKERNELS_INLINE void store(float* p, vfloat v) { *(vfloat_any*)p = v; }
template <typename scalar_t>
ARTKERNELS_INLINE vfloat load(const scalar_t* p) {
  return widen(scalar_t{}, *(const vuint16_any*)p);
}
template <typename scalar_t>
ARTKERNELS_INLINE void store(scalar_t* p, vfloat v) {
  *(vuint16_any*)p = narrow(scalar_t{}, v);
}

// One element as a float.
template <typename scalar_t>
ARTKERNELS_INLINE float load_one(const scalar_t* p) {
  alignas(64) scalar_t lanes[VL] = {*p};
  return load(lanes)[0];
}

// to[i] = from[i] for i < count <= lanes, by copies of powers of two: a compiler knows no better of a count that it
// does not know.
template <int lanes, typename scalar_t>
ARTKERNELS_INLINE void copy_lanes(scalar_t* to, const scalar_t* from, int64_t count) {
  if (count >= lanes) {
    __builtin_memcpy(to, from, lanes * sizeof(scalar_t));
    return;
  }
  if constexpr (lanes > 1) {
    constexpr int half = lanes / 2;
    if (count < half) return copy_lanes<half>(to, from, count);
    __builtin_memcpy(to, from, half * sizeof(scalar_t));
    copy_lanes<half>(to + half, from + half, count - half);
  }
}

// The first `count` lanes, the others 0; nothing is read or written beyond them.
template <typename scalar_t>
ARTKERNELS_INLINE vfloat load_partial(const scalar_t* p, int64_t count) {
  alignas(64) scalar_t lanes[VL] = {};
  copy_lanes<VL>(lanes, p, count);
  return load(lanes);
}
template <typename scalar_t>
ARTKERNELS_INLINE void store_partial(scalar_t* p, vfloat v, int64_t count) {
  alignas(64) scalar_t lanes[VL];
  store(lanes, v);
  copy_lanes<VL>(p, lanes, count);
}
template <typename scalar_t>
ARTKERNELS_INLINE vfloat load_up_to(const scalar_t* p, int64_t count) {
  return count >= VL ? load(p) : load_partial(p, count);
}
template <typename scalar_t>
ARTKERNELS_INLINE void store_up_to(scalar_t* p, vfloat v, int64_t count) {
  if (count >= VL) store(p, v);
  else store_partial(p, v, count);
}

// rows[i][j] <-> rows[j][i], by log2(VL) exchanges of blocks of `distance` lanes between rows `distance` apart.
template <int distance>
ARTKERNELS_INLINE void exchange(vfloat (&rows)[VL]) {
  vuint low, high;  // lanes of the first row are 0..VL-1, of the second VL..2VL-1
  for (unsigned lane = 0; lane < VL; ++lane) {
    low[lane] = lane & distance ? VL + lane - distance : lane;
    high[lane] = lane & distance ? VL + lane : lane + distance;
  }
  ARTKERNELS_UNROLL
  for (int i = 0; i < VL; ++i) {
    if (i & distance) continue;
    const vfloat a = rows[i], b = rows[i + distance];
    rows[i] = __builtin_shuffle(a, b, low);
    rows[i + distance] = __builtin_shuffle(a, b, high);
  }
  if constexpr (distance > 1) exchange<distance / 2>(rows);
}
ARTKERNELS_INLINE void transpose(vfloat (&rows)[VL]) { exchange<VL / 2>(rows); }

}  // namespace
}  // namespace artkernels::cpu
