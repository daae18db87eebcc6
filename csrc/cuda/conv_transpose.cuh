// What the kernels of the transposed convolution share: its phases, the tiles that blocks take, a call as they see it.
//
// Each pair of a vertical and a horizontal phase (include/conv_phase.h) is a stride-1 convolution. An implicit GEMM
// does it: its rows are the pixels of a phase, its columns output channels, its depth the input channels times the
// phase's taps.
#pragma once

#include "launch.cuh"

namespace artkernels::cuda {

constexpr int kMaxPhases = 16;

// A Residue of include/conv_phase.h as the kernels read it.
struct Phase {
  int outputs;
  int taps, first_tap, tap_step;
  int shift, shift_step;

  __host__ __device__ int reach() const { return taps ? (taps - 1) * shift_step : 0; }
};

struct Axis {
  int input, output, kernel;
  // The window's or, where the input is one wide and no stride can tell, one that gives each output a phase of its own.
  int stride;
  int phases;
  Phase phase[kMaxPhases];
};

// A tile of the GEMM. Warps lie kWarpRows x kWarpColumns over it; a warp holds kM x kN blocks of 16 x 8 sums, each as
// the tensor cores leave it: lane has rows lane / 4 and lane / 4 + 8, columns lane % 4 * 2 and the next.
template <int kRows_, int kColumns_, int kWarpRows_, int kWarpColumns_, int kStages_, int kBlocksPerSM_>
struct GemmTile {
  static constexpr int kRows = kRows_, kColumns = kColumns_, kWarpRows = kWarpRows_, kWarpColumns = kWarpColumns_;
  static constexpr int kStages = kStages_, kBlocksPerSM = kBlocksPerSM_;
  static constexpr int kThreads = 32 * kWarpRows * kWarpColumns;
  static constexpr int kM = kRows / kWarpRows / 16, kN = kColumns / kWarpColumns / 8;
  static constexpr int kPitch = kColumns + 8;  // of the finished tile in shared memory, floats: no bank conflicts
  static constexpr int kFinishedBytes = kRows * kPitch * 4, kStatisticsBytes = 2 * kWarpRows * kColumns * 4;
};
using LargeTile = GemmTile<128, 64, 4, 2, 3, 2>;
using SmallTile = GemmTile<64, 32, 4, 1, 4, 4>;   // twice the L2 traffic of the large tile, a quarter of its work
using ImageTile = GemmTile<256, 16, 8, 1, 3, 2>;  // columns: 4 phases of at most 4 channels
enum class TileKind { Large, Small, Image };

constexpr int kDepthBytes = 64;  // of input channels in a stage: 32 of 16 bits, 16 floats

// Buffers of input pixels: as many as there are blocks of channels in kStages successive steps, a step being one tap.
template <typename T>
__host__ __device__ constexpr int input_buffers(int taps) {
  return (T::kStages - 2) / taps + 2;
}

// A call as the kernels see it.
struct ConvTransposeKernel {
  ConvTransposeParams op;
  Axis rows, columns;                 // ImageTile: one phase, whose taps are the union of all taps
  int K;                              // columns of the GEMM: op.K or, ImageTile, 4 for each phase, in whole tiles
  const void* weight;                 // [C, rows.kernel * columns.kernel, K]
  int64_t input_pitch, weight_pitch;  // elements from one input channel to the next
  int image_phases, image_phases_w;  // ImageTile: all and horizontal ones; column 4 * phase + k is channel k of a phase

  int width_log2, height_log2, images_log2;           // pixels of a line, lines, images: a tile's rows
  uint32_t tiles_x, tiles_y, tiles_n, channel_tiles;  // of a phase
  int splits;                                         // of the input channels, over blocks
  int channel_block;                                  // of a stage
  bool input_aligned, weight_aligned, output_aligned;
  float* sums;     // [splits, tiles, channel_tiles, warps, kM, kN, 32, 4] accumulators, when splits > 1
  float* partial;  // [tiles, 2, K] means and sums of squared deviations, when there are statistics

  __host__ __device__ uint32_t phases() const { return rows.phases * columns.phases; }
  __host__ __device__ uint32_t tiles() const { return tiles_n * tiles_y * tiles_x * phases(); }
};

// The tile of a block: pixels (image + ., y + ., x + .) of a phase, and a part of the channels.
struct Place {
  const ConvTransposeKernel& p;
  int phase_h, phase_w;
  int image, y, x;

  __device__ __forceinline__ Place(const ConvTransposeKernel& p, uint32_t tile) : p(p) {
    const uint32_t phase = tile % p.phases(), rest = tile / p.phases();
    phase_h = phase / p.columns.phases;
    phase_w = phase % p.columns.phases;
    x = static_cast<int>(rest % p.tiles_x) << p.width_log2;
    y = static_cast<int>(rest / p.tiles_x % p.tiles_y) << p.height_log2;
    image = static_cast<int>(rest / p.tiles_x / p.tiles_y);
  }
  __device__ __forceinline__ const Phase& vertical() const { return p.rows.phase[phase_h]; }
  __device__ __forceinline__ const Phase& horizontal() const { return p.columns.phase[phase_w]; }

  __device__ __forceinline__ int first_image() const { return image << p.images_log2; }
  __device__ __forceinline__ int images() const {
    return static_cast<int>(min(int64_t{1} << p.images_log2, p.op.N - first_image()));
  }

  // Of a row of the tile, counted from the tile's first pixel.
  __device__ __forceinline__ int row_x(int row) const { return row & ((1 << p.width_log2) - 1); }
  __device__ __forceinline__ int row_y(int row) const { return row >> p.width_log2 & ((1 << p.height_log2) - 1); }
  __device__ __forceinline__ int row_image(int row) const { return row >> (p.width_log2 + p.height_log2); }

  __device__ __forceinline__ bool has(int row) const {
    return row_image(row) < images() && y + row_y(row) < vertical().outputs && x + row_x(row) < horizontal().outputs;
  }
  // Rows that are pixels: none in a tile beyond the end of a phase that is smaller than others.
  __device__ __forceinline__ int count() const {
    const int height = min(1 << p.height_log2, vertical().outputs - y);
    const int width = min(1 << p.width_log2, horizontal().outputs - x);
    return max(height, 0) * max(width, 0) * images();
  }
};

// Launches the GEMM of LargeTile or SmallTile and, when it is split, the kernel that adds the parts.
void launch_gemm_float(TileKind kind, const ConvTransposeKernel& p, int shared_bytes, cudaStream_t stream);
void launch_gemm_half(TileKind kind, const ConvTransposeKernel& p, int shared_bytes, cudaStream_t stream);

// Plain FMA, see conv_transpose_direct.cu; float32 and bfloat16.
void launch_direct(const ConvTransposeParams& p, cudaStream_t stream);

// Packs the weight for ImageTile into p.weight, and launches the GEMM.
void launch_image(const ConvTransposeKernel& p, const Axis& rows, const Axis& columns, int shared_bytes,
                  cudaStream_t stream);

}  // namespace artkernels::cuda
