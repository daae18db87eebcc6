// The transposed convolution of float16 and bfloat16: see conv_transpose_gemm.cuh. A file of its own compiles sooner.
#include "conv_transpose_gemm.cuh"

namespace artkernels::cuda {

void launch_gemm_half(TileKind kind, const ConvTransposeKernel& p, int shared_bytes, cudaStream_t stream) {
  p.op.dtype == ScalarType::Half ? launch_gemm<__half, false>(kind, p, shared_bytes, stream)
                                 : launch_gemm<__nv_bfloat16, false>(kind, p, shared_bytes, stream);
}

}  // namespace artkernels::cuda
