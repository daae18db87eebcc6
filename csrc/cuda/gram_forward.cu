// Gram matrix scale X X^T of each image, and the loss against a target with its residual. See gram.h and params.h.
#include <algorithm>

#include "gram.h"
#include "launch.cuh"
#include "tile.cuh"

namespace artkernels::cuda {

namespace {

// Partial and finished sums are handled in blocks of 16 x 16 channels of the lower triangle, diagonal included, row
// by row: block (i, j) has the number i (i + 1) / 2 + j.
constexpr int kBlockSize = 16, kBlockElements = kBlockSize * kBlockSize;
__host__ __device__ constexpr int64_t triangle(int64_t rows) { return rows * (rows + 1) / 2; }

struct Kernel {
  GramParams op;
  float* partial;       // [N, splits, triangle(ceil(C / 16)), 2, 32, 4]: a block as the accumulators of a warp hold it
  float* block_losses;  // [N * triangle(ceil(C / 16))]
  unsigned* ticket;     // [1] blocks of gram_finish_kernel that have delivered their loss
  int splits;
  int tile_pairs;  // pairs (i >= j) of the channel blocks that a block of gram_kernel takes
  int blocks;      // triangle(ceil(C / 16))
  bool input_aligned;
};

// Row of entry `index` of a triangle numbered row by row.
__device__ __forceinline__ int triangle_row(int64_t index) {
  int row = static_cast<int>((sqrtf(8.f * static_cast<float>(index) + 1.f) - 1.f) * 0.5f);
  while (triangle(row + 1) <= index) ++row;  // sqrtf is exact enough to be at most one off
  while (triangle(row) > index) --row;
  return row;
}

constexpr int kThreads = 128;
// Stages of pixels in shared memory. Without asynchronous copies more than two gain nothing.
__host__ __device__ constexpr int stages(bool ampere, int stage_bytes) {
  return !ampere ? 2 : 6 * stage_bytes <= 96 << 10 ? 6 : (96 << 10) / stage_bytes;
}
template <int kTiles>
constexpr int kStageBytes = 2 * kTiles * 8192;

__device__ __forceinline__ float4 to_float4(const float (&v)[4]) { return make_float4(v[0], v[1], v[2], v[3]); }
__device__ __forceinline__ float4 operator+(float4 a, float4 b) {
  return make_float4(a.x + b.x, a.y + b.y, a.z + b.z, a.w + b.w);
}

// X X^T of one pair of channel blocks over a run of pixels.
//
// Tiling: a block takes channels I and J (i >= j), kTiles * 64 of each, of the triangle's pairs, and stages them by
// 128 bytes of pixels: 8 KB a 64-channel tile, up to 96 KB of stages in flight (cp.async). Its 4 warps hold 64 x 64
// sums each (128 registers): kTiles = 1 one tile, the pixels of a stage dealt to the warps and their sums added at
// the end, in order; kTiles = 2 the four tiles of 128 x 128 channels. On the diagonal J is I, staged once, and only
// the lower triangle is computed. kTiles = 1 gives many small blocks for few pixels, kTiles = 2 halves the L2 traffic
// when there is enough work.
// Traffic: the pairs of the same pixels run together, so that DRAM serves X once and L2 C / (64 kTiles) times.
// Partials: the lower triangle's 16 x 16 blocks, once per split, written as the warp holds them (512 contiguous bytes
// an instruction).
// Registers: 128 accumulators, at most 255 in all; two blocks an SM.
// Source: split-K GEMM as in CUTLASS, restricted to a triangle; 3xTF32 after Ootomo and Yokota (2022).
template <typename scalar_t, bool kTf32, bool kChannelsLast, int kTiles>
__global__ __launch_bounds__(kThreads, 2) void gram_kernel(const Kernel p) {
  using InputTile = Tile<scalar_t, !kChannelsLast>;
  constexpr int kStages = stages(kAmpere, kStageBytes<kTiles>);
  constexpr int kGroups = 4 / (kTiles * kTiles), kSlicesPerGroup = InputTile::kSlices / kGroups;
  extern __shared__ __align__(128) unsigned char shared[];

  const int64_t C = p.op.features.C, P = p.op.features.P;
  const int pair = blockIdx.x % p.tile_pairs, split = blockIdx.x / p.tile_pairs % p.splits;
  const int64_t image = blockIdx.x / p.tile_pairs / p.splits;
  const int block_i = triangle_row(pair), block_j = pair - static_cast<int>(triangle(block_i));
  const bool diagonal = block_i == block_j;
  if (blockIdx.x == 0 && threadIdx.x == 0) *p.ticket = 0;

  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, group = warp % kGroups;
  const int tile_i = warp / kGroups / kTiles, tile_j = warp / kGroups % kTiles;
  const bool works = !diagonal || tile_i >= tile_j;

  const Operand<scalar_t> x = {static_cast<const scalar_t*>(p.op.input) + image * C * P, kChannelsLast ? C : P,
                               static_cast<uint32_t>(C), static_cast<uint32_t>(P), p.input_aligned};
  const int64_t steps = ceil_div(P, InputTile::kDepth);
  const int begin = static_cast<int>(steps * split / p.splits), end = static_cast<int>(steps * (split + 1) / p.splits);

  auto load = [&](int step, int stage) {
    if (step < end) {
      unsigned char* const to = shared + stage * kStageBytes<kTiles>;
#pragma unroll
      for (int tile = 0; tile < 2 * kTiles; ++tile) {
        if (tile >= kTiles && diagonal) break;
        const int first = tile < kTiles ? block_i * kTiles + tile : block_j * kTiles + tile - kTiles;
        InputTile::template copy<kThreads>(to + tile * InputTile::kBytes, x, first * InputTile::kRows,
                                           static_cast<uint32_t>(step) * InputTile::kDepth);
      }
    }
    copy_async_commit();
  };
#pragma unroll 1
  for (int s = 0; s < kStages - 1; ++s) load(begin + s, s);

  float acc[4][8][4] = {};
  int stage = 0;
  for (int step = begin; step < end; ++step) {
    copy_async_wait<kStages - 2>();
    __syncthreads();  // the stage has arrived for all, and all have left the one that is filled next
    load(step + kStages - 1, stage == 0 ? kStages - 1 : stage - 1);
    const unsigned char* const a = shared + stage * kStageBytes<kTiles> + tile_i * InputTile::kBytes;
    const unsigned char* const b =
        shared + stage * kStageBytes<kTiles> + (diagonal ? tile_j : kTiles + tile_j) * InputTile::kBytes;
    if (works)
#pragma unroll 1
      for (int slice = 0; slice < kSlicesPerGroup; ++slice)
        multiply_slice<kTf32, InputTile, 1, InputTile, 1, 0>(acc, a, 0, b, 0, kGroups > 1 ? group : slice,
                                                             diagonal && tile_i == tile_j);
    stage = stage == kStages - 1 ? 0 : stage + 1;
  }
  copy_async_wait<0>();

  const int64_t first_i = (block_i * kTiles + tile_i) * 4, first_j = (block_j * kTiles + tile_j) * 4;
  const int64_t block_rows = ceil_div(C, kBlockSize);
  float4* const partial =
      reinterpret_cast<float4*>(p.partial) + (image * p.splits + split) * p.blocks * (kBlockElements / 4);
  auto target = [&](int m, int n) {  // of block (m, n) of this warp's tile, or null: beyond C or above the diagonal
    const int64_t i = first_i + m, j = first_j + n;
    return i < block_rows && j <= i ? partial + (triangle(i) + j) * (kBlockElements / 4) + lane : nullptr;
  };
#pragma unroll
  for (int m = 0; m < 4; ++m) {
    if constexpr (kGroups == 1) {
#pragma unroll
      for (int n = 0; n < 4; ++n)
        if (float4* const to = target(m, n)) {
#pragma unroll
          for (int half = 0; half < 2; ++half) to[32 * half] = to_float4(acc[m][2 * n + half]);
        }
    } else {                                                   // warp n adds the groups' blocks (m, n), in order
      float4* const sums = reinterpret_cast<float4*>(shared);  // [group][n][2][32]
      __syncthreads();
#pragma unroll
      for (int n = 0; n < 8; ++n) sums[(group * 8 + n) * 32 + lane] = to_float4(acc[m][n]);
      __syncthreads();
      if (float4* const to = target(m, warp)) {
#pragma unroll
        for (int half = 0; half < 2; ++half) {
          float4 sum = sums[(warp * 2 + half) * 32 + lane];
#pragma unroll
          for (int g = 1; g < kGroups; ++g) sum = sum + sums[(g * 8 + warp * 2 + half) * 32 + lane];
          to[32 * half] = sum;
        }
      }
    }
  }
}

// Adds the splits, scales, mirrors; residual and loss where they are asked for.
//
// Tiling: a block of 256 threads per 16 x 16 block of the triangle. Four groups of 64 threads add every fourth split
// with 16-byte loads; the four sums are added in order. Both halves of G, T and the residual are then read and
// written in rows of 16, the mirror image through shared memory. The loss: a sum per block; the block that takes the
// last ticket adds these in a fixed order, so the loss needs no launch of its own and is deterministic.
// Traffic: splits * 1 KB read per block (from L2: just written), T read once, G and the residual written once.
constexpr int kFinishThreads = 256;
__global__ __launch_bounds__(kFinishThreads) void gram_finish_kernel(const Kernel p) {
  __shared__ float4 sums[4][64];
  __shared__ float gram[16][17], mirrored_target[16][17], residual[16][17];
  __shared__ float warp_losses[kFinishThreads / 32];
  __shared__ bool last;
  const int64_t C = p.op.features.C, image = blockIdx.x / p.blocks, block = blockIdx.x % p.blocks;
  const int block_i = triangle_row(block);
  const int64_t first_i = int64_t{block_i} * kBlockSize, first_j = (block - triangle(block_i)) * kBlockSize;
  const bool diagonal = first_i == first_j;
  const int tid = threadIdx.x, quarter = tid / 64;
  const int r = tid / 16, c = tid % 16;  // this thread's element of the block and of its mirror image
  const int64_t at = (first_i + r) * C + first_j + c, mirrored_at = (first_j + r) * C + first_i + c;
  const bool inside = first_i + r < C && first_j + c < C, mirrored_inside = first_j + r < C && first_i + c < C;

  const float4* const partial = reinterpret_cast<const float4*>(p.partial) +
                                (image * p.splits * p.blocks + block) * (kBlockElements / 4) + tid % 64;
  float4 sum = {};
#pragma unroll 8
  for (int split = quarter; split < p.splits; split += 4) sum = sum + partial[split * p.blocks * (kBlockElements / 4)];
  sums[quarter][tid % 64] = sum;
  const float* const target = p.op.target ? p.op.target + image * p.op.target_stride : nullptr;
  const float t = target && inside ? target[at] : 0.f;
  if (target) mirrored_target[r][c] = mirrored_inside ? target[mirrored_at] : 0.f;
  __syncthreads();

  {  // element tid in the order of the accumulators: [column half][lane][row half, column parity]
    const int lane = tid / 4 % 32, row = tid % 4 / 2 * 8 + lane / 4, column = tid / 128 * 8 + lane % 4 * 2 + tid % 2;
    const float* const s = &sums[0][0].x;
    gram[row][column] = (((s[tid] + s[256 + tid]) + s[512 + tid]) + s[768 + tid]) * p.op.scale;
  }
  __syncthreads();

  const float g = diagonal && c > r ? gram[c][r] : gram[r][c];  // symmetric to the bit
  float* const gram_out = p.op.gram ? p.op.gram + image * C * C : nullptr;
  if (gram_out && inside) gram_out[at] = g;
  if (gram_out && !diagonal && mirrored_inside) gram_out[mirrored_at] = gram[c][r];
  if (!target) return;

  const float d = g - t, mirrored_d = g - mirrored_target[c][r];
  const float half_sum = 0.5f * (d + mirrored_d);
  if (p.op.residual) {
    float* const residual_out = p.op.residual + image * C * C;
    residual[r][c] = half_sum;
    __syncthreads();
    if (inside) residual_out[at] = half_sum;
    if (!diagonal && mirrored_inside) residual_out[mirrored_at] = residual[c][r];
  }
  if (!p.op.loss) return;

  const float loss = warp_sum(inside ? (diagonal ? d * d : d * d + mirrored_d * mirrored_d) : 0.f);
  if (tid % 32 == 0) warp_losses[tid / 32] = loss;
  __syncthreads();
  if (tid == 0) {
    float block_loss = 0.f;
    for (const float v : warp_losses) block_loss += v;
    p.block_losses[blockIdx.x] = block_loss;
    __threadfence();
    last = atomicAdd(p.ticket, 1u) == gridDim.x - 1;
  }
  __syncthreads();
  if (!last) return;
  __threadfence();
  float total = 0.f;
  for (unsigned b = tid; b < gridDim.x; b += kFinishThreads)
    total += *static_cast<volatile const float*>(p.block_losses + b);
  total = warp_sum(total);
  if (tid % 32 == 0) warp_losses[tid / 32] = total;
  __syncthreads();
  if (tid == 0) {
    total = 0.f;
    for (const float v : warp_losses) total += v;
    *p.op.loss = total / (static_cast<float>(p.op.features.N) * static_cast<float>(C) * static_cast<float>(C));
  }
}

struct Plan {
  int tiles;  // kTiles of gram_kernel
  int64_t tile_pairs, splits, blocks;
};

// Enough blocks for every SM, at least four stages of pixels each; tiles of 128 channels only where the partial sums
// of that many splits stay well below the features themselves.
Plan make_plan(const GramParams& p) {
  const auto [N, C, P, dtype, channels_last] = p.features;
  const int64_t element = element_size(dtype), steps = ceil_div(P * element, 128);
  require(P <= INT32_MAX, "gram: " + std::to_string(P) + " pixels in an image, at most 2^31 - 1 are possible");
  require(C <= 1 << 16, "gram: " + std::to_string(C) + " channels, at most 65536 are possible");
  const int64_t sms = device_attribute(cudaDevAttrMultiProcessorCount);
  Plan plan{};
  plan.blocks = triangle(ceil_div(C, kBlockSize));
  for (plan.tiles = 2; plan.tiles >= 1; --plan.tiles) {
    plan.tile_pairs = triangle(ceil_div(C, 64 * plan.tiles));
    const int64_t wanted = ceil_div(sms, N * plan.tile_pairs);
    plan.splits = std::max<int64_t>(1, std::min(wanted, steps / 4));
    const int64_t partial_bytes = plan.splits * plan.blocks * kBlockElements * 4;
    if (C > 64 && wanted <= steps / 4 && partial_bytes <= C * P * element / 4) break;
    if (plan.tiles == 1) break;
  }
  return plan;
}

template <typename scalar_t, bool kTf32, bool kChannelsLast, int kTiles>
void launch_kernel(const Kernel& p, cudaStream_t stream) {
  const bool ampere = device_attribute(cudaDevAttrComputeCapabilityMajor) >= 8;
  const int shared_bytes = stages(ampere, kStageBytes<kTiles>) * kStageBytes<kTiles>;
  launch(gram_kernel<scalar_t, kTf32, kChannelsLast, kTiles>, "gram_kernel", p.op.features.N * p.splits * p.tile_pairs,
         kThreads, shared_bytes, stream, p);
}

template <typename scalar_t, bool kTf32>
void launch_dtype(const Kernel& p, int tiles, cudaStream_t stream) {
  if (p.op.features.channels_last)
    tiles == 1 ? launch_kernel<scalar_t, kTf32, true, 1>(p, stream)
               : launch_kernel<scalar_t, kTf32, true, 2>(p, stream);
  else
    tiles == 1 ? launch_kernel<scalar_t, kTf32, false, 1>(p, stream)
               : launch_kernel<scalar_t, kTf32, false, 2>(p, stream);
}

int64_t partial_floats(const GramParams& p, const Plan& plan) {
  return p.features.N * plan.splits * plan.blocks * kBlockElements;
}

}  // namespace

int64_t gram_workspace_size(const GramParams& p) {
  const Plan plan = make_plan(p);
  return partial_floats(p, plan) + p.features.N * plan.blocks + 1;
}

void launch_gram(const GramParams& p, CUstream_st* stream) {
  const Plan plan = make_plan(p);
  Kernel kernel{};
  kernel.op = p;
  kernel.partial = p.workspace;
  kernel.block_losses = kernel.partial + partial_floats(p, plan);
  kernel.ticket = reinterpret_cast<unsigned*>(kernel.block_losses + p.features.N * plan.blocks);
  kernel.splits = static_cast<int>(plan.splits);
  kernel.tile_pairs = static_cast<int>(plan.tile_pairs);
  kernel.blocks = static_cast<int>(plan.blocks);
  kernel.input_aligned = aligned_rows(p.features, p.input);
  switch (p.features.dtype) {
    case ScalarType::Float:
      p.allow_tf32 ? launch_dtype<float, true>(kernel, plan.tiles, stream)
                   : launch_dtype<float, false>(kernel, plan.tiles, stream);
      break;
    case ScalarType::Half: launch_dtype<__half, false>(kernel, plan.tiles, stream); break;
    case ScalarType::BFloat16: launch_dtype<__nv_bfloat16, false>(kernel, plan.tiles, stream); break;
  }
  launch(gram_finish_kernel, "gram_finish_kernel", p.features.N * plan.blocks, kFinishThreads, 0, stream, kernel);
}

}  // namespace artkernels::cuda
