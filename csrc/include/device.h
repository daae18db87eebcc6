// Where a call runs. CUDA kernels are reached for CUDA tensors; in a build against the emulator
// (tests/cuda_emulator), which has the same kernels and no GPU, for CPU tensors.
#pragma once

#include <ATen/core/Tensor.h>
#include <c10/util/Exception.h>

#if defined(ARTKERNELS_CUDA_EMULATED)
#include <string>
#include <vector>
extern "C" void cudaemu_register_region(const void* data, size_t bytes, int read_only, const char* name);
extern "C" void cudaemu_unregister_region(const void* data);
#elif defined(ARTKERNELS_CUDA)
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>
#endif

struct CUstream_st;

namespace artkernels {

#if defined(ARTKERNELS_CUDA_EMULATED)

inline bool runs_on_cuda(const at::Tensor&) { return true; }

// The arrays of one call, known to the emulator's bounds check while it lasts: kernels may touch nothing else.
class CudaCall {
 public:
  explicit CudaCall(const at::Tensor&) {}
  CudaCall(const CudaCall&) = delete;
  ~CudaCall() {
    for (const void* data : registered_) cudaemu_unregister_region(data);
  }
  const void* input(const at::Tensor& tensor) { return reg(tensor, true); }
  void* output(const at::Tensor& tensor) { return reg(tensor, false); }
  CUstream_st* stream() const { return nullptr; }

 private:
  void* reg(const at::Tensor& tensor, bool read_only) {
    if (!tensor.defined() || tensor.numel() == 0) return nullptr;
    cudaemu_register_region(tensor.data_ptr(), tensor.nbytes(), read_only, read_only ? "input" : "output");
    registered_.push_back(tensor.data_ptr());
    return tensor.data_ptr();
  }
  std::vector<const void*> registered_;
};

#elif defined(ARTKERNELS_CUDA)

inline bool runs_on_cuda(const at::Tensor& tensor) { return tensor.is_cuda(); }

// The device and the current stream of `tensor`, for one call.
class CudaCall {
 public:
  explicit CudaCall(const at::Tensor& tensor)
      : guard_(tensor.device()), stream_(c10::cuda::getCurrentCUDAStream(tensor.device().index())) {}
  const void* input(const at::Tensor& tensor) { return tensor.defined() ? tensor.const_data_ptr() : nullptr; }
  void* output(const at::Tensor& tensor) { return tensor.defined() ? tensor.mutable_data_ptr() : nullptr; }
  CUstream_st* stream() const { return stream_; }

 private:
  c10::cuda::CUDAGuard guard_;
  c10::cuda::CUDAStream stream_;
};

#else

inline bool runs_on_cuda(const at::Tensor& tensor) {
  TORCH_CHECK(!tensor.is_cuda(), "artkernels was built without CUDA kernels: rebuild with ARTKERNELS_CUDA=1, ",
              "or move the input to the CPU");
  return false;
}

#endif

}  // namespace artkernels
