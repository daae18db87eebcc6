// The register tile of convolutions, and what is done to it before it is stored.
#pragma once

#include "cpu/activation.h"
#include "cpu/conv_operand.h"
#include "cpu/tile.h"

namespace artkernels::cpu {
namespace {

// A tile is TILE_PAIRS pairs of neighbouring pixels by PANEL output channels: pairs, because the addresses of more
// pointers do not fit the registers of x86, and because wider runs waste more at the end of a row.
constexpr int TILE_PAIRS = TILE_ROWS / 2;

// One tap of a kernel: by how many words its input lies from that of the output pixel, and where its weights begin.
struct Tap {
  int64_t input, weight;
};

// Words of a running sum before it is added to the others. The error of a sum grows with the square root of its length:
// short runs are exact, and cost the adding, some 60 cycles for every tile. The error of long ones vanishes in an
// output of bfloat16.
template <typename Operand>
constexpr int64_t words_per_run(int64_t words) {
  if (Operand::channels > 1) return 512;
  return words <= 64 ? 16 : words <= 128 ? 32 : words <= 1024 ? 64 : 128;
}

// acc[pixel][k] += sum over words c in [begin, end) of input[pixel][c] * weight[c][k], for `pairs` pairs of pixels.
template <typename Operand, int pairs, int vectors>
ARTKERNELS_INLINE void multiply_run(vfloat (&acc)[2 * pairs][vectors], const float* const (&input)[pairs],
                                    int64_t pixel, int64_t begin, int64_t end, const float* weight) {
  for (int64_t c = begin, next = begin + pixel; c < end; ++c, ++next) {
    vfloat b[vectors];
    ARTKERNELS_UNROLL
    for (int v = 0; v < vectors; ++v) b[v] = load(weight + c * PANEL + v * VL);
    ARTKERNELS_UNROLL
    for (int i = 0; i < pairs; ++i) {
      const vfloat x = Operand::broadcast(input[i] + c), y = Operand::broadcast(input[i] + next);
      ARTKERNELS_UNROLL
      for (int v = 0; v < vectors; ++v) {
        acc[2 * i][v] = Operand::multiply_add(acc[2 * i][v], x, b[v]);
        acc[2 * i + 1][v] = Operand::multiply_add(acc[2 * i + 1][v], y, b[v]);
      }
    }
  }
}

// sums[pixel][k] = sum over taps and c < C of input[pixel + tap][c] * weight[tap][c][k], for `pairs` pairs of pixels.
// Either pixel of a pair has C words one after the other, `pixel` words apart. Bound: 2 pairs vectors multiply-adds for
// 2 pairs broadcasts and `vectors` loads.
template <typename Operand, int pairs, int vectors>
__attribute__((noinline)) void multiply(const float* const* input, int64_t pixel, const Tap* taps, int64_t count,
                                        int64_t C, const float* weight, float* sums) {
  if (count == 0) __builtin_memset(sums, 0, 2 * pairs * PANEL * sizeof(float));
  const int64_t run = words_per_run<Operand>(count * C), taps_per_run = C < run ? run / C : 1;
  for (int64_t first = 0; first < count; first += taps_per_run) {
    const int64_t last = first + taps_per_run < count ? first + taps_per_run : count;
    for (int64_t c = 0; c < C; c += run) {
      vfloat acc[2 * pairs][vectors];
      ARTKERNELS_UNROLL
      for (int i = 0; i < 2 * pairs; ++i) ARTKERNELS_UNROLL
      for (int v = 0; v < vectors; ++v) acc[i][v] = vfloat{};
      for (int64_t t = first; t < last; ++t) {
        const float* a[pairs];
        ARTKERNELS_UNROLL
        for (int i = 0; i < pairs; ++i) a[i] = input[i] + taps[t].input;
        multiply_run<Operand>(acc, a, pixel, c, c + run < C ? c + run : C, weight + taps[t].weight);
      }
      ARTKERNELS_UNROLL
      for (int i = 0; i < 2 * pairs; ++i) ARTKERNELS_UNROLL
      for (int v = 0; v < vectors; ++v) {
        float* const total = sums + i * PANEL + v * VL;
        store(total, first == 0 && c == 0 ? acc[i][v] : load(total) + acc[i][v]);
      }
    }
  }
}

using Multiply = void (*)(const float* const*, int64_t, const Tap*, int64_t, int64_t, const float*, float*);

template <typename Operand, int vectors, int pairs = TILE_PAIRS>
ARTKERNELS_INLINE Multiply multiply_for(int64_t wanted) {
  if constexpr (pairs > 1)
    if (wanted < pairs) return multiply_for<Operand, vectors, pairs - 1>(wanted);
  return multiply<Operand, pairs, vectors>;
}

// Sums of z over pixels for the channels of a panel, in double from tile to tile.
struct PanelMoments {
  double sum[PANEL], squares[PANEL];  // squares: of z - a tile's mean, and the mean's own, pixels * mean^2
};

// Where a tile goes: pixels `step` elements apart in a pair, and what follows the sums.
template <typename scalar_t>
struct TileOutput {
  scalar_t* pairs[TILE_PAIRS];
  int64_t valid[TILE_PAIRS];  // pixels of the pair that exist: 1 or 2
  int64_t step;
  int64_t channels;           // of the panel that exist
  const float *scale, *bias;  // [PANEL]
  float negative_slope;
  PanelMoments* moments;  // or null

  // The lines that will be written, fetched while the tile is computed: a burst of stores that miss would stall.
  void prefetch(int count) const {
    constexpr int64_t line = 64 / sizeof(scalar_t);
    for (int i = 0; i < count; ++i)
      for (int64_t r = 0; r < valid[i]; ++r)
        for (int64_t k = 0; k < channels; k += line) __builtin_prefetch(pairs[i] + r * step + k, 1);
  }
};

template <Activation activation, typename scalar_t>
void finish(float* sums, int pairs, const TileOutput<scalar_t>& out) {
  for (int v = 0; v < 2; ++v) {
    const int64_t channels = out.channels - v * VL;
    if (channels <= 0) return;
    const vfloat scale = load(out.scale + v * VL), bias = load(out.bias + v * VL);
    for (int i = 0; i < pairs; ++i)
      for (int64_t r = 0; r < out.valid[i]; ++r) {
        const vfloat z = load(sums + (2 * i + r) * PANEL + v * VL) * scale + bias;
        store_up_to(out.pairs[i] + r * out.step + v * VL, activate<activation>(z, out.negative_slope), channels);
      }
  }
}

// Adds a tile's z to the moments: squares about the tile's own mean, so that nothing cancels in float32.
template <typename scalar_t>
void gather(const float* sums, int pairs, const TileOutput<scalar_t>& out) {
  for (int v = 0; v < 2; ++v) {
    const vfloat scale = load(out.scale + v * VL), bias = load(out.bias + v * VL);
    auto each = [&](auto f) {
      for (int i = 0; i < pairs; ++i)
        for (int64_t r = 0; r < out.valid[i]; ++r) f(load(sums + (2 * i + r) * PANEL + v * VL) * scale + bias);
    };
    vfloat sum = {}, squares = {};
    int64_t pixels = 0;
    each([&](vfloat z) ARTKERNELS_LAMBDA {
      sum += z;
      ++pixels;
    });
    const vfloat mean = sum / float(pixels);
    each([&](vfloat z) ARTKERNELS_LAMBDA { squares += (z - mean) * (z - mean); });
    for (int k = 0; k < VL; ++k) {
      out.moments->sum[v * VL + k] += double(sum[k]);
      out.moments->squares[v * VL + k] += double(squares[k]) + double(sum[k]) * double(sum[k]) / double(pixels);
    }
  }
}

}  // namespace
}  // namespace artkernels::cpu
