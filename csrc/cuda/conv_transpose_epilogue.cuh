// From the accumulators of a tile to the output: scale, bias, statistics, activation, in either layout.
#pragma once

#include "activation.cuh"
#include "conv_transpose.cuh"
#include "scalar.cuh"

namespace artkernels::cuda {

template <typename T>
using Sums = float[T::kM][T::kN][4];

// What each lane has of the tile: rows lane_row() + 8 i, i < 2 kM, and columns lane_column() + 8 n + (0, 1), n < kN.
template <typename T>
__device__ __forceinline__ int lane_row() {
  return threadIdx.x / 32 % T::kWarpRows * T::kM * 16 + threadIdx.x % 32 / 4;
}
template <typename T>
__device__ __forceinline__ int lane_column() {
  return threadIdx.x / 32 / T::kWarpRows * T::kN * 8 + threadIdx.x % 4 * 2;
}
// Sum of row 8 i and column 8 n + e of these.
template <typename T>
__device__ __forceinline__ float& sum_at(Sums<T>& sums, int i, int n, int e) {
  return sums[i / 2][n][i % 2 * 2 + e];
}

// The accumulators of a block as they are kept between the launches of a split call: float4 i is to[i * kThreads].
template <typename T>
__device__ __forceinline__ float4* parked(const ConvTransposeKernel& p, int64_t block) {
  return reinterpret_cast<float4*>(p.sums) + block * (T::kRows * T::kColumns / 4) + threadIdx.x;
}

// z = scale sum + bias. ImageTile: column 4 * phase + k is channel k.
template <typename T, bool kImage>
__device__ __forceinline__ void affine(const ConvTransposeKernel& p, int first_column, Sums<T>& sums) {
  if (!p.op.scale && !p.op.bias) return;
#pragma unroll
  for (int n = 0; n < T::kN; ++n)
#pragma unroll
    for (int e = 0; e < 2; ++e) {
      const int column = first_column + lane_column<T>() + 8 * n + e, k = kImage ? column % 4 : column;
      const bool exists = k < p.op.K;
      const float scale = p.op.scale && exists ? p.op.scale[k] : 1.f, bias = p.op.bias && exists ? p.op.bias[k] : 0.f;
#pragma unroll
      for (int i = 0; i < 2 * T::kM; ++i) sum_at<T>(sums, i, n, e) = fmaf(sum_at<T>(sums, i, n, e), scale, bias);
    }
}

// Means and sums of squared deviations of the tile's columns over its pixels: two passes over the registers, each
// added over the lanes, then over the warps, in a fixed order.
template <typename T>
__device__ __forceinline__ void gather_statistics(const Place& at, uint32_t tile, int first_column, Sums<T>& z) {
  __shared__ float of_warps[2][T::kWarpRows][T::kColumns];
  const ConvTransposeKernel& p = at.p;
  const int count = at.count(), lane = threadIdx.x % 32, warp_row = threadIdx.x / 32 % T::kWarpRows;
  const float share = count ? 1.f / static_cast<float>(count) : 0.f;
  bool valid[2 * T::kM];
#pragma unroll
  for (int i = 0; i < 2 * T::kM; ++i) valid[i] = at.has(lane_row<T>() + 8 * i);
  float mean[T::kN][2] = {};
#pragma unroll
  for (int pass = 0; pass < 2; ++pass) {
#pragma unroll
    for (int n = 0; n < T::kN; ++n)
#pragma unroll
      for (int e = 0; e < 2; ++e) {
        float sum = 0.f;
#pragma unroll
        for (int i = 0; i < 2 * T::kM; ++i) {
          const float d = valid[i] ? sum_at<T>(z, i, n, e) - mean[n][e] : 0.f;
          sum += pass ? d * d : d;
        }
        for (int offset = 4; offset < 32; offset *= 2) sum += __shfl_xor_sync(0xffffffffu, sum, offset);
        if (lane < 4) of_warps[pass][warp_row][lane_column<T>() + 8 * n + e] = sum;
      }
    __syncthreads();
    if (pass == 0)
      for (int n = 0; n < T::kN; ++n)
        for (int e = 0; e < 2; ++e) {
          for (int w = 0; w < T::kWarpRows; ++w) mean[n][e] += of_warps[0][w][lane_column<T>() + 8 * n + e];
          mean[n][e] *= share;
        }
  }
  const int column = threadIdx.x;
  if (column >= T::kColumns || first_column + column >= p.K || count == 0) return;
  float total[2] = {};
  for (int w = 0; w < T::kWarpRows; ++w) for_each<2>([&](int i) { total[i] += of_warps[i][w][column]; });
  float* const to = p.partial + int64_t{tile} * 2 * p.K + first_column + column;
  to[0] = total[0] * share;
  to[p.K] = total[1];
}

// Activates and stores the finished tile z, [kRows][kPitch].
//
// A thread takes 16 bytes of channels of a pixel. channels_last: neighbouring threads take neighbouring channels. NCHW:
// neighbouring pixels of the phase, in each channel stores that are `stride` elements apart; the other phases of these
// sectors are the work of the next blocks, so that L2 completes them before they go to DRAM.
template <typename scalar_t, typename T>
__device__ __forceinline__ void store_tile(const Place& at, int first_column, const float* z) {
  using V = Vector<scalar_t>;
  constexpr int kGroups = T::kColumns / V::kLength;
  const ConvTransposeKernel& p = at.p;
  const bool channels_last = p.op.output_channels_last;
  const int64_t pixels = p.op.OH * p.op.OW;
#pragma unroll 1
  for (int i = threadIdx.x; i < T::kRows * kGroups; i += T::kThreads) {
    const int row = channels_last ? i / kGroups : i % T::kRows, group = channels_last ? i % kGroups : i / T::kRows;
    const int column = first_column + group * V::kLength, valid = min(p.K - column, V::kLength);
    if (valid <= 0 || !at.has(row)) continue;
    V v;
#pragma unroll 1
    for (int quad = 0; quad < V::kQuads; ++quad) {
      float values[4];
      const float4 loaded = *reinterpret_cast<const float4*>(z + row * T::kPitch + group * V::kLength + 4 * quad);
      memcpy(values, &loaded, sizeof values);
      activate(values, p.op.activation, p.op.negative_slope);
      v.set(quad, values);
    }
    const int64_t image = at.first_image() + at.row_image(row);
    const int oh = at.phase_h + (at.y + at.row_y(row)) * p.rows.stride;
    const int ow = at.phase_w + (at.x + at.row_x(row)) * p.columns.stride;
    const int64_t pixel = oh * p.op.OW + ow;
    scalar_t* const output = static_cast<scalar_t*>(p.op.output) + image * p.op.K * pixels;
    if (!channels_last) v.template store<false>(output + column * pixels + pixel, static_cast<int>(pixels), valid);
    else if (p.output_aligned) v.template store<true>(output + pixel * p.op.K + column, 1, valid);
    else v.template store<false>(output + pixel * p.op.K + column, 1, valid);
  }
}

// The same for ImageTile: a thread takes the channels of an output pixel, neighbouring threads neighbouring ones.
template <typename scalar_t, typename T>
__device__ __forceinline__ void store_image_tile(const Place& at, int first_column, const float* z) {
  constexpr int kPhases = T::kColumns / 4;
  const ConvTransposeKernel& p = at.p;
  const bool channels_last = p.op.output_channels_last;
  const int64_t pixels = p.op.OH * p.op.OW;
  const int phases_w = min(p.image_phases_w, kPhases);
#pragma unroll 1
  for (int i = threadIdx.x; i < T::kRows * static_cast<int>(round_up(kPhases, phases_w)); i += T::kThreads) {
    // Horizontal phases first, then pixels, then vertical phases.
    const int row = i / phases_w % T::kRows, in_tile = i / (phases_w * T::kRows) * phases_w + i % phases_w;
    const int phase = first_column / 4 + in_tile, phase_h = phase / p.image_phases_w,
              phase_w = phase % p.image_phases_w;
    const int oh = phase_h + (at.y + at.row_y(row)) * p.rows.stride;
    const int ow = phase_w + (at.x + at.row_x(row)) * p.columns.stride;
    const int image = at.first_image() + at.row_image(row);
    if (in_tile >= kPhases || phase >= p.image_phases || oh >= p.op.OH || ow >= p.op.OW || image >= p.op.N) continue;
    float values[4];
    const float4 loaded = *reinterpret_cast<const float4*>(z + row * T::kPitch + in_tile * 4);
    memcpy(values, &loaded, sizeof values);
    activate(values, p.op.activation, p.op.negative_slope);
    const int64_t pixel = oh * p.op.OW + ow, pitch = channels_last ? 1 : pixels;
    scalar_t* to = static_cast<scalar_t*>(p.op.output) + image * p.op.K * pixels + pixel * (channels_last ? p.op.K : 1);
#pragma unroll
    for (int k = 0; k < 4; ++k, to += pitch)
      if (k < p.op.K) *to = from_float<scalar_t>(values[k]);
  }
}

// All of it. `shared` holds kFinishedBytes, which nobody reads any more.
template <typename scalar_t, typename T, bool kImage>
__device__ __forceinline__ void finish_tile(const Place& at, uint32_t tile, int first_column, Sums<T>& sums,
                                            unsigned char* shared) {
  affine<T, kImage>(at.p, first_column, sums);
  if constexpr (!kImage)
    if (at.p.partial) gather_statistics<T>(at, tile, first_column, sums);
  float* const z = reinterpret_cast<float*>(shared);
#pragma unroll
  for (int i = 0; i < 2 * T::kM; ++i)
#pragma unroll
    for (int n = 0; n < T::kN; ++n)
      *reinterpret_cast<float2*>(z + (lane_row<T>() + 8 * i) * T::kPitch + lane_column<T>() + 8 * n) =
          make_float2(sum_at<T>(sums, i, n, 0), sum_at<T>(sums, i, n, 1));
  __syncthreads();
  if constexpr (kImage) store_image_tile<scalar_t, T>(at, first_column, z);
  else store_tile<scalar_t, T>(at, first_column, z);
}

}  // namespace artkernels::cuda
