// A convolution along one dimension, as phases: stride-1 convolutions of the input, or, not transposed, one of stride
// s.
#pragma once

#include <cstdint>

#include "include/params.h"

namespace artkernels::cpu {
namespace {

inline int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }
inline int64_t larger(int64_t a, int64_t b) { return a > b ? a : b; }
inline int64_t divided_up(int64_t a, int64_t b) { return (a + b - 1) / b; }

// The output positions o = i * phases + residue, i < outputs. Tap number t of them is tap first_tap + t * tap_step of
// the kernel, and reads input i * step + shift + t * shift_step.
struct Residue {
  int64_t outputs;
  int64_t taps, first_tap, tap_step;
  int64_t shift, shift_step;

  int64_t tap(int64_t t) const { return first_tap + t * tap_step; }
  int64_t shift_of(int64_t t) const { return shift + t * shift_step; }
};

struct Axis {
  int64_t input, output;
  Window window;
  bool transposed;
  int64_t phases;     // transposed: the stride or, where the input is one wide and no stride can tell, every output
  int64_t step;       // input positions from one output of a phase to the next
  int64_t low, high;  // the least and the greatest shift of all residues, and 0

  Axis(int64_t input, int64_t output, const Window& window, bool transposed)
      : input(input),
        output(output),
        window(window),
        transposed(transposed),
        phases(!transposed  ? 1
               : input == 1 ? output
                            : window.stride),
        step(transposed ? 1 : window.stride),
        low(0),
        high(0) {
    for (int64_t a = 0; a < phases; ++a) {
      const Residue r = residue(a);
      for (int64_t t = 0; t < r.taps; t += larger(r.taps - 1, 1)) {
        low = smaller(low, r.shift_of(t));
        high = larger(high, r.shift_of(t));
      }
    }
  }

  // Positions i of the residue that has most.
  int64_t positions() const { return divided_up(output, phases); }

  // Input positions that `count` positions read, with what lies between.
  int64_t extent(int64_t count) const { return (count - 1) * step + 1 + high - low; }

  Residue residue(int64_t a) const {
    if (!transposed) return {output, window.kernel, 0, 1, -window.padding, window.dilation};
    Residue r = {};
    r.outputs = output > a ? divided_up(output - a, phases) : 0;
    const int64_t common = gcd(phases, window.dilation);
    r.tap_step = phases / common;
    r.shift_step = -window.dilation / common;
    while (r.first_tap < r.tap_step && (a + window.padding - r.first_tap * window.dilation) % phases != 0)
      ++r.first_tap;
    if (r.first_tap == r.tap_step || r.first_tap >= window.kernel) return r;
    r.taps = divided_up(window.kernel - r.first_tap, r.tap_step);
    r.shift = (a + window.padding - r.first_tap * window.dilation) / phases;
    // Without those that read nothing but zeros.
    for (; r.taps > 0 && r.shift >= input; --r.taps) {
      r.first_tap += r.tap_step;
      r.shift += r.shift_step;
    }
    while (r.taps > 0 && r.shift_of(r.taps - 1) + r.outputs <= 0) --r.taps;
    return r;
  }

 private:
  static int64_t gcd(int64_t a, int64_t b) {
    while (b) {
      const int64_t rest = a % b;
      a = b;
      b = rest;
    }
    return a;
  }
};

}  // namespace
}  // namespace artkernels::cpu
