// The implicit GEMM of the transposed convolution. See conv_transpose.cuh for what it computes.
#pragma once

#include "conv_transpose_epilogue.cuh"
#include "conv_transpose_tiles.cuh"

namespace artkernels::cuda {

// The input pixels that a tile reads: its own and, for all taps but one, a halo around them. Slot (image, y, x) of the
// tile is at (image * height + y) * width + x.
struct Halo {
  int height, width, slots;

  __device__ __forceinline__ explicit Halo(const Place& at) {
    height = (1 << at.p.height_log2) + at.vertical().reach();
    width = (1 << at.p.width_log2) + at.horizontal().reach();
    slots = height * width << at.p.images_log2;
  }
  // Of the input that the last vertical and the last horizontal tap bring to a row; `shift` of a tap comes on top.
  __device__ __forceinline__ int slot_of(const Place& at, int row) const {
    return (at.row_image(row) * height + at.row_y(row)) * width + at.row_x(row);
  }
  // Elements from the start of the input to channel 0 of a slot, or -1 where it is padding.
  __device__ __forceinline__ int64_t input_of(const Place& at, int slot) const {
    const Conv& op = at.p.op;
    const int x = slot % width + at.x + at.horizontal().shift - at.horizontal().reach();
    const int y = slot / width % height + at.y + at.vertical().shift - at.vertical().reach();
    const int in_tile = slot / width / height;
    if (in_tile >= at.images() || x < 0 || x >= op.W || y < 0 || y >= op.H) return -1;
    const int64_t pixel = y * op.W + x, image = at.first_image() + in_tile;
    return image * op.C * op.H * op.W + pixel * (op.input_channels_last ? op.C : 1);
  }
};

// A step of the main loop: a block of input channels and a tap, taps fastest.
struct Step {
  int channel, tap_h, tap_w;
  int64_t weight;  // elements from the start of the weight to the first one of the channel and the tap

  __device__ __forceinline__ Step(const Place& at, int channel) : channel(channel), tap_h(0), tap_w(0) {
    const int tap = at.vertical().first_tap * at.p.columns.kernel + at.horizontal().first_tap;
    weight = channel * at.p.weight_pitch + int64_t{tap} * at.p.K;
  }
  __device__ __forceinline__ bool first_tap() const { return tap_h + tap_w == 0; }
  __device__ __forceinline__ void advance(const Place& at) {
    const Phase &vertical = at.vertical(), &horizontal = at.horizontal();
    const int64_t next_w = int64_t{horizontal.tap_step} * at.p.K;
    weight += next_w;
    if (++tap_w < horizontal.taps) return;
    const int64_t next_h = int64_t{vertical.tap_step} * at.p.columns.kernel * at.p.K;
    weight += next_h - tap_w * next_w;
    tap_w = 0;
    if (++tap_h < vertical.taps) return;
    weight += at.p.channel_block * at.p.weight_pitch - tap_h * next_h;
    tap_h = 0;
    channel += at.p.channel_block;
  }
};

// Copies a block of channels of all slots. The slots of a warp are neighbours where they are neighbours in memory
// (NCHW: elements are loaded one by one and transposed on the way); else neighbouring threads take neighbouring chunks.
template <typename scalar_t, typename T>
__device__ __forceinline__ void copy_input(const ConvTransposeKernel& p, unsigned char* to, const int64_t* table,
                                           int slots, int first_channel) {
  using V = Vector<scalar_t>;
  constexpr int kStep = T::kThreads / kInputChunks;  // slots from one to the next of a thread; the swizzle stays
  const int tid = threadIdx.x;
  const bool channels_last = p.op.input_channels_last;
  const int chunk = channels_last ? tid % kInputChunks : tid / 32 % kInputChunks;
  const int first = channels_last ? tid / kInputChunks : tid / (32 * kInputChunks) * 32 + tid % 32;
  const int channel = first_channel + chunk * V::kLength, valid = static_cast<int>(p.op.C) - channel;
  const scalar_t* const source = static_cast<const scalar_t*>(p.op.input) + channel * p.input_pitch;
  to += input_offset(first, chunk);
  if (p.input_aligned) {
#pragma unroll 2
    for (int slot = first; slot < slots; slot += kStep, to += kStep * kDepthBytes) {
      const int64_t pixel = table[slot];
      copy_async_16(to, source + pixel, pixel >= 0 && valid > 0);
    }
  } else {
#pragma unroll 1
    for (int slot = first; slot < slots; slot += kStep, to += kStep * kDepthBytes) {
      const int64_t pixel = table[slot];
      const int length = pixel >= 0 ? min(valid, V::kLength) : 0;
      store_shared(to, V::template load<false>(source + pixel, static_cast<int>(p.input_pitch), length));
    }
  }
}

// The GEMM.
//
// Tiling: a block takes kRows pixels of a phase by kColumns output channels, and walks through blocks of input channels
// (64 bytes of each pixel) and, within them, the phase's taps. The tile's pixels with their halo are loaded once for
// all taps of a block of channels; the weight of a tap is a stage of its own. kStages stages are in flight (cp.async).
// Where there are too few tiles for the device's SMs, the input channels are split over blocks as well: these leave
// their accumulators for conv_transpose_finish_kernel.
// Traffic: DRAM input, weight and output once each: blocks of the same pixels follow each other, and L2 serves the
// input channel tiles x phases x (1 + halo) times, the weight once for each tile of pixels. Split: the accumulators
// written and read once more, in L2.
// NCHW: loaded natively, each element alone, and transposed on the way to shared memory. Neighbouring threads load
// neighbouring pixels, so that the sectors are as few as in channels_last; only loads and instructions are more.
// Registers: at most 128 (LargeTile, ImageTile: two blocks of 256 threads an SM; SmallTile: four of 128).
// Source: implicit GEMM as in CUTLASS, by phases as in sub-pixel convolution (Shi et al. 2016); 3xTF32 after Ootomo and
// Yokota (2022).
template <typename scalar_t, bool kTf32, typename T, bool kImage = false>
__global__ __launch_bounds__(T::kThreads, T::kBlocksPerSM) void conv_transpose_kernel(
    const __grid_constant__ ConvTransposeKernel p) {
  using Weights = WeightTile<scalar_t, T::kColumns>;
  extern __shared__ __align__(128) unsigned char shared[];

  const uint32_t tile = blockIdx.x / p.channel_tiles % p.tiles(), split = blockIdx.x / p.channel_tiles / p.tiles();
  const int first_column = static_cast<int>(blockIdx.x % p.channel_tiles) * T::kColumns;
  const Place at(p, tile);
  if (at.count() == 0) return;
  const Phase vertical = at.vertical(), horizontal = at.horizontal();
  const Halo halo(at);
  const int C = static_cast<int>(p.op.C), taps = vertical.taps * horizontal.taps;
  const int blocks = static_cast<int>(ceil_div(C, p.channel_block));
  const int begin = static_cast<int>(int64_t{blocks} * split / p.splits);
  const int end = static_cast<int>(int64_t{blocks} * (split + 1) / p.splits);

  const int buffers = taps ? input_buffers<T>(taps) : 0, buffer_bytes = halo.slots * kDepthBytes;
  unsigned char* const weights = shared + buffers * buffer_bytes;
  int64_t* const table = reinterpret_cast<int64_t*>(weights + T::kStages * Weights::kBytes);
  for (int slot = threadIdx.x; slot < halo.slots && taps; slot += T::kThreads) table[slot] = halo.input_of(at, slot);
  __syncthreads();

  Step next(at, begin * p.channel_block);
  const scalar_t* const weight = static_cast<const scalar_t*>(p.weight) + Weights::line() * p.weight_pitch +
                                 first_column + Weights::column();  // of this thread
  int next_buffer = 0, next_stage = 0;
  auto load = [&] {
    if (next.channel < end * p.channel_block && taps) {
      if (next.first_tap()) {
        copy_input<scalar_t, T>(p, shared + next_buffer * buffer_bytes, table, halo.slots, next.channel);
        next_buffer = next_buffer + 1 == buffers ? 0 : next_buffer + 1;
      }
      const int valid = Weights::line() < C - next.channel ? p.K - first_column - Weights::column() : 0;
      Weights::copy(weights + next_stage * Weights::kBytes, weight + next.weight, valid, p.weight_aligned);
      next.advance(at);
    }
    next_stage = next_stage + 1 == T::kStages ? 0 : next_stage + 1;
    copy_async_commit();
  };
#pragma unroll 1
  for (int s = 0; s < T::kStages - 1; ++s) load();

  WarpProduct<scalar_t, kTf32, T> product([&](int row) { return halo.slot_of(at, row); });
  int tap_h = vertical.taps, tap_w = horizontal.taps, buffer = 0, stage = 0;  // taps that are left
#pragma unroll 1
  for (int i = (end - begin) * taps; i > 0; --i) {
    copy_async_wait<T::kStages - 2>();
    __syncthreads();  // the stage has arrived for all, and all have left the one that is filled next
    load();
    const int shift = (tap_h - 1) * vertical.shift_step * halo.width + (tap_w - 1) * horizontal.shift_step;
    product.add(shared + buffer * buffer_bytes, shift, weights + stage * Weights::kBytes);
    stage = stage + 1 == T::kStages ? 0 : stage + 1;
    if (--tap_w) continue;
    tap_w = horizontal.taps;
    if (--tap_h) continue;
    tap_h = vertical.taps;
    buffer = buffer + 1 == buffers ? 0 : buffer + 1;
  }
  copy_async_wait<0>();
  __syncthreads();

  if (p.splits > 1) {
    float4* const to = parked<T>(p, blockIdx.x);
#pragma unroll
    for (int m = 0; m < T::kM; ++m)
#pragma unroll
      for (int n = 0; n < T::kN; ++n) {
        const float (&sum)[4] = product.sums[m][n];
        to[(m * T::kN + n) * T::kThreads] = make_float4(sum[0], sum[1], sum[2], sum[3]);
      }
  } else {
    finish_tile<scalar_t, T, kImage>(at, tile, first_column, product.sums, shared);
  }
}

// Adds the parts of a split call in order, and finishes as the GEMM would have: a block for each of its tiles.
// Traffic: the parts read once (from L2: just written), in whole lines; the output written once.
template <typename scalar_t>
__global__ __launch_bounds__(SmallTile::kThreads, SmallTile::kBlocksPerSM) void conv_transpose_finish_kernel(
    const __grid_constant__ ConvTransposeKernel p) {
  using T = SmallTile;
  __shared__ __align__(16) unsigned char shared[T::kFinishedBytes];
  const uint32_t tile = blockIdx.x / p.channel_tiles;
  const Place at(p, tile);
  if (at.count() == 0) return;
  float sums[T::kM][T::kN][4] = {};
  for (int split = 0; split < p.splits; ++split) {
    const float4* const from = parked<T>(p, int64_t{split} * gridDim.x + blockIdx.x);
#pragma unroll
    for (int m = 0; m < T::kM; ++m)
#pragma unroll
      for (int n = 0; n < T::kN; ++n) {
        const float4 part = from[(m * T::kN + n) * T::kThreads];
        sums[m][n][0] += part.x;
        sums[m][n][1] += part.y;
        sums[m][n][2] += part.z;
        sums[m][n][3] += part.w;
      }
  }
  finish_tile<scalar_t, T, false>(at, tile, static_cast<int>(blockIdx.x % p.channel_tiles) * T::kColumns, sums, shared);
}

template <typename scalar_t, bool kTf32>
void launch_gemm(TileKind kind, const ConvTransposeKernel& p, int bytes, cudaStream_t stream) {
  const int64_t blocks = int64_t{p.tiles()} * p.channel_tiles;
  if (kind == TileKind::Large)
    return launch(conv_transpose_kernel<scalar_t, kTf32, LargeTile>, "conv_transpose_kernel", blocks,
                  LargeTile::kThreads, bytes, stream, p);
  launch(conv_transpose_kernel<scalar_t, kTf32, SmallTile>, "conv_transpose_kernel", blocks * p.splits,
         SmallTile::kThreads, bytes, stream, p);
  if (p.splits > 1)
    launch(conv_transpose_finish_kernel<scalar_t>, "conv_transpose_finish_kernel", blocks, SmallTile::kThreads, 0,
           stream, p);
}

}  // namespace artkernels::cuda
