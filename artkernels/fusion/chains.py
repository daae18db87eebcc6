"""A chain of layers that one fused operation computes, with the parameters of the layers themselves."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad

from .. import _C, functional
from ..nn.conv import _has_hooks
from ..nn.norm_act import BatchNormAct2d, InstanceNormAct2d
from ..ops._conv import pair
from .links import Link, Role
from .upsample import doubled_weight, replicated

__all__ = ["Chain", "autocasts", "is_narrow", "unsupported"]

Modules = Sequence[Any]  # the layer of each link, None where it is a call of a function
Names = tuple[str, ...]

_DTYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16)
_DEVICES = ("cpu", "meta") if _C.build_info()["cuda"] is None else ("cpu", "meta", "cuda")


@dataclass(frozen=True)
class _Plan:
    """What the settings of a chain's layers decide, whatever their parameters and the input are.

    Attributes:
        obstacle: why such layers cannot be computed as one.
        padding, mode: of the convolution, with that of a layer before it.
        window: the arguments of the convolution after its bias.
        follow: keyword arguments that say what follows.
    """

    obstacle: str | None
    padding: Any = 0
    mode: str = "zeros"
    window: tuple[Any, ...] = ()
    follow: dict[str, Any] = field(default_factory=dict)


@dataclass(eq=False)
class Chain:
    """[upsampling] [padding] convolution [norm] [residual] [activation], or a norm and what follows it.

    It holds no layer: each call is given those that the model has at the time, so that what happens to them (a loaded
    state_dict, an optimizer's step, `.to`, a layer replaced) needs nothing else. What follows from their settings is
    kept from one call to the next, with the settings.
    """

    links: tuple[Link, ...]
    __name__: str = field(init=False)  # of the fused function in artkernels.functional
    _places: dict[Role, int] = field(init=False, repr=False)
    _last: tuple[list[Any], _Plan] | None = field(init=False, repr=False, default=None)

    def __post_init__(self) -> None:
        self._places = {link.role: i for i, link in enumerate(self.links)}
        conv, norm = (link.kind if link else "" for link in (self._link("conv"), self._link("norm")))
        kind = "conv_transpose2d" if "upsample" in self._places else conv or norm
        self.__name__ = f"{kind}_norm_act" if norm else f"{kind}_act"

    def __call__(self, input: Tensor, residual: Tensor | None, *modules: nn.Module | None) -> Tensor:
        plan = self._plan(modules)
        if plan.obstacle is not None or self._misfit(plan, input, residual, modules) is not None:
            return self.stock(input, residual, *modules)
        return self._fused(plan, input, residual, modules)

    def _link(self, role: Role) -> Link | None:
        return self.links[self._places[role]] if role in self._places else None

    def _layer(self, role: Role, modules: Modules) -> Any:
        return modules[self._places[role]] if role in self._places else None

    def layers(self, prefix: str, input: Tensor, residual: Tensor | None, *modules: nn.Module | None) -> Names:
        """The names of its layers, those of a module called `prefix`, and of its functions."""
        named = zip(self.links, modules, strict=True)
        return tuple(link.name if module is None else prefix + link.name for link, module in named)

    # ---- whether it can be fused -------------------------------------------------------------------------------------

    def apart(self, input: Tensor, residual: Tensor | None, *modules: nn.Module | None) -> str | None:
        """Why a call on these runs as it was written; None if it is fused."""
        plan = self._plan(modules)
        return plan.obstacle or self._misfit(plan, input, residual, modules)

    def obstacle(self, modules: Modules) -> str | None:
        """Why layers as these cannot be computed as one, whatever their input; None if they can."""
        return self._plan(modules).obstacle

    def _plan(self, modules: Modules) -> _Plan:
        if torch.compiler.is_compiling():
            return self._decide(modules)
        settings = [link.look(module) for link, module in zip(self.links, modules, strict=True)]
        last = self._last  # once: another thread may write it
        if last is not None and last[0] == settings:
            return last[1]
        plan = self._decide(modules)
        self._last = settings, plan
        return plan

    def _decide(self, modules: Modules) -> _Plan:
        for link, module in zip(self.links, modules, strict=True):
            if not link.is_still(module):
                return _Plan(f"{link.name} is another kind of layer now")
            if module is not None and _has_hooks(module):
                return _Plan(f"{link.name} has hooks")
            if link.role == "activation" and link.activation(module) is None:
                return _Plan(f"{link.name} has settings of its own")
        conv, norm, follow = self._layer("conv", modules), self._layer("norm", modules), self._activation(modules)
        if conv is None:
            return _Plan(None, follow=follow)
        if norm is not None and not _follows(norm, conv):
            return _Plan("the normalisation is of other channels or dimensions than the convolution")
        found = self._padding(modules)
        if found is None:
            return _Plan("the padding is not one of zeros or of a reflection, alike on both sides")
        padding, mode = found
        if "upsample" in self._places:
            if not self._doubles(modules, padding):
                return _Plan("the upsampling is not by 2 before a 3x3 convolution that keeps the size")
            return _Plan(None, padding, mode, (), follow)
        if isinstance(conv, nn.ConvTranspose2d):
            window: tuple[Any, ...] = (conv.stride, padding, conv.output_padding, conv.groups, conv.dilation)
            return _Plan(None, padding, mode, window, follow)
        window = (conv.stride, padding, conv.dilation, conv.groups)
        return _Plan(None, padding, mode, window, follow | {"padding_mode": mode})

    def _misfit(self, plan: _Plan, input: Tensor, residual: Tensor | None, modules: Modules) -> str | None:
        """Why a call on these tensors cannot be computed as one; None if it can."""
        why = unsupported(input)
        if why is not None:
            return why
        conv = self._layer("conv", modules)
        if conv is None:
            if not _accepts(self._layer("norm", modules), input):
                return f"the normalisation is not made for an input of {list(input.shape)}"
        elif input.dim() != 4 or input.shape[1] != conv.in_channels:
            return f"the convolution is not made for an input of {list(input.shape)}"
        elif "upsample" in self._places and (is_narrow(input) or autocasts(input)):
            return "weights summed in 16 bits are less exact than the upsampled picture"
        if residual is None:
            return None
        if residual.shape != (input.shape if conv is None else self._output_shape(plan, input, conv)):
            return "the residual has another shape"
        return unsupported(residual)

    def _padding(self, modules: Modules) -> tuple[Any, str] | None:
        """The convolution's padding and its mode, with that of a layer before it."""
        conv, link = self._layer("conv", modules), self._link("pad")
        if link is None:
            known = conv.padding_mode in ("zeros", "reflect")
            return (conv.padding, conv.padding_mode) if known else None
        pad = link.pad(self._layer("pad", modules))
        if pad is None or pad.left != pad.right or pad.top != pad.bottom or min(pad[1:]) < 0:
            return None
        own = (0, 0) if conv.padding == "valid" else conv.padding
        if isinstance(own, str) or isinstance(conv, nn.ConvTranspose2d):
            return None
        if tuple(own) == (0, 0):
            return (pad.top, pad.left), pad.mode
        return ((pad.top + own[0], pad.left + own[1]), "zeros") if pad.mode == conv.padding_mode == "zeros" else None

    def _doubles(self, modules: Modules, padding: Any) -> bool:
        conv, link = self._layer("conv", modules), self._link("upsample")
        window = (conv.kernel_size, conv.stride, conv.dilation, conv.groups)
        same = padding == "same" or tuple(padding) == (1, 1)
        plain = window == ((3, 3), (1, 1), (1, 1), 1) and same and isinstance(conv, nn.Conv2d)
        return plain and link is not None and link.doubles(self._layer("upsample", modules))

    def _output_shape(self, plan: _Plan, input: Tensor, conv: Any) -> tuple[int, ...]:
        padding, size = plan.padding, list(input.shape[2:])
        if "upsample" in self._places:
            size = [2 * n for n in size]
        elif padding != "same":
            padding = (0, 0) if padding == "valid" else pair(padding)
            reach = [conv.dilation[i] * (conv.kernel_size[i] - 1) for i in range(2)]
            if isinstance(conv, nn.ConvTranspose2d):
                more = [reach[i] - 2 * padding[i] + conv.output_padding[i] + 1 for i in range(2)]
                size = [(size[i] - 1) * conv.stride[i] + more[i] for i in range(2)]
            else:
                size = [(size[i] + 2 * padding[i] - reach[i] - 1) // conv.stride[i] + 1 for i in range(2)]
        return (input.shape[0], conv.out_channels, *size)

    # ---- what is computed --------------------------------------------------------------------------------------------

    def stock(self, input: Tensor, residual: Tensor | None, *modules: nn.Module | None) -> Tensor:
        """The layers one after the other, as the model's author wrote them."""
        value = input
        for link, module in zip(self.links, modules, strict=True):
            value = link.apply(value, residual, module)
        return value

    def _fused(self, plan: _Plan, input: Tensor, residual: Tensor | None, modules: Modules) -> Tensor:
        """The same in one operation; there must be neither an obstacle nor a misfit."""
        conv, norm, follow = self._layer("conv", modules), self._layer("norm", modules), plan.follow
        if norm is not None:
            follow = follow | {"residual": residual}
        if conv is None:
            return _norm_act(norm, input, follow)
        if norm is not None:
            follow |= _normalization(norm)
        weight = conv.weight  # once: a parametrization may do something at each look
        window = plan.window
        if "upsample" in self._places:
            input, padding = replicated(input) if plan.mode == "reflect" else (input, 1)
            weight, window = doubled_weight(weight), (2, padding)
        output: Tensor = getattr(functional, self.__name__)(input, weight, conv.bias, *window, **follow)
        return output

    def _activation(self, modules: Modules) -> dict[str, Any]:
        """The keyword arguments that say what follows the normalisation or the convolution."""
        link = self._link("activation")
        found = None if link is None else link.activation(self._layer("activation", modules))
        name, slope = found or ("none", 0.01)
        follow = {"activation": name, "negative_slope": slope}
        after = self._places.get("add", 0) > self._places.get("activation", len(self.links))
        return follow | {"residual_after": after} if "norm" in self._places else follow


def _follows(norm: nn.Module, conv: Any) -> bool:
    made_for_images = isinstance(norm, (nn.BatchNorm2d, nn.InstanceNorm2d))
    return made_for_images and norm.num_features == conv.out_channels


def _accepts(norm: Any, input: Tensor) -> bool:
    if isinstance(norm, nn.GroupNorm):
        return input.dim() >= 2 and input.shape[1] == norm.num_channels
    norm._check_input_dim(input)  # which raises what the layer would
    unbatched = not isinstance(norm, nn.modules.batchnorm._BatchNorm) and input.dim() == norm._get_no_batch_dim()
    return not unbatched and input.shape[1] == norm.num_features


def _norm_act(norm: Any, input: Tensor, follow: dict[str, Any]) -> Tensor:
    if isinstance(norm, nn.GroupNorm):
        wide = input.float() if input.is_cuda and autocasts(input) else input  # as torch's autocast does
        return functional.group_norm_act(wide, norm.num_groups, norm.weight, norm.bias, norm.eps, **follow)
    of_batch = isinstance(norm, nn.modules.batchnorm._BatchNorm)
    running_mean, running_var, training, momentum = _statistics(norm)
    function = functional.batch_norm_act if of_batch else functional.instance_norm_act
    affine = norm.weight, norm.bias
    return function(input, running_mean, running_var, *affine, training, momentum, norm.eps, **follow)


def _normalization(norm: Any) -> dict[str, Any]:
    """The keyword arguments of conv2d_norm_act that say how to normalise."""
    running_mean, running_var, training, momentum = _statistics(norm)
    return {
        "norm": "batch" if isinstance(norm, nn.BatchNorm2d) else "instance",
        "running_mean": running_mean,
        "running_var": running_var,
        "norm_weight": norm.weight,
        "norm_bias": norm.bias,
        "training": training,
        "momentum": momentum,
        "eps": norm.eps,
    }


def _statistics(norm: Any) -> tuple[Tensor | None, Tensor | None, bool, float]:
    of_batch = isinstance(norm, nn.modules.batchnorm._BatchNorm)
    return (BatchNormAct2d if of_batch else InstanceNormAct2d).statistics(norm)


def unsupported(tensor: Tensor) -> str | None:
    """Why no fused operation takes such a tensor; None if they do."""
    if tensor.dtype not in _DTYPES:
        return f"{str(tensor.dtype).removeprefix('torch.')} is computed by torch alone"
    if tensor.device.type not in _DEVICES:
        return f"this build has no kernels for {tensor.device.type}"
    plain = type(tensor) is Tensor or type(tensor).__torch_function__ is torch._C._disabled_torch_function_impl
    if not plain or tensor.layout is not torch.strided:
        return f"{type(tensor).__name__} of layout {tensor.layout} is computed by torch alone"
    if torch.compiler.is_compiling():
        return None
    if forward_ad._current_level >= 0 or torch._C._functorch.is_functorch_wrapped_tensor(tensor):
        return "forward-mode derivatives and torch.func are torch's alone"
    return None


def is_narrow(tensor: Tensor) -> bool:
    """Whether it is of 16 bits."""
    return tensor.dtype in (torch.float16, torch.bfloat16)


def autocasts(tensor: Tensor) -> bool:
    """Whether autocast is on for its device."""
    device = tensor.device.type
    return device in ("cpu", "cuda") and torch.is_autocast_enabled(device)
