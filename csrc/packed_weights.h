// Copies of convolution weights in the order in which a kernel reads them, kept from one call of an inference to the
// next: packing costs about as much as a layer with few pixels.
#pragma once

#include <ATen/core/Tensor.h>

#include <functional>

namespace artkernels {

// The packing of a CPU weight: the one kept, where that is certainly of the weight as it is now, else what `pack`
// returns, a new tensor that nobody writes to. `key` tells the packings of one weight apart: the op, whatever of its
// arguments changes what is packed, the instruction set, the data type.
//
// Nothing is kept while gradients are recorded, because training changes the weight at every step, nor of inference
// tensors, nor of weights with gaps between their elements.
//
// A weight is known again by its storage, offset, sizes, strides, dtype and version. Writes that PyTorch does not count
// (through weight.data, weight.numpy(), shared memory) show in a hash of its bytes: of all of them up to 256 KiB, of
// 64 KiB spread over it where it is larger. So what goes unnoticed is such a write to a small part of a large weight:
// never one to all of it, or to a 1/512 of it that is contiguous. After one, call artkernels.clear_packed_weights().
at::Tensor packed_weight(const at::Tensor& weight, at::IntArrayRef key, const std::function<at::Tensor()>& pack);

// Whether that packing is or will be kept.
bool may_keep_packed(const at::Tensor& weight);

// While one lives, this thread packs afresh: for the methods of a C++ autograd function, which run with gradients off
// although this is training.
class PackAfresh {
 public:
  PackAfresh();
  ~PackAfresh();
  PackAfresh(const PackAfresh&) = delete;
};

struct PackedWeightStatistics {
  size_t max_bytes = size_t{1} << 30;  // beyond it the packing that has gone unused the longest is dropped
  size_t bytes = 0;                    // of the packings kept
  size_t entries = 0;                  // their number
  uint64_t hits = 0;                   // packings used again
  uint64_t misses = 0;                 // packings made to be kept
};
PackedWeightStatistics packed_weight_statistics();

void limit_packed_weights(size_t max_bytes);
void clear_packed_weights();

}  // namespace artkernels
