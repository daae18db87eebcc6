// Plans and launches a transposed convolution; merges its statistics. See conv_transpose.h and params.h.
#include <algorithm>

#include "../include/conv_phase.h"
#include "conv_transpose.cuh"
#include "conv_transpose.h"
#include "norm_act.cuh"

namespace artkernels::cuda {

namespace {

// Means and variances from those of the tiles.
//
// Tiling: a warp for each channel of each statistics group; its lanes take the group's tiles in turn, twice: for the
// mean, and for the squared deviations from it. Traffic: partial once (from L2: just written); the warps of a block
// use the same sectors.
constexpr int kMergeThreads = 256;
__global__ __launch_bounds__(kMergeThreads) void conv_transpose_merge_kernel(
    const __grid_constant__ ConvTransposeKernel p) {
  const int K = static_cast<int>(p.op.K), groups = p.op.statistics == Statistics::Instance ? p.op.N : 1;
  const int64_t statistic = int64_t{blockIdx.x} * (kMergeThreads / 32) + threadIdx.x / 32;
  if (statistic >= int64_t{groups} * K) return;
  const uint32_t tiles = p.tiles() / groups, first = static_cast<uint32_t>(statistic / K) * tiles;
  auto each_tile = [&](auto&& f) {
    for (uint32_t tile = first + threadIdx.x % 32; tile < first + tiles; tile += 32)
      if (const int count = Place(p, tile).count()) {
        const float* const of_tile = p.partial + int64_t{tile} * 2 * K + statistic % K;
        f(static_cast<float>(count), of_tile[0], of_tile[K]);
      }
  };
  const float elements = static_cast<float>(p.op.OH * p.op.OW) * static_cast<float>(p.op.N / groups);
  float total = 0.f;
  each_tile([&](float count, float mean, float) { total += count * mean; });
  const float mean = warp_sum(total) / elements;
  float deviations = 0.f, squares = 0.f;
  each_tile([&](float count, float of_tile, float squares_of_tile) {
    const float d = of_tile - mean;
    deviations += count * d;
    squares += squares_of_tile + count * d * d;
  });
  const Moments m = corrected(mean, warp_sum(deviations), warp_sum(squares), elements);
  if (threadIdx.x % 32) return;
  p.op.mean[statistic] = m.mean;
  p.op.var[statistic] = m.squares / elements;
}

// ---- phases ---------------------------------------------------------------------------------------------------------

Phase make_phase(const Residue& r) {
  return {static_cast<int>(r.outputs),  static_cast<int>(r.taps),  static_cast<int>(r.first_tap),
          static_cast<int>(r.tap_step), static_cast<int>(r.shift), static_cast<int>(r.shift_step)};
}

Axis make_axis(int64_t input, int64_t output, const Window& window) {
  Axis axis{};
  axis.input = static_cast<int>(input);
  axis.output = static_cast<int>(output);
  axis.kernel = static_cast<int>(window.kernel);
  axis.stride = static_cast<int>(input == 1 && output <= kMaxPhases ? output : window.stride);
  axis.phases = std::min(axis.stride, axis.output);
  for (int i = 0; i < std::min(axis.phases, kMaxPhases); ++i)
    axis.phase[i] = make_phase(residue_of(i, axis.stride, input, output, window));
  return axis;
}

// The axis as ImageTile has it: all phases at once, hence every tap that any of them has.
Axis unite(const Axis& axis) {
  Axis united = axis;
  Phase all = {axis.phase[0].outputs, 1, 0, 1, 0, 1};
  bool any = false;
  int lowest = 0;
  for (int i = 0; i < axis.phases; ++i) {
    const Phase& f = axis.phase[i];
    if (f.taps == 0) continue;
    all.shift = any ? std::max(all.shift, f.shift) : f.shift;
    lowest = any ? std::min(lowest, f.shift - f.reach()) : f.shift - f.reach();
    any = true;
  }
  all.taps = all.shift - lowest + 1;
  united.kernel = all.taps;
  united.phases = 1;
  united.phase[0] = all;
  return united;
}

// ---- plan -----------------------------------------------------------------------------------------------------------

struct Plan {
  bool direct;  // launch_direct(), and nothing below
  TileKind kind;
  ConvTransposeKernel kernel;
  Axis rows, columns;  // of the call
  int64_t shared_bytes;
  int64_t sums_bytes, partial_bytes, weight_bytes;
};

// Whether products of this call go to the tensor cores of the current device; see kTensorCores.
bool on_tensor_cores(const ConvTransposeParams& op) {
  const int arch =
      10 * device_attribute(cudaDevAttrComputeCapabilityMajor) + device_attribute(cudaDevAttrComputeCapabilityMinor);
  if (op.dtype == ScalarType::Half) return true;
  if (op.dtype == ScalarType::BFloat16 || op.allow_tf32) return arch >= 80;
  return arch == 80 || arch == 90 || arch == 100 || arch == 103;
}

bool is_image_layer(const ConvTransposeParams& op) { return op.K <= 4 && op.statistics == Statistics::None; }

// What launch_direct() does: the last layer of most generators, without tensor cores.
bool is_direct(const ConvTransposeParams& op) {
  auto doubles = [](const Window& w, int64_t input, int64_t output) {
    return w.kernel == 4 && w.stride == 2 && w.padding == 1 && w.dilation == 1 && output == 2 * input;
  };
  return is_image_layer(op) && doubles(op.rows, op.H, op.OH) && doubles(op.columns, op.W, op.OW) &&
         !on_tensor_cores(op);
}

// Lays tiles of 2^rows_log2 rows over a phase: lines of 16 pixels and as square as possible, so that the halo is small;
// what a small map leaves is filled with more images, or none where each image has statistics of its own.
void place_tiles(ConvTransposeKernel& k, int rows_log2, int columns) {
  const int width = log2_ceil(k.columns.phase[0].outputs), height = log2_ceil(k.rows.phase[0].outputs);
  k.height_log2 = std::min(height, rows_log2 - std::min(width, 4));
  k.width_log2 = std::min(width, rows_log2 - k.height_log2);
  if (k.op.statistics == Statistics::Instance) k.height_log2 = rows_log2 - k.width_log2;
  k.images_log2 = rows_log2 - k.width_log2 - k.height_log2;
  auto tiles = [](int64_t size, int log2) { return static_cast<uint32_t>(ceil_div(size, int64_t{1} << log2)); };
  k.tiles_x = tiles(k.columns.phase[0].outputs, k.width_log2);
  k.tiles_y = tiles(k.rows.phase[0].outputs, k.height_log2);
  k.tiles_n = tiles(k.op.N, k.images_log2);
  k.channel_tiles = static_cast<uint32_t>(ceil_div(k.K, columns));
}

int64_t gemm_blocks(const ConvTransposeKernel& k) {
  return int64_t{k.tiles_n} * k.tiles_y * k.tiles_x * k.phases() * k.channel_tiles;
}

// Over how many blocks the input channels are dealt: two an SM, as long as a block keeps eight steps. Small tiles
// alone: where large ones are too few, small ones need no second launch, or a smaller one.
int wanted_splits(const ConvTransposeKernel& k) {
  int64_t taps = 0;
  for (int h = 0; h < k.rows.phases; ++h)
    for (int w = 0; w < k.columns.phases; ++w)
      taps = std::max(taps, int64_t{k.rows.phase[h].taps} * k.columns.phase[w].taps);
  const int64_t blocks = ceil_div(k.op.C, k.channel_block), most = blocks * taps / 8;
  const int64_t wanted = 2 * device_attribute(cudaDevAttrMultiProcessorCount) / gemm_blocks(k);
  return static_cast<int>(std::max<int64_t>(1, std::min({wanted, most, blocks})));
}

// Shared memory of a block: buffers of input, stages of weights and the table of the slots, afterwards the finished
// tile; what gather_statistics() has of its own.
template <typename T>
int64_t shared_bytes(const ConvTransposeKernel& k) {
  int64_t most = T::kFinishedBytes;
  for (int h = 0; h < k.rows.phases; ++h)
    for (int w = 0; w < k.columns.phases; ++w) {
      const Phase &vertical = k.rows.phase[h], &horizontal = k.columns.phase[w];
      const int taps = vertical.taps * horizontal.taps;
      if (taps == 0) continue;
      const int64_t height = (int64_t{1} << k.height_log2) + vertical.reach();
      const int64_t width = (int64_t{1} << k.width_log2) + horizontal.reach();
      const int64_t slots = height * width << k.images_log2;
      most =
          std::max(most, slots * (input_buffers<T>(taps) * kDepthBytes + 8) + T::kStages * kDepthBytes * T::kColumns);
    }
  return most;
}

// Fills in what depends on the tile; whether a block's shared memory suffices.
template <typename T>
bool plan_tile(Plan& plan, TileKind kind) {
  ConvTransposeKernel& k = plan.kernel;
  plan.kind = kind;
  place_tiles(k, log2_ceil(T::kRows), T::kColumns);
  k.splits = kind == TileKind::Small ? wanted_splits(k) : 1;
  plan.shared_bytes = shared_bytes<T>(k);
  plan.sums_bytes = k.splits > 1 ? gemm_blocks(k) * k.splits * T::kRows * T::kColumns * 4 : 0;
  plan.partial_bytes =
      k.op.statistics == Statistics::None ? 0 : round_up(gemm_blocks(k) / k.channel_tiles * 2 * k.op.K * 4, 16);
  return plan.shared_bytes + T::kStatisticsBytes <= device_attribute(cudaDevAttrMaxSharedMemoryPerBlockOptin) &&
         gemm_blocks(k) * k.splits <= INT32_MAX;
}

// Few channels: all phases in the columns of one tile, so that the input is read once. Else large tiles where they
// give most SMs a block and are not mostly padding.
bool plan_tiles(Plan& plan) {
  ConvTransposeKernel& k = plan.kernel;
  const ConvTransposeParams& op = k.op;
  if (is_image_layer(op)) {
    k.image_phases = static_cast<int>(k.phases());
    k.image_phases_w = k.columns.phases;
    k.K = static_cast<int>(round_up(4 * k.image_phases, ImageTile::kColumns));
    k.rows = unite(plan.rows);
    k.columns = unite(plan.columns);
    plan.weight_bytes = op.C * k.rows.kernel * k.columns.kernel * k.K * element_size(op.dtype);
    return plan_tile<ImageTile>(plan, TileKind::Image);
  }
  const int64_t pixels = op.N * plan.rows.phase[0].outputs * plan.columns.phase[0].outputs;
  const int64_t sms = device_attribute(cudaDevAttrMultiProcessorCount);
  if (op.K > 32 && pixels > 64 && plan_tile<LargeTile>(plan, TileKind::Large) && 4 * gemm_blocks(k) >= 3 * sms)
    return true;
  return plan_tile<SmallTile>(plan, TileKind::Small);
}

// Nothing in it depends on a pointer. False: not a call for these kernels.
bool make_plan(const ConvTransposeParams& op, Plan& plan) {
  plan = {};
  const auto small = [](int64_t size) { return size >= 1 && size <= INT32_MAX; };
  if (op.groups != 1 || op.input_channels_last != op.output_channels_last) return false;
  if (!small(op.N) || !small(op.C) || !small(op.K) || !small(op.H * op.W) || !small(op.OH * op.OW)) return false;
  for (const Window& w : {op.rows, op.columns})
    if (w.kernel > 1 << 10 || w.stride > 1 << 10 || w.dilation > 1 << 10 || w.padding > 1 << 20) return false;
  plan.direct = is_direct(op);
  if (plan.direct) return true;
  plan.rows = make_axis(op.H, op.OH, op.rows);
  plan.columns = make_axis(op.W, op.OW, op.columns);
  if (plan.rows.phases > kMaxPhases || plan.columns.phases > kMaxPhases) return false;
  ConvTransposeKernel& k = plan.kernel;
  k.op = op;
  k.op.input_channels_last |= op.H * op.W == 1;  // the same in memory
  k.op.output_channels_last |= op.OH * op.OW == 1;
  k.rows = plan.rows;
  k.columns = plan.columns;
  k.K = static_cast<int>(op.K);
  k.channel_block = kDepthBytes / static_cast<int>(element_size(op.dtype));
  return plan_tiles(plan);
}

bool aligned(const void* data, int64_t length, ScalarType dtype) {
  return reinterpret_cast<uintptr_t>(data) % 16 == 0 && length * element_size(dtype) % 16 == 0;
}

}  // namespace

bool conv_transpose_supported(const ConvTransposeParams& p) {
  Plan plan;
  return make_plan(p, plan);
}

int64_t conv_transpose_workspace_size(const ConvTransposeParams& p) {
  Plan plan;
  return make_plan(p, plan) ? plan.sums_bytes + plan.partial_bytes + plan.weight_bytes : 0;
}

void launch_conv_transpose(const ConvTransposeParams& p, CUstream_st* stream) {
  Plan plan;
  require(make_plan(p, plan),
          "conv_transpose: one group, one layout, strides up to 16 and a reach that fits in shared memory are needed; "
          "conv_transpose_supported() tells");
  ConvTransposeKernel& k = plan.kernel;
  if (plan.direct) return launch_direct(p, stream);
  char* const workspace = static_cast<char*>(p.workspace);
  k.sums = reinterpret_cast<float*>(workspace);
  k.partial = plan.partial_bytes ? reinterpret_cast<float*>(workspace + plan.sums_bytes) : nullptr;
  k.weight = plan.kind == TileKind::Image ? workspace + plan.sums_bytes + plan.partial_bytes : p.weight;
  k.input_pitch = k.op.input_channels_last ? 1 : p.H * p.W;
  k.weight_pitch = int64_t{k.rows.kernel} * k.columns.kernel * k.K;
  k.input_aligned = k.op.input_channels_last && aligned(p.input, p.C, p.dtype);
  k.weight_aligned = aligned(k.weight, k.K, p.dtype);
  k.output_aligned = k.op.output_channels_last && aligned(p.output, p.K, p.dtype);
  const int bytes = static_cast<int>(plan.shared_bytes);
  if (plan.kind == TileKind::Image) return launch_image(k, plan.rows, plan.columns, bytes, stream);
  (p.dtype == ScalarType::Float ? launch_gemm_float : launch_gemm_half)(plan.kind, k, bytes, stream);
  if (p.statistics == Statistics::None) return;
  const int64_t statistics = p.K * (p.statistics == Statistics::Instance ? p.N : 1);
  launch(conv_transpose_merge_kernel, "conv_transpose_merge_kernel", ceil_div(statistics, kMergeThreads / 32),
         kMergeThreads, 0, stream, k);
}

}  // namespace artkernels::cuda
