#pragma once

#include <optional>

#include "ops/conv_common.h"

namespace artkernels {

// (output, mean, var) by this package's CUDA kernels, or nothing where they cannot take the call or torch's convolution
// and what follows it were measured to be faster for such a call on this device.
std::optional<Tensors3> run_on_cuda(const ConvCall& call);

}  // namespace artkernels
