// Warp-level building blocks: asynchronous copies, ldmatrix, tensor-core products. Fragment layouts are those of the
// PTX manual, "Warp-level matrix instructions": in a fragment of accumulators a lane holds rows lane / 4 and
// lane / 4 + 8, columns 2 (lane % 4) and the next.
#pragma once

#include "scalar.cuh"

namespace artkernels::cuda {

#if defined(__CUDA_ARCH__)
constexpr int kArch = __CUDA_ARCH__;
#else
constexpr int kArch = 800;
#endif
constexpr bool kAmpere = kArch >= 800;  // before it: no cp.async, tensor cores for float16 only

// Whether products of this type go to the tensor cores. Strict float32 takes three TF32 products there (3xTF32). That
// pays where TF32 is several times as fast as plain FMA (A100, H100, B200, B300); on the other devices it is just as
// fast.
template <typename scalar_t, bool kTf32>
constexpr bool kTensorCores =
    std::is_same_v<scalar_t, __half> || (std::is_same_v<scalar_t, __nv_bfloat16> && kAmpere) ||
    (std::is_same_v<scalar_t, float> && kTf32 && kAmpere) ||
    (std::is_same_v<scalar_t, float> && (kArch == 800 || kArch == 900 || kArch == 1000 || kArch == 1030));

// ---- copies ---------------------------------------------------------------------------------------------------------

__device__ __forceinline__ uint32_t shared_address(const void* p) {
  return static_cast<uint32_t>(__cvta_generic_to_shared(p));
}

// Copies 16 bytes to shared memory, or writes zeros when !valid; the source is then not read.
__device__ __forceinline__ void copy_async_16(void* destination, const void* source, bool valid) {
  if constexpr (kAmpere) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(shared_address(destination)), "l"(source),
                 "r"(valid ? 16 : 0)
                 : "memory");
  } else {
    const uint4 zero = {0, 0, 0, 0};
    *static_cast<uint4*>(destination) = valid ? *static_cast<const uint4*>(source) : zero;
  }
}

__device__ __forceinline__ void copy_async_commit() {
  if constexpr (kAmpere) asm volatile("cp.async.commit_group;" ::: "memory");
}

// Until at most kPending of this thread's committed groups are in flight.
template <int kPending>
__device__ __forceinline__ void copy_async_wait() {
  if constexpr (kAmpere) asm volatile("cp.async.wait_group %0;" ::"n"(kPending) : "memory");
}

// Lane q of each four gets word q of the four lanes, in their order.
__device__ __forceinline__ void transpose_in_quad(const uint32_t (&mine)[4], uint32_t (&words)[4]) {
  const int q = threadIdx.x % 4;
#pragma unroll
  for (int distance = 0; distance < 4; ++distance) {
    const int peer = q ^ distance;  // gets my word `peer`, and I its word q
    const uint32_t sent = peer == 0 ? mine[0] : peer == 1 ? mine[1] : peer == 2 ? mine[2] : mine[3];
    const uint32_t got = __shfl_xor_sync(0xffffffffu, sent, distance);
#pragma unroll
    for (int i = 0; i < 4; ++i) words[i] = i == peer ? got : words[i];
  }
}

// ---- matrix instructions --------------------------------------------------------------------------------------------

// Four 8x8 blocks of 16-bit elements (or 8x4 of 32-bit ones); lane 8 j + r gives the address of row r of block j.
template <bool kTransposed>
__device__ __forceinline__ void load_matrix(uint32_t (&r)[4], uint32_t address) {
  if constexpr (kTransposed)
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(address)
                 : "memory");
  else
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(address)
                 : "memory");
}

// acc[16 x 8] += a[16 x 32 bytes] b[8 x 32 bytes]^T: 16 elements of depth in 16 bits, 8 in tf32.
template <typename scalar_t>
__device__ __forceinline__ void mma(float (&acc)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  if constexpr (std::is_same_v<scalar_t, float>) {
    asm volatile(
        "mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
        : "+f"(acc[0]), "+f"(acc[1]), "+f"(acc[2]), "+f"(acc[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
  } else if constexpr (std::is_same_v<scalar_t, __nv_bfloat16>) {
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
        : "+f"(acc[0]), "+f"(acc[1]), "+f"(acc[2]), "+f"(acc[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
  } else if constexpr (kAmpere) {
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
        : "+f"(acc[0]), "+f"(acc[1]), "+f"(acc[2]), "+f"(acc[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
  } else {
#pragma unroll
    for (int half = 0; half < 2; ++half)
      asm volatile("mma.sync.aligned.m16n8k8.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5}, {%6}, {%0,%1,%2,%3};"
                   : "+f"(acc[0]), "+f"(acc[1]), "+f"(acc[2]), "+f"(acc[3])
                   : "r"(a[2 * half]), "r"(a[2 * half + 1]), "r"(half ? b1 : b0));
  }
}

__device__ __forceinline__ uint32_t to_tf32(float x) {
  uint32_t rounded;
  asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(rounded) : "f"(x));
  return rounded;
}

__device__ __forceinline__ void round_tf32(uint32_t (&x)[4]) {
#pragma unroll
  for (int i = 0; i < 4; ++i) x[i] = to_tf32(__uint_as_float(x[i]));
}

// x = high + low to 22 bits, both tf32: high high' + high low' + low high' has the error of a float32 product (3xTF32).
// high replaces x.
__device__ __forceinline__ void split_tf32(uint32_t (&x)[4], uint32_t (&low)[4]) {
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const float whole = __uint_as_float(x[i]);
    x[i] = to_tf32(whole);
    low[i] = to_tf32(whole - __uint_as_float(x[i]));
  }
}

}  // namespace artkernels::cuda
