#pragma once

#include "cpu/isa.h"
#include "include/params.h"

// Both run on up to `threads` threads of the OpenMP runtime; their sums depend on the number of threads, on nothing
// else.
ARTKERNELS_CPU_KERNEL(gram, GramParams)
ARTKERNELS_CPU_KERNEL(gram_backward, GramBackwardParams)
