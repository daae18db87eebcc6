"""Modules of normalisation + residual + activation: the layers of torch.nn with what follows them."""

from copy import deepcopy
from typing import TYPE_CHECKING, Any, get_args

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.instancenorm import _InstanceNorm

from ..ops.feature_statistics import feature_statistics
from ..ops.norm_act import Activation, adaptive_instance_norm, batch_norm_act, group_norm_act, instance_norm_act

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

__all__ = [
    "AdaIN2d",
    "BatchNormAct1d",
    "BatchNormAct2d",
    "BatchNormAct3d",
    "GroupNormAct2d",
    "InstanceNormAct1d",
    "InstanceNormAct2d",
    "InstanceNormAct3d",
]


class _NormAct(nn.Module):
    """A normalisation of torch.nn, its arguments untouched, and keyword-only ones for what comes after it."""

    def __init__(
        self,
        *args: Any,
        activation: Activation = "none",
        negative_slope: float = 0.01,
        residual_after: bool = False,
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        if activation not in get_args(Activation):
            raise ValueError(
                f"{type(self).__name__}: activation must be {', '.join(get_args(Activation))}, got {activation}"
            )
        self.activation: Activation = activation
        self.negative_slope = negative_slope
        self.residual_after = residual_after

    def _after(self, residual: Tensor | None) -> dict[str, Any]:
        return {
            "activation": self.activation,
            "negative_slope": self.negative_slope,
            "residual": residual,
            "residual_after": self.residual_after,
        }

    def extra_repr(self) -> str:
        parts = [super().extra_repr(), f"activation={self.activation}"]
        if self.activation == "leaky_relu":
            parts.append(f"negative_slope={self.negative_slope}")
        if self.residual_after:
            parts.append("residual_after=True")
        return ", ".join(filter(None, parts))


# Not torch's _BatchNorm: torch.nn.SyncBatchNorm.convert_sync_batchnorm replaces every instance of that by a
# SyncBatchNorm, and the activation would be gone without a word. process_group does here what it converts for. The
# price: torch.optim.swa_utils.update_bn looks for _BatchNorm too, and passes over these.
class _BatchNormAct(_NormAct, _NormBase):
    def __init__(self, *args: Any, process_group: "ProcessGroup | None" = None, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.process_group = process_group

    def __deepcopy__(self, memo: dict[int, Any]) -> "_BatchNormAct":
        # For averaged copies of a model in training: a group cannot be copied, and the copy belongs to the same one.
        copy = self.__new__(type(self))
        memo |= {id(self): copy, id(self.process_group): self.process_group}
        copy.__dict__.update(deepcopy(self.__dict__, memo))
        return copy

    def statistics(self) -> tuple[Tensor | None, Tensor | None, bool, float]:
        """running_mean, running_var, training and momentum of this call, which is counted."""
        momentum = 0.0 if self.momentum is None else self.momentum
        if self.training and self.track_running_stats and self.num_batches_tracked is not None:
            self.num_batches_tracked.add_(1)
            if self.momentum is None:  # the average of all batches so far
                momentum = 1.0 / float(self.num_batches_tracked)
        uses_running = not self.training or self.track_running_stats
        running_mean, running_var = (self.running_mean, self.running_var) if uses_running else (None, None)
        training = self.training or (running_mean is None and running_var is None)
        return running_mean, running_var, training, momentum

    def forward(self, input: Tensor, residual: Tensor | None = None) -> Tensor:
        self._check_input_dim(input)  # type: ignore[no-untyped-call]
        running_mean, running_var, training, momentum = self.statistics()
        return batch_norm_act(
            input,
            running_mean,
            running_var,
            self.weight,
            self.bias,
            training,
            momentum,
            self.eps,
            process_group=self.process_group if self.training else None,
            **self._after(residual),
        )


class BatchNormAct1d(_BatchNormAct):
    """activation(torch.nn.BatchNorm1d(...)(input) + residual); the rest as in BatchNormAct2d.

    Shape:
        input [N, C] or [N, C, L] -> the same.
    """

    _check_input_dim = nn.BatchNorm1d._check_input_dim


class BatchNormAct2d(_BatchNormAct):
    """activation(torch.nn.BatchNorm2d(...)(input) + residual) as one operation (Ioffe and Szegedy 2015).

    Args:
        num_features, eps, momentum, affine, track_running_stats, device, dtype, *, bias: those of torch.nn.BatchNorm2d,
            with its defaults and its state_dict: either loads the other's.
        activation: none, relu, leaky_relu (with `negative_slope`), tanh, sigmoid, silu, or gelu (the exact one).
        residual_after: forward's `residual` is added after the activation, not before it.
        process_group: in training, the batch is that of all processes of this group together, as in
            torch.nn.SyncBatchNorm, on CPUs too; torch.distributed.group.WORLD, once init_process_group was called, is
            all of them. None: this process's own.

    Shape:
        input [N, C, H, W], residual of the same shape or None -> the same, in the input's layout; float32, float16,
        bfloat16 or float64, with parameters of any floating point dtype.

    Raises:
        ValueError: unknown activation, input of other dimensions, one value a channel in training.
        RuntimeError: input without num_features channels, residual of another shape.

    It is no instance of torch.nn.BatchNorm2d, and torch.nn.SyncBatchNorm.convert_sync_batchnorm leaves it as it is.
    """

    _check_input_dim = nn.BatchNorm2d._check_input_dim


class BatchNormAct3d(_BatchNormAct):
    """activation(torch.nn.BatchNorm3d(...)(input) + residual); the rest as in BatchNormAct2d.

    Shape:
        input [N, C, D, H, W] -> the same.
    """

    _check_input_dim = nn.BatchNorm3d._check_input_dim


class _InstanceNormAct(_NormAct, _InstanceNorm):
    def statistics(self) -> tuple[Tensor | None, Tensor | None, bool, float]:
        """running_mean, running_var, use_input_stats and momentum of a call."""
        momentum = 0.0 if self.momentum is None else self.momentum
        return self.running_mean, self.running_var, self.training or not self.track_running_stats, momentum

    def forward(self, input: Tensor, residual: Tensor | None = None) -> Tensor:
        self._check_input_dim(input)  # type: ignore[no-untyped-call]
        if input.dim() == self._get_no_batch_dim():  # type: ignore[no-untyped-call]
            return self.forward(input.unsqueeze(0), None if residual is None else residual.unsqueeze(0)).squeeze(0)
        if input.shape[1] != self.num_features and (self.affine or self.track_running_stats):
            raise ValueError(
                f"{type(self).__name__}: input must have {self.num_features} channels, got {input.shape[1]}"
            )
        running_mean, running_var, use_input_stats, momentum = self.statistics()
        return instance_norm_act(
            input,
            running_mean,
            running_var,
            self.weight,
            self.bias,
            use_input_stats,
            momentum,
            self.eps,
            **self._after(residual),
        )


class InstanceNormAct1d(_InstanceNormAct, nn.InstanceNorm1d):
    """activation(torch.nn.InstanceNorm1d(...)(input) + residual); the rest as in InstanceNormAct2d.

    Shape:
        input [N, C, L] or [C, L] -> the same.
    """


class InstanceNormAct2d(_InstanceNormAct, nn.InstanceNorm2d):
    """activation(torch.nn.InstanceNorm2d(...)(input) + residual) as one operation (Ulyanov et al. 2016).

    Args:
        num_features, eps, momentum, affine, track_running_stats, device, dtype, *, bias: those of
            torch.nn.InstanceNorm2d, with its defaults (no parameters, no running statistics) and its state_dict:
            either loads the other's. num_features means nothing without parameters and running statistics.
        activation, negative_slope, residual_after: those of BatchNormAct2d.

    Shape:
        input [N, C, H, W] or [C, H, W], residual of the same shape or None -> the same, in the input's layout; dtypes
        as in BatchNormAct2d.

    Raises:
        ValueError: unknown activation, input of other dimensions or channels, one pixel an image where its statistics
            are wanted.
        RuntimeError: residual of another shape.
    """


class InstanceNormAct3d(_InstanceNormAct, nn.InstanceNorm3d):
    """activation(torch.nn.InstanceNorm3d(...)(input) + residual); the rest as in InstanceNormAct2d.

    Shape:
        input [N, C, D, H, W] or [C, D, H, W] -> the same.
    """


class GroupNormAct2d(_NormAct, nn.GroupNorm):
    """activation(torch.nn.GroupNorm(...)(input) + residual) as one operation (Wu and He 2018).

    Args:
        num_groups, num_channels, eps, affine, device, dtype, *, bias: those of torch.nn.GroupNorm, with its defaults
            and its state_dict: either loads the other's.
        activation, negative_slope, residual_after: those of BatchNormAct2d.

    Shape:
        input [N, C, ...], with any number of spatial dimensions, residual of the same shape or None -> the same, in the
        input's layout; dtypes as in BatchNormAct2d.

    Raises:
        ValueError: unknown activation, num_groups does not divide num_channels, one value in all.
        RuntimeError: input without num_channels channels, residual of another shape.
    """

    def forward(self, input: Tensor, residual: Tensor | None = None) -> Tensor:
        return group_norm_act(input, self.num_groups, self.weight, self.bias, self.eps, **self._after(residual))


class AdaIN2d(_NormAct):
    """Gives the content's channels the style's mean and standard deviation (Huang and Belongie 2017); no parameters.

    Args:
        eps: added to both variances, before the square roots.
        unbiased: both variances' divisor is the number of pixels less one, as in the paper's code and its ports.
        activation, negative_slope, residual_after: those of BatchNormAct2d.

    Shape:
        content [N, C, H, W], style [N, C, H', W'] or [1, C, H', W'], one for all -> as the content, in its layout;
        alpha is the strength of the style, from 0 (the content as it is) to 1. Dtypes as in BatchNormAct2d; the style's
        may be another one. Differentiable in both.

    Raises:
        ValueError: unknown activation; content or style of other dimensions, batch or channels.
    """

    def __init__(self, eps: float = 1e-5, *, unbiased: bool = True, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.eps = eps
        self.unbiased = unbiased

    def forward(self, content: Tensor, style: Tensor, alpha: float = 1.0, residual: Tensor | None = None) -> Tensor:
        if content.dim() != 4:
            raise ValueError(f"AdaIN2d: content must be [N, C, H, W], got {list(content.shape)}")
        N, C = content.shape[:2]
        if style.dim() != 4 or style.shape[0] not in (1, N) or style.shape[1] != C:
            raise ValueError(f"AdaIN2d: style must be [{N} or 1, {C}, H, W], got {list(style.shape)}")
        mean, var = feature_statistics(style, unbiased=self.unbiased)
        std = (var + self.eps).sqrt()
        return adaptive_instance_norm(
            content, mean, std, alpha, self.eps, unbiased=self.unbiased, **self._after(residual)
        )

    def extra_repr(self) -> str:
        return f"eps={self.eps}, unbiased={self.unbiased}, {super().extra_repr()}"
