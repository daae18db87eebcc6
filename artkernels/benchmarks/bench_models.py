"""Whole models: `artkernels.fuse(model)` against the model itself and inference engines."""

import functools

from artkernels.benchmarks.module_case import ModuleCase, normal, pictures
from artkernels.models import ConvVAE, DCGANDiscriminator, DCGANGenerator, ResnetGenerator, TransformerNet

__all__ = ["cases"]

_model = functools.partial(ModuleCase, "models", inputs=pictures, passes=("inference", "step"), cast="autocast")
_generator = functools.partial(_model, inputs=lambda shape: [normal(shape)[0].detach()], engines=True)


def cases() -> list[ModuleCase]:
    """The networks of the recipes, at the sizes that their papers use.

    A step is a forward and a backward; with losses and optimizers see ``training``.
    """
    return [
        _generator("dcgan-1", "DCGAN generator", (1, 100, 1, 1), DCGANGenerator, quick=True),
        _generator("dcgan-64", "DCGAN generator", (64, 100, 1, 1), DCGANGenerator, quick=True),
        _model("discriminator-64", "DCGAN discriminator", (64, 3, 64, 64), DCGANDiscriminator, passes=("step",)),
        _model("vae-64", "VAE", (64, 3, 64, 64), ConvVAE, passes=("step",)),
        _model(
            "fast-style-256",
            "TransformerNet",
            (1, 3, 256, 256),
            TransformerNet,
            engines=True,
            compiled=("inference",),
            quick=True,
        ),
        _model(
            "cyclegan-256",
            "CycleGAN generator, 9 blocks",
            (1, 3, 256, 256),
            ResnetGenerator,
            passes=("inference",),
            engines=True,
        ),
    ]
