#pragma once

#include "cpu/isa.h"
#include "include/reparameterize_kl.h"

// Both run on up to `threads` threads of the OpenMP runtime, whose number no result depends on.
ARTKERNELS_CPU_KERNEL(reparameterize_kl, ReparameterizeKlParams)
ARTKERNELS_CPU_KERNEL(reparameterize_kl_backward, ReparameterizeKlBackwardParams)
