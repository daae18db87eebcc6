"""The compiled ops without the dispatcher: no autograd, no autocast. See artkernels.ops for what they compute."""

from torch import Tensor

def build_info() -> dict[str, str | None]: ...
def use_pooled_allocator(max_bytes: int) -> None: ...
def release_pooled_memory() -> int: ...
def pooled_allocator_is_on() -> bool: ...
def pooled_allocator_statistics() -> dict[str, int]: ...
def gram_matrix(input: Tensor, normalize: str | None) -> Tensor: ...
def gram_matrix_backward(grad_output: Tensor, input: Tensor, normalize: str | None) -> Tensor: ...
def gram_mse_loss(
    input: Tensor, target: Tensor, normalize: str | None, needs_residual: bool
) -> tuple[Tensor, Tensor]: ...
def gram_mse_loss_backward(grad_loss: Tensor, residual: Tensor, input: Tensor, normalize: str | None) -> Tensor: ...
def feature_statistics(input: Tensor, groups: int, across_batch: bool, correction: float) -> tuple[Tensor, Tensor]: ...
def norm_act(
    input: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    residual: Tensor | None,
    mean: Tensor | None,
    var: Tensor | None,
    groups: int,
    across_batch: bool,
    eps: float,
    alpha: float,
    correction: float,
    activation: str,
    negative_slope: float,
    residual_after: bool,
) -> tuple[Tensor, Tensor, Tensor]: ...
def norm_act_backward(
    grad_output: Tensor,
    input: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    residual: Tensor | None,
    mean: Tensor,
    var: Tensor,
    averages: Tensor | None,
    statistics_given: bool,
    groups: int,
    across_batch: bool,
    eps: float,
    alpha: float,
    correction: float,
    activation: str,
    negative_slope: float,
    output_mask: tuple[bool, bool, bool],
) -> tuple[Tensor, Tensor, Tensor]: ...
