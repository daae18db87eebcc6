// What a convolution multiplies: 32-bit words, one for each lane of a multiply-add, that hold one channel in float32 or
// two in bfloat16. Words lie in memory as floats, whatever their bits mean.
#pragma once

#include "cpu/vec.h"

#if defined(__AVX512BF16__)
#include <immintrin.h>
#endif

namespace artkernels::cpu {
namespace {

struct Float32 {
  using Value = float;  // of a channel
  static constexpr int channels = 1;

  static ARTKERNELS_INLINE vfloat broadcast(const float* word) { return cpu::broadcast(*word); }
  static ARTKERNELS_INLINE vfloat multiply_add(vfloat acc, vfloat x, vfloat b) { return acc + x * b; }
};

template <typename scalar_t>
struct OperandOf {
  using type = Float32;
};

#if defined(__AVX512BF16__)
// Neighbouring channels, the first in the lower half. Their products are exact in float32. The instruction takes
// subnormal operands for zeros and makes subnormal sums zeros: nothing above 1e-38 changes.
struct BFloat16Pair {
  using Value = BFloat16;
  static constexpr int channels = 2;

  static ARTKERNELS_INLINE vfloat broadcast(const float* word) {
    uint32_t bits;  // as a float it might be a signalling NaN
    __builtin_memcpy(&bits, word, sizeof(bits));
    return (vfloat)broadcast_bits(bits);
  }
  static ARTKERNELS_INLINE vfloat multiply_add(vfloat acc, vfloat x, vfloat b) {
    return (vfloat)_mm512_dpbf16_ps((__m512)acc, (__m512bh)x, (__m512bh)b);
  }
};

template <>
struct OperandOf<BFloat16> {
  using type = BFloat16Pair;
};
#endif

template <typename Operand>
constexpr int64_t words_of(int64_t channels) {
  return (channels + Operand::channels - 1) / Operand::channels;
}

// Words of up to Operand::channels channels: of load(0) and, of a pair, load(1), values of the operand's type widened
// to float32. Channels from `channels` on are zero and not loaded.
template <typename Operand, typename Load>
ARTKERNELS_INLINE vfloat load_words(int64_t channels, Load load) {
  if (channels <= 0) return vfloat{};
  if constexpr (Operand::channels == 1) return load(0);
  const vuint low = (vuint)load(0) >> 16;
  return (vfloat)(channels > 1 ? low | (vuint)load(1) : low);
}

}  // namespace
}  // namespace artkernels::cpu
