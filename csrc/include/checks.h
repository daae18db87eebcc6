// Checks of arguments, one sentence each: what was given, what is needed.
#pragma once

#include <ATen/core/Tensor.h>

#include <optional>
#include <string>
#include <string_view>

#include "include/activation.h"

namespace artkernels {

inline void check_floating(const char* op, const at::Tensor& input) {
  const auto dtype = input.scalar_type();
  TORCH_CHECK(dtype == at::kFloat || dtype == at::kDouble || dtype == at::kHalf || dtype == at::kBFloat16, op,
              ": input must be float32, float64, float16 or bfloat16, got ", dtype);
  TORCH_CHECK(input.device().is_cpu() || input.device().is_cuda(), op, ": input must be on cpu or cuda, got ",
              input.device());
}

inline void check_feature_map(const char* op, const at::Tensor& input) {
  TORCH_CHECK(input.dim() == 4, op, ": input must be [N, C, H, W], got ", input.dim(), " dimensions");
  check_floating(op, input);
}

inline void check_same_device(const char* op, const char* name, const at::Tensor& tensor, const at::Tensor& input) {
  TORCH_CHECK(tensor.device() == input.device(), op, ": ", name, " is on ", tensor.device(), ", input is on ",
              input.device());
}

inline Activation activation_of(const char* op, std::string_view name) {
  if (name == "none") return Activation::None;
  if (name == "relu") return Activation::Relu;
  if (name == "leaky_relu") return Activation::LeakyRelu;
  if (name == "tanh") return Activation::Tanh;
  if (name == "sigmoid") return Activation::Sigmoid;
  if (name == "silu") return Activation::Silu;
  if (name == "gelu") return Activation::Gelu;
  TORCH_CHECK(false, op, ": activation must be none, relu, leaky_relu, tanh, sigmoid, silu or gelu, got ", name);
}

// Of weights, biases and statistics.
inline at::ScalarType parameter_dtype(const at::Tensor& input) {
  return input.scalar_type() == at::kDouble ? at::kDouble : at::kFloat;
}

// An optional array of parameters or statistics in the dtype of parameters, contiguous; undefined where there is none.
inline at::Tensor check_array(const char* op, const char* name, const std::optional<at::Tensor>& array,
                              const at::Tensor& input, at::IntArrayRef shape, at::IntArrayRef other_shape) {
  if (!array) return {};
  check_same_device(op, name, *array, input);
  TORCH_CHECK(array->is_floating_point(), op, ": ", name, " must be floating point, got ", array->scalar_type());
  TORCH_CHECK(array->sizes() == shape || array->sizes() == other_shape, op, ": ", name, " must be ", shape,
              shape == other_shape ? std::string() : c10::str(" or ", other_shape), ", got ", array->sizes());
  return array->to(parameter_dtype(input)).contiguous();
}

}  // namespace artkernels
