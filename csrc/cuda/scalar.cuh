// Scalars of the three data types: conversions, 16-byte vectors of them, sums and maxima over a warp.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cstdint>
#include <type_traits>

namespace artkernels::cuda {

__device__ __forceinline__ float to_float(float v) { return v; }
__device__ __forceinline__ float to_float(__half v) { return __half2float(v); }
__device__ __forceinline__ float to_float(__nv_bfloat16 v) { return __bfloat162float(v); }

template <typename scalar_t>
__device__ __forceinline__ scalar_t from_float(float v) {
  if constexpr (std::is_same_v<scalar_t, __half>) return __float2half_rn(v);
  else if constexpr (std::is_same_v<scalar_t, __nv_bfloat16>) return __float2bfloat16_rn(v);
  else return v;
}

// Two 16-bit values in a word, the first one low.
template <typename scalar_t>
__device__ __forceinline__ uint32_t pack(float first, float second) {
  const scalar_t pair[2] = {from_float<scalar_t>(first), from_float<scalar_t>(second)};
  uint32_t word;
  memcpy(&word, pair, sizeof word);
  return word;
}

__device__ __forceinline__ float warp_sum(float v) {
#pragma unroll
  for (int offset = 16; offset; offset /= 2) v += __shfl_xor_sync(0xffffffffu, v, offset);
  return v;
}

__device__ __forceinline__ float warp_max(float v) {
#pragma unroll
  for (int offset = 16; offset; offset /= 2) v = fmaxf(v, __shfl_xor_sync(0xffffffffu, v, offset));
  return v;
}

// Vector stores as assembly: where a flag known only at run time chooses between a vector store and scalar stores of
// the same values, nvcc folds both into scalar stores.
__device__ __forceinline__ void store_16(void* p, const uint32_t (&v)[4]) {
  asm volatile("st.global.v4.b32 [%0], {%1, %2, %3, %4};" ::"l"(p), "r"(v[0]), "r"(v[1]), "r"(v[2]), "r"(v[3])
               : "memory");
}
__device__ __forceinline__ void store_8(void* p, float x, float y) {
  asm volatile("st.global.v2.f32 [%0], {%1, %2};" ::"l"(p), "f"(x), "f"(y) : "memory");
}

// 16 bytes of elements. In memory they are neighbours (kVectorised: the address is a multiple of 16), or `stride`
// elements apart, where each is loaded alone. `valid` of them exist, the first ones; the others are zero, and are not
// stored. Vectorised, all of them exist or none does. As floats they are handled four at a time, a quad: a loop over
// quads that is not unrolled keeps code short and registers few.
template <typename scalar_t>
struct Vector {
  static constexpr int kLength = 16 / sizeof(scalar_t), kQuads = kLength / 4;
  uint32_t words[4];

  template <bool kVectorised>
  __device__ static __forceinline__ Vector load(const scalar_t* p, int stride, int valid) {
    Vector v = {};
    if constexpr (kVectorised) {
      if (valid) *reinterpret_cast<uint4*>(v.words) = *reinterpret_cast<const uint4*>(p);
    } else {
      scalar_t values[kLength];
#pragma unroll
      for (int e = 0; e < kLength; ++e, p += stride) values[e] = e < valid ? *p : from_float<scalar_t>(0.f);
      memcpy(v.words, values, sizeof v.words);
    }
    return v;
  }

  template <bool kVectorised>
  __device__ __forceinline__ void store(scalar_t* p, int stride, int valid) const {
    if constexpr (kVectorised) {
      if (valid) store_16(p, words);
    } else {
      Vector rest = *this;
#pragma unroll 1
      for (int e = 0; e < valid; ++e, p += stride) {
        scalar_t first;
        memcpy(&first, rest.words, sizeof first);
        *p = first;
        rest.drop_first();
      }
    }
  }

  __device__ __forceinline__ void drop_first() {
    if constexpr (sizeof(scalar_t) == 4) {
#pragma unroll
      for (int i = 0; i < 3; ++i) words[i] = words[i + 1];
    } else {
#pragma unroll
      for (int i = 0; i < 4; ++i) words[i] = __funnelshift_r(words[i], i < 3 ? words[i + 1] : 0, 16);
    }
  }

  __device__ __forceinline__ void get(int quad, float (&values)[4]) const {
    constexpr int kWords = 4 / kQuads;
    uint32_t mine[kWords];
#pragma unroll
    for (int i = 0; i < kWords; ++i) mine[i] = quad == 0 ? words[i] : words[4 - kWords + i];
    scalar_t scalars[4];
    memcpy(scalars, mine, sizeof mine);
#pragma unroll
    for (int e = 0; e < 4; ++e) values[e] = to_float(scalars[e]);
  }

  __device__ __forceinline__ void set(int quad, const float (&values)[4]) {
    if constexpr (kQuads == 1) {
      memcpy(words, values, sizeof words);
    } else {
#pragma unroll
      for (int i = 0; i < 2; ++i)
        (quad == 0 ? words[i] : words[2 + i]) = pack<scalar_t>(values[2 * i], values[2 * i + 1]);
    }
  }
};

// Loops over a thread's vectors take the first one and rotate: registers cannot be indexed, and the body, with every
// activation in it, is too long to be repeated.
template <typename scalar_t, int n>
__device__ __forceinline__ void rotate(Vector<scalar_t> (&v)[n]) {
  const Vector<scalar_t> first = v[0];
#pragma unroll
  for (int i = 0; i + 1 < n; ++i) v[i] = v[i + 1];
  v[n - 1] = first;
}

}  // namespace artkernels::cuda
