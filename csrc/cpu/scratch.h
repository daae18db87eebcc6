#pragma once

#include <cstddef>

namespace artkernels::cpu {

// At least `bytes` of memory of the calling thread, 64-byte aligned, contents undefined; valid until the thread's next
// call. It is kept from call to call, because memory that glibc maps afresh costs a page fault every 4 KiB: more than a
// kernel's own work on it. A kernel asks, before its parallel region, for what its threads keep in their L2 caches, not
// for tensors. Throws std::bad_alloc.
void* thread_scratch(size_t bytes);

}  // namespace artkernels::cpu
