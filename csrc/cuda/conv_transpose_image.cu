// The transposed convolution to at most four channels, the last layer of a generator. See conv_transpose_gemm.cuh.
//
// It is bound by memory, and phases apart would read the input once each. So it is done as a stride-1 convolution to
// the channels of all phases at once, 4 for each phase: 16 columns at stride 2. Its taps are those of all phases, 9
// instead of 4 times 4 for a 4 x 4 kernel, and its weight is zero where a phase has no such tap.
// (So an input that is not finite makes all outputs around it NaN, those of other phases too.)
// conv_transpose_pack_kernel makes that weight, and ImageTile's epilogue deals the columns out to the phases' pixels.
#include "conv_transpose_gemm.cuh"

namespace artkernels::cuda {

namespace {

struct PackKernel {
  const void* weight;          // [C, kernel_h * kernel_w, K]
  void* packed;                // [C, united taps, columns]
  Axis rows, columns;          // of the call
  Phase vertical, horizontal;  // all phases united
  int64_t C;
  int K, packed_columns;
};

// The phase's tap that reads the same input as tap `united` of all phases, in the kernel's numbering; -1: none does.
__device__ __forceinline__ int tap_of(const Phase& f, const Phase& all, int united) {
  const int steps = f.shift - (all.shift - united), tap = steps / f.shift_step;
  return steps >= 0 && steps % f.shift_step == 0 && tap < f.taps ? f.first_tap + tap * f.tap_step : -1;
}

// Tiling: a thread for each element of the packed weight. Traffic: some tens of KB.
constexpr int kPackThreads = 256;
template <typename scalar_t>
__global__ __launch_bounds__(kPackThreads) void conv_transpose_pack_kernel(const __grid_constant__ PackKernel p) {
  const int taps = p.vertical.taps * p.horizontal.taps;
  const int64_t i = int64_t{blockIdx.x} * kPackThreads + threadIdx.x;
  if (i >= p.C * taps * p.packed_columns) return;
  const int column = static_cast<int>(i % p.packed_columns), k = column % 4, phase = column / 4;
  const int united = static_cast<int>(i / p.packed_columns % taps);
  float value = 0.f;
  if (k < p.K && phase < p.rows.phases * p.columns.phases) {
    const int tap_h = tap_of(p.rows.phase[phase / p.columns.phases], p.vertical, united / p.horizontal.taps);
    const int tap_w = tap_of(p.columns.phase[phase % p.columns.phases], p.horizontal, united % p.horizontal.taps);
    const int64_t c = i / p.packed_columns / taps;
    if (tap_h >= 0 && tap_w >= 0)
      value = to_float(
          static_cast<const scalar_t*>(p.weight)[((c * p.rows.kernel + tap_h) * p.columns.kernel + tap_w) * p.K + k]);
  }
  static_cast<scalar_t*>(p.packed)[i] = from_float<scalar_t>(value);
}

template <typename scalar_t, bool kTf32>
void launch_dtype(const ConvTransposeKernel& p, const PackKernel& pack, int bytes, cudaStream_t stream) {
  const int64_t elements = pack.C * pack.vertical.taps * pack.horizontal.taps * pack.packed_columns;
  launch(conv_transpose_pack_kernel<scalar_t>, "conv_transpose_pack_kernel", ceil_div(elements, kPackThreads),
         kPackThreads, 0, stream, pack);
  launch(conv_transpose_kernel<scalar_t, kTf32, ImageTile, true>, "conv_transpose_kernel",
         int64_t{p.tiles()} * p.channel_tiles, ImageTile::kThreads, bytes, stream, p);
}

}  // namespace

void launch_image(const ConvTransposeKernel& p, const Axis& rows, const Axis& columns, int shared_bytes,
                  cudaStream_t stream) {
  const PackKernel pack = {p.op.weight, const_cast<void*>(p.weight), rows, columns, p.rows.phase[0], p.columns.phase[0],
                           p.op.C,      static_cast<int>(p.op.K),    p.K};
  switch (p.op.dtype) {
    case ScalarType::Float:
      p.op.allow_tf32 ? launch_dtype<float, true>(p, pack, shared_bytes, stream)
                      : launch_dtype<float, false>(p, pack, shared_bytes, stream);
      break;
    case ScalarType::Half: launch_dtype<__half, false>(p, pack, shared_bytes, stream); break;
    case ScalarType::BFloat16: launch_dtype<__nv_bfloat16, false>(p, pack, shared_bytes, stream); break;
  }
}

}  // namespace artkernels::cuda
