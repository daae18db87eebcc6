"""Pictures of noise for tests, the same each time: those of Image.effect_noise depend on what ran before."""

import numpy as np
from PIL import Image

__all__ = ["noise"]


def noise(size: tuple[int, int], seed: int) -> Image.Image:
    """Grey levels about 128, 80 away, of a width and a height; mode RGB."""
    levels = np.random.default_rng(seed).normal(128, 80, size[::-1]).clip(0, 255)
    return Image.fromarray(levels.round().astype(np.uint8)).convert("RGB")
