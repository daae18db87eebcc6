#pragma once

#include "cpu/isa.h"
#include "include/params.h"

// Both run on up to `threads` threads of the OpenMP runtime; how sums are rounded depends on the number of threads and
// on the instruction set, on nothing else.
ARTKERNELS_CPU_KERNEL(norm_act, NormActParams)
ARTKERNELS_CPU_KERNEL(norm_act_backward, NormActBackwardParams)
