// Normalisation + activation: which passes a call takes, and the merge of partial sums. See norm_act.h and
// norm_act.cuh.
#include <algorithm>

#include "norm_act.cuh"
#include "norm_act.h"

namespace artkernels::cuda {

namespace {

// Merges the partial sums of each statistics group: forward to mean and variance, backward to the sums of each channel
// and the two averages.
//
// Tiling: groups of one channel: a warp each; else a block each. A channel's entries are dealt to `lanes` threads.
// Traffic: the entries, at most a few hundredths of the feature map; forward twice, the second time from L1.
constexpr int kFinishThreads = 256;
struct FinishKernel : NormActKernel {
  int lanes;  // a power of two up to 32, that of a channel's entries or above
};

template <int kSums>
__device__ __forceinline__ void block_sum(float (&v)[kSums]) {
  __shared__ float warps[kSums][kFinishThreads / 32];
  __syncthreads();
  for_each<kSums>([&](int i) {
    v[i] = warp_sum(v[i]);
    if (threadIdx.x % 32 == 0) warps[i][threadIdx.x / 32] = v[i];
  });
  __syncthreads();
  for_each<kSums>([&](int i) {
    v[i] = 0.f;
    for (int warp = 0; warp < kFinishThreads / 32; ++warp) v[i] += warps[i][warp];
  });
}

// Sums over the entries of each channel, in turn; what is returned is weighted and added over the channels this thread
// had a part in.
__device__ __forceinline__ float2 finish_channels(const FinishKernel& p, int64_t s, int64_t first_entry, float rstd,
                                                  int first, int step) {
  const Entries& of = p.entries;
  const int64_t image = s / p.op.groups;
  float2 total = {0.f, 0.f};
  for (int c = 0; c < of.channels; c += step) {  // the same number of times in each thread
    const int j = c + first;
    float v[2] = {};
    if (j < of.channels)
      for (int t = threadIdx.x % p.lanes; t < of.per_channel; t += p.lanes)
        for_each<2>([&](int i) {
          v[i] += p.partial[i * of.count + first_entry + j * of.channel_stride + t * of.entry_stride];
        });
    for (int offset = p.lanes / 2; offset; offset /= 2)
      for_each<2>([&](int i) { v[i] += __shfl_xor_sync(0xffffffffu, v[i], offset); });
    if (j >= of.channels || threadIdx.x % p.lanes) continue;
    if (p.sums) write_sums(p, s * of.channels + j, v[0], v[1], rstd);
    const float weight = weight_of(p.op, image, s % p.op.groups * of.channels + j);
    total.x += weight * v[0];
    total.y += weight * v[1];
  }
  return total;
}

template <bool kBackward>
__global__ __launch_bounds__(kFinishThreads) void norm_act_finish_kernel(const FinishKernel p) {
  const Entries& of = p.entries;
  const bool whole_block = of.channels > 1;
  const int threads = whole_block ? kFinishThreads : 32, thread = threadIdx.x % threads;
  const int64_t s = whole_block ? blockIdx.x : int64_t{blockIdx.x} * (kFinishThreads / 32) + threadIdx.x / 32;
  if (s >= p.statistics) return;
  const int64_t first_entry = s / of.groups * of.image_stride + s % of.groups * of.group_stride;
  auto sum = [&](auto& v) {
    if (whole_block) block_sum(v);
    else
      for (float& x : v) x = warp_sum(x);
  };
  if constexpr (kBackward) {
    const float rstd = rstd_of(p.op, p.var[s]);
    const float2 mine = finish_channels(p, s, first_entry, rstd, thread / p.lanes, threads / p.lanes);
    float total[2] = {mine.x, mine.y};
    sum(total);
    if (thread == 0 && p.own_averages) {
      p.averages[s] = total[0] / p.elements;
      p.averages[p.statistics + s] = total[1] * rstd / p.divisor;
    }
  } else {
    auto index = [&](int i) {
      return first_entry + i / of.per_channel * of.channel_stride + i % of.per_channel * of.entry_stride;
    };
    const Moments m = merge_moments(p, thread, threads, index, sum);
    if (thread) return;
    p.mean[s] = m.mean;
    p.var[s] = m.squares / p.divisor;
  }
}

void launch_finish(bool backward, const NormActKernel& p, cudaStream_t stream) {
  FinishKernel kernel{};
  static_cast<NormActKernel&>(kernel) = p;
  kernel.lanes = 32;
  while (kernel.lanes > 1 && kernel.lanes / 2 >= p.entries.per_channel) kernel.lanes /= 2;
  const int64_t blocks = p.entries.channels > 1 ? p.statistics : ceil_div(p.statistics, kFinishThreads / 32);
  launch(backward ? norm_act_finish_kernel<true> : norm_act_finish_kernel<false>, "norm_act_finish_kernel", blocks,
         kFinishThreads, 0, stream, kernel);
}

// A plane of one element is a pixel of C channels, and these are dealt out better.
NormAct normalised(NormAct op) {
  op.features.channels_last |= op.features.P == 1;
  return op;
}

NormActPlan make_plan(const NormAct& op) {
  const auto [N, C, P, dtype, channels_last] = op.features;
  require(!op.across_batch || op.groups == C, "norm_act: statistics across the batch are those of single channels");
  return channels_last ? plan_rows(op) : plan_planes(op);
}

void launch_pass(Pass pass, bool backward, NormActKernel p, cudaStream_t stream) {
  p.pass = pass;
  p.op.features.channels_last ? launch_rows(backward, p, stream) : launch_planes(backward, p, stream);
}

NormActKernel make_kernel(const NormAct& op, const NormActPlan& plan) {
  const auto [N, C, P, dtype, channels_last] = op.features;
  NormActKernel k{};
  k.op = op;
  if (op.across_batch) k.op.affine_stride = 0;  // the kernels count the image that an element is of
  k.entries = plan.entries;
  k.statistics = op.across_batch ? C : N * op.groups;
  k.channels = op.across_batch ? C : N * C;
  k.group_channels = static_cast<int>(C / op.groups);
  const int64_t elements = N * C * P / k.statistics;
  k.elements = static_cast<float>(elements);
  k.divisor = static_cast<float>(static_cast<double>(elements) - op.correction);
  return k;
}

}  // namespace

int64_t norm_act_workspace_size(const NormActParams& p) {
  const NormActPlan plan = make_plan(normalised(p));
  return plan.whole || p.statistics_given ? 0 : 2 * plan.entries.count;
}

void launch_norm_act(const NormActParams& p, CUstream_st* stream) {
  const NormAct op = normalised(p);
  const NormActPlan plan = make_plan(op);
  NormActKernel k = make_kernel(op, plan);
  k.input = p.input;
  k.residual = p.output ? p.residual : nullptr;
  k.output = p.output;
  k.mean = p.mean;
  k.var = p.var;
  k.partial = p.workspace;
  if (p.statistics_given) return launch_pass(Pass::Apply, false, k, stream);
  if (plan.whole) return launch_pass(Pass::Whole, false, k, stream);
  launch_pass(Pass::Statistics, false, k, stream);
  k.merge_partial = plan.merge_in_apply && p.output;
  if (!k.merge_partial) launch_finish(false, k, stream);
  if (p.output) launch_pass(Pass::Apply, false, k, stream);
}

int64_t norm_act_backward_workspace_size(const NormActBackwardParams& p) {
  const NormActPlan plan = make_plan(normalised(p));
  return plan.whole ? 0 : 2 * (plan.entries.count + make_kernel(p, plan).statistics);
}

void launch_norm_act_backward(const NormActBackwardParams& p, CUstream_st* stream) {
  const NormAct op = normalised(p);
  const NormActPlan plan = make_plan(op);
  NormActKernel k = make_kernel(op, plan);
  k.input = p.input;
  k.grad_output = p.grad_output;
  k.residual = p.residual;
  k.output = p.grad_input;
  k.grad_residual = p.grad_residual;
  k.mean = const_cast<float*>(p.mean);
  k.var = const_cast<float*>(p.var);
  k.averages = const_cast<float*>(p.averages);  // read only, as are mean and var
  k.sums = p.sums;
  k.partial = p.workspace;
  k.own_averages = p.grad_input && !p.statistics_given && !p.averages;
  if (p.statistics_given) k.averages = nullptr;

  const bool written = p.grad_input || p.grad_residual;
  if (!written && !p.sums) return;
  if (!k.own_averages && !p.sums) return launch_pass(Pass::Apply, true, k, stream);
  if (plan.whole) return launch_pass(Pass::Whole, true, k, stream);
  if (written && !k.own_averages) {  // one pass, which sums as well
    k.accumulate = true;
    launch_pass(Pass::Apply, true, k, stream);
    return launch_finish(true, k, stream);
  }
  launch_pass(Pass::Statistics, true, k, stream);
  k.merge_partial = plan.merge_in_apply && k.own_averages;
  if (!k.merge_partial) {
    if (k.own_averages) k.averages = p.workspace + 2 * plan.entries.count;
    launch_finish(true, k, stream);
  }
  if (written) launch_pass(Pass::Apply, true, k, stream);
}

}  // namespace artkernels::cuda
