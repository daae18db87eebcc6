// Reparameterisation with its KL divergence on CUDA (see include/reparameterize_kl.h): launchers and the workspace that
// they need. Neither torch nor CUDA headers.
//
// Everything runs on the given stream of the current device, without synchronisation and without reading device
// memory on the host: the calls can be captured in a CUDA graph. The workspace's contents are undefined on entry; its
// size depends on no pointer of the parameters. Arrays may start at any element. N and D are at least 1. Throws
// std::runtime_error when a launch fails or there are more samples than a grid can have blocks for.
#pragma once

#include <cstdint>

#include "../include/reparameterize_kl.h"

struct CUstream_st;

namespace artkernels::cuda {

int64_t reparameterize_kl_workspace_size(const ReparameterizeKlParams& p);  // floats
void launch_reparameterize_kl(const ReparameterizeKlParams& p, CUstream_st* stream);

void launch_reparameterize_kl_backward(const ReparameterizeKlBackwardParams& p, CUstream_st* stream);

}  // namespace artkernels::cuda
