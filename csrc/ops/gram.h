#pragma once

#include <ATen/core/Tensor.h>

#include <optional>
#include <string_view>
#include <tuple>

// Host functions of the Gram ops, behind both torch.ops.artkernels and artkernels._C; documented in
// artkernels/ops/gram.py.
namespace artkernels {

using Normalize = std::optional<std::string_view>;

at::Tensor gram_matrix(const at::Tensor& input, Normalize normalize);
at::Tensor gram_matrix_backward(const at::Tensor& grad_output, const at::Tensor& input, Normalize normalize);
std::tuple<at::Tensor, at::Tensor> gram_mse_loss(const at::Tensor& input, const at::Tensor& target, Normalize normalize,
                                                 bool needs_residual);
at::Tensor gram_mse_loss_backward(const at::Tensor& grad_loss, const at::Tensor& residual, const at::Tensor& input,
                                  Normalize normalize);

}  // namespace artkernels
