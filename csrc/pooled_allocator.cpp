#include "pooled_allocator.h"

#include <c10/core/CPUAllocator.h>
#include <c10/util/Type.h>
#include <pthread.h>

#include <stdexcept>
#include <typeinfo>

namespace artkernels {
namespace {

// Never destroyed: tensors that live as long as the process come back after the destructors of static objects have run.
BlockPool& pool = *new BlockPool;

// Frees whatever PooledAllocator allocated, because Allocator::raw_deallocate gives no more than the pointer.
void deallocate(void* data) {
  if (!pool.owns(data)) return c10::GetDefaultCPUAllocator()->raw_deallocate(data);
  c10::profiledCPUMemoryReporter().Delete(data);  // before another thread can be given the block, and report it
  pool.give_back(data);
}

class PooledAllocator final : public c10::Allocator {
 public:
  c10::DataPtr allocate(size_t bytes) override {
    void* data = bytes < BlockPool::kSmallest ? nullptr : pool.take(bytes);
    if (data != nullptr) {
      c10::profiledCPUMemoryReporter().New(data, bytes);
    } else {
      // When memory has run out this one throws, in the words that programs look for in such an error.
      data = c10::GetDefaultCPUAllocator()->raw_allocate(bytes);
    }
    return {data, data, &deallocate, c10::DeviceType::CPU};
  }

  c10::DeleterFnPtr raw_deleter() const override { return &deallocate; }

  void copy_data(void* to, const void* from, size_t bytes) const override { default_copy_data(to, from, bytes); }
};

PooledAllocator& allocator = *new PooledAllocator;  // never destroyed: storages point to it

void install() {
  // The priority of PyTorch's own functions that change the allocator: an equal one replaces and can be replaced.
  c10::SetCPUAllocator(&allocator, 100);
  if (c10::GetCPUAllocator() != &allocator) {
    throw std::runtime_error(
        "use_pooled_allocator: the CPU allocator was set with a priority above 100, which must not be replaced");
  }
  // Once in a process: handlers cannot be taken back.
  [[maybe_unused]] static const int registered = pthread_atfork(
      [] { pool.before_fork(); }, [] { pool.after_fork_in_parent(); }, [] { pool.after_fork_in_child(); });
}

}  // namespace

void use_pooled_allocator(size_t max_bytes) {
  if (const c10::Allocator* current = c10::GetCPUAllocator(); current == c10::GetDefaultCPUAllocator()) {
    install();
  } else if (current != &allocator) {
    throw std::runtime_error("use_pooled_allocator: the CPU allocator must be PyTorch's default one, and it is " +
                             c10::demangle(typeid(*current).name()) + " already");
  }
  pool.set_max_bytes(max_bytes);
}

bool pooled_allocator_is_on() { return c10::GetCPUAllocator() == &allocator && pool.statistics().max_bytes > 0; }

size_t release_pooled_memory() { return pool.release(); }

BlockPool::Statistics pooled_allocator_statistics() { return pool.statistics(); }

}  // namespace artkernels
