#include "ops/norm_act_double.h"

#include <ATen/TensorOperators.h>
#include <ATen/ops/gelu.h>
#include <ATen/ops/gelu_backward.h>
#include <ATen/ops/leaky_relu.h>
#include <ATen/ops/leaky_relu_backward.h>
#include <ATen/ops/relu.h>
#include <ATen/ops/rsqrt.h>
#include <ATen/ops/sigmoid.h>
#include <ATen/ops/sigmoid_backward.h>
#include <ATen/ops/silu.h>
#include <ATen/ops/silu_backward.h>
#include <ATen/ops/stack.h>
#include <ATen/ops/tanh.h>
#include <ATen/ops/tanh_backward.h>
#include <ATen/ops/threshold_backward.h>
#include <ATen/ops/var_mean.h>
#include <ATen/ops/zeros_like.h>

namespace artkernels {
namespace {

using at::Tensor;

Tensor activate(const Tensor& z, const NormActOptions& o) {
  switch (o.activation) {
    case Activation::None: return z;
    case Activation::Relu: return at::relu(z);
    case Activation::LeakyRelu: return at::leaky_relu(z, o.negative_slope);
    case Activation::Tanh: return at::tanh(z);
    case Activation::Sigmoid: return at::sigmoid(z);
    case Activation::Silu: return at::silu(z);
    case Activation::Gelu: return at::gelu(z);
  }
  return z;
}

Tensor activation_backward(const Tensor& grad, const Tensor& z, const NormActOptions& o) {
  switch (o.activation) {
    case Activation::None: return grad;
    case Activation::Relu: return at::threshold_backward(grad, z, 0);
    case Activation::LeakyRelu: return at::leaky_relu_backward(grad, z, o.negative_slope, false);
    case Activation::Tanh: return at::tanh_backward(grad, at::tanh(z));
    case Activation::Sigmoid: return at::sigmoid_backward(grad, at::sigmoid(z));
    case Activation::Silu: return at::silu_backward(grad, z);
    case Activation::Gelu: return at::gelu_backward(grad, z);
  }
  return grad;
}

// [N, C, P]
Tensor flat(const Tensor& x) { return x.defined() ? x.reshape({x.size(0), x.size(1), -1}) : x; }

// A weight or a bias, [C] or [N, C], to multiply [N, C, P] by.
Tensor per_channel(const Tensor& affine) { return affine.unsqueeze(-1); }

// Statistics, [groups] or [N, groups], one a channel: [C, 1] or [N, C, 1].
Tensor per_channel(const Tensor& statistics, int64_t C) {
  return statistics.repeat_interleave(C / statistics.size(-1), -1).unsqueeze(-1);
}

// Sums of [N, C, P] over the elements that share a mean: [groups] or [N, groups].
Tensor group_sums(const Tensor& x, const NormActOptions& o) {
  return o.across_batch ? x.sum({0, 2}) : x.reshape({x.size(0), o.groups, -1}).sum(-1);
}

Tensor xhat_of(const Tensor& x, const Tensor& mean, const Tensor& var, const NormActOptions& o) {
  return (x - per_channel(mean, x.size(1))) * per_channel(at::rsqrt(var + o.eps), x.size(1));
}

Tensor z_of(const Tensor& x, const Tensor& xhat, const Tensor& weight, const Tensor& bias, const NormActOptions& o) {
  Tensor z = weight.defined() ? xhat * per_channel(weight) : xhat;
  if (bias.defined()) z = z + per_channel(bias);
  return o.alpha == 1 ? z : z * o.alpha + x * (1 - o.alpha);
}

}  // namespace

std::tuple<Tensor, Tensor> feature_statistics_double(const Tensor& input, const NormActOptions& o) {
  const Tensor x = flat(input);
  const auto [var, mean] = o.across_batch ? at::var_mean(x, at::IntArrayRef({0, 2}), at::Scalar(o.correction))
                                          : at::var_mean(x.reshape({x.size(0), o.groups, -1}), at::IntArrayRef({2}),
                                                         at::Scalar(o.correction));
  return {mean, var};
}

Tensor norm_act_double(const Tensor& input, const Tensor& weight, const Tensor& bias, const Tensor& residual,
                       const Tensor& mean, const Tensor& var, const NormActOptions& o) {
  const Tensor x = flat(input), r = flat(residual);
  Tensor z = z_of(x, xhat_of(x, mean, var, o), weight, bias, o);
  if (r.defined() && !o.residual_after) z = z + r;
  Tensor y = activate(z, o);
  if (r.defined() && o.residual_after) y = y + r;
  return y.reshape(input.sizes());
}

Tensors3 norm_act_backward_double(const Tensor& grad_output, const Tensor& input, const Tensor& weight,
                                  const Tensor& bias, const Tensor& residual, const Tensor& mean, const Tensor& var,
                                  const Tensor& averages, bool statistics_given, const NormActOptions& o) {
  const Tensor x = flat(input), xhat = xhat_of(x, mean, var, o);
  const int64_t C = x.size(1);
  Tensor z = z_of(x, xhat, weight, bias, o);
  if (residual.defined()) z = z + flat(residual);
  const Tensor dz = activation_backward(flat(grad_output), z, o), dz_xhat = dz * xhat;
  const Tensor weighted = weight.defined() ? dz * per_channel(weight) : dz;
  Tensor a1 = at::zeros_like(mean), a2 = a1;
  if (averages.defined()) {
    a1 = averages[0], a2 = averages[1];
  } else if (!statistics_given) {
    const double elements = double(x.numel()) / double(mean.numel());
    a1 = group_sums(weighted, o) / elements;
    a2 = group_sums(weighted * xhat, o) / (elements - o.correction);
  }
  const Tensor through_norm =
      (weighted - per_channel(a1, C) - xhat * per_channel(a2, C)) * per_channel(at::rsqrt(var + o.eps), C);
  const Tensor grad_input = o.alpha == 1 ? through_norm : through_norm * o.alpha + dz * (1 - o.alpha);
  auto channel_sums = [&](const Tensor& t) { return o.across_batch ? t.sum({0, 2}) : t.sum(-1); };
  return {grad_input.reshape(input.sizes()), at::stack({channel_sums(dz), channel_sums(dz_xhat)}),
          dz.reshape(input.sizes())};
}

}  // namespace artkernels
