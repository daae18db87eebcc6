"""The pictures of a run, from the folders that its recipe names."""

from collections.abc import Callable

import torch

from artkernels.training.pictures import Pictures, to_unit
from artkernels.training.recipe import Batch, Recipe

__all__ = ["open_sources", "sample_batch"]

_SAMPLE_PIXELS = 64 * 64 * 64  # of a source in reals.png and, about, of fakes: 64 pictures of 64 x 64, 4 of 256 x 256


def open_sources(recipe: Recipe, report: Callable[[str], None]) -> dict[str, Pictures]:
    """Find the pictures of every source; ``report`` is told of broken ones.

    Raises:
        UserError: a source is missing or has no pictures.
    """
    options = recipe.options
    return {
        source: Pictures(
            folder, options.resolution, fit=options.fit, mirror=options.mirror, seed=options.seed, report=report
        )
        for source, folder in recipe.sources().items()
    }


def sample_batch(recipe: Recipe, sources: dict[str, Pictures]) -> Batch:
    """The first pictures of each source, unchanged: those of reals.png, and what previews are made from."""
    count = min(
        64,
        max(4, _SAMPLE_PIXELS // recipe.options.resolution**2),
        *(len(pictures.buckets[0]) for pictures in sources.values()),
    )
    return {
        source: to_unit(torch.stack([pictures.plain(index) for index in pictures.buckets[0][:count]])).to(recipe.device)
        for source, pictures in sources.items()
    }
