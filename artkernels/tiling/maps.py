"""Feature maps that are computed band by band: what each needs of those it is made of.

A band is a tensor [rows, W, C]: rows are contiguous in memory and in files, and it is one channels_last picture.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import ceil
from typing import Any, Literal, NamedTuple

import torch
import torch.nn.functional as TF
from torch import Tensor

from artkernels import functional as F
from artkernels.ops.norm_act import Statistics

__all__ = [
    "UNCHANGED",
    "AdaptiveNormalisation",
    "Affine",
    "Convolution",
    "FeatureMap",
    "MaxPool",
    "Normalisation",
    "Photograph",
    "Pointwise",
    "Shape",
    "TransposedConvolution",
    "band_of",
    "inside",
    "picture_of",
]

Edge = Literal["zeros", "reflect", "replicate"]
Pair = tuple[int, int]


class Shape(NamedTuple):
    """Of a map of one picture."""

    height: int
    width: int
    channels: int


class FeatureMap:
    """A map of one picture, in terms of the maps that it is made of.

    Attributes:
        inputs: those maps, all of one height.
        shape: its size.
        edge: what stands for the rows beyond those of the inputs.
        flops: multiplications and additions of all of it.
    """

    edge: Edge = "zeros"
    flops: float = 0.0

    def __init__(self, inputs: Sequence["FeatureMap"], shape: Shape) -> None:
        self.inputs = tuple(inputs)
        self.shape = shape

    def window(self, first: int, end: int) -> Pair:
        """The rows of the inputs, first and end, that rows ``first`` to ``end`` need; some may be beyond the edges."""
        return first, end

    def compute(self, windows: Sequence[Tensor], first: int, end: int) -> Tensor:
        """Rows ``first`` to ``end``, [end - first, W, C], of those of the inputs that :meth:`window` named."""
        raise NotImplementedError


def picture_of(band: Tensor) -> Tensor:
    """[rows, W, C] -> [1, C, rows, W], channels_last, the same memory."""
    # In this order: permuted first, the stride of the batch is not channels_last's, and every layer makes a copy.
    return band.unsqueeze(0).permute(0, 3, 1, 2)


def band_of(picture: Tensor) -> Tensor:
    """[1, C, rows, W] -> [rows, W, C], the same memory where it is channels_last."""
    return picture[0].permute(1, 2, 0).contiguous()


class Affine(NamedTuple):
    """scale * x + shift: the range of pixels that a network was trained on."""

    scale: float = 1.0
    shift: float = 0.0

    def __call__(self, pixels: Tensor) -> Tensor:
        """In place."""
        return pixels.mul_(self.scale).add_(self.shift)


UNCHANGED = Affine()


class Photograph(FeatureMap):
    """The picture that all begins with.

    Args:
        pixels: [C, H, W], RGB in [0, 1].
        range: what the network expects instead.
        multiple: sides are rounded up to multiples of it, by reflection.
        device: that the work is done on.
        dtype: of the network.
    """

    def __init__(
        self,
        pixels: Tensor,
        range: Affine = UNCHANGED,
        multiple: int = 1,
        device: torch.device | None = None,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        channels, height, width = pixels.shape
        self._pixels, self._range, self._device, self._dtype = pixels, range, device or pixels.device, dtype
        self._columns = -width % multiple
        super().__init__((), Shape(height + -height % multiple, width + self._columns, channels))

    def compute(self, windows: Sequence[Tensor], first: int, end: int) -> Tensor:
        """A copy of its rows."""
        height = self._pixels.shape[1]
        rows = self._pixels.index_select(1, inside(torch.arange(first, end), height, "reflect"))
        padded = TF.pad(rows, (0, self._columns, 0, 0), mode="reflect") if self._columns else rows
        return self._range(padded.to(self._device, self._dtype)).permute(1, 2, 0).contiguous()


def inside(rows: Tensor, height: int, edge: Edge) -> Tensor:
    """The rows, from 0 to ``height``, that stand for ``rows``."""
    if edge == "reflect":
        return (height - 1) - ((height - 1) - rows.abs()).abs()
    return rows.clamp(0, height - 1)


@dataclass(frozen=True)
class Window:
    """That of a convolution, of rows and of columns each."""

    kernel: Pair
    stride: Pair
    padding: Pair
    dilation: Pair
    output_padding: Pair = (0, 0)

    def reach(self, d: int) -> int:
        """The distance from the first to the last tap."""
        return self.dilation[d] * (self.kernel[d] - 1)


class Convolution(FeatureMap):
    """torch.nn.Conv2d, padded by zeros or a reflection, and an activation."""

    def __init__(
        self,
        input: FeatureMap,
        weight: Tensor,
        bias: Tensor | None,
        window: Window,
        groups: int,
        edge: Literal["zeros", "reflect"],
        follow: dict[str, Any],
    ) -> None:
        sizes = [
            (input.shape[d] + 2 * window.padding[d] - window.reach(d) - 1) // window.stride[d] + 1 for d in range(2)
        ]
        super().__init__((input,), Shape(sizes[0], sizes[1], weight.shape[0]))
        self.edge = edge
        self.flops = 2.0 * sizes[0] * sizes[1] * weight.numel()
        self._parameters, self._window, self._groups = (weight, bias), window, groups
        self._follow = {"padding_mode": edge, **follow}

    def window(self, first: int, end: int) -> Pair:
        """As its formula says."""
        begin = first * self._window.stride[0] - self._window.padding[0]
        return begin, begin + (end - first - 1) * self._window.stride[0] + self._window.reach(0) + 1

    def compute(self, windows: Sequence[Tensor], first: int, end: int) -> Tensor:
        """Without padding of rows."""
        window = self._window
        columns_alone = (0, window.padding[1])
        arguments = (*self._parameters, window.stride, columns_alone, window.dilation, self._groups)
        return band_of(F.conv2d_act(picture_of(windows[0]), *arguments, **self._follow))


class TransposedConvolution(FeatureMap):
    """torch.nn.ConvTranspose2d and an activation.

    Args:
        replicated: rows and columns that the input is padded with first, by repetition of its edges; the window's own
            padding takes them off.
    """

    edge = "replicate"

    def __init__(
        self,
        input: FeatureMap,
        weight: Tensor,
        bias: Tensor | None,
        window: Window,
        groups: int,
        replicated: int,
        follow: dict[str, Any],
    ) -> None:
        self._input_height, columns = (size + 2 * replicated for size in input.shape[:2])
        sizes = [
            (size - 1) * window.stride[d] - 2 * window.padding[d] + window.reach(d) + window.output_padding[d] + 1
            for d, size in enumerate((self._input_height, columns))
        ]
        super().__init__((input,), Shape(sizes[0], sizes[1], weight.shape[1] * groups))
        self.flops = 2.0 * self._input_height * columns * weight.numel()
        self._parameters, self._window, self._groups, self._follow = (weight, bias), window, groups, follow
        self._replicated = replicated
        # Where the kernel is shorter than the stride, no row of the input reaches the last ones: they are the bias.
        self._bare_rows = max(window.output_padding[0], window.stride[0] - 1 - window.reach(0))

    def window(self, first: int, end: int) -> Pair:
        """Those that reach any of the rows."""
        stride, padding = self._window.stride[0], self._window.padding[0]
        stop = min(self._input_height, (end - 1 + padding) // stride + 1)
        begin = max(0, ceil((first + padding - self._window.reach(0)) / stride))
        begin = min(begin, (first + padding) // stride, stop - 1)  # for rows that none reaches, one from above them
        return begin - self._replicated, stop - self._replicated

    def compute(self, windows: Sequence[Tensor], first: int, end: int) -> Tensor:
        """Of more rows than wanted where not all that reach them are there; those are not computed, or cut off."""
        (rows,) = windows
        if self._replicated:
            rows = torch.cat([rows[:, :1]] * self._replicated + [rows] + [rows[:, -1:]] * self._replicated, 1)
        window = self._window
        begin, stop = (row + self._replicated for row in self.window(first, end))
        above = first + window.padding[0] - begin * window.stride[0]
        made = (stop - begin - 1) * window.stride[0] + window.reach(0) + 1 + self._bare_rows
        padding = min(above, made - above - (end - first))
        geometry = window.stride, (padding, window.padding[1]), (self._bare_rows, window.output_padding[1])
        arguments = (*self._parameters, *geometry, self._groups, window.dilation)
        result = band_of(F.conv_transpose2d_act(picture_of(rows), *arguments, **self._follow))
        return result[above - padding : above - padding + end - first]


class MaxPool(FeatureMap):
    """torch.nn.MaxPool2d of windows that do not overlap."""

    def __init__(self, input: FeatureMap, size: int, *, ceil_mode: bool) -> None:
        height, width, channels = input.shape
        height, width = (ceil(side / size) if ceil_mode else side // size for side in (height, width))
        super().__init__((input,), Shape(height, width, channels))
        self._size, self._ceil_mode = size, ceil_mode

    def window(self, first: int, end: int) -> Pair:
        """The last window may be a smaller one."""
        return first * self._size, min(end * self._size, self.inputs[0].shape.height)

    def compute(self, windows: Sequence[Tensor], first: int, end: int) -> Tensor:
        """The greatest of each window."""
        return band_of(TF.max_pool2d(picture_of(windows[0]), self._size, ceil_mode=self._ceil_mode))


class Pointwise(FeatureMap):
    """A function of the pixels at one place: a normalisation of known statistics, a residual, an activation."""

    def __init__(self, inputs: Sequence[FeatureMap], function: Callable[..., Tensor]) -> None:
        super().__init__(inputs, inputs[0].shape)
        self._function = function

    def compute(self, windows: Sequence[Tensor], first: int, end: int) -> Tensor:
        """The function, of channels_last pictures."""
        return band_of(self._function(*map(picture_of, windows)))


class Normalisation(Pointwise):
    """A normalisation by the statistics of its first input, all of it.

    Args:
        function: of (mean, var), [1, C] each, and of the inputs.
        unbiased: the variance's divisor is the number of pixels less one.
    """

    def __init__(self, inputs: Sequence[FeatureMap], function: Callable[..., Tensor], *, unbiased: bool) -> None:
        super().__init__(inputs, function)
        self.unbiased = unbiased
        self.statistics: Statistics | None = None

    def compute(self, windows: Sequence[Tensor], first: int, end: int) -> Tensor:
        """The function, given the statistics."""
        return band_of(self._function(self.statistics, *map(picture_of, windows)))


class AdaptiveNormalisation(Normalisation):
    """:func:`artkernels.functional.adaptive_instance_norm` of a map.

    Attributes:
        style: mean and deviation, [1, C] each; not needed before rows are computed, so that all can be planned first.
    """

    style: Statistics

    def __init__(self, content: FeatureMap, alpha: float) -> None:
        def function(statistics: Statistics, input: Tensor) -> Tensor:
            return F.adaptive_instance_norm(input, *self.style, alpha, statistics=statistics)

        super().__init__((content,), function, unbiased=True)
