// Large blocks of memory that are kept when they are given back and handed out again. Memory that the system maps
// afresh costs a page fault for each of its pages, which for the feature maps of a network is more than the work on
// them.
#pragma once

#include <cstddef>
#include <cstdint>
#include <list>
#include <map>
#include <mutex>
#include <unordered_map>

namespace artkernels {

// Thread-safe. It includes no torch header, so that it can run alone under a sanitizer.
class BlockPool {
 public:
  static constexpr size_t kSmallest = size_t{1} << 20;  // smaller memory malloc recycles by itself

  struct Statistics {
    size_t max_bytes = 0;     // the most that is kept free; 0: the pool is off
    size_t bytes_in_use = 0;  // of the blocks taken and not yet given back
    size_t bytes_kept = 0;    // of the free blocks
    size_t peak_bytes = 0;    // the most that both have been together
    uint64_t hits = 0;        // blocks taken that had been kept
    uint64_t misses = 0;      // blocks taken that the system had to map
    uint64_t released = 0;    // blocks that went back to the system
  };

  // A block of at least `bytes`, kSmallest or more, page-aligned, contents undefined; nullptr when the pool is off, or
  // when there is no memory even after the blocks kept free went back to the system.
  void* take(size_t bytes);

  // Whether this is a block taken and not yet given back.
  bool owns(const void* data) const;

  // Keeps a block that the pool owns. Room is made by releasing the blocks that have been free the longest, because
  // what was given back last belongs to what is running now; a block larger than max_bytes is released itself.
  void give_back(void* data) noexcept;

  // Releases what is kept beyond it.
  void set_max_bytes(size_t max_bytes) noexcept;

  // Gives all free blocks back to the system; returns their bytes.
  size_t release() noexcept;

  Statistics statistics() const;

  // For pthread_atfork. The child would find the mutex locked for ever by a thread that it does not have. It starts
  // with nothing kept: the pages are the parent's, and either one's first write to them would copy them.
  void before_fork() { mutex_.lock(); }
  void after_fork_in_parent() { mutex_.unlock(); }
  void after_fork_in_child() {
    mutex_.unlock();
    release();
  }

 private:
  // Maps `size` bytes and unmaps them; data is nullptr when that failed.
  struct Block {
    explicit Block(size_t size);
    ~Block();
    Block(const Block&) = delete;
    Block& operator=(const Block&) = delete;

    const size_t size;
    void* data = nullptr;
    uint64_t freed_at = 0;  // on clock_
  };
  // Blocks go from list to list by splicing, which cannot fail: giving one back needs no memory.
  using Blocks = std::list<Block>;

  void evict(size_t limit, Blocks& evicted) noexcept;

  mutable std::mutex mutex_;  // guards all that follows
  Statistics statistics_;
  uint64_t clock_ = 0;
  Blocks used_;
  std::unordered_map<const void*, Blocks::iterator> used_at_;
  std::map<size_t, Blocks> kept_;  // by size, the one freed last in front
};

}  // namespace artkernels
