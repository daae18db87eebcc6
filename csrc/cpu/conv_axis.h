// A convolution along one dimension, as phases: stride-1 convolutions of the input, or, not transposed, one of stride
// s.
#pragma once

#include <cstdint>

#include "include/conv_phase.h"
#include "include/params.h"

namespace artkernels::cpu {
namespace {

inline int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }
inline int64_t larger(int64_t a, int64_t b) { return a > b ? a : b; }

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

  // Output i of it reads from input i * step.
  Residue residue(int64_t a) const {
    if (!transposed) return {output, window.kernel, 0, 1, -window.padding, -window.dilation};
    return residue_of(a, phases, input, output, window);
  }
};

}  // namespace
}  // namespace artkernels::cpu
