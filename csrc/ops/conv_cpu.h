#pragma once

#include "ops/conv_common.h"

namespace artkernels {

// Whether this package's CPU kernels run a call: where they are faster than torch's convolution.
bool runs_on_cpu(const ConvCall& call);

// (output, mean, var) by them.
Tensors3 run_on_cpu(const ConvCall& call);

// Whether oneDNN multiplies bfloat16 as such, at two to eight times the speed of float32; here it is widened.
bool multiplies_bfloat16();

}  // namespace artkernels
