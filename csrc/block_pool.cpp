#include "block_pool.h"

#include <sys/mman.h>

#include <algorithm>
#include <bit>

namespace artkernels {
namespace {

constexpr size_t kLargest = size_t{1} << 56;  // more than an address space holds; no sum below overflows
constexpr size_t kPage = 4096;  // the smallest there is: blocks begin on it, most of malloc's memory does not

// Eight sizes between a power of two and the next: a block is at most an eighth larger than what was asked for.
size_t block_size(size_t bytes) {
  const size_t step = std::bit_floor(bytes) / 8;
  return (bytes + step - 1) / step * step;
}

}  // namespace

// Ordinary pages, on purpose. The rows of a matrix made of feature maps lie a power of two apart: in a huge page all of
// them fall into the same few sets of the L2 cache, where small pages scatter them. With MADV_HUGEPAGE torch.bmm of 64
// planes of 256 x 256 took 1.8 times as long and copies to channels_last twice as long; only first touches were faster.
BlockPool::Block::Block(size_t size) : size(size) {
  void* const mapped = mmap(nullptr, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (mapped != MAP_FAILED) data = mapped;
}

BlockPool::Block::~Block() {
  if (data != nullptr) munmap(data, size);
}

void* BlockPool::take(size_t bytes) {
  if (bytes > kLargest) return nullptr;
  const size_t size = block_size(bytes);
  Blocks fresh;
  {
    const std::lock_guard lock(mutex_);
    if (statistics_.max_bytes == 0) return nullptr;
    if (Blocks& same = kept_[size]; !same.empty()) {
      const auto block = same.begin();
      used_at_.emplace(block->data, block);
      used_.splice(used_.begin(), same, block);
      statistics_.bytes_kept -= size;
      statistics_.bytes_in_use += size;
      ++statistics_.hits;
      return block->data;
    }
  }
  // Mapping takes the system long, so the other threads are not kept waiting for it.
  fresh.emplace_front(size);
  if (fresh.front().data == nullptr && release() > 0) {
    fresh.clear();
    fresh.emplace_front(size);
  }
  void* const data = fresh.front().data;
  if (data == nullptr) return nullptr;
  const std::lock_guard lock(mutex_);
  used_at_.emplace(data, fresh.begin());
  used_.splice(used_.begin(), fresh);
  statistics_.bytes_in_use += size;
  statistics_.peak_bytes = std::max(statistics_.peak_bytes, statistics_.bytes_in_use + statistics_.bytes_kept);
  ++statistics_.misses;
  return data;
}

bool BlockPool::owns(const void* data) const {
  if (reinterpret_cast<uintptr_t>(data) % kPage != 0) return false;
  const std::lock_guard lock(mutex_);
  return used_at_.contains(data);
}

void BlockPool::give_back(void* data) noexcept {
  Blocks evicted;  // unmapped after the lock is gone, here and below
  const std::lock_guard lock(mutex_);
  const auto found = used_at_.find(data);
  const auto block = found->second;
  used_at_.erase(found);
  const size_t size = block->size;
  statistics_.bytes_in_use -= size;
  if (size > statistics_.max_bytes) {
    evicted.splice(evicted.begin(), used_, block);
    ++statistics_.released;
    return;
  }
  evict(statistics_.max_bytes - size, evicted);
  block->freed_at = ++clock_;
  Blocks& same = kept_.find(size)->second;  // there since the block was taken
  same.splice(same.begin(), used_, block);
  statistics_.bytes_kept += size;
}

void BlockPool::set_max_bytes(size_t max_bytes) noexcept {
  Blocks evicted;
  const std::lock_guard lock(mutex_);
  statistics_.max_bytes = max_bytes;
  evict(max_bytes, evicted);
}

size_t BlockPool::release() noexcept {
  Blocks evicted;
  const std::lock_guard lock(mutex_);
  const size_t bytes = statistics_.bytes_kept;
  evict(0, evicted);
  return bytes;
}

BlockPool::Statistics BlockPool::statistics() const {
  const std::lock_guard lock(mutex_);
  return statistics_;
}

// Moves the free blocks that were freed first to `evicted` until at most `limit` bytes are kept. The caller has the
// lock.
void BlockPool::evict(size_t limit, Blocks& evicted) noexcept {
  while (statistics_.bytes_kept > limit) {
    Blocks* oldest = nullptr;
    for (auto& [size, blocks] : kept_) {
      if (blocks.empty()) continue;
      if (oldest == nullptr || blocks.back().freed_at < oldest->back().freed_at) oldest = &blocks;
    }
    statistics_.bytes_kept -= oldest->back().size;
    ++statistics_.released;
    evicted.splice(evicted.begin(), *oldest, std::prev(oldest->end()));
  }
}

}  // namespace artkernels
