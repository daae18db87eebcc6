// Activations and their derivatives on a vector of values. The activation is known at run time only: one branch a
// vector, the same for the whole grid, instead of seven kernels.
#pragma once

#include "../include/activation.h"

namespace artkernels::cuda {

template <int n, typename F>
__device__ __forceinline__ void for_each(F&& f) {
#pragma unroll
  for (int e = 0; e < n; ++e) f(e);
}

// Divides to 2 units of the last place; 0 where the divisor is beyond 2^126, as z then is below -87.
__device__ __forceinline__ float sigmoid(float z) { return __fdividef(1.f, 1.f + expf(-z)); }
__device__ __forceinline__ float normal_cdf(float z) { return 0.5f * (1.f + erff(z * 0.70710678118654752f)); }

// z = activation(z). NaN stays NaN.
template <int n>
__device__ __forceinline__ void activate(float (&z)[n], Activation activation, float negative_slope) {
  switch (activation) {
    case Activation::None: break;
    case Activation::Relu: for_each<n>([&](int e) { z[e] = z[e] <= 0.f ? 0.f : z[e]; }); break;
    case Activation::LeakyRelu: for_each<n>([&](int e) { z[e] = z[e] > 0.f ? z[e] : z[e] * negative_slope; }); break;
    case Activation::Tanh: for_each<n>([&](int e) { z[e] = tanhf(z[e]); }); break;
    case Activation::Sigmoid: for_each<n>([&](int e) { z[e] = sigmoid(z[e]); }); break;
    case Activation::Silu: for_each<n>([&](int e) { z[e] *= sigmoid(z[e]); }); break;
    case Activation::Gelu: for_each<n>([&](int e) { z[e] = z[e] * normal_cdf(z[e]); }); break;
  }
}

// gradient = activation'(z) gradient
template <int n>
__device__ __forceinline__ void activate_backward(float (&gradient)[n], const float (&z)[n], Activation activation,
                                                  float negative_slope) {
  switch (activation) {
    case Activation::None: break;
    case Activation::Relu: for_each<n>([&](int e) { gradient[e] = z[e] <= 0.f ? 0.f : gradient[e]; }); break;
    case Activation::LeakyRelu: for_each<n>([&](int e) { gradient[e] *= z[e] > 0.f ? 1.f : negative_slope; }); break;
    case Activation::Tanh:
      for_each<n>([&](int e) {
        const float t = tanhf(z[e]);
        gradient[e] *= 1.f - t * t;
      });
      break;
    case Activation::Sigmoid:
      for_each<n>([&](int e) {
        gradient[e] *= sigmoid(z[e]) * sigmoid(-z[e]);  // 1 - sigmoid(z) would cancel
      });
      break;
    case Activation::Silu:
      for_each<n>([&](int e) {
        const float s = sigmoid(z[e]);
        gradient[e] *= s + s * z[e] * sigmoid(-z[e]);
      });
      break;
    case Activation::Gelu:
      for_each<n>([&](int e) {
        const float density = 0.39894228040143268f * expf(-0.5f * z[e] * z[e]);
        gradient[e] *= normal_cdf(z[e]) + z[e] * density;
      });
      break;
  }
}

}  // namespace artkernels::cuda
