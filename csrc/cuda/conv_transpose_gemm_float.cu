// The transposed convolution of float32: see conv_transpose_gemm.cuh. A file of its own compiles sooner.
#include "conv_transpose_gemm.cuh"

namespace artkernels::cuda {

void launch_gemm_float(TileKind kind, const ConvTransposeKernel& p, int shared_bytes, cudaStream_t stream) {
  p.op.allow_tf32 ? launch_gemm<float, true>(kind, p, shared_bytes, stream)
                  : launch_gemm<float, false>(kind, p, shared_bytes, stream);
}

}  // namespace artkernels::cuda
