// C entry points to the launchers of an op family of csrc/cuda, for ctypes. An exception becomes its text. One of
// FAMILY_gram, FAMILY_norm_act, FAMILY_conv_transpose, FAMILY_reparameterize_kl is defined.
#include <cstdint>
#include <exception>
#include <string>

#include "conv_transpose.h"
#include "gram.h"
#include "norm_act.h"
#include "reparameterize_kl.h"

using namespace artkernels;

namespace {

template <typename F>
const char* message_of(F&& f) {
  thread_local std::string text;
  try {
    f();
    return nullptr;
  } catch (const std::exception& e) {
    text = e.what();
    return text.c_str();
  }
}

}  // namespace

#define LAUNCHER(op, Params)                                                      \
  extern "C" int64_t test_sizeof_##op##_params() { return sizeof(Params); }       \
  extern "C" const char* test_launch_##op(const Params* p, CUstream_st* stream) { \
    return message_of([&] { cuda::launch_##op(*p, stream); });                    \
  }
#define ENTRY_POINTS(op, Params)                                                      \
  LAUNCHER(op, Params)                                                                \
  extern "C" const char* test_##op##_workspace_size(const Params* p, int64_t* size) { \
    return message_of([&] { *size = cuda::op##_workspace_size(*p); });                \
  }

#if defined(FAMILY_gram)
ENTRY_POINTS(gram, GramParams)
ENTRY_POINTS(gram_backward, GramBackwardParams)
#elif defined(FAMILY_norm_act)
ENTRY_POINTS(norm_act, NormActParams)
ENTRY_POINTS(norm_act_backward, NormActBackwardParams)
#elif defined(FAMILY_conv_transpose)
ENTRY_POINTS(conv_transpose, ConvTransposeParams)
extern "C" bool test_conv_transpose_supported(const ConvTransposeParams* p) {
  return cuda::conv_transpose_supported(*p);
}
#elif defined(FAMILY_reparameterize_kl)
ENTRY_POINTS(reparameterize_kl, ReparameterizeKlParams)
LAUNCHER(reparameterize_kl_backward, ReparameterizeKlBackwardParams)
#endif
