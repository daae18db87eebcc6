// Host-side helpers of the launchers: errors, device limits, rounding.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>
#include <stdexcept>
#include <string>

#include "../include/params.h"

namespace artkernels::cuda {

__host__ __device__ constexpr int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }
__host__ __device__ constexpr int64_t round_up(int64_t a, int64_t b) { return ceil_div(a, b) * b; }

inline int log2_ceil(int64_t n) {
  int log2 = 0;
  while ((int64_t{1} << log2) < n) ++log2;
  return log2;
}

inline void check(cudaError_t error, const char* kernel) {
  if (error != cudaSuccess) throw std::runtime_error(std::string(kernel) + ": " + cudaGetErrorString(error));
}

inline void require(bool condition, const std::string& message) {
  if (!condition) throw std::runtime_error(message);
}

inline int64_t element_size(ScalarType dtype) { return dtype == ScalarType::Float ? 4 : 2; }

// Whether every row of a feature map (pixels of a channel, or channels of a pixel) starts on a 16-byte boundary.
inline bool aligned_rows(const FeatureMap& f, const void* data) {
  const int64_t row = (f.channels_last ? f.C : f.P) * element_size(f.dtype);
  return row % 16 == 0 && reinterpret_cast<uintptr_t>(data) % 16 == 0;
}

// Of the current device. The runtime answers from a table of its own, so there is nothing to gain from a cache here.
inline int device_attribute(cudaDeviceAttr attribute) {
  int device = 0, value = 0;
  check(cudaGetDevice(&device), "cudaGetDevice");
  check(cudaDeviceGetAttribute(&value, attribute, device), "cudaDeviceGetAttribute");
  return value;
}

// Launches kernel<<<blocks, threads, shared_bytes>>>(params), opting in to more than 48 KB of shared memory.
template <typename Params>
void launch(void (*kernel)(Params), const char* name, int64_t blocks, int threads, int shared_bytes,
            cudaStream_t stream, const Params& params) {
  require(blocks <= INT32_MAX, std::string(name) + ": " + std::to_string(blocks) + " blocks exceed a grid's 2^31 - 1");
  if (shared_bytes > 48 << 10)
    check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, shared_bytes), name);
  kernel<<<static_cast<unsigned>(blocks), threads, shared_bytes, stream>>>(params);
  check(cudaGetLastError(), name);
}

}  // namespace artkernels::cuda
