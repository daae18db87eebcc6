// Reparameterisation and KL divergence of a variational autoencoder (Kingma and Welling 2013), in one pass over memory.
#include "reparameterize_kl.h"

#include <initializer_list>

#include "launch.cuh"
#include "scalar.cuh"

namespace artkernels::cuda {
namespace {

constexpr int kWarp = 32, kThreads = 128;
constexpr int kElementsPerThread = 32;

// A crew, a warp or a block, handles a tile of a sample. A warp does for samples up to its tile; longer ones are
// divided into the tiles of blocks.
__host__ __device__ constexpr int tile_of(int crew) { return crew * kElementsPerThread; }
bool warps_suffice(int64_t D) { return D <= tile_of(kWarp); }
int64_t tiles_per_sample(int64_t D) { return warps_suffice(D) ? 1 : ceil_div(D, tile_of(kThreads)); }

struct LogNormal {
  float sigma, variance_less_one, excess;  // e^(x/2), e^x - 1, e^x - 1 - x
};
// Near 0 both differences cancel: there they are made of x^2 (1/2! + x/3! + x^2/4! ...), good to 2e-9.
__device__ __forceinline__ LogNormal log_normal(float x) {
  const float less_one = expf(x) - 1.f;  // not sigma squared, which has three times the error
  float p = x * (1 / 362880.f) + 1 / 40320.f;
  p = p * x + 1 / 5040.f;
  p = p * x + 1 / 720.f;
  p = p * x + 1 / 120.f;
  p = p * x + 1 / 24.f;
  p = p * x + 1 / 6.f;
  p = p * x + 0.5f;
  p *= x * x;
  const bool small = fabsf(x) < 0.5f;
  return {expf(0.5f * x), small ? p + x : less_one, small ? p : less_one - x};
}

// The tile of this thread's crew.
template <typename scalar_t, int kCrew, bool kVectorised>
struct Tile {
  using V = Vector<scalar_t>;
  int64_t index, sample, begin;  // the tile, and its first element
  int count;                     // of its elements

  __device__ __forceinline__ Tile(int64_t N, int64_t D, int64_t tiles) {
    index = blockIdx.x * int64_t{kThreads / kCrew} + threadIdx.x / kCrew;
    sample = index / tiles;
    begin = index % tiles * tile_of(kCrew);
    count = sample < N ? static_cast<int>(min(D - begin, int64_t{tile_of(kCrew)})) : 0;
  }

  __device__ __forceinline__ const scalar_t* of(const Samples& s) const {
    return static_cast<const scalar_t*>(s.data) + sample * s.pitch + begin;
  }
  __device__ __forceinline__ scalar_t* of(void* dense, int64_t D) const {
    return static_cast<scalar_t*>(dense) + sample * D + begin;
  }

  // f(first element, number of elements) for each of the thread's vectors.
  template <typename F>
  __device__ __forceinline__ void for_each_vector(F&& f) const {
#pragma unroll 1
    for (int at = threadIdx.x % kCrew * V::kLength; at < count; at += kCrew * V::kLength)
      f(at, min(count - at, V::kLength));
  }

  __device__ static __forceinline__ V load(const scalar_t* p, int valid) {
    return V::template load<kVectorised>(p, 1, valid);
  }
  __device__ static __forceinline__ void store(scalar_t* p, int valid, const V& v) {
    v.template store<kVectorised>(p, 1, valid);
  }
};

struct ForwardKernel {
  ReparameterizeKlParams p;
  int64_t tiles;  // of a sample
};

// Forward. A warp a sample of up to 1024 elements, four of them a block; a longer one is divided into tiles of 4096, a
// block of 128 threads each. A thread takes 16-byte vectors, its neighbours in the crew the neighbouring ones, and adds
// up their divergence, the warp by shuffles, the block's four warps through shared memory. Where a sample has several
// tiles, their sums go to the workspace in the order of the tiles: no atomics.
// Traffic: the least, 3 reads and a write of each element, and 4 bytes a tile.
// Registers: at most 64 (8 blocks an SM); shared memory 16 bytes.
// Source: csrc/cpu/reparameterize_kl.cpp has the same formulas.
template <typename scalar_t, int kCrew, bool kVectorised>
__global__ __launch_bounds__(kThreads) void reparameterize_kl_kernel(const ForwardKernel k) {
  const ReparameterizeKlParams& p = k.p;
  using V = Vector<scalar_t>;
  const Tile<scalar_t, kCrew, kVectorised> tile(p.N, p.D, k.tiles);
  float divergence = 0.f;
  tile.for_each_vector([&](int at, int valid) {
    const V mean = tile.load(tile.of(p.mean) + at, valid), logvar = tile.load(tile.of(p.logvar) + at, valid);
    V codes = tile.load(tile.of(p.noise) + at, valid);
#pragma unroll
    for (int quad = 0; quad < V::kQuads; ++quad) {
      float m[4], x[4], z[4];
      mean.get(quad, m);
      logvar.get(quad, x);
      codes.get(quad, z);
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        const LogNormal spread = log_normal(x[e]);
        divergence += m[e] * m[e] + spread.excess;  // 0 beyond the last element, where both are 0
        z[e] = m[e] + z[e] * spread.sigma;
      }
      codes.set(quad, z);
    }
    tile.store(tile.of(p.codes, p.D) + at, valid, codes);
  });
  divergence = warp_sum(divergence);
  if constexpr (kCrew == kThreads) {
    __shared__ float of_warps[kThreads / kWarp];
    if (threadIdx.x % kWarp == 0) of_warps[threadIdx.x / kWarp] = divergence;
    __syncthreads();
    divergence = (of_warps[0] + of_warps[1]) + (of_warps[2] + of_warps[3]);
  }
  if (threadIdx.x % kCrew != 0 || tile.count == 0) return;
  if (k.tiles == 1) p.kl[tile.sample] = 0.5f * divergence;
  else p.workspace[tile.index] = divergence;
}

// Adds up the tiles of a sample, a warp a sample.
// Traffic: 4 bytes a tile, from L2.
__global__ __launch_bounds__(kThreads) void reparameterize_kl_finish_kernel(const ForwardKernel k) {
  const int64_t sample = blockIdx.x * int64_t{kThreads / kWarp} + threadIdx.x / kWarp;
  if (sample >= k.p.N) return;
  const float* sums = k.p.workspace + sample * k.tiles;
  float divergence = 0.f;
  for (int64_t tile = threadIdx.x % kWarp; tile < k.tiles; tile += kWarp) divergence += sums[tile];
  divergence = warp_sum(divergence);
  if (threadIdx.x % kWarp == 0) k.p.kl[sample] = 0.5f * divergence;
}

struct BackwardKernel {
  ReparameterizeKlBackwardParams p;
  int64_t tiles;
};

// Backward, all of it: the tiles of the forward, each element on its own.
// Traffic: the least, 4 reads (2 where the codes have no gradient, 3 where kl has none) and a write of each gradient
// that is wanted, for each element.
// Registers: at most 64 (8 blocks an SM).
template <typename scalar_t, int kCrew, bool kVectorised>
__global__ __launch_bounds__(kThreads) void reparameterize_kl_backward_kernel(const BackwardKernel k) {
  const ReparameterizeKlBackwardParams& p = k.p;
  using V = Vector<scalar_t>;
  const Tile<scalar_t, kCrew, kVectorised> tile(p.N, p.D, k.tiles);
  const float grad_kl = p.grad_kl && tile.count ? p.grad_kl[tile.sample] : 0.f;
  tile.for_each_vector([&](int at, int valid) {
    const V logvar = tile.load(tile.of(p.logvar) + at, valid);
    const V grad_codes = p.grad_codes.data ? tile.load(tile.of(p.grad_codes) + at, valid) : V{};
    V mean = p.grad_kl ? tile.load(tile.of(p.mean) + at, valid) : V{};
    V noise = p.grad_codes.data ? tile.load(tile.of(p.noise) + at, valid) : V{};
    V grad_logvar = {};
#pragma unroll
    for (int quad = 0; quad < V::kQuads; ++quad) {
      float m[4], x[4], z[4], g[4], of_logvar[4];
      mean.get(quad, m);
      logvar.get(quad, x);
      noise.get(quad, z);
      grad_codes.get(quad, g);
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        const LogNormal spread = log_normal(x[e]);
        // Where there is no gradient, an infinite variance leaves none.
        of_logvar[e] = p.grad_codes.data ? 0.5f * g[e] * z[e] * spread.sigma : 0.f;
        if (p.grad_kl) of_logvar[e] += 0.5f * grad_kl * spread.variance_less_one;
        m[e] = g[e] + grad_kl * m[e];
        z[e] = g[e] * spread.sigma;
      }
      mean.set(quad, m);
      noise.set(quad, z);
      grad_logvar.set(quad, of_logvar);
    }
    if (p.grad_mean) tile.store(tile.of(p.grad_mean, p.D) + at, valid, mean);
    if (p.grad_logvar) tile.store(tile.of(p.grad_logvar, p.D) + at, valid, grad_logvar);
    if (p.grad_noise) tile.store(tile.of(p.grad_noise, p.D) + at, valid, noise);
  });
}

// Whether every sample of these arrays starts on a 16-byte boundary; null ones do.
bool aligned(const ReparameterizeKl& op, std::initializer_list<Samples> arrays) {
  for (const Samples& s : arrays)
    if (reinterpret_cast<uintptr_t>(s.data) % 16 || (s.data && s.pitch * element_size(op.dtype) % 16)) return false;
  return op.D * element_size(op.dtype) % 16 == 0;
}

// select(scalar, crew, vectorised) is the instantiation of a kernel; launched here with the crews that N samples need.
template <typename Kernel, typename Select>
void launch_tiles(const Kernel& k, const char* name, bool vectorised, cudaStream_t stream, Select&& select) {
  auto launch_as = [&](auto scalar) {
    const bool warps = warps_suffice(k.p.D);
    const int64_t blocks = ceil_div(k.p.N * k.tiles, warps ? kThreads / kWarp : 1);
    launch(select(scalar, warps, vectorised), name, blocks, kThreads, 0, stream, k);
  };
  switch (k.p.dtype) {
    case ScalarType::Float: return launch_as(float{});
    case ScalarType::Half: return launch_as(__half{});
    case ScalarType::BFloat16: return launch_as(__nv_bfloat16{});
  }
}

}  // namespace

int64_t reparameterize_kl_workspace_size(const ReparameterizeKlParams& p) {
  const int64_t tiles = tiles_per_sample(p.D);
  return tiles == 1 ? 0 : p.N * tiles;
}

void launch_reparameterize_kl(const ReparameterizeKlParams& p, CUstream_st* stream) {
  const ForwardKernel k{p, tiles_per_sample(p.D)};
  const bool vectorised = aligned(p, {p.mean, p.logvar, p.noise, {p.codes, p.D}});
  launch_tiles(k, "reparameterize_kl_kernel", vectorised, stream, [](auto scalar, bool warps, bool vectorised) {
    using scalar_t = decltype(scalar);
    if (warps)
      return vectorised ? reparameterize_kl_kernel<scalar_t, kWarp, true>
                        : reparameterize_kl_kernel<scalar_t, kWarp, false>;
    return vectorised ? reparameterize_kl_kernel<scalar_t, kThreads, true>
                      : reparameterize_kl_kernel<scalar_t, kThreads, false>;
  });
  if (k.tiles > 1)
    launch(reparameterize_kl_finish_kernel, "reparameterize_kl_finish_kernel", ceil_div(p.N, kThreads / kWarp),
           kThreads, 0, stream, k);
}

void launch_reparameterize_kl_backward(const ReparameterizeKlBackwardParams& p, CUstream_st* stream) {
  const BackwardKernel k{p, tiles_per_sample(p.D)};
  const bool vectorised = aligned(
      p, {p.mean, p.logvar, p.noise, p.grad_codes, {p.grad_mean, p.D}, {p.grad_logvar, p.D}, {p.grad_noise, p.D}});
  launch_tiles(k, "reparameterize_kl_backward_kernel", vectorised, stream,
               [](auto scalar, bool warps, bool vectorised) {
                 using scalar_t = decltype(scalar);
                 if (warps)
                   return vectorised ? reparameterize_kl_backward_kernel<scalar_t, kWarp, true>
                                     : reparameterize_kl_backward_kernel<scalar_t, kWarp, false>;
                 return vectorised ? reparameterize_kl_backward_kernel<scalar_t, kThreads, true>
                                   : reparameterize_kl_backward_kernel<scalar_t, kThreads, false>;
               });
}

}  // namespace artkernels::cuda
