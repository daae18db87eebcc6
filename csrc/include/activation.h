// Activations by their names in torch: shared by the host functions and the kernels of both sides.
#pragma once

namespace artkernels {

// gelu is the exact one, x Phi(x), as torch.nn.functional.gelu without approximation.
enum class Activation : int { None, Relu, LeakyRelu, Tanh, Sigmoid, Silu, Gelu };

}  // namespace artkernels
