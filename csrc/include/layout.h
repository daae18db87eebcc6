// Memory layouts that the kernels take: [N, C, ...] as it is written, or with the channels innermost.
#pragma once

#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>

#include "include/params.h"

namespace artkernels {

// Channels innermost and nothing else: channels_last, channels_last_3d, a [N, L, C] seen as [N, C, L]. The fake kernels
// in artkernels/ops decide by the same rule (artkernels/ops/_common.py).
inline bool is_channels_last(const at::Tensor& x) {
  if (x.is_contiguous() || x.dim() < 3) return false;
  int64_t expected = x.size(1);
  auto fits = [&](int64_t d) {
    const bool fitting = x.size(d) == 1 || x.stride(d) == expected;
    expected *= x.size(d);
    return fitting;
  };
  for (int64_t d = x.dim() - 1; d >= 2; --d)
    if (!fits(d)) return false;
  return fits(0) && (x.size(1) == 1 || x.stride(1) == 1);
}

inline at::Tensor to_layout(const at::Tensor& x, bool channels_last) {
  return channels_last ? x.movedim(1, -1).contiguous().movedim(-1, 1) : x.contiguous();
}

inline at::Tensor dense(const at::Tensor& x) { return is_channels_last(x) ? x : x.contiguous(); }

// Of a dense tensor's shape, layout, dtype and device.
inline at::Tensor empty_like_dense(const at::Tensor& x) {
  if (!is_channels_last(x)) return at::empty_like(x, at::MemoryFormat::Contiguous);
  return at::empty_like(x.movedim(1, -1), at::MemoryFormat::Contiguous).movedim(-1, 1);
}

// A tensor's data, or null where there is none.
inline const float* floats(const at::Tensor& t) { return t.defined() ? t.const_data_ptr<float>() : nullptr; }
inline const void* data_or_null(const at::Tensor& t) { return t.defined() ? t.const_data_ptr() : nullptr; }

inline FeatureMap feature_map(const at::Tensor& x) {
  const auto dtype = x.scalar_type() == at::kHalf       ? ScalarType::Half
                     : x.scalar_type() == at::kBFloat16 ? ScalarType::BFloat16
                                                        : ScalarType::Float;
  int64_t P = 1;
  for (int64_t d = 2; d < x.dim(); ++d) P *= x.size(d);
  return {x.size(0), x.size(1), P, dtype, is_channels_last(x)};
}

}  // namespace artkernels
