// Transposed convolution + scale + bias + activation on CUDA (see params.h): launcher and the workspace that it needs.
// Neither torch nor CUDA headers.
//
// Everything runs on the given stream of the current device, without synchronisation and without reading device
// memory on the host: the calls can be captured in a CUDA graph. The workspace starts on a 16-byte boundary, its
// contents are undefined on entry; its size depends on no pointer of the parameters. Other arrays may start at any
// element. N, C, H, W, K, OH and OW are at least 1, input and output have the same layout. Throws std::runtime_error
// when a launch fails or the call is not a supported one.
#pragma once

#include <cstdint>

#include "../include/params.h"

struct CUstream_st;

namespace artkernels::cuda {

// Whether the kernels take such a call on the current device; otherwise it is for torch's convolution. They take one
// group, strides up to 16, and kernels and dilations whose reach leaves room in shared memory. Depends on no pointer.
bool conv_transpose_supported(const ConvTransposeParams& p);

int64_t conv_transpose_workspace_size(const ConvTransposeParams& p);  // bytes
void launch_conv_transpose(const ConvTransposeParams& p, CUstream_st* stream);

}  // namespace artkernels::cuda
