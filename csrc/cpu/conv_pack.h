// Feature maps on their way into and out of a convolution: pixels with their channels one after the other in the words
// of its operand, whatever the tensor's layout and dtype; out of it, in float32.
#pragma once

#include "cpu/activation.h"
#include "cpu/conv_operand.h"

namespace artkernels::cpu {
namespace {

// Pixels of one row of an image, or of one column of images: channels `channel` elements apart, pixels `pixel`.
template <typename scalar_t>
struct Row {
  const scalar_t* first;      // null: a row beyond the image
  const scalar_t* activated;  // the output of the activation that this is the gradient of, or null
  int64_t pixel, channel;

  Row from(int64_t offset) const { return {first + offset, activated ? activated + offset : nullptr, pixel, channel}; }
};

// The maps of a batch, or the gradients of an activation's output, which become those of its input as they are read.
template <typename scalar_t>
struct Map {
  const scalar_t *data, *activated;
  Activation activation;
  float negative_slope;
  int64_t C, H, W;
  bool channels_last;
  bool reflect;  // beyond the map lies the map reflected, instead of zeros

  // Row `row` of an image's channels from `channel` on.
  Row<scalar_t> row(int64_t image, int64_t row, int64_t channel) const {
    if (reflect) row = row < 0 ? -row : row >= H ? 2 * (H - 1) - row : row;
    if (row < 0 || row >= H) return {nullptr, nullptr, 0, 0};
    const Row<scalar_t> all = {data, activated, channels_last ? C : 1, channels_last ? 1 : H * W};
    return all.from(channels_last ? (image * H + row) * W * C + channel : ((image * C + channel) * H + row) * W);
  }
};

template <typename scalar_t>
Map<scalar_t> input_map(const ConvParams& p) {
  return {static_cast<const scalar_t*>(p.input),
          static_cast<const scalar_t*>(p.activated),
          p.activation,
          p.negative_slope,
          p.C,
          p.H,
          p.W,
          p.input_channels_last,
          p.reflect};
}

// `count` lanes from `offset` on, values of the operand's type.
template <typename Operand, Activation activation, typename scalar_t>
ARTKERNELS_INLINE vfloat load_row(const Row<scalar_t>& row, int64_t offset, int64_t count, float negative_slope) {
  const vfloat x = load_up_to(row.first + offset, count);
  if constexpr (activation == Activation::None) return x;
  const vfloat y = derivative_from_output<activation>(x, load_up_to(row.activated + offset, count), negative_slope);
  if constexpr (Operand::channels == 1) return y;
  return widen(BFloat16{}, narrow(BFloat16{}, y));
}

template <typename Operand, Activation activation, typename scalar_t>
void pack_pixels(const Row<scalar_t>& row, int64_t count, int64_t C, float negative_slope, float* words,
                 int64_t pixel) {
  using Value = typename Operand::Value;
  Value* const out = reinterpret_cast<Value*>(words);
  pixel *= Operand::channels;
  if (row.pixel == C && pixel == C) C *= count, count = 1;
  for (int64_t j = 0; j < count; ++j) {
    if constexpr (__is_same(scalar_t, Value) && activation == Activation::None)
      __builtin_memcpy(out + j * pixel, row.first + j * row.pixel, C * sizeof(Value));
    else
      for (int64_t c = 0; c < C; c += VL)
        store_up_to(out + j * pixel + c, load_row<Operand, activation>(row, j * row.pixel + c, C - c, negative_slope),
                    C - c);
    if (C % Operand::channels) __builtin_memset(out + j * pixel + C, 0, sizeof(Value));
  }
}

template <typename Operand, Activation activation, typename scalar_t>
void pack_planes(const Row<scalar_t>& row, int64_t count, int64_t C, float negative_slope, float* out, int64_t pixel) {
  const int64_t words = words_of<Operand>(C);
  for (int64_t w = 0; w < words; w += VL)
    for (int64_t j = 0; j < count; j += VL) {
      vfloat rows[VL];
      const int64_t first = w * Operand::channels, channels = C - first, pixels = count - j;
      auto load_plane = [&](int64_t i, int64_t lanes) ARTKERNELS_LAMBDA {
        return load_words<Operand>(channels - i * Operand::channels, [&](int64_t half) ARTKERNELS_LAMBDA {
          const int64_t c = first + i * Operand::channels + half;
          return load_row<Operand, activation>(row, c * row.channel + j, lanes, negative_slope);
        });
      };
      if (channels >= VL * Operand::channels && pixels >= VL) {
        ARTKERNELS_UNROLL
        for (int i = 0; i < VL; ++i) rows[i] = load_plane(i, VL);
        transpose(rows);
        ARTKERNELS_UNROLL
        for (int i = 0; i < VL; ++i) store(out + (j + i) * pixel + w, rows[i]);
      } else {
        for (int i = 0; i < VL; ++i) rows[i] = load_plane(i, pixels);
        transpose(rows);
        // Whole vectors where the pixels that follow overwrite what is too much.
        const int64_t end = (count - 1) * pixel + words - VL;
        for (int i = 0; i < VL && i < pixels; ++i) {
          float* const to = out + (j + i) * pixel + w;
          if (words <= VL && to - out <= end) store(to, rows[i]);
          else store_up_to(to, rows[i], words - w);
        }
      }
    }
}

// `count` pixels of C channels, `pixel` words apart.
template <typename Operand = Float32, typename scalar_t>
void pack_row(const Map<scalar_t>& map, const Row<scalar_t>& row, int64_t count, int64_t C, float* out, int64_t pixel) {
  auto pack = [&](auto a) {
    if (row.channel == 1) pack_pixels<Operand, a.activation>(row, count, C, map.negative_slope, out, pixel);
    else pack_planes<Operand, a.activation>(row, count, C, map.negative_slope, out, pixel);
  };
  switch (row.activated ? map.activation : Activation::None) {
    case Activation::Relu: return pack(ActivationConstant<Activation::Relu>{});
    case Activation::LeakyRelu: return pack(ActivationConstant<Activation::LeakyRelu>{});
    case Activation::Tanh: return pack(ActivationConstant<Activation::Tanh>{});
    case Activation::Sigmoid: return pack(ActivationConstant<Activation::Sigmoid>{});
    default: return pack(ActivationConstant<Activation::None>{});
  }
}

// Pixels [first, first + width) of a row of the map, which they may exceed on either side: zeros, or the row reflected.
template <typename Operand = Float32, typename scalar_t>
void pack_bordered_row(const Map<scalar_t>& map, const Row<scalar_t>& row, int64_t first, int64_t width, int64_t C,
                       float* out, int64_t pixel) {
  auto zero = [&](int64_t begin, int64_t end) {
    if (end > begin) __builtin_memset(out + begin * pixel, 0, (end - begin) * pixel * sizeof(float));
  };
  if (!row.first) return zero(0, width);
  const int64_t left = first < 0 ? -first : 0, skipped = first < 0 ? 0 : first;
  const int64_t count = map.W - skipped < width - left ? map.W - skipped : width - left, end = left + count;
  zero(0, left);
  zero(end, width);
  pack_row<Operand>(map, row.from(skipped * row.pixel), count, C, out + left * pixel, pixel);
  if (!map.reflect) return;
  auto copy = [&](int64_t to, int64_t from) {
    __builtin_memcpy(out + to * pixel, out + from * pixel, words_of<Operand>(C) * sizeof(float));
  };
  for (int64_t i = 1; i <= left && i < count; ++i) copy(left - i, left + i);
  for (int64_t i = 1; end - 1 + i < width && i < count; ++i) copy(end - 1 + i, end - 1 - i);
}

// Pixels of a panel, `width` floats apart, to channel planes `plane` elements apart.
template <typename scalar_t>
void unpack_planes(const float* in, int64_t width, int64_t count, int64_t channels, scalar_t* out, int64_t plane) {
  for (int64_t k = 0; k < channels; k += VL)
    for (int64_t j = 0; j < count; j += VL) {
      vfloat rows[VL];
      const int64_t pixels = count - j < VL ? count - j : VL;
      for (int i = 0; i < VL; ++i) rows[i] = i < pixels ? load(in + (j + i) * width + k) : vfloat{};
      transpose(rows);
      for (int i = 0; i < VL && k + i < channels; ++i) store_up_to(out + (k + i) * plane + j, rows[i], pixels);
    }
}

}  // namespace
}  // namespace artkernels::cpu
