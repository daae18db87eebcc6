// Gradient of a Gram matrix, factor * scale * (D + D^T) X for each image. See gram.h and params.h.
#include <algorithm>

#include "gram.h"
#include "launch.cuh"
#include "tile.cuh"

namespace artkernels::cuda {

namespace {

// S = D + D^T as an operand of the tensor cores. float: one plane. 16 bits: S = high + low, each rounded to 16 bits,
// so that the rounding of S stays far below that of the result. float16: a row is first divided by a power of two
// that brings its largest element to [2^13, 2^14), so that D of any magnitude fits; the power is put back in float32.
template <typename scalar_t>
constexpr int kPlanes = sizeof(scalar_t) == 2 ? 2 : 1;
template <typename scalar_t>
constexpr bool kScaledRows = std::is_same_v<scalar_t, __half>;

struct Kernel {
  GramBackwardParams op;
  void* planes;        // [planes, N, C, pitch] of the features' dtype; columns beyond C are zero
  float* row_scales;   // [N, C], float16 only
  int64_t pitch;       // C rounded up to 16 bytes
  int channel_blocks;  // blocks of channels that a pixel tile needs
  int pixel_blocks;    // blocks that share an image's pixel tiles
  bool input_aligned, output_aligned;
};

// Prepares S, once per call.
//
// Tiling: a block takes 8 rows of D and the same 8 columns (one sector of each row), 32 columns of S at a time; the
// transposed part goes through shared memory. float16 needs the rows' maxima first and so reads D twice, the second
// time from L2.
// Traffic: 2 C^2 floats read, C^2 floats (float: the same bytes; 16 bits: two planes) written. D is small beside X.
constexpr int kPrepareRows = 8, kPrepareThreads = 256, kPrepareColumns = kPrepareThreads / kPrepareRows;
template <typename scalar_t>
__global__ __launch_bounds__(kPrepareThreads) void gram_symmetrize_kernel(const Kernel p) {
  __shared__ float transposed[kPrepareRows][kPrepareColumns + 4];  // conflict-free both ways
  const int64_t C = p.op.features.C;
  const uint32_t strips = static_cast<uint32_t>(ceil_div(C, kPrepareRows));
  const int64_t image = blockIdx.x / strips, first_row = blockIdx.x % strips * kPrepareRows;
  const float* const d = p.op.grad_output + image * C * C;
  const int r = threadIdx.x / kPrepareColumns, c = threadIdx.x % kPrepareColumns;  // of S: a warp is a row
  const int tr = threadIdx.x % kPrepareRows, tc = threadIdx.x / kPrepareRows;      // of the transposed part of S
  const int64_t row = first_row + r;

  auto sum = [&](int64_t first_column) {  // element (r, c) of S from first_column on
    __syncthreads();
    const int64_t d_row = first_column + tc, d_column = first_row + tr;
    transposed[tr][tc] = d_row < C && d_column < C ? d[d_row * C + d_column] : 0.f;
    __syncthreads();
    const int64_t column = first_column + c;
    return row < C && column < C ? d[row * C + column] + transposed[r][c] : 0.f;
  };

  float to_unit = 1.f;
  if constexpr (kScaledRows<scalar_t>) {
    float largest = 0.f;
    for (int64_t column = 0; column < C; column += kPrepareColumns) largest = fmaxf(largest, fabsf(sum(column)));
    largest = warp_max(largest);
    int exponent = 0;
    if (largest > 0.f && isfinite(largest)) frexpf(largest, &exponent);
    exponent = min(max(exponent - 14, -126), 126);
    to_unit = ldexpf(1.f, -exponent);
    if (c == 0 && row < C) p.row_scales[image * C + row] = ldexpf(1.f, exponent);
  }
  scalar_t* const high = static_cast<scalar_t*>(p.planes) + (image * C + row) * p.pitch;
  scalar_t* const low = high + p.op.features.N * C * p.pitch;
  for (int64_t column = 0; column < p.pitch; column += kPrepareColumns) {
    const float s = sum(column) * to_unit;
    if (row >= C || column + c >= p.pitch) continue;
    const scalar_t rounded = from_float<scalar_t>(s);
    high[column + c] = rounded;
    if constexpr (kPlanes<scalar_t> == 2) low[column + c] = from_float<scalar_t>(s - to_float(rounded));
  }
}

constexpr int kPixels = 128;  // of a block's tile
constexpr int kTileBytes = 8192;
template <typename scalar_t, int kTiles>
constexpr int kMatrixStageBytes = kPlanes<scalar_t> * kTiles * kTileBytes;
constexpr int kInputStageBytes = kPixels / 64 * kTileBytes;

// Buffers of S in shared memory: all of it where four buffers hold it, and then it is loaded once; else two, refilled.
template <typename scalar_t>
__host__ __device__ constexpr bool resident(int64_t C) {
  return ceil_div(C, 128 / sizeof(scalar_t)) <= 4 / kPlanes<scalar_t>;
}
template <typename scalar_t, int kTiles>
__host__ __device__ constexpr int shared_bytes(int64_t C) {
  const int64_t steps = ceil_div(C, 128 / sizeof(scalar_t));
  return static_cast<int>(resident<scalar_t>(C) ? steps : 2) * kMatrixStageBytes<scalar_t, kTiles> +
         2 * kInputStageBytes;
}

// A warp's results to memory: rows of the product are channels (NCHW) or pixels (channels_last), columns the other.
// scales: of each result's channel, see scale_index. Vector stores where rows start on 16 bytes: in 16 bits the four
// lanes of a row exchange words, so that each gets 8 neighbouring columns and a row of the warp is 64 or more
// contiguous bytes.
template <typename scalar_t, bool kChannelsLast>
__device__ __forceinline__ constexpr int scale_index(int m, int half, int n, int parity) {
  return !kScaledRows<scalar_t> ? 0 : kChannelsLast ? 2 * n + parity : 2 * m + half;
}
template <typename scalar_t, bool kChannelsLast, int kM, int kColumns, int kScales>
__device__ __forceinline__ void store_tile(const Kernel& p, const float (&acc)[kM][kColumns][4],
                                           const float (&scales)[kScales], int64_t image, int64_t channel,
                                           int64_t pixel) {
  const int lane = threadIdx.x % 32, quad_lane = lane % 4;
  const int64_t C = p.op.features.C, P = p.op.features.P;
  const int64_t rows = kChannelsLast ? P : C, columns = kChannelsLast ? C : P;
  const int64_t first_row = kChannelsLast ? pixel : channel, first_column = kChannelsLast ? channel : pixel;
  int64_t row = first_row + lane / 4;
  scalar_t* line = static_cast<scalar_t*>(p.op.grad_input) + image * C * P + row * columns + first_column;
#pragma unroll
  for (int m = 0; m < kM; ++m)
#pragma unroll
    for (int half = 0; half < 2; ++half, row += 8, line += 8 * columns) {
      auto result = [&](int n, int parity) {
        return acc[m][n][2 * half + parity] * scales[scale_index<scalar_t, kChannelsLast>(m, half, n, parity)];
      };
      if (p.output_aligned && sizeof(scalar_t) == 2) {
#pragma unroll
        for (int n = 0; n < kColumns; n += 4) {
          uint32_t mine[4], words[4];
#pragma unroll
          for (int i = 0; i < 4; ++i) mine[i] = pack<scalar_t>(result(n + i, 0), result(n + i, 1));
          transpose_in_quad(mine, words);
          const int at = n * 8 + quad_lane * 8;
          if (row < rows && first_column + at < columns) store_16(line + at, words);
        }
      } else {
#pragma unroll
        for (int n = 0; n < kColumns; ++n) {
          const int at = n * 8 + quad_lane * 2;
          if (row >= rows) continue;
          if (p.output_aligned) {
            if (first_column + at < columns) store_8(line + at, result(n, 0), result(n, 1));
          } else {
            if (first_column + at < columns) line[at] = from_float<scalar_t>(result(n, 0));
            if (first_column + at + 1 < columns) line[at + 1] = from_float<scalar_t>(result(n, 1));
          }
        }
      }
    }
}

// dX = factor scale S X, S symmetric.
//
// Tiling: a block makes 64 kTiles channels of 128 pixels, again and again over the pixel tiles of its image, in steps
// of 128 bytes of depth (64 or 32 channels), two buffers: while one step is multiplied the next one arrives
// (cp.async). Each of the 4 kTiles warps holds 32 channels x 64 pixels (64 accumulators). The product's columns are
// the direction that is contiguous in memory, so that a lane's neighbouring results are neighbours there: S X in
// NCHW, X S in channels_last. Up to 128 channels S stays in shared memory; beyond, its slices stream from L2 with
// those of X.
// Traffic: X read once from DRAM (the channel blocks of a pixel tile run together) and C / (64 kTiles) times from L2,
// dX written once, 16 bytes a store (8 for float); S from L2.
// Registers: at most 128, so that 16 warps fit an SM. Shared memory: 40 to 64 KB for kTiles = 1, 64 to 96 KB for 2.
template <typename scalar_t, bool kTf32, bool kChannelsLast, int kTiles>
__global__ __launch_bounds__(128 * kTiles, 4 / kTiles) void gram_backward_kernel(const Kernel p) {
  using MatrixTile = Tile<scalar_t, true>;
  using InputTile = Tile<scalar_t, kChannelsLast>;
  constexpr int kThreads = 128 * kTiles, kDepth = MatrixTile::kDepth;
  constexpr int kM = kChannelsLast ? 4 : 2, kN = kChannelsLast ? 2 : 4;  // 16 x 16 blocks of a warp
  extern __shared__ __align__(128) unsigned char shared[];

  const int64_t C = p.op.features.C, P = p.op.features.P;
  const int channel_block = blockIdx.x % p.channel_blocks;
  const int first_tile = blockIdx.x / p.channel_blocks % p.pixel_blocks;
  const int64_t image = blockIdx.x / p.channel_blocks / p.pixel_blocks;
  const int steps = static_cast<int>(ceil_div(C, kDepth));
  const int pixel_tiles = static_cast<int>(ceil_div(P, kPixels));
  const bool is_resident = resident<scalar_t>(C);
  unsigned char* const matrix_stages = shared;
  unsigned char* const input_stages = shared + (is_resident ? steps : 2) * kMatrixStageBytes<scalar_t, kTiles>;

  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const int warp_channel = warp / 2 * 32, warp_pixel = warp % 2 * 64;

  const Operand<scalar_t> x = {static_cast<const scalar_t*>(p.op.input) + image * C * P, kChannelsLast ? C : P,
                               static_cast<uint32_t>(P), static_cast<uint32_t>(C), p.input_aligned};
  const uint32_t pitch = static_cast<uint32_t>(p.pitch);
  const Operand<scalar_t> s = {static_cast<const scalar_t*>(p.planes) + image * C * p.pitch, p.pitch,
                               static_cast<uint32_t>(C), pitch, true};

  auto load_matrix_step = [&](int step, int stage) {
#pragma unroll 1
    for (int i = 0; i < kPlanes<scalar_t> * kTiles; ++i) {
      Operand<scalar_t> plane = s;
      plane.data += i / kTiles * p.op.features.N * C * p.pitch;
      MatrixTile::template copy<kThreads>(matrix_stages + stage * kMatrixStageBytes<scalar_t, kTiles> + i * kTileBytes,
                                          plane, (channel_block * kTiles + i % kTiles) * 64, step * kDepth);
    }
  };
  int load_tile = first_tile, load_step = 0;
  auto load_next = [&](int stage) {
    if (load_tile < pixel_tiles) {
#pragma unroll
      for (int i = 0; i < kPixels / 64; ++i)
        InputTile::template copy<kThreads>(input_stages + stage * kInputStageBytes + i * kTileBytes, x,
                                           static_cast<uint32_t>(load_tile) * kPixels + i * 64, load_step * kDepth);
      if (!is_resident || load_tile == first_tile) load_matrix_step(load_step, is_resident ? load_step : stage);
      if (++load_step == steps) {
        load_step = 0;
        load_tile += p.pixel_blocks;
      }
    }
    copy_async_commit();
  };
  load_next(0);

  int stage = 0;
  for (int tile = first_tile; tile < pixel_tiles; tile += p.pixel_blocks) {
    float acc[kM][2 * kN][4] = {};
    for (int step = 0; step < steps; ++step, stage ^= 1) {
      copy_async_wait<0>();
      __syncthreads();  // the step has arrived for all, and all have left the buffer that is filled next
      load_next(stage ^ 1);
      const unsigned char* const matrix = matrix_stages +
                                          (is_resident ? step : stage) * kMatrixStageBytes<scalar_t, kTiles> +
                                          warp_channel / 64 * kTileBytes;
      const unsigned char* const input = input_stages + stage * kInputStageBytes + warp_pixel / 64 * kTileBytes;
#pragma unroll 1
      for (int slice = 0; slice < MatrixTile::kSlices; ++slice) {
        constexpr int kPlaneBytes = kTiles * kTileBytes, kMatrixPlanes = kPlanes<scalar_t>;
        if constexpr (kChannelsLast)
          multiply_slice<kTf32, InputTile, 1, MatrixTile, kMatrixPlanes, kPlaneBytes>(acc, input, 0, matrix,
                                                                                      warp_channel % 64, slice);
        else
          multiply_slice<kTf32, MatrixTile, kMatrixPlanes, InputTile, 1, kPlaneBytes>(acc, matrix, warp_channel % 64,
                                                                                      input, 0, slice);
      }
    }
    // Read again for every tile: a few loads, instead of registers that the product needs.
    const float multiplier = (p.op.factor ? *p.op.factor : 1.f) * p.op.scale;
    float scales[kScaledRows<scalar_t> ? (kChannelsLast ? 4 * kN : 2 * kM) : 1];
    if constexpr (kScaledRows<scalar_t>) {
#pragma unroll
      for (int i = 0; i < (kChannelsLast ? 4 * kN : 2 * kM); ++i) {
        const int within = kChannelsLast ? i / 2 * 8 + lane % 4 * 2 + i % 2 : i * 8 + lane / 4;
        const int64_t channel = channel_block * 64 * kTiles + warp_channel + within;
        scales[i] = channel < C ? p.row_scales[image * C + channel] * multiplier : 0.f;
      }
    } else {
      scales[0] = multiplier;
    }
    store_tile<scalar_t, kChannelsLast>(p, acc, scales, image, channel_block * 64 * kTiles + warp_channel,
                                        int64_t{tile} * kPixels + warp_pixel);
  }
}

struct Plan {
  int tiles;  // kTiles of gram_backward_kernel
  int64_t pitch, plane_elements;
};

Plan make_plan(const GramBackwardParams& p) {
  const auto [N, C, P, dtype, channels_last] = p.features;
  require(P <= INT32_MAX, "gram_backward: " + std::to_string(P) + " pixels in an image, at most 2^31 - 1 are possible");
  require(C <= 1 << 16, "gram_backward: " + std::to_string(C) + " channels, at most 65536 are possible");
  // 128 channels at a time halve the L2 traffic, where that many make enough blocks; they take 96 KB of shared
  // memory, which Turing does not have.
  const bool possible = device_attribute(cudaDevAttrMaxSharedMemoryPerBlockOptin) >= 96 << 10;
  const int64_t blocks = N * ceil_div(C, 128) * ceil_div(P, kPixels);
  const bool worthwhile = C > 64 && blocks >= device_attribute(cudaDevAttrMultiProcessorCount);
  const int64_t pitch = round_up(C, 16 / element_size(dtype));
  return {possible && worthwhile ? 2 : 1, pitch, N * C * pitch};
}

template <typename scalar_t, bool kTf32, bool kChannelsLast, int kTiles>
void launch_kernel(Kernel p, cudaStream_t stream) {
  const auto [N, C, P, dtype, channels_last] = p.op.features;
  const int threads = 128 * kTiles, shared = shared_bytes<scalar_t, kTiles>(C);
  // Two blocks an SM where that many fit: a block then runs through its share of the pixel tiles with S at hand.
  const int64_t channel_blocks = ceil_div(C, 64 * kTiles), pixel_tiles = ceil_div(P, kPixels);
  const int64_t wanted = ceil_div(2 * device_attribute(cudaDevAttrMultiProcessorCount), N * channel_blocks);
  p.channel_blocks = static_cast<int>(channel_blocks);
  p.pixel_blocks = static_cast<int>(std::min(pixel_tiles, wanted));
  launch(gram_backward_kernel<scalar_t, kTf32, kChannelsLast, kTiles>, "gram_backward_kernel",
         N * p.channel_blocks * p.pixel_blocks, threads, shared, stream, p);
}

template <typename scalar_t, bool kTf32>
void launch_dtype(const Kernel& p, int tiles, cudaStream_t stream) {
  const FeatureMap& f = p.op.features;
  launch(gram_symmetrize_kernel<scalar_t>, "gram_symmetrize_kernel", f.N * ceil_div(f.C, kPrepareRows), kPrepareThreads,
         0, stream, p);
  if (f.channels_last)
    tiles == 1 ? launch_kernel<scalar_t, kTf32, true, 1>(p, stream)
               : launch_kernel<scalar_t, kTf32, true, 2>(p, stream);
  else
    tiles == 1 ? launch_kernel<scalar_t, kTf32, false, 1>(p, stream)
               : launch_kernel<scalar_t, kTf32, false, 2>(p, stream);
}

}  // namespace

int64_t gram_backward_workspace_size(const GramBackwardParams& p) {
  const Plan plan = make_plan(p);  // float: one plane of floats; 16 bits: two planes, as many bytes
  return plan.plane_elements + (p.features.dtype == ScalarType::Half ? p.features.N * p.features.C : 0);
}

void launch_gram_backward(const GramBackwardParams& p, CUstream_st* stream) {
  const Plan plan = make_plan(p);
  Kernel kernel{};
  kernel.op = p;
  kernel.planes = p.workspace;
  kernel.row_scales = p.workspace + plan.plane_elements;
  kernel.pitch = plan.pitch;
  kernel.input_aligned = aligned_rows(p.features, p.input);
  kernel.output_aligned = aligned_rows(p.features, p.grad_input);
  switch (p.features.dtype) {
    case ScalarType::Float:
      p.allow_tf32 ? launch_dtype<float, true>(kernel, plan.tiles, stream)
                   : launch_dtype<float, false>(kernel, plan.tiles, stream);
      break;
    case ScalarType::Half: launch_dtype<__half, false>(kernel, plan.tiles, stream); break;
    case ScalarType::BFloat16: launch_dtype<__nv_bfloat16, false>(kernel, plan.tiles, stream); break;
  }
}

}  // namespace artkernels::cuda
