// Operands of the transposed convolution in shared memory, and the product of two of them by a warp.
//
// Input: 64 bytes of channels of each slot, a slot being a pixel of the tile or of its halo. In every layout the slots
// are lines of channels, so that ldmatrix can start at any pixel: a tap is a constant shift of the slot.
// Weight: of one tap, 64 bytes worth of input channels by the tile's output channels, as global memory has them.
// 16-byte chunks are XOR-swizzled, so that copies and fragment loads meet no bank conflict.
#pragma once

#include "conv_transpose.cuh"
#include "mma.cuh"

namespace artkernels::cuda {

constexpr int kInputChunks = kDepthBytes / 16;

// Any 8 neighbouring slots, from whichever on, have a chunk in 8 different groups of banks.
__device__ __forceinline__ int input_offset(int slot, int chunk) {
  return slot * kDepthBytes + ((chunk ^ (slot >> 1 & 3)) << 4);
}

template <typename scalar_t>
__device__ __forceinline__ void store_shared(unsigned char* to, const Vector<scalar_t>& v) {
  *reinterpret_cast<uint4*>(to) = make_uint4(v.words[0], v.words[1], v.words[2], v.words[3]);
}

template <typename scalar_t, int kColumns>
struct WeightTile {
  static constexpr int kChunk = 16 / sizeof(scalar_t), kDepth = kDepthBytes / sizeof(scalar_t);
  static constexpr int kLineChunks = kColumns / kChunk;
  static constexpr int kBytes = kDepth * kLineChunks * 16;  // kDepthBytes * kColumns

  // 16 bits: 8 lines have a chunk in different groups of banks (ldmatrix). float: 4 lines two neighbouring ones.
  __device__ static __forceinline__ int offset(int line, int chunk) {
    constexpr int kLinesPerRow = kLineChunks < 8 ? 8 / kLineChunks : 1, kRowChunks = kLineChunks < 8 ? kLineChunks : 8;
    const int row = line / kLinesPerRow;
    const int swizzle = sizeof(scalar_t) == 2 ? row & (kRowChunks - 1) : (row & (kRowChunks / 2 - 1)) << 1;
    return (line * kLineChunks + (chunk ^ swizzle)) << 4;
  }

  // The chunk that a thread of the block copies, if there is one for it.
  __device__ static __forceinline__ int line() { return threadIdx.x / kLineChunks; }
  __device__ static __forceinline__ int column() { return threadIdx.x % kLineChunks * kChunk; }

  // `valid` elements, the first ones, exist; the others are zeros.
  __device__ static __forceinline__ void copy(unsigned char* tile, const scalar_t* from, int valid, bool aligned) {
    if (line() >= kDepth) return;
    unsigned char* const to = tile + offset(line(), column() / kChunk);
    if (aligned) copy_async_16(to, from, valid > 0);
    else store_shared(to, Vector<scalar_t>::template load<false>(from, 1, min(valid, kChunk)));
  }

  // Where this lane's part of a warp's columns from `column` on, a multiple of what a warp has, begins.
  __device__ static __forceinline__ int lane_offset(int column) {
    const int lane = threadIdx.x % 32, at = column + lane / 4;
    if constexpr (sizeof(scalar_t) == 2) return offset(lane % 16, column / 8 + lane / 16);
    else return offset(lane % 4, at / kChunk) + at % kChunk * 4;
  }
  // The warp's columns 8 n .. 8 n + 15 (n even) of 32 bytes of depth, as two B operands of mma. Later lines of a slice
  // have the swizzle of its first ones, later columns differ from the first in single bits of the chunk.
  __device__ static __forceinline__ void load_fragment(uint32_t (&fragment)[4], const unsigned char* tile,
                                                       int lane_offset, int n, int slice) {
    constexpr int kLine = kLineChunks * 16, kBlock = 8 * sizeof(scalar_t);  // bytes of a line, of 8 columns
    tile += slice * (kDepth / 2) * kLine;
    if constexpr (sizeof(scalar_t) == 2) {
      load_matrix<true>(fragment, shared_address(tile) + (lane_offset ^ n * kBlock));
    } else {
#pragma unroll
      for (int i = 0; i < 4; ++i)
        fragment[i] =
            *reinterpret_cast<const uint32_t*>(tile + (lane_offset ^ (n + i / 2) * kBlock) + i % 2 * 4 * kLine);
    }
  }

  // Two neighbouring columns.
  __device__ static __forceinline__ const unsigned char* pair(const unsigned char* tile, int line, int column) {
    return tile + offset(line, column / kChunk) + column % kChunk * sizeof(scalar_t);
  }
};

template <typename scalar_t>
__device__ __forceinline__ float2 load_pair(const unsigned char* p) {
  if constexpr (sizeof(scalar_t) == 4) {
    return *reinterpret_cast<const float2*>(p);
  } else {
    const uint32_t word = *reinterpret_cast<const uint32_t*>(p);
    scalar_t values[2];
    memcpy(values, &word, sizeof word);
    return make_float2(to_float(values[0]), to_float(values[1]));
  }
}

// A warp's rows of the input and its sums. float: 3xTF32, or one TF32 product when kTf32; where kTensorCores says so,
// plain FMA.
template <typename scalar_t, bool kTf32, typename T>
struct WarpProduct {
  static constexpr bool kTensor = kTensorCores<scalar_t, kTf32>;
  static constexpr int kSlots = kTensor ? T::kM : 2 * T::kM;
  using Weights = WeightTile<scalar_t, T::kColumns>;

  float sums[T::kM][T::kN][4] = {};
  int slots[kSlots];          // of the rows that this lane loads
  int column, weight_offset;  // the warp's first column, and where the lane's part of the columns begins

  // slot_of(row) for a row of the tile.
  template <typename SlotOf>
  __device__ __forceinline__ explicit WarpProduct(SlotOf&& slot_of) {
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    const int row = warp % T::kWarpRows * T::kM * 16 + (kTensor ? lane % 16 : lane / 4);
#pragma unroll
    for (int i = 0; i < kSlots; ++i) slots[i] = slot_of(row + i * (kTensor ? 16 : 8));
    column = warp / T::kWarpRows * T::kN * 8;
    weight_offset = Weights::lane_offset(column);
  }

  // sums += input of the slots, shifted, times weight
  __device__ __forceinline__ void add(const unsigned char* input, int shift, const unsigned char* weight) {
    int offsets[kSlots];
#pragma unroll
    for (int i = 0; i < kSlots; ++i) offsets[i] = input_offset(slots[i] + shift, kTensor ? threadIdx.x % 32 / 16 : 0);
    if constexpr (kTensor) {
#pragma unroll
      for (int slice = 0; slice < kDepthBytes / 32; ++slice) add_slice(input, offsets, weight, slice);
    } else {
#pragma unroll 2
      for (int depth = 0; depth < Weights::kDepth; depth += 2) add_two(input, offsets, weight, depth);
    }
  }

 private:
  __device__ __forceinline__ void add_slice(const unsigned char* input, const int (&offsets)[kSlots],
                                            const unsigned char* weight, int slice) {
    constexpr bool kSplit = std::is_same_v<scalar_t, float> && !kTf32;
    constexpr bool kRound = std::is_same_v<scalar_t, float> && kTf32;
    uint32_t a[T::kM][4], low_a[T::kM][4], b[4], low_b[4];
#pragma unroll
    for (int m = 0; m < T::kM; ++m) {
      load_matrix<false>(a[m], shared_address(input) + (offsets[m] ^ slice * 32));
      if constexpr (kSplit) split_tf32(a[m], low_a[m]);
      if constexpr (kRound) round_tf32(a[m]);
    }
#pragma unroll
    for (int n = 0; n < T::kN; n += 2) {
      Weights::load_fragment(b, weight, weight_offset, n, slice);
      if constexpr (kSplit) split_tf32(b, low_b);
      if constexpr (kRound) round_tf32(b);
#pragma unroll
      for (int m = 0; m < T::kM; ++m)
#pragma unroll
        for (int half = 0; half < 2; ++half) {
          float (&to)[4] = sums[m][n + half];
          if constexpr (kSplit) {
            mma<scalar_t>(to, low_a[m], b[2 * half], b[2 * half + 1]);
            mma<scalar_t>(to, a[m], low_b[2 * half], low_b[2 * half + 1]);
          }
          mma<scalar_t>(to, a[m], b[2 * half], b[2 * half + 1]);
        }
    }
  }

  __device__ __forceinline__ void add_two(const unsigned char* input, const int (&offsets)[kSlots],
                                          const unsigned char* weight, int depth) {
    constexpr int kChunk = Weights::kChunk;
    float2 rows[kSlots];
#pragma unroll
    for (int i = 0; i < kSlots; ++i)
      rows[i] = load_pair<scalar_t>(input + (offsets[i] ^ depth / kChunk << 4) + depth % kChunk * sizeof(scalar_t));
#pragma unroll
    for (int e = 0; e < 2; ++e)
#pragma unroll
      for (int n = 0; n < T::kN; ++n) {
        const auto at = Weights::pair(weight, depth + e, column + n * 8 + threadIdx.x % 4 * 2);
        const float2 of = load_pair<scalar_t>(at);
#pragma unroll
        for (int i = 0; i < kSlots; ++i) {
          const float x = e ? rows[i].y : rows[i].x;
          float (&to)[4] = sums[i / 2][n];
          to[i % 2 * 2] = fmaf(x, of.x, to[i % 2 * 2]);
          to[i % 2 * 2 + 1] = fmaf(x, of.y, to[i % 2 * 2 + 1]);
        }
      }
  }
};

}  // namespace artkernels::cuda
