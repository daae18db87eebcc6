// The schemas of the ops, their registration for CPU and CUDA tensors, and the pybind11 module artkernels._C.
#include <torch/csrc/utils/pybind.h>
#include <torch/library.h>
#include <torch/version.h>

#include "cpu/isa.h"
#include "ops/gram.h"
#include "ops/norm_act.h"
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
      "bool residual_after) -> (Tensor output, Tensor mean, Tensor var)");
  m.def(
      "norm_act_backward(Tensor grad_output, Tensor input, Tensor? weight, Tensor? bias, Tensor? residual, "
      "Tensor mean, Tensor var, Tensor? averages, bool statistics_given, int groups, bool across_batch, float eps, "
      "float alpha, float correction, str activation, float negative_slope, bool[3] output_mask) "
      "-> (Tensor grad_input, Tensor sums, Tensor grad_residual)");
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

PYBIND11_MODULE(_C, m) {
  namespace py = pybind11;
  m.def("build_info", &build_info);
  // Unmapping takes the system long: other Python threads go on meanwhile.
  m.def("use_pooled_allocator", &use_pooled_allocator, py::arg("max_bytes"), py::call_guard<py::gil_scoped_release>());
  m.def("release_pooled_memory", &release_pooled_memory, py::call_guard<py::gil_scoped_release>());
  m.def("pooled_allocator_is_on", &pooled_allocator_is_on);
  m.def("pooled_allocator_statistics", &allocator_statistics);
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
        py::arg("correction"), py::arg("activation"), py::arg("negative_slope"), py::arg("residual_after"));
  m.def("norm_act_backward", &norm_act_backward, py::arg("grad_output"), py::arg("input"), py::arg("weight"),
        py::arg("bias"), py::arg("residual"), py::arg("mean"), py::arg("var"), py::arg("averages"),
        py::arg("statistics_given"), py::arg("groups"), py::arg("across_batch"), py::arg("eps"), py::arg("alpha"),
        py::arg("correction"), py::arg("activation"), py::arg("negative_slope"), py::arg("output_mask"));
}
