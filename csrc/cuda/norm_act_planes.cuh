// How threads cover NCHW feature maps, and the sums over them. See norm_act.cuh for the passes.
#pragma once

#include "norm_act.cuh"

namespace artkernels::cuda {

// How threads cover planes. The planes of a group share sums: those that share a mean (Whole); of one channel, in the
// images of a batch (across_batch); else each plane is a group of its own. They are dealt out in tiles, a tile to a
// crew, which is a warp or a block:
//   crew = rows x teams x lanes; a team has a group, the crew's teams neighbouring ones; its rows take a plane each,
//   and the lanes of a row that plane's vectors
// Small planes: lanes and teams make up 128 contiguous bytes or more. A plane beyond 32 lanes takes the whole block,
// and beyond the block's registers it has several tiles.
struct PlanesGeometry {
  int crew, lanes_log2, teams_log2, rows_log2;
  int plane_vectors_log2;                  // vectors of a plane that a lane holds
  int vectors;                             // vectors that a lane holds of all its planes in the tile
  uint32_t groups, planes;                 // planes of a group
  uint32_t group_planes;                   // from a group's first plane to that of the next one
  uint32_t plane_step;                     // from a plane of a group to its next one
  int64_t plane_pitch;                     // the same in elements
  int tile_pixels;                         // of a plane, where that has several tiles
  uint32_t tiles_per_plane, tiles, crews;  // tiles of a group
  __host__ __device__ uint32_t tile_planes() const { return vectors >> plane_vectors_log2 << rows_log2; }
};

struct PlanesKernel : NormActKernel {
  PlanesGeometry geometry;
};

// A thread's part of its crew's tile.
template <typename scalar_t, int kThreads, bool kVectorised>
struct PlanesTile {
  using V = Vector<scalar_t>;
  const PlanesGeometry& g;
  uint32_t group, tile;  // tile of the group
  int planes;            // of the group, from this thread's row on; none where the team has no group
  int pixels;            // of the tile
  uint32_t plane;        // the row's first plane, among all of the feature map
  int64_t offset;        // its first element in the tile

  __device__ __forceinline__ PlanesTile(const PlanesKernel& p, bool reversed) : g(p.geometry) {
    const uint32_t team = (threadIdx.x & (g.crew - 1)) >> g.lanes_log2 & ((1 << g.teams_log2) - 1);
    const uint32_t crew = reversed ? g.crews - 1 - crew_index() : crew_index();
    tile = crew % g.tiles;
    group = (crew / g.tiles << g.teams_log2) + team;
    const bool exists = group < g.groups;
    if (!exists) group = g.groups - 1;  // there is something to read, and nothing to write
    const uint32_t r = tile / g.tiles_per_plane * g.tile_planes() + row();
    const int64_t pixel = int64_t{tile % g.tiles_per_plane} * g.tile_pixels;
    planes = exists ? static_cast<int>(g.planes - r) : 0;
    pixels = static_cast<int>(min(p.op.features.P - pixel, int64_t{g.tile_pixels}));
    plane = group * g.group_planes + r * g.plane_step;
    offset = plane * p.op.features.P + pixel;
  }

  // Vector v of this thread: its plane, its first element, how many elements exist; in_plane: the plane does.
  struct Slot {
    uint32_t plane;
    int64_t offset;
    int valid;
    bool in_plane;
  };
  __device__ __forceinline__ Slot slot(int v) const {
    const int r = v >> g.plane_vectors_log2 << g.rows_log2, within = v & ((1 << g.plane_vectors_log2) - 1);
    const int first = kVectorised ? (lane() + (within << g.lanes_log2)) * V::kLength
                                  : ((within * V::kLength) << g.lanes_log2) + lane();
    const int left = pixels - first, existing = kVectorised ? V::kLength : (left + stride() - 1) >> g.lanes_log2;
    const bool in_plane = r < planes && v < g.vectors;
    return {plane + r * g.plane_step, offset + r * g.plane_pitch + first,
            in_plane && left > 0 ? min(existing, V::kLength) : 0, in_plane};
  }
  __device__ __forceinline__ uint32_t crew_index() const {
    return blockIdx.x * (kThreads / g.crew) + threadIdx.x / g.crew;
  }
  __device__ __forceinline__ bool idle() const { return crew_index() >= g.crews; }  // the whole crew
  __device__ __forceinline__ int lane() const { return threadIdx.x & (stride() - 1); }
  __device__ __forceinline__ int row() const { return (threadIdx.x & (g.crew - 1)) >> (g.lanes_log2 + g.teams_log2); }
  __device__ __forceinline__ int stride() const { return 1 << g.lanes_log2; }  // see Vector

  // All at once; scalars a vector at a time, which is slower, and far less code.
  template <int n>
  __device__ __forceinline__ void load(V (&v)[n], const void* data) const {
    if constexpr (kVectorised) {
#pragma unroll
      for (int i = 0; i < n; ++i) v[i] = load(slot(i), data);
    } else {
#pragma unroll 1
      for (int i = 0; i < n; ++i) {
        v[0] = load(slot(i), data);
        rotate(v);
      }
    }
  }
  __device__ __forceinline__ V load(const Slot& at, const void* data) const {
    return V::template load<kVectorised>(static_cast<const scalar_t*>(data) + at.offset, stride(), at.valid);
  }
  __device__ __forceinline__ void store(const Slot& at, void* data, const V& v) const {
    v.template store<kVectorised>(static_cast<scalar_t*>(data) + at.offset, stride(), at.valid);
  }

  __device__ __forceinline__ bool leads() const { return planes > 0 && lane() == 0 && row() == 0; }
  __device__ __forceinline__ int64_t entry() const { return int64_t{group} * g.tiles + tile; }

  // Adds over the threads of a team, in a fixed order.
  template <int n>
  __device__ __forceinline__ void sum(float (&v)[n]) const {
    __shared__ float warps[2][kThreads / 32][32];
    const int teams_end = 1 << (g.lanes_log2 + g.teams_log2);
#pragma unroll
    for (int offset = 16; offset; offset /= 2)
      if (offset < stride() || offset >= teams_end)
#pragma unroll
        for (int i = 0; i < n; ++i) v[i] += __shfl_xor_sync(0xffffffffu, v[i], offset);
    if (g.crew == 32) return;
    __syncthreads();
#pragma unroll
    for (int i = 0; i < n; ++i) warps[i][threadIdx.x / 32][threadIdx.x % 32] = v[i];
    __syncthreads();
#pragma unroll
    for (int i = 0; i < n; ++i) {
      v[i] = 0.f;
#pragma unroll
      for (int warp = 0; warp < kThreads / 32; ++warp) v[i] += warps[i][warp][threadIdx.x % 32];
    }
  }

  // Adds over the lanes of a row.
  template <int n>
  __device__ __forceinline__ void sum_lanes(float (&v)[n]) const {
    if (stride() > 32) return sum(v);
#pragma unroll 1
    for (int offset = stride() / 2; offset; offset /= 2)
#pragma unroll
      for (int i = 0; i < n; ++i) v[i] += __shfl_xor_sync(0xffffffffu, v[i], offset);
  }
};

}  // namespace artkernels::cuda
