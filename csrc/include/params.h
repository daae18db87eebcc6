// What crosses from the host functions (csrc/ops) to the kernels (csrc/cpu, csrc/cuda): plain structs, one per kernel
// family, every array with its [shape]. No torch header here, so that nvcc compiles a .cu in seconds.
#pragma once

#include <cstdint>

#include "activation.h"

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

enum class Residual : int { None, BeforeActivation, AfterActivation };

// What the forward and the backward of a normalisation + activation share:
//
//   xhat = (x - mean) rstd,   rstd = 1 / sqrt(var + eps)
//   z = alpha (weight xhat + bias) + (1 - alpha) x
//   output = activation(z + residual)   or   activation(z) + residual   or   activation(z)
//
// A mean and a variance belong to C / groups neighbouring channels, of one image or of the whole batch:
//   instance norm: groups == C      group norm: groups <= C      batch norm: groups == C and across_batch
// Their index is image * groups + group, or group alone when across_batch; `statistics` below is their number.
struct NormAct {
  FeatureMap features;
  int64_t groups;  // divides C
  bool across_batch;
  const float* weight;    // [C], or [N, C] (never when across_batch), or null: 1
  const float* bias;      // the same, or null: 0
  int64_t affine_stride;  // floats from one image's weight and bias to the next one's: 0 or C
  float eps, alpha;
  float correction;  // var = sum of (x - mean)^2 / (elements - correction)
  Activation activation;
  float negative_slope;  // of LeakyRelu
  Residual residual_mode;
};

struct NormActParams : NormAct {
  const void* input;      // [N, C, P] or [N, P, C]
  const void* residual;   // as input; null exactly when residual_mode is None
  void* output;           // as input, or null: only the statistics are wanted
  float* mean;            // [statistics] written, or read when statistics_given
  float* var;             // [statistics] the same
  bool statistics_given;  // never together with a null output
  float* workspace;       // [norm_act_workspace_size] floats, contents undefined; CUDA only
};

// dz = activation'(z, or z + residual where it is added before) grad_output
// grad_input = (1 - alpha) dz + alpha rstd (weight dz - a1 - xhat a2)
// where, over the elements that share a mean, a1 = sum of weight dz / elements, and
// a2 = sum of weight dz xhat / (elements - correction); both are zero when the statistics were given.
struct NormActBackwardParams : NormAct {
  const void* grad_output;  // as input
  const void* input;        // [N, C, P] or [N, P, C]
  const void* residual;     // as input when residual_mode is BeforeActivation, else null
  const float* mean;        // [statistics]
  const float* var;         // [statistics]
  bool statistics_given;    // they do not depend on the input
  const float* averages;    // [2, statistics], a1 and a2 to use instead of this input's own, or null
  void* grad_input;         // as input, or null
  void* grad_residual;      // dz, as input, or null
  float* sums;              // [2, N, C] ([2, C] when across_batch): sums of dz, of dz xhat over the pixels, or null
  float* workspace;         // [norm_act_backward_workspace_size] floats, contents undefined; CUDA only
};

// One spatial dimension of a convolution, with the meanings of torch.nn.functional.conv2d.
struct Window {
  int64_t kernel, stride, padding, dilation;
};

// Whose statistics a convolution gathers beside its output: nobody's, the batch's ([K]) or each image's ([N, K]).
enum class Statistics : int { None, Batch, Instance };

// What every convolution and every gradient of one has.
struct ConvShape {
  ScalarType dtype;    // of all feature maps and weights
  int64_t N, C, H, W;  // input: [N, C, H, W] or, input_channels_last, [N, H, W, C]
  int64_t K, OH, OW;   // output: [N, K, OH, OW] or, output_channels_last, [N, OH, OW, K]
  bool input_channels_last, output_channels_last;
  int64_t groups;  // divides C and K
  Window rows, columns;
};

// What a convolution and a transposed convolution share. conv(input, weight) below is either of them:
//
//   z = scale conv(input, weight) + bias        output = activation(z)
//
// Statistics are those of z, and are only asked for with Activation::None.
struct Conv : ConvShape {
  bool reflect;  // beyond the input lies the input reflected, instead of zeros; CPU
  const void* input;
  const float* scale;  // [K], or null: 1
  const float* bias;   // [K], or null: 0
  Activation activation;
  float negative_slope;  // of LeakyRelu
  void* output;
  Statistics statistics;
  float* mean;  // [K] or [N, K] as `statistics` says, or null
  float* var;   // the same; biased: divided by the number of pixels
};

// Transposed: output pixel o takes input pixel i through tap k where o = i stride - padding + k dilation. OH and OW
// hold the output padding: any size from there on whose pixels no tap reaches is legal. Otherwise, as conv2d,
// i = o stride - padding + k dilation.
struct ConvParams : Conv {  // CPU
  bool transposed;
  const void* weight;         // read by the packing functions alone
  int64_t weight_strides[4];  // elements to the next input channel, output channel, row, column of the kernel
  float* packed_weight;       // written by the packing functions
  // Where the input is the gradient of an activation's output: that output, as the input lies in memory, or null. The
  // input is then multiplied as it is read by the derivative of `activation`, which is not applied to the output.
  const void* activated;
};

// grad_weight[k, c, tap] = sum over images and pixels of input[c, o stride - padding + tap dilation] grad_output[k, o],
// of conv2d; of a transposed convolution with the roles swapped: its grad_output is `input`, its input `grad_output`.
struct ConvWeightGradParams : ConvShape {  // CPU
  const void* input;
  const void* grad_output;    // [N, K, OH, OW] or, output_channels_last, [N, OH, OW, K]
  void* grad_weight;          // in the order of weight_strides
  int64_t weight_strides[4];  // elements to the next input channel, output channel, row, column of the kernel
  // The activation's output, as grad_output (transposed: input) lies in memory, or null. That map is then multiplied as
  // it is read by the derivative of `activation`.
  const void* activated;
  bool transposed;  // which of the two maps is the gradient
  Activation activation;
  float negative_slope;
  float* grad_bias;  // [K], sums of the gradient, or null; not transposed
};

struct ConvTransposeParams : Conv {  // CUDA
  const void* weight;  // [C, kernel_h * kernel_w, K / groups], a channels_last torch weight as it lies in memory
  bool allow_tf32;     // float32: tensor cores with 10-bit mantissas
  void* workspace;     // [conv_transpose_workspace_size] bytes, contents undefined
};

}  // namespace artkernels
