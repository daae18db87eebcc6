#pragma once

#include "block_pool.h"

namespace artkernels {

// Makes PyTorch take the memory of large CPU tensors from a BlockPool that keeps at most max_bytes free, from now on
// and in every thread; 0 hands all requests to PyTorch's own allocator again. Throws std::runtime_error when the
// process has another allocator than these two.
void use_pooled_allocator(size_t max_bytes);

bool pooled_allocator_is_on();

// Gives the free blocks back to the system; returns their bytes.
size_t release_pooled_memory();

BlockPool::Statistics pooled_allocator_statistics();

}  // namespace artkernels
