// Gradients of a convolution's weight on the CPU.
#pragma once

#include "cpu/isa.h"
#include "include/params.h"

// On up to `threads` threads of the OpenMP runtime; the result depends on their number by rounding alone.
ARTKERNELS_CPU_KERNEL(conv_weight_grad, ConvWeightGradParams)
