"""The compiled ops without the dispatcher: no autograd, no autocast. See artkernels.ops for what they compute."""

from collections.abc import Callable

from torch import Tensor

def build_info() -> dict[str, str | None]: ...
def use_pooled_allocator(max_bytes: int) -> None: ...
def release_pooled_memory() -> int: ...
def pooled_allocator_is_on() -> bool: ...
def pooled_allocator_statistics() -> dict[str, int]: ...
def clear_packed_weights() -> None: ...
def limit_packed_weights(max_bytes: int) -> None: ...
def packed_weight_statistics() -> dict[str, int]: ...
def packed_weight(weight: Tensor, key: list[int], pack: Callable[[], Tensor]) -> Tensor: ...

class TuningKey:
    def __init__(self, op: str, problem: str, device: str) -> None: ...

class Tuner:
    def __init__(self, file: str, versions: str) -> None: ...
    def choose(
        self, key: TuningKey, candidates: int, fixed_rule: int, capturing: bool, milliseconds: Callable[[int], float]
    ) -> int: ...

def autotune(
    key: TuningKey, candidates: int, fixed_rule: int, capturing: bool, milliseconds: Callable[[int], float]
) -> int: ...
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
    statistics_of_input: bool = False,
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
def conv_transpose2d_act(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    scale: Tensor | None,
    stride: tuple[int, int],
    padding: tuple[int, int],
    output_padding: tuple[int, int],
    groups: int,
    dilation: tuple[int, int],
    activation: str,
    negative_slope: float,
    statistics: str,
) -> tuple[Tensor, Tensor, Tensor]: ...
def conv2d_act(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    scale: Tensor | None,
    stride: tuple[int, int],
    padding: tuple[int, int],
    dilation: tuple[int, int],
    groups: int,
    reflect: bool,
    activation: str,
    negative_slope: float,
    statistics: str,
) -> tuple[Tensor, Tensor, Tensor]: ...
def conv2d_weight_grad(
    input: Tensor,
    grad_output: Tensor,
    kernel_size: tuple[int, int],
    stride: tuple[int, int],
    padding: tuple[int, int],
    dilation: tuple[int, int],
    groups: int,
) -> Tensor: ...
def conv_backward(
    grad_output: Tensor,
    output: Tensor | None,
    input: Tensor,
    weight: Tensor,
    stride: tuple[int, int],
    padding: tuple[int, int],
    dilation: tuple[int, int],
    groups: int,
    transposed: bool,
    activation: str,
    negative_slope: float,
    output_mask: tuple[bool, bool, bool],
) -> tuple[Tensor, Tensor, Tensor]: ...
def reparameterize_kl(mean: Tensor, logvar: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]: ...
def reparameterize_kl_backward(
    grad_codes: Tensor | None,
    grad_kl: Tensor | None,
    mean: Tensor,
    logvar: Tensor,
    noise: Tensor,
    output_mask: tuple[bool, bool, bool],
) -> tuple[Tensor, Tensor, Tensor]: ...
