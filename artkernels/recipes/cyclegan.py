"""CycleGAN (Zhu et al. 2017, arXiv:1703.10593): pictures of one kind into another and back, learnt without pairs."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as TF
from torch import Tensor, nn

from artkernels.checkpoints import load
from artkernels.errors import UserError
from artkernels.models import NLayerDiscriminator, ResnetGenerator
from artkernels.recipes.adversarial import freeze_first_convolutions, initialise
from artkernels.training.image_pool import ImagePool
from artkernels.training.options import TrainingOptions, option
from artkernels.training.recipe import Batch, Losses, Phase, Recipe, linear_decay
from artkernels.training.runs import STATE

__all__ = ["CycleGAN", "CycleGANOptions"]

_POOL = 50
_SMALLEST = 24  # of a smaller picture the discriminator's last norm would see a single value


@dataclass(kw_only=True)
class CycleGANOptions(TrainingOptions):
    """Options of the recipe cyclegan; the defaults are the paper's."""

    data: Path = option(None, "Folder with the folders trainA and trainB, or that of the first kind of pictures.")
    data_b: Path | None = option(None, "Folder or .zip of the second kind of pictures.")
    steps: int = option(200_000, "Training steps in all.", least=1)
    batch: int = option(1, "Pictures of each kind a step, in all processes together.", least=1)
    snap: int = option(5000, "Steps between saves: sample pictures, network snapshots, state.", least=1)
    tick: int = option(50, "Steps between lines of the log, which are means over them.", least=1)
    resolution: int = option(256, "Height and width of the pictures, in pixels: a multiple of 4.", least=_SMALLEST)
    fit: Literal["crop", "random-crop", "pad", "bucket"] = option(
        "random-crop", "How a picture gets its size: cut at the centre or at random, or padded."
    )
    mirror: bool = option(True, "Show every second picture mirrored.")
    lambda_cycle: float = option(10.0, "Weight of the way there and back, which should change nothing.", least=0)
    lambda_identity: float = option(
        0.5, "Weight, times lambda-cycle, of leaving pictures that are of the kind wanted as they are.", least=0
    )
    freezed: int = option(0, "First convolutions of the discriminators that stay as they are (FreezeD).", least=0)
    blocks: int | None = option(None, "Residual blocks of a generator; 9 if not given, 6 below 256 pixels.", least=1)
    ngf: int = option(64, "Channels of the generators' largest map.", least=1)
    ndf: int = option(64, "Channels of the discriminators' largest map.", least=1)


class CycleGAN(Recipe):
    """Two generators, A to B and B to A, and a discriminator for each kind of pictures, named for what it looks at.

    A step is the original's: both generators together, then both discriminators, who see the pictures of this step
    mixed with earlier ones (:class:`~artkernels.training.image_pool.ImagePool`).

    ``init`` may be a run, all of whose networks go on, or one generator's checkpoint, which becomes A to B; B to A, in
    its shape, and the discriminators then begin anew.
    """

    name: ClassVar[str] = "cyclegan"
    summary: ClassVar[str] = "Train a CycleGAN between two kinds of pictures, or fine-tune one with --init."
    options_type: ClassVar[type[TrainingOptions]] = CycleGANOptions
    averaged = ("netG_A2B", "netG_B2A")

    def __init__(self, options: CycleGANOptions) -> None:
        if options.resolution % 4:
            raise UserError(f"resolution must be a multiple of 4 for cyclegan, got {options.resolution}")
        if options.fit == "bucket":
            raise UserError("fit must be crop, random-crop or pad for cyclegan: its pictures are of one shape")
        self.networks = _initial_networks(options)
        self.A2B, self.B2A, self.D_A, self.D_B = self.networks.values()
        ngf, blocks = _shape(self.A2B)
        options = replace(options, ngf=ngf, blocks=blocks, ndf=_channels(self.D_A))
        self.options: CycleGANOptions = options
        for discriminator in (self.D_A, self.D_B):
            freeze_first_convolutions(discriminator, options.freezed)
        self.pools = {"A": ImagePool(_POOL), "B": ImagePool(_POOL)}
        self.phases = (
            _phase("G", (self.A2B, self.B2A), options.lr, self.generator_loss),
            _phase("D", (self.D_A, self.D_B), options.lr, self.discriminator_loss),
        )

    def sources(self) -> dict[str, Path]:
        """Pictures of kind A and of kind B."""
        data, data_b = self.options.data, self.options.data_b
        if data_b is not None:
            return {"A": data, "B": data_b}
        if missing := [folder for folder in ("trainA", "trainB") if not (data / folder).is_dir()]:
            raise UserError(f"{data}: has no folder {missing[0]}: two kinds of pictures need it, or --data-b")
        return {"A": data / "trainA", "B": data / "trainB"}

    def share(self, batch: Batch, step: int) -> None:
        """The pictures as the networks take them, and what the generators make of them."""
        batch["real_A"], batch["real_B"] = batch["A"] * 2 - 1, batch["B"] * 2 - 1
        batch["fake_B"], batch["fake_A"] = self.A2B(batch["real_A"]), self.B2A(batch["real_B"])

    def generator_loss(self, batch: Batch) -> Losses:
        """How badly the generators deceive, how much is lost there and back, and what is changed for nothing."""
        a, b, fake_a, fake_b = (batch[name] for name in ("real_A", "real_B", "fake_A", "fake_B"))
        gan = _squares(self.D_A(fake_a), 1.0) + _squares(self.D_B(fake_b), 1.0)
        cycle = TF.l1_loss(self.B2A(fake_b), a) + TF.l1_loss(self.A2B(fake_a), b)
        losses = {"loss": gan + self.options.lambda_cycle * cycle, "gan": gan, "cycle": cycle}
        if self.options.lambda_identity > 0:
            identity = TF.l1_loss(self.B2A(a), a) + TF.l1_loss(self.A2B(b), b)
            losses["loss"] = losses["loss"] + self.options.lambda_cycle * self.options.lambda_identity * identity
            losses["identity"] = identity
        return losses

    def discriminator_loss(self, batch: Batch) -> Losses:
        """How badly the discriminators tell pictures of their kind from those made now and earlier."""
        losses = {}
        for kind, discriminator in (("A", self.D_A), ("B", self.D_B)):
            fakes = self.pools[kind].exchange(batch[f"fake_{kind}"].detach())
            real, fake = _squares(discriminator(batch[f"real_{kind}"]), 1.0), _squares(discriminator(fakes), 0.0)
            losses[kind] = (real + fake) / 2
        return {"loss": losses["A"] + losses["B"], **losses}

    def preview(self, networks: dict[str, nn.Module], batch: Batch) -> Tensor:
        """Columns of a picture of kind A, what becomes of it, one of kind B, and what becomes of that."""
        a, b = batch["A"], batch["B"]
        a2b, b2a = networks["netG_A2B"](a * 2 - 1), networks["netG_B2A"](b * 2 - 1)
        return torch.cat([a, (a2b + 1) / 2, b, (b2a + 1) / 2], dim=-2)

    def state_dict(self) -> dict[str, Any]:
        """The pictures in the pools."""
        return {kind: list(pool.pictures) for kind, pool in self.pools.items()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take up what :meth:`state_dict` returned."""
        for kind, pool in self.pools.items():
            pool.pictures = [picture.to(self.device) for picture in state[kind]]


def _initial_networks(options: CycleGANOptions) -> dict[str, nn.Module]:
    if options.init and options.init.is_dir():
        run = options.init / STATE
        generators = [_checked(load(run, entry=f"networks_ema.{name}"), run) for name in CycleGAN.averaged]
        discriminators = [load(run, entry=f"networks.{name}") for name in ("netD_A", "netD_B")]
    else:
        blocks = options.blocks or (9 if options.resolution >= 256 else 6)
        a2b = _checked(load(options.init), options.init) if options.init else _new_generator(options.ngf, blocks)
        generators = [a2b, _new_generator(*_shape(a2b))]
        discriminators = [initialise(NLayerDiscriminator(ndf=options.ndf)) for _ in range(2)]
    return dict(zip(("netG_A2B", "netG_B2A", "netD_A", "netD_B"), [*generators, *discriminators], strict=True))


def _new_generator(ngf: int, blocks: int) -> nn.Module:
    return initialise(ResnetGenerator(ngf=ngf, n_blocks=blocks))


def _checked(network: nn.Module, path: Path) -> nn.Module:
    if isinstance(network, ResnetGenerator) and str(network) == str(_new_generator(*_shape(network))):
        return network
    raise UserError(f"{path}: cyclegan needs a ResNet generator of RGB pictures, with instance norm and no dropout")


def _shape(generator: nn.Module) -> tuple[int, int]:
    """Channels of the largest map, and residual blocks."""
    blocks = {name.split(".")[1] for name in generator.state_dict() if ".conv_block." in name}
    return _channels(generator), len(blocks)


def _channels(network: nn.Module) -> int:
    """Of the first map."""
    return next(module.out_channels for module in network.modules() if isinstance(module, nn.Conv2d))


def _phase(name: str, networks: tuple[nn.Module, ...], lr: float, loss: Callable[[Batch], Losses]) -> Phase:
    parameters = [p for network in networks for p in network.parameters() if p.requires_grad]
    adam = torch.optim.Adam(parameters, lr=lr, betas=(0.5, 0.999), fused=True)
    return Phase(name, networks, adam, loss, schedule=linear_decay)


def _squares(scores: Tensor, target: float) -> Tensor:
    """Least squares (Mao et al. 2017, arXiv:1611.04076)."""
    return TF.mse_loss(scores, torch.full_like(scores, target))
