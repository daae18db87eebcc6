// C entry points to the launchers of csrc/cuda, for ctypes. An exception becomes its text.
#include <cstdint>
#include <exception>
#include <string>

#include "gram.h"

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

extern "C" {

int64_t test_sizeof_gram_params() { return sizeof(GramParams); }
int64_t test_sizeof_gram_backward_params() { return sizeof(GramBackwardParams); }

const char* test_gram_workspace_size(const GramParams* p, int64_t* floats) {
  return message_of([&] { *floats = cuda::gram_workspace_size(*p); });
}
const char* test_launch_gram(const GramParams* p, CUstream_st* stream) {
  return message_of([&] { cuda::launch_gram(*p, stream); });
}
const char* test_gram_backward_workspace_size(const GramBackwardParams* p, int64_t* floats) {
  return message_of([&] { *floats = cuda::gram_backward_workspace_size(*p); });
}
const char* test_launch_gram_backward(const GramBackwardParams* p, CUstream_st* stream) {
  return message_of([&] { cuda::launch_gram_backward(*p, stream); });
}

}  // extern "C"
