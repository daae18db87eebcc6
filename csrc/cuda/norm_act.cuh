// What the kernels of normalisation + activation share, in both layouts and both directions: the description of a call,
// and the arithmetic of a vector of elements. See params.h for the formulas.
//
// A call is one pass over the data where the elements that share a mean fit in the registers of a block (Whole), or
// where they need no sums; otherwise two: Statistics leaves sums of tiles of the data (partial), Apply uses them. In
// between norm_act_finish_kernel merges the partial sums, unless they are so few that each block of Apply may do it.
#pragma once

#include "activation.cuh"
#include "launch.cuh"
#include "scalar.cuh"

namespace artkernels::cuda {

enum class Pass { Whole, Statistics, Apply };

// Where the partial sums of a statistics group are, and of how many elements each is: entry t of its channel j is
//   s / groups * image_stride + s % groups * group_stride + j * channel_stride + t * entry_stride
// and covers min(tile, extent - t % period * tile) elements. Forward: means and sums of squared deviations; backward:
// sums of dz and of dz (x - mean).
struct Entries {
  int64_t groups, image_stride, group_stride, channel_stride, entry_stride;
  int64_t count;  // of the call
  int64_t tile, extent;
  int channels, per_channel;  // channels of a statistics group, entries of a channel
  int period;
};
__device__ __forceinline__ float entry_size(const Entries& of, uint32_t t) {
  return static_cast<float>(min(of.tile, of.extent - t % of.period * of.tile));
}

// A call as the kernels see it, forward or backward.
struct NormActKernel {
  NormAct op;
  Pass pass;
  const void *input, *grad_output, *residual;
  void* output;         // the output, or grad_input; null: not wanted
  void* grad_residual;  // dz, or null
  float *mean, *var;    // [statistics], written by the forward alone
  float* averages;      // [2, statistics] a1, a2; null: zero
  float* sums;          // [2, channels]; null: not wanted
  float* partial;       // [2, entries.count]
  Entries entries;
  int64_t statistics;  // groups of elements that share a mean
  int64_t channels;    // planes [N, C], or [C] when across_batch
  int group_channels;  // C / groups
  float elements;      // of a statistics group
  float divisor;       // elements - correction
  bool own_averages;   // backward: a1 and a2 are this input's
  bool merge_partial;  // Apply merges the partial sums of its group
  bool accumulate;     // backward, Apply: leaves partial sums for `sums`
};

// z = (x - mean) scale + shift, and with the averages of the backward
// grad_input = dz scale - (offset + (x - mean) tilt).
struct Coefficients {
  float mean, scale, shift, offset, tilt;
};

__device__ __forceinline__ float rstd_of(const NormAct& op, float var) { return 1.f / sqrtf(var + op.eps); }

__device__ __forceinline__ float weight_of(const NormAct& op, int64_t image, int64_t c) {
  return op.weight ? op.weight[image * op.affine_stride + c] : 1.f;
}

// Forward and backward take z from here: the same roundings, hence the same side of a kink.
__device__ __forceinline__ Coefficients coefficients(const NormAct& op, int64_t image, int64_t c, float mean,
                                                     float rstd) {
  const float bias = op.bias ? op.bias[image * op.affine_stride + c] : 0.f;
  const float scale = fmaf(op.alpha * weight_of(op, image, c), rstd, 1.f - op.alpha);
  return {mean, scale, fmaf(op.alpha, bias, (1.f - op.alpha) * mean), 0.f, 0.f};
}

__device__ __forceinline__ void set_averages(Coefficients& k, const NormAct& op, float rstd, float a1, float a2) {
  k.offset = op.alpha * rstd * a1;
  k.tilt = op.alpha * rstd * rstd * a2;
}

// Of another channel with the same averages.
__device__ __forceinline__ void set_affine(Coefficients& k, const Coefficients& of) {
  k.scale = of.scale;
  k.shift = of.shift;
}

// x = z of the elements with coefficients k(e), the residual included where it comes before the activation.
template <int n, typename K>
__device__ __forceinline__ void pre_activation(const NormAct& op, float (&x)[n], const float (&residual)[n], K&& k) {
  for_each<n>([&](int e) { x[e] = fmaf(x[e] - k(e).mean, k(e).scale, k(e).shift); });
  if (op.residual_mode == Residual::BeforeActivation) for_each<n>([&](int e) { x[e] += residual[e]; });
}

// x = output
template <int n, typename K>
__device__ __forceinline__ void norm_act(const NormAct& op, float (&x)[n], const float (&residual)[n], K&& k) {
  pre_activation(op, x, residual, k);
  activate(x, op.activation, op.negative_slope);
  if (op.residual_mode == Residual::AfterActivation) for_each<n>([&](int e) { x[e] += residual[e]; });
}

// g = dz
template <int n, typename K>
__device__ __forceinline__ void norm_act_backward(const NormAct& op, float (&g)[n], const float (&x)[n],
                                                  const float (&residual)[n], K&& k) {
  float z[n];
  for_each<n>([&](int e) { z[e] = x[e]; });
  pre_activation(op, z, residual, k);
  activate_backward(g, z, op.activation, op.negative_slope);
}

// dz = grad_input
template <int n, typename K>
__device__ __forceinline__ void input_gradient(float (&dz)[n], const float (&x)[n], K&& k) {
  for_each<n>([&](int e) { dz[e] = dz[e] * k(e).scale - fmaf(x[e] - k(e).mean, k(e).tilt, k(e).offset); });
}

// The mean and the sum of squared deviations of n elements, from a first mean, and from sum and sum of squares of the
// deviations from it. The second look at the data also mends the rounding of the first one.
struct Moments {
  float mean, squares;
};
__device__ __forceinline__ Moments corrected(float mean, float deviations, float squares, float n) {
  squares -= deviations * deviations / n;
  return {mean + deviations / n, squares < 0.f ? 0.f : squares};  // NaN stays
}

// Moments of a statistics group from its entries, of which this thread takes each `step`-th; entry i is at index(i).
// sum(float (&)[n]) adds over the threads that take part.
template <typename Index, typename Sum>
__device__ __forceinline__ Moments merge_moments(const NormActKernel& p, int first, int step, Index&& index,
                                                 Sum&& sum) {
  const Entries& of = p.entries;
  const int entries = of.channels * of.per_channel;
  float total[1] = {};
  for (int i = first; i < entries; i += step) total[0] += entry_size(of, i % of.per_channel) * p.partial[index(i)];
  sum(total);
  const float mean = total[0] / p.elements;
  float deviation[2] = {};
  for (int i = first; i < entries; i += step) {
    const float d = p.partial[index(i)] - mean, nd = entry_size(of, i % of.per_channel) * d;
    deviation[0] += nd;
    deviation[1] += p.partial[of.count + index(i)] + nd * d;
  }
  sum(deviation);
  return corrected(mean, deviation[0], deviation[1], p.elements);
}

// Writes the sums of a channel, given those of dz and of dz (x - mean).
__device__ __forceinline__ void write_sums(const NormActKernel& p, int64_t channel, float dz, float dz_x, float rstd) {
  p.sums[channel] = dz;
  p.sums[p.channels + channel] = dz_x * rstd;
}

// How a layout divides a call.
struct NormActPlan {
  bool whole;           // a statistics group fits in a block, and there are enough of them
  bool merge_in_apply;  // else: the partial sums are few enough to do without norm_act_finish_kernel
  Entries entries;
};
NormActPlan plan_planes(const NormAct& op);
NormActPlan plan_rows(const NormAct& op);
void launch_planes(bool backward, const NormActKernel& p, cudaStream_t stream);
void launch_rows(bool backward, const NormActKernel& p, cudaStream_t stream);

// One block for each group of statistics is one launch and the least traffic, but few blocks for much data leave SMs
// idle.
inline bool enough_blocks(const NormAct& op, int64_t blocks) {
  const auto [N, C, P, dtype, channels_last] = op.features;
  return N * C * P <= 1 << 19 || 3 * blocks >= device_attribute(cudaDevAttrMultiProcessorCount);
}

// Calls f with a value of the C++ type of `dtype`.
template <typename F>
void dispatch(ScalarType dtype, F&& f) {
  switch (dtype) {
    case ScalarType::Float: return f(float{});
    case ScalarType::Half: return f(__half{});
    case ScalarType::BFloat16: return f(__nv_bfloat16{});
  }
}

inline bool aligned(const NormActKernel& p) {
  auto aligned = [&](const void* data) { return !data || aligned_rows(p.op.features, data); };
  return aligned(p.input) && aligned(p.grad_output) && aligned(p.residual) && aligned(p.output) &&
         aligned(p.grad_residual);
}

}  // namespace artkernels::cuda
