// Normalisation + activation on CUDA (see params.h): launchers and the workspace that they need. Neither torch nor CUDA
// headers.
//
// Everything runs on the given stream of the current device, without synchronisation and without reading device
// memory on the host: the calls can be captured in a CUDA graph. Workspaces start on a 16-byte boundary, their
// contents are undefined on entry; their sizes depend on no pointer of the parameters. Arrays may start at any element.
// N, C and P are at least 1. Throws std::runtime_error when a launch fails, the sizes are beyond what the kernels can
// index, or across_batch is not together with groups == C.
#pragma once

#include <cstdint>

#include "../include/params.h"

struct CUstream_st;

namespace artkernels::cuda {

int64_t norm_act_workspace_size(const NormActParams& p);  // floats
void launch_norm_act(const NormActParams& p, CUstream_st* stream);

int64_t norm_act_backward_workspace_size(const NormActBackwardParams& p);  // floats
void launch_norm_act_backward(const NormActBackwardParams& p, CUstream_st* stream);

}  // namespace artkernels::cuda
