#include "ops/conv_cpu.h"

#include <ATen/Parallel.h>
#include <ATen/ops/empty.h>

#include "cpu/conv.h"
#include "include/device.h"
#include "include/layout.h"
#include "packed_weights.h"

namespace artkernels {
namespace {

using at::Tensor;

// All but the pointers to what is written. A convolution of stride 1 to few channels becomes the transposed one that is
// an image layer.
ConvParams params_of(const ConvCall& call) {
  ConvParams p{};
  static_cast<Conv&>(p) = conv_params(call);
  const auto s = call.weight.strides();
  p.transposed = call.transposed;
  p.weight = call.weight.const_data_ptr();
  p.scale = floats(call.scale);
  p.bias = floats(call.bias);
  p.activated = data_or_null(call.activated);
  if (call.transposed) {
    std::copy(s.begin(), s.end(), p.weight_strides);
    return p;
  }
  std::copy_n(std::initializer_list<int64_t>{s[1], s[0], s[2], s[3]}.begin(), 4, p.weight_strides);
  ConvParams turned = p;
  turned.transposed = true;
  turned.rows.padding = p.rows.kernel - 1 - p.rows.padding;
  turned.columns.padding = p.columns.kernel - 1 - p.columns.padding;
  if (p.rows.stride != 1 || p.columns.stride != 1 || turned.rows.padding < 0 || turned.columns.padding < 0 ||
      !cpu::is_image_layer(turned))
    return p;
  const int64_t last = (p.rows.kernel - 1) * s[2] + (p.columns.kernel - 1) * s[3];
  turned.weight = static_cast<const char*>(p.weight) + last * call.weight.element_size();
  turned.weight_strides[2] = -s[2];
  turned.weight_strides[3] = -s[3];
  return turned;
}

double multiplications(const ConvParams& p) {
  const double pixels = double(p.N) * (p.transposed ? p.H * p.W : p.OH * p.OW);
  return pixels * p.C * (p.K / p.groups) * p.rows.kernel * p.columns.kernel;
}

// The share of an image layer's multiplications that are not by zeros where the stride is 1.
double useful_share(const ConvParams& p) {
  const double step = cpu::IMAGE_LAYER_LANES / p.K, taps = p.columns.kernel;
  return p.OW < step ? 0 : p.K * step / cpu::IMAGE_LAYER_LANES * taps / (taps + step - 1);
}

// What was measured (benchmarks/bench_conv_transpose.py), against oneDNN: it is as fast as the machine where many
// pixels of many channels come in its own layout, channels innermost, and loses by repacking in the other cases.
// A convolution with large weights and few pixels costs little more than packing them: `kept` says that this is not
// done at every call.
bool is_faster(const ConvParams& p, bool kept) {
  static const bool stock_is_wide = multiplies_bfloat16() && cpu::isa() != cpu::Isa::Avx512Bf16;
  const int64_t pixels = p.N * p.OH * p.OW;
  const bool one_pixel = p.H == 1 && p.W == 1 && p.transposed;
  if (p.dtype == ScalarType::BFloat16 && stock_is_wide && !one_pixel && pixels > (p.output_channels_last ? 256 : 1024))
    return cpu::is_image_layer(p) && pixels <= 4096;
  if (cpu::is_image_layer(p)) return p.rows.stride * p.columns.stride > 1 || useful_share(p) >= 0.4;
  if (p.K / p.groups < 8) return false;  // panels of output channels would be mostly empty
  if (!p.transposed && p.C <= 4) return pixels <= 4096;
  if (!p.transposed) return pixels <= 256 && (kept || (!p.output_channels_last && pixels >= 64));
  if (!p.output_channels_last || pixels <= 4096 || p.dtype == ScalarType::Half) return true;
  return (p.activation != Activation::None && !p.activated) || p.statistics != Statistics::None || p.scale;
}

Tensor packed(const ConvCall& call, ConvParams p, int threads) {
  const bool image = cpu::is_image_layer(p);
  auto pack = [&] {
    const Tensor result = at::empty({image ? cpu::image_layer_weight_size(p) : cpu::packed_weight_size(p)}, at::kFloat);
    p.packed_weight = result.mutable_data_ptr<float>();
    if (image) cpu::pack_conv_image_weight(p, threads);
    else cpu::pack_conv_weight(p, threads);
    return result;
  };
  if (!image) return packed_weight(call.weight, {p.transposed, p.groups}, pack);
  return packed_weight(call.weight, {2 + call.transposed, p.rows.stride, p.columns.stride, p.output_channels_last},
                       pack);
}

}  // namespace

bool multiplies_bfloat16() {
#if defined(ARTKERNELS_X86)
  return __builtin_cpu_supports("avx512bf16");  // which every CPU with AMX has, too
#else
  return true;
#endif
}

bool runs_on_cpu(const ConvCall& call) {
  return !runs_on_cuda(call.input) && call.input.scalar_type() != at::kDouble &&
         is_faster(params_of(call), may_keep_packed(call.weight));
}

Tensors3 run_on_cpu(const ConvCall& call) {
  ConvParams p = params_of(call);
  const int threads = multiplications(p) < 1e6 || at::in_parallel_region() ? 1 : at::get_num_threads();
  const Tensor weight = packed(call, p, threads);
  const Tensors3 result = empty_result(call);
  const auto& [output, mean, var] = result;
  p.packed_weight = weight.mutable_data_ptr<float>();
  p.input = call.input.const_data_ptr();
  p.output = output.mutable_data_ptr();
  p.mean = mean.mutable_data_ptr<float>();
  p.var = var.mutable_data_ptr<float>();
  if (cpu::is_image_layer(p)) cpu::conv_image(p, threads);
  else cpu::conv(p, threads);
  return result;
}

}  // namespace artkernels
