#include "cpu/isa.h"

#include <cstdlib>
#include <stdexcept>
#include <string>

namespace artkernels::cpu {
namespace {

bool supported(Isa candidate) {
#if defined(ARTKERNELS_X86)
  __builtin_cpu_init();
  if (candidate == Isa::Avx512Bf16) return supported(Isa::Avx512) && __builtin_cpu_supports("avx512bf16");
  if (candidate == Isa::Avx512) return __builtin_cpu_supports("x86-64-v4");
  if (candidate == Isa::Avx2) return __builtin_cpu_supports("x86-64-v3");
#endif
  return candidate == Isa::Baseline;
}

// The dot product of bfloat16 pairs has the rate of FMA, with twice the terms, on AMD's CPUs (Zen 4 and 5). Intel's
// with AMX were measured at a quarter of that rate (Sapphire Rapids: one in two cycles), where FMA is faster.
bool worthwhile(Isa candidate) {
#if defined(ARTKERNELS_X86)
  if (candidate == Isa::Avx512Bf16) return __builtin_cpu_is("amd");
#endif
  return true;
}

Isa choose() {
  const char* const wanted = std::getenv("ARTKERNELS_CPU_ISA");
  for (Isa candidate : {Isa::Avx512Bf16, Isa::Avx512, Isa::Avx2, Isa::Baseline}) {
    if (wanted == nullptr) {
      if (supported(candidate) && worthwhile(candidate)) return candidate;
    } else if (std::string(wanted) == name(candidate)) {
      if (supported(candidate)) return candidate;
      throw std::runtime_error(std::string("ARTKERNELS_CPU_ISA is ") + wanted + ", which this CPU does not have");
    }
  }
  throw std::runtime_error(std::string("ARTKERNELS_CPU_ISA must be baseline, avx2, avx512 or avx512bf16, got ") +
                           wanted);
}

}  // namespace

Isa isa() {
  static const Isa chosen = choose();
  return chosen;
}

const char* name(Isa isa) {
  switch (isa) {
    case Isa::Avx512Bf16: return "avx512bf16";
    case Isa::Avx512: return "avx512";
    case Isa::Avx2: return "avx2";
    case Isa::Baseline: return "baseline";
  }
  return "unknown";
}

}  // namespace artkernels::cpu
