// The schemas of the ops, their registration for CPU and CUDA tensors, and the pybind11 module artkernels._C.
#include <pybind11/functional.h>
#include <torch/csrc/utils/pybind.h>
#include <torch/library.h>
#include <torch/version.h>

#include "autotune.h"
#include "cpu/isa.h"
#include "ops/conv.h"
#include "ops/conv_backward.h"
#include "ops/conv_transpose.h"
#include "ops/conv_weight_grad.h"
#include "ops/gram.h"
#include "ops/norm_act.h"
#include "ops/reparameterize_kl.h"
#include "packed_weights.h"
#include "pooled_allocator.h"

using namespace artkernels;

TORCH_LIBRARY(artkernels, m) {
  m.def("gram_matrix(Tensor input, str? normalize) -> Tensor");
  m.def("gram_matrix_backward(Tensor grad_output, Tensor input, str? normalize) -> Tensor");
  m.def("gram_mse_loss(Tensor input, Tensor target, str? normalize, bool needs_residual) -> (Tensor, Tensor)");
  m.def("gram_mse_loss_backward(Tensor grad_loss, Tensor residual, Tensor input, str? normalize) -> Tensor");
  m.def(
      "feature_statistics(Tensor input, int groups, bool across_batch, float correction) -> (Tensor mean, Tensor var)");
  m.def(
      "norm_act(Tensor input, Tensor? weight, Tensor? bias, Tensor? residual, Tensor? mean, Tensor? var, int groups, "
      "bool across_batch, float eps, float alpha, float correction, str activation, float negative_slope, "
      "bool residual_after, bool statistics_of_input=False) -> (Tensor output, Tensor mean, Tensor var)");
  m.def(
      "norm_act_backward(Tensor grad_output, Tensor input, Tensor? weight, Tensor? bias, Tensor? residual, "
      "Tensor mean, Tensor var, Tensor? averages, bool statistics_given, int groups, bool across_batch, float eps, "
      "float alpha, float correction, str activation, float negative_slope, bool[3] output_mask) "
      "-> (Tensor grad_input, Tensor sums, Tensor grad_residual)");
  m.def(
      "conv_transpose2d_act(Tensor input, Tensor weight, Tensor? bias, Tensor? scale, SymInt[2] stride, "
      "SymInt[2] padding, SymInt[2] output_padding, SymInt groups, SymInt[2] dilation, str activation, "
      "float negative_slope, str statistics) -> (Tensor output, Tensor mean, Tensor var)");
  m.def(
      "conv2d_act(Tensor input, Tensor weight, Tensor? bias, Tensor? scale, SymInt[2] stride, SymInt[2] padding, "
      "SymInt[2] dilation, SymInt groups, bool reflect, str activation, float negative_slope, str statistics) "
      "-> (Tensor output, Tensor mean, Tensor var)");
  m.def(
      "conv2d_weight_grad(Tensor input, Tensor grad_output, SymInt[2] kernel_size, SymInt[2] stride, "
      "SymInt[2] padding, SymInt[2] dilation, SymInt groups) -> Tensor");
  m.def(
      "conv_backward(Tensor grad_output, Tensor? output, Tensor input, Tensor weight, SymInt[2] stride, "
      "SymInt[2] padding, SymInt[2] dilation, SymInt groups, bool transposed, str activation, float negative_slope, "
      "bool[3] output_mask) -> (Tensor grad_input, Tensor grad_weight, Tensor grad_bias)");
  m.def("reparameterize_kl(Tensor mean, Tensor logvar, Tensor noise) -> (Tensor codes, Tensor kl)");
  m.def(
      "reparameterize_kl_backward(Tensor? grad_codes, Tensor? grad_kl, Tensor mean, Tensor logvar, Tensor noise, "
      "bool[3] output_mask) -> (Tensor grad_mean, Tensor grad_logvar, Tensor grad_noise)");
}

// One host function serves both devices: it picks the kernel by the tensor.
static void register_kernels(torch::Library& m) {
  m.impl("gram_matrix", &gram_matrix);
  m.impl("gram_matrix_backward", &gram_matrix_backward);
  m.impl("gram_mse_loss", &gram_mse_loss);
  m.impl("gram_mse_loss_backward", &gram_mse_loss_backward);
  m.impl("feature_statistics", &feature_statistics);
  m.impl("norm_act", &norm_act);
  m.impl("norm_act_backward", &norm_act_backward);
  m.impl("conv_transpose2d_act", &conv_transpose2d_act);
  m.impl("conv2d_act", &conv2d_act);
  m.impl("conv2d_weight_grad", &conv2d_weight_grad);
  m.impl("conv_backward", &conv_backward);
  m.impl("reparameterize_kl", &reparameterize_kl);
  m.impl("reparameterize_kl_backward", &reparameterize_kl_backward);
}
TORCH_LIBRARY_IMPL(artkernels, CPU, m) { register_kernels(m); }
TORCH_LIBRARY_IMPL(artkernels, CUDA, m) { register_kernels(m); }

static pybind11::dict build_info() {
  pybind11::dict info;
  info["torch"] = TORCH_VERSION;
  info["compiler"] = __VERSION__;
  info["cpu_instruction_set"] = cpu::name(cpu::isa());
#if defined(ARTKERNELS_CUDA_EMULATED)
  info["cuda"] = "emulated";
#elif defined(ARTKERNELS_CUDA)
  info["cuda"] = "native";
#else
  info["cuda"] = pybind11::none();
#endif
  return info;
}

static pybind11::dict allocator_statistics() {
  const BlockPool::Statistics statistics = pooled_allocator_statistics();
  pybind11::dict values;
  values["max_bytes"] = statistics.max_bytes;
  values["bytes_in_use"] = statistics.bytes_in_use;
  values["bytes_kept"] = statistics.bytes_kept;
  values["peak_bytes"] = statistics.peak_bytes;
  values["hits"] = statistics.hits;
  values["misses"] = statistics.misses;
  values["released"] = statistics.released;
  return values;
}

static pybind11::dict packings_statistics() {
  const PackedWeightStatistics statistics = packed_weight_statistics();
  pybind11::dict values;
  values["max_bytes"] = statistics.max_bytes;
  values["bytes"] = statistics.bytes;
  values["entries"] = statistics.entries;
  values["hits"] = statistics.hits;
  values["misses"] = statistics.misses;
  return values;
}

PYBIND11_MODULE(_C, m) {
  namespace py = pybind11;
  m.def("build_info", &build_info);
  // Unmapping takes the system long: other Python threads go on meanwhile.
  m.def("use_pooled_allocator", &use_pooled_allocator, py::arg("max_bytes"), py::call_guard<py::gil_scoped_release>());
  m.def("release_pooled_memory", &release_pooled_memory, py::call_guard<py::gil_scoped_release>());
  m.def("pooled_allocator_is_on", &pooled_allocator_is_on);
  m.def("pooled_allocator_statistics", &allocator_statistics);
  m.def("clear_packed_weights", &clear_packed_weights, py::call_guard<py::gil_scoped_release>());
  m.def("limit_packed_weights", &limit_packed_weights, py::arg("max_bytes"), py::call_guard<py::gil_scoped_release>());
  m.def("packed_weight_statistics", &packings_statistics);
  // With Python functions, for tests; pybind11 takes the GIL for each call of one.
  m.def("packed_weight", &packed_weight, py::arg("weight"), py::arg("key"), py::arg("pack"),
        py::call_guard<py::gil_scoped_release>());
  py::class_<TuningKey>(m, "TuningKey")
      .def(py::init<std::string, std::string, std::string>(), py::arg("op"), py::arg("problem"), py::arg("device"));
  py::class_<Tuner>(m, "Tuner")
      .def(py::init<std::string, std::string>(), py::arg("file"), py::arg("versions"))
      .def("choose", &Tuner::choose, py::arg("key"), py::arg("candidates"), py::arg("fixed_rule"), py::arg("capturing"),
           py::arg("milliseconds"), py::call_guard<py::gil_scoped_release>());
  m.def("autotune", &autotune, py::arg("key"), py::arg("candidates"), py::arg("fixed_rule"), py::arg("capturing"),
        py::arg("milliseconds"), py::call_guard<py::gil_scoped_release>());
  // The ops without the dispatcher: no autograd, no autocast.
  m.def("gram_matrix", &gram_matrix, py::arg("input"), py::arg("normalize"));
  m.def("gram_matrix_backward", &gram_matrix_backward, py::arg("grad_output"), py::arg("input"), py::arg("normalize"));
  m.def("gram_mse_loss", &gram_mse_loss, py::arg("input"), py::arg("target"), py::arg("normalize"),
        py::arg("needs_residual"));
  m.def("gram_mse_loss_backward", &gram_mse_loss_backward, py::arg("grad_loss"), py::arg("residual"), py::arg("input"),
        py::arg("normalize"));
  m.def("feature_statistics", &feature_statistics, py::arg("input"), py::arg("groups"), py::arg("across_batch"),
        py::arg("correction"));
  m.def("norm_act", &norm_act, py::arg("input"), py::arg("weight"), py::arg("bias"), py::arg("residual"),
        py::arg("mean"), py::arg("var"), py::arg("groups"), py::arg("across_batch"), py::arg("eps"), py::arg("alpha"),
        py::arg("correction"), py::arg("activation"), py::arg("negative_slope"), py::arg("residual_after"),
        py::arg("statistics_of_input") = false);
  m.def("norm_act_backward", &norm_act_backward, py::arg("grad_output"), py::arg("input"), py::arg("weight"),
        py::arg("bias"), py::arg("residual"), py::arg("mean"), py::arg("var"), py::arg("averages"),
        py::arg("statistics_given"), py::arg("groups"), py::arg("across_batch"), py::arg("eps"), py::arg("alpha"),
        py::arg("correction"), py::arg("activation"), py::arg("negative_slope"), py::arg("output_mask"));
  m.def("conv_transpose2d_act", &conv_transpose2d_act, py::arg("input"), py::arg("weight"), py::arg("bias"),
        py::arg("scale"), py::arg("stride"), py::arg("padding"), py::arg("output_padding"), py::arg("groups"),
        py::arg("dilation"), py::arg("activation"), py::arg("negative_slope"), py::arg("statistics"));
  m.def("conv2d_act", &conv2d_act, py::arg("input"), py::arg("weight"), py::arg("bias"), py::arg("scale"),
        py::arg("stride"), py::arg("padding"), py::arg("dilation"), py::arg("groups"), py::arg("reflect"),
        py::arg("activation"), py::arg("negative_slope"), py::arg("statistics"));
  m.def("conv2d_weight_grad", &conv2d_weight_grad, py::arg("input"), py::arg("grad_output"), py::arg("kernel_size"),
        py::arg("stride"), py::arg("padding"), py::arg("dilation"), py::arg("groups"));
  m.def("conv_backward", &conv_backward, py::arg("grad_output"), py::arg("output"), py::arg("input"), py::arg("weight"),
        py::arg("stride"), py::arg("padding"), py::arg("dilation"), py::arg("groups"), py::arg("transposed"),
        py::arg("activation"), py::arg("negative_slope"), py::arg("output_mask"));
  m.def("reparameterize_kl", &reparameterize_kl, py::arg("mean"), py::arg("logvar"), py::arg("noise"));
  m.def("reparameterize_kl_backward", &reparameterize_kl_backward, py::arg("grad_codes"), py::arg("grad_kl"),
        py::arg("mean"), py::arg("logvar"), py::arg("noise"), py::arg("output_mask"));
}
