#pragma once

#include <ATen/core/Tensor.h>

#include <array>
#include <optional>
#include <tuple>

// Host functions of the reparameterisation with its KL divergence, behind both torch.ops.artkernels and artkernels._C;
// documented in artkernels/ops/reparameterize_kl.py. What is computed is written down in include/reparameterize_kl.h.
namespace artkernels {

// (codes, kl)
std::tuple<at::Tensor, at::Tensor> reparameterize_kl(const at::Tensor& mean, const at::Tensor& logvar,
                                                     const at::Tensor& noise);

// (grad_mean, grad_logvar, grad_noise), those that output_mask wants; the others are empty. A gradient of the results
// that is not there counts as zero.
std::tuple<at::Tensor, at::Tensor, at::Tensor> reparameterize_kl_backward(
    const std::optional<at::Tensor>& grad_codes, const std::optional<at::Tensor>& grad_kl, const at::Tensor& mean,
    const at::Tensor& logvar, const at::Tensor& noise, std::array<bool, 3> output_mask);

}  // namespace artkernels
