// Convolutions, transposed or not, on the CPU.
#pragma once

#include "cpu/isa.h"
#include "include/params.h"

namespace artkernels::cpu {

// Floats of the packed weight: output channels are padded to the widest panel of all instruction sets, input channels
// to whole words (conv_operand.h).
inline int64_t packed_weight_size(const ConvParams& p) {
  constexpr int64_t widest = 32;
  const int64_t C = p.C / p.groups, K = p.K / p.groups;
  const int64_t words = p.dtype == ScalarType::BFloat16 && isa() == Isa::Avx512Bf16 ? (C + 1) / 2 : C;
  return p.groups * words * p.rows.kernel * p.columns.kernel * ((K + widest - 1) / widest * widest);
}

// Few output channels: a block of output pixels with all their channels fits the lanes of a vector, and a panel of
// channels alone would not fill half of them. Transposed convolutions only, but a convolution of stride 1 is one, too:
// of its kernel turned around (negative weight strides from the last tap) with a padding of kernel - 1 - padding.
constexpr int IMAGE_LAYER_LANES = 16;
inline bool is_image_layer(const ConvParams& p) {
  const int64_t lanes = p.K * p.rows.stride * p.columns.stride;
  return p.transposed && p.groups == 1 && p.rows.dilation == 1 && p.columns.dilation == 1 &&
         lanes <= IMAGE_LAYER_LANES && p.K <= 5 && p.statistics == Statistics::None;
}
inline int64_t image_layer_weight_size(const ConvParams& p) {
  const int64_t step = IMAGE_LAYER_LANES / (p.K * p.rows.stride * p.columns.stride);
  const int64_t rows = (p.rows.kernel + p.rows.stride - 1) / p.rows.stride;
  const int64_t columns = (p.columns.kernel + p.columns.stride - 1) / p.columns.stride + step - 1;
  return rows * columns * p.C * IMAGE_LAYER_LANES;
}

}  // namespace artkernels::cpu

// All run on up to `threads` threads of the OpenMP runtime. A packed weight is one of the instruction set that runs; of
// the general kernel it depends on nothing but the weight and the number of groups, of the image layer on the strides
// and on the output's layout, too.
ARTKERNELS_CPU_KERNEL_BF16(pack_conv_weight, ConvParams)
ARTKERNELS_CPU_KERNEL_BF16(conv, ConvParams)
ARTKERNELS_CPU_KERNEL(pack_conv_image_weight, ConvParams)
ARTKERNELS_CPU_KERNEL(conv_image, ConvParams)
