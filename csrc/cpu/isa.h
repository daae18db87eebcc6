// One source, compiled once per instruction set; the copy to run is chosen at the first call.
//
// A kernel file (csrc/cpu/<op>.cpp) defines its functions in namespace ARTKERNELS_ISA, which the build sets to
// `baseline`, `avx2` or `avx512` together with that instruction set's compiler flags. ARTKERNELS_CPU_KERNEL declares
// the copies and a function of the same name in artkernels::cpu that calls the right one. `avx512bf16` adds the dot
// product of bfloat16 pairs to avx512: a fourth copy of the kernels that use it (conv.cpp; setup.py names it), declared
// with ARTKERNELS_CPU_KERNEL_BF16; the others run their avx512 copy there.
//
// Kernel files include no torch header and no standard template: an inline function that two instruction sets
// instantiate is merged by the linker, and the copy that it keeps may be one that an older CPU cannot run.
#pragma once

namespace artkernels::cpu {

enum class Isa { Baseline, Avx2, Avx512, Avx512Bf16 };

// The fastest instruction set of this CPU, or the one that ARTKERNELS_CPU_ISA names.
Isa isa();
const char* name(Isa);

}  // namespace artkernels::cpu

#if defined(ARTKERNELS_X86)
#define ARTKERNELS_CPU_COPIES(kernel, Params, widest)               \
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
  namespace widest {                                                \
  void kernel(const Params&, int);                                  \
  }                                                                 \
  inline void kernel(const Params& params, int threads) {           \
    switch (isa()) {                                                \
      case Isa::Avx512Bf16: return widest::kernel(params, threads); \
      case Isa::Avx512: return avx512::kernel(params, threads);     \
      case Isa::Avx2: return avx2::kernel(params, threads);         \
      case Isa::Baseline: return baseline::kernel(params, threads); \
    }                                                               \
  }                                                                 \
  }
#define ARTKERNELS_CPU_KERNEL(kernel, Params) ARTKERNELS_CPU_COPIES(kernel, Params, avx512)
#define ARTKERNELS_CPU_KERNEL_BF16(kernel, Params) ARTKERNELS_CPU_COPIES(kernel, Params, avx512bf16)
#else
#define ARTKERNELS_CPU_KERNEL(kernel, Params)                                                  \
  namespace artkernels::cpu {                                                                  \
  namespace baseline {                                                                         \
  void kernel(const Params&, int);                                                             \
  }                                                                                            \
  inline void kernel(const Params& params, int threads) { baseline::kernel(params, threads); } \
  }
#define ARTKERNELS_CPU_KERNEL_BF16(kernel, Params) ARTKERNELS_CPU_KERNEL(kernel, Params)
#endif
