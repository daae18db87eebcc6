// How threads cover channels_last feature maps, and the sums over them. See norm_act.cuh for the passes.
#pragma once

#include "norm_act.cuh"

namespace artkernels::cuda {

// How threads cover rows. A block takes some channels of a tile of rows, those of one image, or of all of them
// (across_batch):
//   block = row lanes x channel lanes; a thread keeps the channels of one vector, in rows that are row lanes apart
// The blocks of the same rows follow each other, so that whole lines are in use at once.
struct RowsGeometry {
  int lanes_log2;      // channel lanes
  int block_channels;  // of the lanes' channels, whole groups where the block merges them
  uint32_t channel_blocks, tiles, blocks;
  int64_t rows, tile_rows;  // of an image; of a tile
};

struct RowsKernel : NormActKernel {
  RowsGeometry geometry;
};

// A thread's part of its block's tile, and its work on the block's channels. In the latter thread t has channel t of
// the block, in the former the channels of its vector, a quad of them at a time. Shared memory takes from one to the
// other; there, element e of a vector is in slot e * lanes + lane: no bank conflict.
template <typename scalar_t, int kThreads, bool kVectorised>
struct RowsTile {
  using V = Vector<scalar_t>;
  static constexpr int kSlots = 32 * V::kLength;
  static_assert(kSlots <= kThreads);
  const RowsKernel& p;
  const RowsGeometry& g;
  int rows;        // of the tile, from this thread's on; none where its lane has no channel
  int64_t offset;  // of its first element

  __device__ __forceinline__ explicit RowsTile(const RowsKernel& p) : p(p), g(p.geometry) {
    const int first = kVectorised ? lane() * V::kLength : lane(), row = threadIdx.x >> g.lanes_log2;
    rows = first < channels() ? tile_rows() - row : 0;
    offset = (image() * g.rows + tile() * g.tile_rows + row) * C() + first_channel() + first;
  }
  // The block; computed again where it is needed, since the registers are for the vectors. Apply goes in reverse.
  __device__ __forceinline__ int C() const { return static_cast<int>(p.op.features.C); }
  __device__ __forceinline__ uint32_t block() const {
    return p.pass == Pass::Apply ? g.blocks - 1 - blockIdx.x : blockIdx.x;
  }
  __device__ __forceinline__ int64_t image() const { return block() / g.channel_blocks / g.tiles; }
  __device__ __forceinline__ int64_t tile() const { return block() / g.channel_blocks % g.tiles; }
  __device__ __forceinline__ int tile_rows() const {
    return static_cast<int>(min(g.rows - tile() * g.tile_rows, g.tile_rows));
  }
  __device__ __forceinline__ int first_channel() const { return block() % g.channel_blocks * g.block_channels; }
  __device__ __forceinline__ int channels() const { return min(g.block_channels, C() - first_channel()); }

  __device__ __forceinline__ int lanes() const { return 1 << g.lanes_log2; }
  __device__ __forceinline__ int lane() const { return threadIdx.x & (lanes() - 1); }
  __device__ __forceinline__ int row_step() const { return kThreads >> g.lanes_log2; }

  // Vector v of this thread.
  __device__ __forceinline__ bool has(int v) const { return v * row_step() < rows; }
  __device__ __forceinline__ int valid(int v) const {
    if (!has(v)) return 0;
    return kVectorised ? V::kLength : min((channels() - lane() + lanes() - 1) >> g.lanes_log2, V::kLength);
  }
  __device__ __forceinline__ int64_t at(int v) const { return offset + int64_t{v * row_step()} * C(); }
  __device__ __forceinline__ V load(int v, const void* data) const {
    return V::template load<kVectorised>(static_cast<const scalar_t*>(data) + at(v), lanes(), valid(v));
  }
  template <int n>
  __device__ __forceinline__ void load(V (&x)[n], const void* data) const {
    if constexpr (kVectorised) {
#pragma unroll
      for (int v = 0; v < n; ++v) x[v] = load(v, data);
    } else {  // one at a time: slower, and far less code
#pragma unroll 1
      for (int v = 0; v < n; ++v) {
        x[0] = load(v, data);
        rotate(x);
      }
    }
  }
  __device__ __forceinline__ void store(int v, void* data, const V& x) const {
    x.template store<kVectorised>(static_cast<scalar_t*>(data) + at(v), lanes(), valid(v));
  }

  // Thread t's channel, if it has one; lanes beyond the last channel have slots too.
  __device__ __forceinline__ bool has_channel() const { return static_cast<int>(threadIdx.x) < channels(); }
  __device__ __forceinline__ bool has_slot() const { return threadIdx.x < V::kLength << g.lanes_log2; }
  __device__ __forceinline__ int channel() const { return first_channel() + (has_channel() ? threadIdx.x : 0); }
  __device__ __forceinline__ int slot() const {
    const int t = threadIdx.x;
    return kVectorised ? t % V::kLength << g.lanes_log2 | t / V::kLength : t;
  }
  __device__ __forceinline__ int slot(int quad, int e) const { return (4 * quad + e) << g.lanes_log2 | lane(); }

  // Sums over the rows, in a fixed order: each thread adds its values of each quad, then collects those of its channel.
  struct Sums {
    float warps[2][kThreads / 32][kSlots];
  };
  template <int n>
  __device__ __forceinline__ void add(Sums& sums, int quad, float (&v)[n][4]) const {
#pragma unroll
    for (int i = 0; i < n; ++i)
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        for (int offset = 16; offset >= lanes(); offset /= 2) v[i][e] += __shfl_xor_sync(0xffffffffu, v[i][e], offset);
        if (threadIdx.x % 32 < lanes()) sums.warps[i][threadIdx.x / 32][slot(quad, e)] = v[i][e];
      }
  }
  template <int n>
  __device__ __forceinline__ void collect(const Sums& sums, float (&mine)[n]) const {
    __syncthreads();
#pragma unroll
    for (int i = 0; i < n; ++i) {
      mine[i] = 0.f;
      if (has_channel())
#pragma unroll
        for (int warp = 0; warp < kThreads / 32; ++warp) mine[i] += sums.warps[i][warp][slot()];
    }
    __syncthreads();
  }

  // Coefficients from the thread of each channel to those that hold its elements.
  struct Shared {
    float mean[kSlots], scale[kSlots], shift[kSlots], offset[kSlots], tilt[kSlots];
  };
  __device__ __forceinline__ void put(Shared& shared, const Coefficients& k) const {
    __syncthreads();
    if (has_slot()) {
      shared.mean[slot()] = k.mean;
      shared.scale[slot()] = k.scale;
      shared.shift[slot()] = k.shift;
      shared.offset[slot()] = k.offset;
      shared.tilt[slot()] = k.tilt;
    }
    __syncthreads();
  }
  __device__ __forceinline__ void get(const Shared& shared, int quad, Coefficients (&k)[4]) const {
#pragma unroll
    for (int e = 0; e < 4; ++e) {
      const int i = slot(quad, e);
      k[e] = {shared.mean[i], shared.scale[i], shared.shift[i], shared.offset[i], shared.tilt[i]};
    }
  }

  // Adds over the channels of a group, all of them in this block; the thread of each gets the sum.
  template <int n>
  __device__ __forceinline__ void sum_group(float (&v)[n], int group_channels) const {
    __shared__ float values[n][kSlots];
    if (group_channels == 1) return;
    __syncthreads();
    if (has_channel()) for_each<n>([&](int i) { values[i][threadIdx.x] = v[i]; });
    __syncthreads();
    if (!has_channel()) return;
    const int first = threadIdx.x / group_channels * group_channels;
    for_each<n>([&](int i) {
      v[i] = 0.f;
      for (int c = first; c < first + group_channels; ++c) v[i] += values[i][c];
    });
  }
};

}  // namespace artkernels::cuda
