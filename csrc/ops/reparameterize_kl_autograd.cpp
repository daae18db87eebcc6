// The derivative of reparameterize_kl. In C++, because codes are small: what Python would spend on a call of it is more
// than stock PyTorch needs for the whole. The derivative of the derivative is in artkernels/ops/reparameterize_kl.py.
#include <ATen/core/dispatch/Dispatcher.h>
#include <torch/csrc/autograd/custom_function.h>
#include <torch/library.h>

#include "ops/reparameterize_kl.h"

namespace artkernels {
namespace {

using at::Tensor;
using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

std::tuple<Tensor, Tensor> call_forward(const Tensor& mean, const Tensor& logvar, const Tensor& noise) {
  static const auto op = c10::Dispatcher::singleton()
                             .findSchemaOrThrow("artkernels::reparameterize_kl", "")
                             .typed<decltype(reparameterize_kl)>();
  return op.call(mean, logvar, noise);
}

std::tuple<Tensor, Tensor, Tensor> call_backward(const Tensor& grad_codes, const Tensor& grad_kl, const Tensor& mean,
                                                 const Tensor& logvar, const Tensor& noise, std::array<bool, 3> mask) {
  static const auto op = c10::Dispatcher::singleton()
                             .findSchemaOrThrow("artkernels::reparameterize_kl_backward", "")
                             .typed<decltype(reparameterize_kl_backward)>();
  // Without create_graph nothing is recorded: past the derivative of the backward, which is in Python.
  std::optional<at::AutoDispatchBelowADInplaceOrView> guard;
  if (!at::GradMode::is_enabled()) guard.emplace();
  auto optional = [](const Tensor& t) { return t.defined() ? std::optional<Tensor>(t) : std::nullopt; };
  return op.call(optional(grad_codes), optional(grad_kl), mean, logvar, noise, mask);
}

class ReparameterizeKl : public torch::autograd::Function<ReparameterizeKl> {
 public:
  static variable_list forward(AutogradContext* ctx, const Tensor& mean, const Tensor& logvar, const Tensor& noise) {
    at::AutoDispatchBelowADInplaceOrView guard;
    ctx->set_materialize_grads(false);
    ctx->save_for_backward({mean, logvar, noise});
    const auto [codes, kl] = call_forward(mean, logvar, noise);
    return {codes, kl};
  }

  static variable_list backward(AutogradContext* ctx, const variable_list& grad_outputs) {
    const Tensor &grad_codes = grad_outputs[0], &grad_kl = grad_outputs[1];
    variable_list grads(3);
    if (!grad_codes.defined() && !grad_kl.defined()) return grads;
    const auto saved = ctx->get_saved_variables();
    const std::array<bool, 3> mask = {ctx->needs_input_grad(0), ctx->needs_input_grad(1),
                                      ctx->needs_input_grad(2) && grad_codes.defined()};
    const auto [grad_mean, grad_logvar, grad_noise] =
        call_backward(grad_codes, grad_kl, saved[0], saved[1], saved[2], mask);
    if (mask[0]) grads[0] = grad_mean;
    if (mask[1]) grads[1] = grad_logvar;
    if (mask[2]) grads[2] = grad_noise;
    return grads;
  }
};

std::tuple<Tensor, Tensor> reparameterize_kl_autograd(const Tensor& mean, const Tensor& logvar, const Tensor& noise) {
  auto result = ReparameterizeKl::apply(mean, logvar, noise);
  return {result[0], result[1]};
}

}  // namespace

TORCH_LIBRARY_IMPL(artkernels, Autograd, m) { m.impl("reparameterize_kl", &reparameterize_kl_autograd); }

}  // namespace artkernels
