"""Whole systems that make pictures, one file each: networks, losses and phases. The loop is the trainer's."""

import dataclasses
import logging

from artkernels.recipes.adain import AdaIN
from artkernels.recipes.cyclegan import CycleGAN
from artkernels.recipes.dcgan import DCGAN
from artkernels.recipes.fast_style import FastStyle
from artkernels.recipes.vae import VAE
from artkernels.training.options import TrainingOptions
from artkernels.training.random_state import seed_everything
from artkernels.training.recipe import Recipe

__all__ = ["RECIPES", "build"]

logger = logging.getLogger("artkernels")

RECIPES: dict[str, type[Recipe]] = {recipe.name: recipe for recipe in (AdaIN, CycleGAN, DCGAN, FastStyle, VAE)}
"""What `artkernels train` knows, by name."""


def build(name: str, options: TrainingOptions) -> Recipe:
    """The recipe called ``name``, its networks begun by ``options.seed``; says what ``options.init`` decides."""
    seed_everything(options.seed)
    recipe = RECIPES[name](options)
    for field in dataclasses.fields(options):
        given, taken = getattr(options, field.name), getattr(recipe.options, field.name)
        if given not in (taken, None):
            logger.warning("%s is %s, as in %s (not %s)", field.name, taken, options.init, given)
    return recipe
