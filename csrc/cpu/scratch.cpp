#include "cpu/scratch.h"

#include <cstdlib>
#include <new>

namespace artkernels::cpu {
namespace {

constexpr size_t kAlignment = 64;

struct Scratch {
  void* data = nullptr;
  size_t bytes = 0;

  void reserve(size_t wanted) {
    if (wanted <= bytes) return;
    std::free(data);
    bytes = 0;
    data = std::aligned_alloc(kAlignment, (wanted + kAlignment - 1) / kAlignment * kAlignment);
    if (data == nullptr) throw std::bad_alloc();
    bytes = wanted;
  }

  ~Scratch() { std::free(data); }
};

}  // namespace

void* thread_scratch(size_t bytes) {
  thread_local Scratch scratch;
  scratch.reserve(bytes);
  return scratch.data;
}

}  // namespace artkernels::cpu
