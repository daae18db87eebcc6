"""Whole systems that make pictures, one file each: networks, losses and phases. The loop is the trainer's."""

from artkernels.recipes.adain import AdaIN
from artkernels.recipes.cyclegan import CycleGAN
from artkernels.recipes.dcgan import DCGAN
from artkernels.recipes.fast_style import FastStyle
from artkernels.recipes.vae import VAE
from artkernels.training.options import TrainingOptions
from artkernels.training.random_state import seed_everything
from artkernels.training.recipe import Recipe

__all__ = ["RECIPES", "build"]

RECIPES: dict[str, type[Recipe]] = {recipe.name: recipe for recipe in (AdaIN, CycleGAN, DCGAN, FastStyle, VAE)}
"""What `artkernels train` knows, by name."""


def build(name: str, options: TrainingOptions) -> Recipe:
    """The recipe called ``name``, its networks begun by ``options.seed``."""
    seed_everything(options.seed)
    return RECIPES[name](options)
