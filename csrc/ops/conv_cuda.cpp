#include "ops/conv_cuda.h"

#include "include/device.h"
#if defined(ARTKERNELS_CUDA)
#include <ATen/Context.h>
#include <ATen/ops/empty.h>

#include "cuda/conv_transpose.h"
#include "include/layout.h"
#if !defined(ARTKERNELS_CUDA_EMULATED)
#include <c10/cuda/CUDAEvent.h>
#include <c10/cuda/CUDAGraphsC10Utils.h>

#include <algorithm>
#include <array>
#include <sstream>

#include "autotune.h"
#endif
#endif

namespace artkernels {

#if defined(ARTKERNELS_CUDA)

namespace {

using at::Tensor;

bool allow_tf32() {
  return at::globalContext().float32Precision(at::Float32Backend::CUDA, at::Float32Op::CONV) ==
         at::Float32Precision::TF32;
}

ConvTransposeParams params_of(const ConvCall& call) {
  ConvTransposeParams p{};
  static_cast<Conv&>(p) = conv_params(call);
  p.input_channels_last = call.channels_last;
  p.allow_tf32 = p.dtype == ScalarType::Float && allow_tf32();
  return p;
}

Tensors3 run_kernels(const ConvCall& call, ConvTransposeParams p) {
  const Tensors3 result = empty_result(call);
  const auto& [output, mean, var] = result;
  const Tensor input = to_layout(call.input, call.channels_last), weight = to_layout(call.weight, true);
  CudaCall cuda(input);
  const Tensor workspace = at::empty({cuda::conv_transpose_workspace_size(p)}, input.options().dtype(at::kByte));
  auto floats = [&](const Tensor& t) { return static_cast<const float*>(cuda.input(t)); };
  p.input = cuda.input(input);
  p.weight = cuda.input(weight);
  p.scale = floats(call.scale);
  p.bias = floats(call.bias);
  p.output = cuda.output(output);
  p.mean = static_cast<float*>(cuda.output(mean));
  p.var = static_cast<float*>(cuda.output(var));
  p.workspace = cuda.output(workspace);
  cuda::launch_conv_transpose(p, cuda.stream());
  return result;
}

#if defined(ARTKERNELS_CUDA_EMULATED)

bool is_faster(const ConvCall&, const ConvTransposeParams&) { return true; }

#else

// All that the time of a call depends on.
std::string describe(const ConvTransposeParams& p, const ConvCall& call) {
  std::ostringstream text;
  for (const int64_t value : {p.N, p.C, p.H, p.W, p.K, p.OH, p.OW, p.rows.kernel, p.columns.kernel, p.rows.stride,
                              p.columns.stride, p.rows.padding, p.columns.padding, p.rows.dilation, p.columns.dilation})
    text << value << ' ';
  text << call.input.scalar_type() << ' ' << (call.channels_last ? "NHWC" : "NCHW") << ' '
       << (is_channels_last(call.weight) ? "KRSC" : "KCRS") << ' ' << call.activation_name << " scale "
       << call.scale.defined() << " bias " << call.bias.defined() << " statistics " << int(p.statistics) << " tf32 "
       << p.allow_tf32;
  return text.str();
}

// The median of some calls, after one that loads kernels and lets cuDNN choose.
double milliseconds(const std::function<void()>& call) {
  call();
  std::array<double, 5> times;
  for (double& time : times) {
    c10::cuda::CUDAEvent begin(cudaEventDefault), end(cudaEventDefault);
    begin.record();
    call();
    end.record();
    end.synchronize();
    time = begin.elapsed_time(end);
  }
  std::sort(times.begin(), times.end());
  return times[times.size() / 2];
}

std::string device_name() {
  cudaDeviceProp properties;
  C10_CUDA_CHECK(cudaGetDeviceProperties(&properties, c10::cuda::current_device()));
  return properties.name;
}

// Timed once for such a call on such a device. Before that, the rule is our kernels: they write the output once, where
// the stock sequence passes over it again for bias, normalisation and activation.
bool is_faster(const ConvCall& call, const ConvTransposeParams& p) {
  const c10::cuda::CUDAGuard guard(call.input.device());
  static thread_local std::pair<c10::DeviceIndex, std::string> device{-1, ""};
  if (device.first != call.input.device().index()) device = {call.input.device().index(), device_name()};
  const bool capturing = c10::cuda::currentStreamCaptureStatusMayInitCtx() != c10::cuda::CaptureStatus::None;
  return autotune({"conv_transpose2d_act", describe(p, call), device.second}, 2, 0, capturing, [&](int candidate) {
           return milliseconds([&] { candidate == 0 ? run_kernels(call, p) : run_stock(call); });
         }) == 0;
}

#endif

}  // namespace

std::optional<Tensors3> run_on_cuda(const ConvCall& call) {
  if (!runs_on_cuda(call.input) || !call.transposed || call.input.scalar_type() == at::kDouble) return std::nullopt;
  const ConvTransposeParams p = params_of(call);
  if (!cuda::conv_transpose_supported(p) || !is_faster(call, p)) return std::nullopt;
  return run_kernels(call, p);
}

#else

std::optional<Tensors3> run_on_cuda(const ConvCall&) { return std::nullopt; }

#endif

}  // namespace artkernels
