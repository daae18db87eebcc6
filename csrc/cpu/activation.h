// Activations and their derivatives on vectors. The polynomials are minimax fits of this project's own (Lawson's
// algorithm, coefficients rounded to float32); relative errors are those of the fit before rounding.
#pragma once

#include "cpu/vec.h"
#include "include/activation.h"

namespace artkernels::cpu {
namespace {

typedef int32_t vint __attribute__((vector_size(VL * 4)));

ARTKERNELS_INLINE vfloat magnitude(vfloat v) { return (vfloat)((vuint)v & 0x7fffffffu); }
ARTKERNELS_INLINE vfloat with_sign_of(vfloat v, vfloat sign) {
  return (vfloat)(((vuint)v & 0x7fffffffu) | ((vuint)sign & 0x80000000u));
}

// e^x = 2^n e^r with |r| <= ln(2) / 2; polynomial good to 3e-9. Subnormal results and infinities as in std::exp.
ARTKERNELS_INLINE vfloat exponential(vfloat x) {
  x = x > 89.f ? broadcast(89.f) : x;
  x = x < -104.f ? broadcast(-104.f) : x;
  const vfloat to_integer = broadcast(12582912.f);  // 1.5 * 2^23: what is added to it is rounded to an integer
  const vfloat n = (x * 1.44269504f + to_integer) - to_integer;
  const vfloat r = (x - n * 0.693359375f) + n * 2.12194440e-4f;  // ln(2) = the first, exact in 9 bits, - the second
  vfloat p = r * 1.3814456e-3f + 8.3687855e-3f;
  p = p * r + 4.1668396e-2f;
  p = p * r + 1.6666520e-1f;
  p = p * r + 4.9999994e-1f;
  p = p * (r * r) + r + 1.f;
  const vint exponent = __builtin_convertvector(n, vint), half = exponent >> 1;  // 2^n may not be a float, these are
  return p * (vfloat)((half + 127) << 23) * (vfloat)((exponent - half + 127) << 23);
}

// 1 / (1 + e^-x) and what it lacks to 1, neither by a subtraction that cancels.
struct Logistic {
  vfloat value, complement;
};
ARTKERNELS_INLINE Logistic logistic(vfloat x) {
  const vfloat e = exponential(-magnitude(x)), large = 1.f / (1.f + e), small = e * large;
  return {x < 0.f ? small : large, x < 0.f ? large : small};
}

// Odd polynomial below 0.55, good to 1e-9; above it nothing cancels in 1 - 2 / (e^2x + 1).
ARTKERNELS_INLINE vfloat hyperbolic_tangent(vfloat x) {
  const vfloat a = magnitude(x), square = x * x;
  vfloat p = square * -6.2742378e-3f + 2.1071678e-2f;
  p = p * square - 5.3852309e-2f;
  p = p * square + 1.3332586e-1f;
  p = p * square - 3.3333316e-1f;
  const vfloat small = p * square * x + x, large = 1.f - 2.f / (exponential(a + a) + 1.f);
  return a < 0.55f ? small : with_sign_of(large, x);
}

// The normal distribution's density and its integral up to x. Below 0 the integral is e^(-x^2/2) t P(t) with
// t = 1 / (1 + 0.28 |x|), good to 6e-8 of itself down to where it vanishes.
struct Normal {
  vfloat density, integral;
};
ARTKERNELS_INLINE Normal normal(vfloat x) {
  const vfloat t = 1.f / (1.f + 0.28f * magnitude(x)), e = exponential(x * x * -0.5f);
  vfloat p = t * 2.3055822e-2f - 8.4665753e-2f;
  p = p * t + 7.2499566e-2f;
  p = p * t + 1.7690415e-2f;
  p = p * t + 5.5468358e-2f;
  p = p * t + 9.1124818e-2f;
  p = p * t + 1.0117778e-1f;
  p = p * t + 1.1195967e-1f;
  p = p * t + 1.1168936e-1f;
  const vfloat tail = p * t * e;
  return {e * 0.398942280f, x < 0.f ? tail : 1.f - tail};
}

template <Activation activation>
ARTKERNELS_INLINE vfloat activate(vfloat z, float negative_slope) {
  if constexpr (activation == Activation::Relu) return z < 0.f ? vfloat{} : z;  // NaN stays
  if constexpr (activation == Activation::LeakyRelu) return z > 0.f ? z : z * negative_slope;
  if constexpr (activation == Activation::Tanh) return hyperbolic_tangent(z);
  if constexpr (activation == Activation::Sigmoid) return logistic(z).value;
  if constexpr (activation == Activation::Silu) return z * logistic(z).value;
  if constexpr (activation == Activation::Gelu) return z * normal(z).integral;
  return z;
}

// grad_output * activation'(z); at the kink of relu and leaky_relu the derivative from the left, as in torch.
template <Activation activation>
ARTKERNELS_INLINE vfloat activation_backward(vfloat grad_output, vfloat z, float negative_slope) {
  if constexpr (activation == Activation::Relu) return z <= 0.f ? vfloat{} : grad_output;  // NaN passes
  if constexpr (activation == Activation::LeakyRelu) return z > 0.f ? grad_output : grad_output * negative_slope;
  if constexpr (activation == Activation::Tanh) {
    const vfloat y = hyperbolic_tangent(z);
    return grad_output * (1.f - y * y);
  }
  if constexpr (activation == Activation::Sigmoid) {
    const Logistic y = logistic(z);
    return grad_output * (y.value * y.complement);
  }
  if constexpr (activation == Activation::Silu) {
    const Logistic y = logistic(z);
    return grad_output * (y.value + y.value * z * y.complement);
  }
  if constexpr (activation == Activation::Gelu) {
    const Normal n = normal(z);
    return grad_output * (n.integral + z * n.density);
  }
  return grad_output;
}

// The same from the activation's output y, of those that it tells the derivative of.
template <Activation activation>
ARTKERNELS_INLINE vfloat derivative_from_output(vfloat grad_output, vfloat y, float negative_slope) {
  if constexpr (activation == Activation::Relu) return y <= 0.f ? vfloat{} : grad_output;  // NaN passes
  if constexpr (activation == Activation::LeakyRelu) return y > 0.f ? grad_output : grad_output * negative_slope;
  if constexpr (activation == Activation::Tanh) return grad_output * (1.f - y * y);
  if constexpr (activation == Activation::Sigmoid) return grad_output * (1.f - y) * y;
  return grad_output;
}

constexpr bool is_cheap(Activation activation) {
  return activation == Activation::None || activation == Activation::Relu || activation == Activation::LeakyRelu;
}

template <Activation value>
struct ActivationConstant {
  static constexpr Activation activation = value;
};

// f(ActivationConstant<activation>{}): from the run-time value to a template's argument.
template <typename F>
ARTKERNELS_INLINE void with_activation(Activation activation, F&& f) {
  switch (activation) {
    case Activation::None: return f(ActivationConstant<Activation::None>{});
    case Activation::Relu: return f(ActivationConstant<Activation::Relu>{});
    case Activation::LeakyRelu: return f(ActivationConstant<Activation::LeakyRelu>{});
    case Activation::Tanh: return f(ActivationConstant<Activation::Tanh>{});
    case Activation::Sigmoid: return f(ActivationConstant<Activation::Sigmoid>{});
    case Activation::Silu: return f(ActivationConstant<Activation::Silu>{});
    case Activation::Gelu: return f(ActivationConstant<Activation::Gelu>{});
  }
}

}  // namespace
}  // namespace artkernels::cpu
