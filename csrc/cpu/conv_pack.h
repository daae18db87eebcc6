// Feature maps on their way into and out of a convolution: pixels with their channels one after the other in float32,
// whatever the tensor's layout and dtype.
#pragma once

#include "cpu/vec.h"

namespace artkernels::cpu {
namespace {

// Pixels of one row of an image, or of one column of images: channels `channel` elements apart, pixels `pixel`.
template <typename scalar_t>
struct Row {
  const scalar_t* first;
  int64_t pixel, channel;
};

template <typename scalar_t>
void pack_pixels(const Row<scalar_t>& row, int64_t count, int64_t C, float* out, int64_t pixel) {
  for (int64_t j = 0; j < count; ++j, out += pixel) {
    const scalar_t* const x = row.first + j * row.pixel;
    int64_t c = 0;
    for (; c + VL <= C; c += VL) store(out + c, load(x + c));
    if (c < C) store_partial(out + c, load_partial(x + c, C - c), C - c);
  }
}

template <typename scalar_t>
void pack_planes(const Row<scalar_t>& row, int64_t count, int64_t C, float* out, int64_t pixel) {
  for (int64_t c = 0; c < C; c += VL)
    for (int64_t j = 0; j < count; j += VL) {
      vfloat rows[VL];
      const scalar_t* const x = row.first + c * row.channel + j;
      if (c + VL <= C && j + VL <= count) {
        ARTKERNELS_UNROLL
        for (int i = 0; i < VL; ++i) rows[i] = load(x + i * row.channel);
        transpose(rows);
        ARTKERNELS_UNROLL
        for (int i = 0; i < VL; ++i) store(out + (j + i) * pixel + c, rows[i]);
      } else {
        for (int i = 0; i < VL; ++i) rows[i] = c + i < C ? load_up_to(x + i * row.channel, count - j) : vfloat{};
        transpose(rows);
        for (int i = 0; i < VL && j + i < count; ++i) store_up_to(out + (j + i) * pixel + c, rows[i], C - c);
      }
    }
}

// `count` pixels of C channels, `pixel` floats apart.
template <typename scalar_t>
void pack_row(const Row<scalar_t>& row, int64_t count, int64_t C, float* out, int64_t pixel) {
  if (row.channel == 1) pack_pixels(row, count, C, out, pixel);
  else pack_planes(row, count, C, out, pixel);
}

// Row `row` of an image's channels from `channel` on, which may be beyond the image: reflected, or null.
template <typename scalar_t>
Row<scalar_t> input_row(const Conv& p, int64_t image, int64_t row, int64_t channel) {
  if (p.reflect) row = row < 0 ? -row : row >= p.H ? 2 * (p.H - 1) - row : row;
  const scalar_t* const x = static_cast<const scalar_t*>(p.input);
  if (row < 0 || row >= p.H) return {nullptr, 0, 0};
  if (p.input_channels_last) return {x + (image * p.H + row) * p.W * p.C + channel, p.C, 1};
  return {x + ((image * p.C + channel) * p.H + row) * p.W, 1, p.H * p.W};
}

// Input pixels [first, first + width) of a row of W, which they may exceed on either side: zeros, or the row reflected.
// A null row is one beyond the image.
template <typename scalar_t>
void pack_bordered_row(const Row<scalar_t>& row, int64_t W, int64_t first, int64_t width, bool reflect, int64_t C,
                       float* out, int64_t pixel) {
  auto zero = [&](int64_t begin, int64_t end) {
    if (end > begin) __builtin_memset(out + begin * pixel, 0, (end - begin) * pixel * sizeof(float));
  };
  if (!row.first) return zero(0, width);
  const int64_t left = first < 0 ? -first : 0, skipped = first < 0 ? 0 : first;
  const int64_t count = W - skipped < width - left ? W - skipped : width - left, end = left + count;
  zero(0, left);
  zero(end, width);
  pack_row<scalar_t>({row.first + skipped * row.pixel, row.pixel, row.channel}, count, C, out + left * pixel, pixel);
  if (!reflect) return;
  auto copy = [&](int64_t to, int64_t from) {
    __builtin_memcpy(out + to * pixel, out + from * pixel, C * sizeof(float));
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
