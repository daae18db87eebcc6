// One source, compiled once per instruction set; the copy to run is chosen at the first call.
//
// A kernel file (csrc/cpu/<op>.cpp) defines its functions in namespace ARTKERNELS_ISA, which the build sets to
// `baseline`, `avx2` or `avx512` together with that instruction set's compiler flags. ARTKERNELS_CPU_KERNEL declares
// the copies and a function of the same name in artkernels::cpu that calls the right one.
//
// Kernel files include no torch header and no standard template: an inline function that two instruction sets
// instantiate is merged by the linker, and the copy that it keeps may be one that an older CPU cannot run.
#pragma once

namespace artkernels::cpu {

enum class Isa { Baseline, Avx2, Avx512 };

// The best instruction set of this CPU, or the one that ARTKERNELS_CPU_ISA names (baseline, avx2, avx512).
Isa isa();
const char* name(Isa);

}  // namespace artkernels::cpu

#if defined(ARTKERNELS_X86)
#define ARTKERNELS_CPU_KERNEL(kernel, Params)                       \
  namespace artkernels::cpu {                                       \
  namespace baseline {                                              \
  void kernel(const Params&, int);                                  \
  }                                                                 \
  namespace avx2 {                                                  \
  void kernel(const Params&, int);                                  \
  }                                                                 \
  namespace avx512 {                                                \
  void kernel(const Params&, int);                                  \
  }                                                                 \
  inline void kernel(const Params& params, int threads) {           \
    switch (isa()) {                                                \
      case Isa::Avx512: return avx512::kernel(params, threads);     \
      case Isa::Avx2: return avx2::kernel(params, threads);         \
      case Isa::Baseline: return baseline::kernel(params, threads); \
    }                                                               \
  }                                                                 \
  }
#else
#define ARTKERNELS_CPU_KERNEL(kernel, Params)                                                  \
  namespace artkernels::cpu {                                                                  \
  namespace baseline {                                                                         \
  void kernel(const Params&, int);                                                             \
  }                                                                                            \
  inline void kernel(const Params& params, int threads) { baseline::kernel(params, threads); } \
  }
#endif
