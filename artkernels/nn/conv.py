"""Modules of convolution + normalisation + activation: the layers of torch.nn with what follows them."""

from typing import Any, Literal, get_args

from torch import Tensor, nn

from ..ops.conv import conv2d_act, conv2d_norm_act
from ..ops.conv_transpose import conv_transpose2d_act, conv_transpose2d_norm_act
from ..ops.norm_act import Activation
from ..reference import activate
from .norm_act import BatchNormAct2d, InstanceNormAct2d

__all__ = ["ConvNormAct2d", "ConvTransposeNormAct2d"]

Norm = Literal["batch", "instance", "none"]


class _ConvNormAct(nn.Module):
    """activation(norm(conv(input))), of a stock convolution and a normalisation that keep their parameters."""

    conv: Any  # nn.Conv2d or nn.ConvTranspose2d, whose annotations are wider than the functions'
    norm: BatchNormAct2d | InstanceNormAct2d | None

    def __init__(
        self,
        conv: nn.Conv2d | nn.ConvTranspose2d,
        *,
        norm: Norm = "batch",
        activation: Activation = "relu",
        negative_slope: float = 0.01,
        eps: float = 1e-5,
        momentum: float | None = 0.1,
        affine: bool | None = None,
        track_running_stats: bool | None = None,
    ) -> None:
        super().__init__()
        name = type(self).__name__
        if norm not in get_args(Norm):
            raise ValueError(f"{name}: norm must be {', '.join(get_args(Norm))}, got {norm}")
        if activation not in get_args(Activation):
            raise ValueError(f"{name}: activation must be {', '.join(get_args(Activation))}, got {activation}")
        if conv.padding_mode not in ("zeros", "reflect"):
            raise ValueError(f"{name}: padding_mode must be zeros or reflect, got {conv.padding_mode}")
        self.conv = conv
        self.norm = None
        if norm != "none":
            layer, default = (BatchNormAct2d, True) if norm == "batch" else (InstanceNormAct2d, False)
            affine, track = (default if given is None else given for given in (affine, track_running_stats))
            weight = conv.weight
            self.norm = layer(conv.out_channels, eps, momentum, affine, track, device=weight.device, dtype=weight.dtype)
        self.activation: Activation = activation
        self.negative_slope = negative_slope

    def _runs_apart(self) -> bool:
        """Whether something wants conv or norm called: a hook (torch.nn.utils.spectral_norm's) or a process group."""
        shared = isinstance(self.norm, BatchNormAct2d) and self.norm.process_group is not None
        return shared or any(map(_has_hooks, filter(None, (self.conv, self.norm))))

    def _follow(self) -> dict[str, Any]:
        """The keyword arguments of the function that this layer is."""
        after = {"activation": self.activation, "negative_slope": self.negative_slope}
        if self.norm is None:
            return after
        running_mean, running_var, training, momentum = self.norm.statistics()
        return after | {
            "norm": "batch" if isinstance(self.norm, BatchNormAct2d) else "instance",
            "running_mean": running_mean,
            "running_var": running_var,
            "norm_weight": self.norm.weight,
            "norm_bias": self.norm.bias,
            "training": training,
            "momentum": momentum,
            "eps": self.norm.eps,
        }

    def _apart(self, *args: Any) -> Tensor:
        z = self.conv(*args)
        return activate(z if self.norm is None else self.norm(z), self.activation, self.negative_slope)

    def extra_repr(self) -> str:
        slope = f", negative_slope={self.negative_slope}" if self.activation == "leaky_relu" else ""
        return f"activation={self.activation}{slope}"


def _has_hooks(module: nn.Module) -> bool:
    hooks = module._forward_pre_hooks, module._forward_hooks, module._backward_pre_hooks, module._backward_hooks
    return any(map(bool, hooks))


class ConvTransposeNormAct2d(_ConvNormAct):
    """activation(norm(torch.nn.ConvTranspose2d(...)(input))) as one layer: DCGAN's (Radford et al. 2015).

    Args:
        in_channels, out_channels, kernel_size, stride, padding, output_padding, groups, bias, dilation, padding_mode,
            device, dtype: those of torch.nn.ConvTranspose2d, with its defaults.
        norm: batch, instance (Ulyanov et al. 2016) or none.
        activation: none, relu, leaky_relu (with `negative_slope`), tanh, sigmoid, silu, or gelu (the exact one).
        eps, momentum, affine, track_running_stats: the normalisation's. None is torch's default: True for
            torch.nn.BatchNorm2d, False for torch.nn.InstanceNorm2d.

    Its `conv` is a torch.nn.ConvTranspose2d, its `norm` a BatchNormAct2d or an InstanceNormAct2d: the state_dict has
    conv.weight, conv.bias, norm.weight, norm.bias, norm.running_mean and so on.

    Shape:
        input [N, C, H, W] -> [N, K, OH, OW], or of the size forward's output_size asks for, as in
        torch.nn.ConvTranspose2d; channels_last where the input or the weight is; float32, float16, bfloat16 or float64,
        with a normalisation of any floating point dtype.

    Raises:
        ValueError: unknown norm, activation or padding_mode; one value a channel in training.
        RuntimeError: input of other dimensions, channels or dtype.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | tuple[int, int],
        stride: int | tuple[int, int] = 1,
        padding: int | tuple[int, int] = 0,
        output_padding: int | tuple[int, int] = 0,
        groups: int = 1,
        bias: bool = True,
        dilation: int | tuple[int, int] = 1,
        padding_mode: Literal["zeros"] = "zeros",
        device: Any = None,
        dtype: Any = None,
        **follow: Any,
    ) -> None:
        window = (kernel_size, stride, padding, output_padding)
        conv = nn.ConvTranspose2d(
            in_channels, out_channels, *window, groups, bias, dilation, padding_mode, device=device, dtype=dtype
        )
        super().__init__(conv, **follow)

    def forward(self, input: Tensor, output_size: list[int] | None = None) -> Tensor:
        if self._runs_apart():
            return self._apart(input, output_size)
        conv = self.conv
        output_padding = conv.output_padding
        if output_size is not None:
            geometry = (conv.stride, conv.padding, conv.kernel_size)
            output_padding = conv._output_padding(input, output_size, *geometry, 2, conv.dilation)
        function = conv_transpose2d_act if self.norm is None else conv_transpose2d_norm_act
        window = (conv.stride, conv.padding, output_padding, conv.groups, conv.dilation)
        return function(input, conv.weight, conv.bias, *window, **self._follow())


class ConvNormAct2d(_ConvNormAct):
    """activation(norm(torch.nn.Conv2d(...)(input))) as one layer.

    Args:
        in_channels, out_channels, kernel_size, stride, padding, dilation, groups, bias, padding_mode, device, dtype:
            those of torch.nn.Conv2d, with its defaults; padding_mode is zeros or reflect.
        norm, activation, negative_slope, eps, momentum, affine, track_running_stats: those of ConvTransposeNormAct2d.

    Its `conv` is a torch.nn.Conv2d; the rest of the state_dict is that of ConvTransposeNormAct2d.

    Shape:
        input [N, C, H, W] -> [N, K, OH, OW]; the rest as in ConvTransposeNormAct2d.

    Raises:
        As ConvTransposeNormAct2d.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | tuple[int, int],
        stride: int | tuple[int, int] = 1,
        padding: int | tuple[int, int] | Literal["same", "valid"] = 0,
        dilation: int | tuple[int, int] = 1,
        groups: int = 1,
        bias: bool = True,
        padding_mode: Literal["zeros", "reflect"] = "zeros",
        device: Any = None,
        dtype: Any = None,
        **follow: Any,
    ) -> None:
        window = (kernel_size, stride, padding, dilation)
        conv = nn.Conv2d(in_channels, out_channels, *window, groups, bias, padding_mode, device=device, dtype=dtype)
        super().__init__(conv, **follow)

    def forward(self, input: Tensor) -> Tensor:
        if self._runs_apart():
            return self._apart(input)
        conv = self.conv
        function = conv2d_act if self.norm is None else conv2d_norm_act
        window = (conv.stride, conv.padding, conv.dilation, conv.groups)
        more = self._follow() | {"padding_mode": conv.padding_mode}
        return function(input, conv.weight, conv.bias, *window, **more)
