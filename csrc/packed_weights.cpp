#include "packed_weights.h"

#include <ATen/core/grad_mode.h>
#include <c10/util/SmallVector.h>
#include <pthread.h>

#include <algorithm>
#include <cstring>
#include <iterator>
#include <mutex>
#include <unordered_map>

namespace artkernels {
namespace {

// ---- a hash of the weight's bytes -----------------------------------------------------------------------------------

constexpr size_t kLine = 64;
constexpr size_t kReadWhole = size_t{256} << 10;
constexpr size_t kSamples = 1024;  // lines
constexpr uint64_t kGolden = 0x9E3779B97F4A7C15;

uint64_t mix(uint64_t state, uint64_t word) {
  state = (state ^ word) * kGolden;
  return state ^ state >> 32;
}

using Words = uint64_t __attribute__((vector_size(16)));  // the widest that every CPU has

// Independent of each other, so that their latencies overlap.
struct Lanes {
  Words words[kLine / sizeof(Words)] = {{1, 2}, {3, 4}, {5, 6}, {7, 8}};
};

// Each step maps either of lane and word one to one, so that the change of a single word is never lost. It multiplies
// by shifting: without AVX-512 no CPU multiplies vectors of 64-bit numbers.
inline void absorb(Lanes& lanes, const char* line) {
#pragma GCC unroll 4
  for (size_t i = 0; i < std::size(lanes.words); ++i) {
    Words word, &lane = lanes.words[i];
    std::memcpy(&word, line + i * sizeof(Words), sizeof(Words));
    lane += word;
    lane += lane << 21;
    lane ^= lane >> 35;
  }
}

Lanes absorb_all(const char* data, size_t bytes) {
  Lanes lanes;
  const size_t whole = bytes / kLine * kLine;
  for (size_t at = 0; at < whole; at += kLine) absorb(lanes, data + at);
  char rest[kLine] = {};
  if (bytes > whole) std::memcpy(rest, data + whole, bytes - whole);
  absorb(lanes, rest);
  return lanes;
}

// One line of each of kSamples equal parts, at places that the golden ratio keeps out of step with rows and channels.
Lanes absorb_samples(const char* data, size_t bytes) {
  const auto sample = [data, lines = bytes / kLine](size_t part) {
    const size_t begin = part * lines / kSamples, end = (part + 1) * lines / kSamples;
    const uint64_t fraction = part * kGolden >> 32;  // of 2^32
    return data + (begin + ((end - begin) * fraction >> 32)) * kLine;
  };
  Lanes lanes;
  for (size_t part = 0; part < kSamples; ++part) {
    __builtin_prefetch(sample((part + 16) % kSamples));  // each is a cache line, and often a page, of its own
    absorb(lanes, sample(part));
  }
  return lanes;
}

uint64_t hash_bytes(const void* data, size_t bytes) {
  const auto* chars = static_cast<const char*>(data);
  const Lanes lanes = bytes <= kReadWhole ? absorb_all(chars, bytes) : absorb_samples(chars, bytes);
  uint64_t hash = bytes;
  for (const Words words : lanes.words) hash = mix(mix(hash, words[0]), words[1]);
  return hash;
}

// ---- which weight it is, and whether it is as it was ----------------------------------------------------------------

using Identity = c10::SmallVector<int64_t, 32>;

Identity identity_of(const at::Tensor& weight, at::IntArrayRef key) {
  const auto* storage = weight.storage().unsafeGetStorageImpl();
  Identity identity = {reinterpret_cast<int64_t>(storage), weight.storage_offset(),
                       static_cast<int64_t>(weight.scalar_type()), weight.dim()};
  for (const at::IntArrayRef values : {weight.sizes(), weight.strides(), key}) {
    identity.append(values.begin(), values.end());
  }
  return identity;
}

struct HashIdentity {
  size_t operator()(const Identity& identity) const {
    uint64_t hash = 0;
    for (const int64_t value : identity) hash = mix(hash, value);
    return hash;
  }
};

struct State {
  uint32_t version;
  const void* data;
  uint64_t hash;

  bool operator==(const State&) const = default;
};

State state_of(const at::Tensor& weight) {
  const void* const data = weight.const_data_ptr();
  return {weight.unsafeGetTensorImpl()->version_counter().current_version(), data, hash_bytes(data, weight.nbytes())};
}

thread_local int packing_afresh = 0;

// ---- the packings ---------------------------------------------------------------------------------------------------

class PackedWeights {
 public:
  // Undefined if there is none of the weight in this state.
  at::Tensor find(const Identity& identity, const State& state) {
    Entries dropped;
    const std::lock_guard lock(mutex_);
    if (++clock_ % 256 == 0) drop_expired(dropped);
    const auto found = entries_.find(identity);
    if (found == entries_.end() || found->second.state != state) {
      ++misses_;
      return {};
    }
    ++hits_;
    found->second.used_at = clock_;
    return found->second.packed;
  }

  void keep(const Identity& identity, const State& state, const at::Tensor& weight, const at::Tensor& packed) {
    Entries dropped;
    const std::lock_guard lock(mutex_);
    drop_expired(dropped);
    if (const auto old = entries_.find(identity); old != entries_.end()) drop(old, dropped);
    if (packed.nbytes() > max_bytes_) return;
    shrink(max_bytes_ - packed.nbytes(), dropped);
    entries_.emplace(identity, Entry{weight.storage().getWeakStorageImpl(), state, packed, clock_});
    bytes_ += packed.nbytes();
  }

  void limit(size_t max_bytes) {
    Entries dropped;
    const std::lock_guard lock(mutex_);
    max_bytes_ = max_bytes;
    shrink(max_bytes, dropped);
  }

  void clear() {
    Entries dropped;
    const std::lock_guard lock(mutex_);
    dropped.swap(entries_);
    bytes_ = 0;
  }

  PackedWeightStatistics statistics() {
    Entries dropped;
    const std::lock_guard lock(mutex_);
    drop_expired(dropped);
    return {max_bytes_, bytes_, entries_.size(), hits_, misses_};
  }

  // For pthread_atfork: the child would find the mutex locked for ever by a thread that it does not have.
  void before_fork() { mutex_.lock(); }
  void after_fork() { mutex_.unlock(); }

 private:
  struct Entry {
    c10::weak_intrusive_ptr<c10::StorageImpl> storage;  // expires with the weight; until then no other has its address
    State state;
    at::Tensor packed;
    uint64_t used_at;  // on clock_
  };
  // Entries leave by way of another map that is destroyed after the lock is gone: freeing a tensor takes other locks.
  using Entries = std::unordered_map<Identity, Entry, HashIdentity>;

  void drop(Entries::iterator entry, Entries& dropped) {
    bytes_ -= entry->second.packed.nbytes();
    dropped.insert(entries_.extract(entry));
  }

  void drop_expired(Entries& dropped) {
    for (auto entry = entries_.begin(); entry != entries_.end();) {
      const auto next = std::next(entry);
      if (entry->second.storage.expired()) drop(entry, dropped);
      entry = next;
    }
  }

  void shrink(size_t limit, Entries& dropped) {
    const auto used_at = [](const auto& entry) { return entry.second.used_at; };
    while (bytes_ > limit) drop(std::ranges::min_element(entries_, {}, used_at), dropped);
  }

  std::mutex mutex_;  // guards all that follows
  size_t max_bytes_ = PackedWeightStatistics{}.max_bytes;
  size_t bytes_ = 0;
  uint64_t hits_ = 0, misses_ = 0, clock_ = 0;
  Entries entries_;
};

// Never destroyed: other threads may still be at work when the destructors of static objects run.
PackedWeights& packings = *new PackedWeights;

[[maybe_unused]] const int registered =
    pthread_atfork([] { packings.before_fork(); }, [] { packings.after_fork(); }, [] { packings.after_fork(); });

}  // namespace

PackAfresh::PackAfresh() { ++packing_afresh; }

PackAfresh::~PackAfresh() { --packing_afresh; }

bool may_keep_packed(const at::Tensor& weight) {
  return packing_afresh == 0 && !at::GradMode::is_enabled() && weight.is_cpu() &&
         weight.unsafeGetTensorImpl()->version_counter().enabled() && weight.is_non_overlapping_and_dense();
}

at::Tensor packed_weight(const at::Tensor& weight, at::IntArrayRef key, const std::function<at::Tensor()>& pack) {
  if (!may_keep_packed(weight)) return pack();
  const Identity identity = identity_of(weight, key);
  const State state = state_of(weight);  // before packing: a write meanwhile makes the packing one of an older state
  at::Tensor packed = packings.find(identity, state);
  if (packed.defined()) return packed;
  packed = pack();
  if (!packed.is_alias_of(weight)) packings.keep(identity, state, weight, packed);  // else it would outlive its owners
  return packed;
}

PackedWeightStatistics packed_weight_statistics() { return packings.statistics(); }

void limit_packed_weights(size_t max_bytes) { packings.limit(max_bytes); }

void clear_packed_weights() { packings.clear(); }

}  // namespace artkernels
