// The phases of a transposed convolution along one axis, for the kernels of both sides; host code.
//
// Output o takes the inputs i = (o + padding - tap dilation) / stride that are whole, so outputs with the same
// o % stride, a phase, take the same taps: a stride-1 convolution of the input, in which no zero is multiplied
// (Shi et al. 2016).
//
// In an unnamed namespace, so that each instruction set of csrc/cpu has a copy of its own (cpu/isa.h).
#pragma once

#include <cstdint>

#include "params.h"

namespace artkernels {
namespace {

inline int64_t divided_up(int64_t a, int64_t b) { return (a + b - 1) / b; }

inline int64_t greatest_common_divisor(int64_t a, int64_t b) { return b ? greatest_common_divisor(b, a % b) : a; }

// The outputs o = residue + i * phases, i < outputs. Tap number t < taps of them is tap first_tap + t * tap_step of the
// kernel, and reads input i + shift - t * shift_step.
struct Residue {
  int64_t outputs;
  int64_t taps, first_tap, tap_step;
  int64_t shift, shift_step;

  int64_t tap(int64_t t) const { return first_tap + t * tap_step; }
  int64_t shift_of(int64_t t) const { return shift - t * shift_step; }
};

// Without the taps that read nothing but zeros. `phases` is the window's stride or, where the input is one wide and no
// stride can tell, any other number: the output's size, say, which gives each output a phase of its own.
inline Residue residue_of(int64_t residue, int64_t phases, int64_t input, int64_t output, const Window& window) {
  const int64_t common = greatest_common_divisor(phases, window.dilation);
  Residue r = {};
  r.outputs = output > residue ? divided_up(output - residue, phases) : 0;
  r.tap_step = phases / common;
  r.shift_step = window.dilation / common;
  const auto distance = [&] { return residue + window.padding - r.first_tap * window.dilation; };
  while (r.first_tap < r.tap_step && distance() % phases != 0) ++r.first_tap;
  if (r.first_tap == r.tap_step || r.first_tap >= window.kernel) return r;
  r.taps = divided_up(window.kernel - r.first_tap, r.tap_step);
  r.shift = distance() / phases;
  for (; r.taps > 0 && r.shift >= input; --r.taps) {  // reads beyond the end
    r.first_tap += r.tap_step;
    r.shift -= r.shift_step;
  }
  while (r.taps > 0 && r.shift_of(r.taps - 1) + r.outputs <= 0) --r.taps;  // reads before the start
  return r;
}

}  // namespace
}  // namespace artkernels
