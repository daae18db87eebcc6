// The transposed convolution of a generator's last layer by plain FMA: kernel 4 x 4, stride 2, padding 1, at most four
// channels. For devices without tensor cores for the data type; with them conv_transpose_image.cu is faster.
#include "activation.cuh"
#include "conv_transpose.cuh"
#include "scalar.cuh"

namespace artkernels::cuda {

namespace {

constexpr int kThreads = 128;
constexpr int kHeight = 16, kWidth = 32, kDepth = 8;  // input pixels and channels of a block's tile
constexpr int kPitch = kWidth + 4;                    // halo of 1
constexpr int kPlane = (kHeight + 2) * kPitch + 28;   // 4 mod 32 floats: no bank conflicts
constexpr int kTaps = 16;

template <int kChannels>
union Shared {
  struct {
    float input[kDepth][kPlane];
    float weight[kDepth][kChannels][kTaps];
  };
  float z[kChannels][2 * kHeight][2 * kWidth];
};

struct Tile {
  int64_t image;
  int y, x;  // of the first input pixel

  __device__ __forceinline__ explicit Tile(const ConvTransposeParams& p) {
    const uint32_t across = static_cast<uint32_t>(ceil_div(p.W, kWidth)), down = ceil_div(p.H, kHeight);
    x = blockIdx.x % across * kWidth;
    y = blockIdx.x / across % down * kHeight;
    image = blockIdx.x / across / down;
  }
};

// Neighbouring threads load neighbouring channels (channels_last) or pixels.
template <typename scalar_t, int kChannels>
__device__ __forceinline__ void load_tile(const ConvTransposeParams& p, const Tile& tile, int channel,
                                          Shared<kChannels>& shared) {
  constexpr int kPixels = (kHeight + 2) * (kWidth + 2);
  const scalar_t* const input = static_cast<const scalar_t*>(p.input) + tile.image * p.C * p.H * p.W;
#pragma unroll 4
  for (int i = threadIdx.x; i < kPixels * kDepth; i += kThreads) {
    const int c = p.input_channels_last ? i % kDepth : i / kPixels,
              at = p.input_channels_last ? i / kDepth : i % kPixels;
    const int row = at / (kWidth + 2), column = at % (kWidth + 2), y = tile.y + row - 1, x = tile.x + column - 1;
    const bool valid = channel + c < p.C && y >= 0 && y < p.H && x >= 0 && x < p.W;
    const int64_t pixel = y * p.W + x;
    const int64_t offset = p.input_channels_last ? pixel * p.C + channel + c : (channel + c) * p.H * p.W + pixel;
    shared.input[c][row * kPitch + column] = valid ? to_float(input[offset]) : 0.f;
  }
  const scalar_t* const weight = static_cast<const scalar_t*>(p.weight);
  for (int i = threadIdx.x; i < kDepth * kChannels * kTaps; i += kThreads) {
    const int c = i / (kTaps * kChannels), tap = i / kChannels % kTaps, k = i % kChannels;
    const bool valid = channel + c < p.C && k < p.K;
    shared.weight[c][k][tap] = valid ? to_float(weight[((channel + c) * int64_t{kTaps} + tap) * p.K + k]) : 0.f;
  }
}

// sums[k][4 x 4 outputs] += what one input channel gives to them, of whose pixels a thread needs 4 x 4.
template <int kChannels>
__device__ __forceinline__ void add_channel(float (&sums)[kChannels][4][4], const float* input, const float* weight) {
  // Tap 1 and 3 make output 2 m of inputs m and m - 1; tap 0 and 2 make 2 m + 1 of m + 1 and m.
  constexpr int kInput[4] = {2, 1, 1, 0}, kOutput[4] = {1, 0, 1, 0};
  float x[4][4];
#pragma unroll
  for (int r = 0; r < 4; ++r)
#pragma unroll
    for (int c = 0; c < 4; c += 2)
      *reinterpret_cast<float2*>(&x[r][c]) = *reinterpret_cast<const float2*>(input + r * kPitch + c);
#pragma unroll
  for (int k = 0; k < kChannels; ++k)
#pragma unroll
    for (int h = 0; h < 4; ++h) {
      const float4 row = *reinterpret_cast<const float4*>(weight + k * kTaps + h * 4);
      const float taps[4] = {row.x, row.y, row.z, row.w};
#pragma unroll
      for (int w = 0; w < 4; ++w)
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          const int y = i / 2, x_at = i % 2;
          float& sum = sums[k][2 * y + kOutput[h]][2 * x_at + kOutput[w]];
          sum = fmaf(x[y + kInput[h]][x_at + kInput[w]], taps[w], sum);
        }
    }
}

// A thread takes four values: the channels of a pixel (channels_last), or neighbouring pixels of a channel.
template <typename scalar_t, int kChannels>
__device__ __forceinline__ void store_tile(const ConvTransposeParams& p, const Tile& tile,
                                           const Shared<kChannels>& shared) {
  const bool channels_last = p.output_channels_last;
  scalar_t* const output = static_cast<scalar_t*>(p.output) + tile.image * p.K * p.OH * p.OW;
  const int items = 4 * kHeight * kWidth * (channels_last ? 4 : kChannels) / 4;
#pragma unroll 1
  for (int i = threadIdx.x; i < items; i += kThreads) {
    const int step = channels_last ? 1 : 4;  // pixels of a thread
    const int column = i * step % (2 * kWidth), row = i * step / (2 * kWidth) % (2 * kHeight);
    const int first = i * step / (4 * kHeight * kWidth);
    const int64_t oh = 2 * tile.y + row, ow = 2 * tile.x + column;
    if (oh >= p.OH || first >= p.K) continue;
    float values[4];
    for_each<4>([&](int e) {
      values[e] = channels_last ? shared.z[min(e, kChannels - 1)][row][column] : shared.z[first][row][column + e];
    });
    activate(values, p.activation, p.negative_slope);
    const int64_t pixel = oh * p.OW + ow;
    for_each<4>([&](int e) {
      if (channels_last ? e < p.K && ow < p.OW : ow + e < p.OW)
        output[channels_last ? pixel * p.K + e : first * p.OH * p.OW + pixel + e] = from_float<scalar_t>(values[e]);
    });
  }
}

// Tiling: a block takes 16 x 32 input pixels, 8 channels at a time, as float32 in shared memory; a thread 2 x 2 of
// them, hence 4 x 4 outputs of every channel. Per input channel it loads 4 x 4 pixels (8 loads) and the weights (4
// loads of 16 bytes for each output channel, the same for all) for 64 FMA for each output channel.
// Traffic: input once and its halo (1.2 times in all), output once.
// FMA: 16 for each input element and output channel; fewer are not possible.
// Registers: at most 128 (four blocks of 128 threads an SM), 168 to four channels (three).
template <typename scalar_t, int kChannels>
__global__ __launch_bounds__(kThreads, kChannels == 4 ? 3 : 4) void conv_transpose_direct_kernel(
    const __grid_constant__ ConvTransposeParams p) {
  __shared__ __align__(16) Shared<kChannels> shared;
  const Tile tile(p);
  const int x = threadIdx.x % (kWidth / 2) * 2, y = threadIdx.x / (kWidth / 2) * 2;
  float sums[kChannels][4][4] = {};
  for (int channel = 0; channel < p.C; channel += kDepth) {
    __syncthreads();
    load_tile<scalar_t>(p, tile, channel, shared);
    __syncthreads();
#pragma unroll 1
    for (int c = 0; c < kDepth; ++c) add_channel(sums, shared.input[c] + y * kPitch + x, shared.weight[c][0]);
  }
  __syncthreads();
#pragma unroll
  for (int k = 0; k < kChannels; ++k) {
    const float scale = p.scale && k < p.K ? p.scale[k] : 1.f, bias = p.bias && k < p.K ? p.bias[k] : 0.f;
#pragma unroll
    for (int r = 0; r < 4; ++r) {
      float4 z;
      z.x = fmaf(sums[k][r][0], scale, bias);
      z.y = fmaf(sums[k][r][1], scale, bias);
      z.z = fmaf(sums[k][r][2], scale, bias);
      z.w = fmaf(sums[k][r][3], scale, bias);
      *reinterpret_cast<float4*>(&shared.z[k][2 * y + r][2 * x]) = z;
    }
  }
  __syncthreads();
  store_tile<scalar_t>(p, tile, shared);
}

template <typename scalar_t, int kChannels>
void launch_channels(const ConvTransposeParams& p, cudaStream_t stream) {
  const int64_t blocks = p.N * ceil_div(p.H, kHeight) * ceil_div(p.W, kWidth);
  launch(conv_transpose_direct_kernel<scalar_t, kChannels>, "conv_transpose_direct_kernel", blocks, kThreads, 0, stream,
         p);
}

template <typename scalar_t>
void launch_dtype(const ConvTransposeParams& p, cudaStream_t stream) {
  if (p.K == 1) launch_channels<scalar_t, 1>(p, stream);
  else if (p.K <= 3) launch_channels<scalar_t, 3>(p, stream);
  else launch_channels<scalar_t, 4>(p, stream);
}

}  // namespace

void launch_direct(const ConvTransposeParams& p, cudaStream_t stream) {
  p.dtype == ScalarType::Float ? launch_dtype<float>(p, stream) : launch_dtype<__nv_bfloat16>(p, stream);
}

}  // namespace artkernels::cuda
