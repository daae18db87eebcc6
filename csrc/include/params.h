// What crosses from the host functions (csrc/ops) to the kernels (csrc/cpu, csrc/cuda): plain structs, one per kernel
// family, every array with its [shape]. No torch header here, so that nvcc compiles a .cu in seconds.
#pragma once

#include <cstdint>

namespace artkernels {

enum class ScalarType : int { Float, Half, BFloat16 };

// Feature maps of both layouts are described by N, C and P = H * W:
//   channels_last == false: [N, C, P]        channels_last == true: [N, P, C]
struct FeatureMap {
  int64_t N, C, P;
  ScalarType dtype;
  bool channels_last;
};

// gram = scale * X X^T for each image and, given a target, loss = mean((gram - target)^2).
struct GramParams {
  FeatureMap features;
  const void* input;      // [N, C, P] or [N, P, C]
  const float* target;    // [N, C, C], or [C, C] when target_stride is 0, or null: no loss
  int64_t target_stride;  // floats from one image's target to the next
  float* gram;            // [N, C, C], symmetric to the bit, or null when only the loss is wanted
  float* residual;        // [N, C, C], symmetric part of gram - target, or null when no gradient is wanted
  float* loss;            // [1], or null without a target
  float* workspace;       // [gram_workspace_size] floats, contents undefined
  float scale;            // applied in float32 to the float32 sums: float16 features cannot overflow
  bool allow_tf32;        // CUDA, float32 features: one TF32 product (3 digits) instead of three (as exact as float32)
};

// grad_input = factor * scale * (D + D^T) X for each image.
struct GramBackwardParams {
  FeatureMap features;
  const void* input;         // [N, C, P] or [N, P, C]
  const float* grad_output;  // D: [N, C, C], any square matrices, not symmetric ones alone
  const float* factor;       // [1] on the device, the gradient of a loss, or null: 1
  void* grad_input;          // as input
  float* workspace;          // [gram_backward_workspace_size] floats, contents undefined
  float scale;               // factor and scale are applied in float32, before the result is rounded to dtype
  bool allow_tf32;           // as in GramParams
};

}  // namespace artkernels
