#pragma once

#include <optional>

#include "ops/conv_common.h"

namespace artkernels {

// (output, mean, var) by this package's CPU kernels, or nothing where torch's convolution is at least as fast.
std::optional<Tensors3> run_on_cpu(const ConvCall& call);

}  // namespace artkernels
