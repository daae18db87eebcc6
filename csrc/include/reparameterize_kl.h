// What crosses from csrc/ops/reparameterize_kl.cpp to its kernels on both sides.
#pragma once

#include <cstdint>

#include "params.h"

namespace artkernels {

// Samples of fewer elements the CPU kernels take many at a time, as one run: their pitch must be D there.
constexpr int64_t kShortSample = 64;

// An array of N samples, each of D elements dense in memory, `pitch` elements from one to the next: 0 where all share
// one, 2 D where mean and logvar are the halves of one layer's output.
struct Samples {
  const void* data;
  int64_t pitch;
};

//   sigma = exp(logvar / 2)
//   codes = mean + noise sigma
//   kl = sum over a sample of (mean^2 + exp(logvar) - 1 - logvar) / 2
struct ReparameterizeKl {
  int64_t N, D;
  ScalarType dtype;  // of all samples; arithmetic and sums are float32
  Samples mean, logvar, noise;
};

struct ReparameterizeKlParams : ReparameterizeKl {
  void* codes;       // [N, D]
  float* kl;         // [N]
  float* workspace;  // [reparameterize_kl_workspace_size] floats, contents undefined; CUDA only
};

//   grad_mean = grad_codes + grad_kl mean
//   grad_logvar = (grad_codes noise sigma + grad_kl (exp(logvar) - 1)) / 2
//   grad_noise = grad_codes sigma
struct ReparameterizeKlBackwardParams : ReparameterizeKl {
  Samples grad_codes;    // data is null where the codes have no gradient
  const float* grad_kl;  // [N], or null where kl has none
  void* grad_mean;       // [N, D], or null where it is not wanted
  void* grad_logvar;     // the same
  void* grad_noise;      // the same
};

}  // namespace artkernels
