"""Generated pictures that are kept to be shown to a discriminator again."""

import random

import torch
from torch import Tensor

__all__ = ["ImagePool"]


class ImagePool:
    """Generated pictures of earlier steps, so that a discriminator does not forget them (Shrivastava et al. 2017).

    Its choices are Python's ``random``'s.

    Attributes:
        capacity: how many pictures it keeps.
        pictures: those that it has, [C, H, W] each.
    """

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self.pictures: list[Tensor] = []

    def exchange(self, pictures: Tensor) -> Tensor:
        """Each of ``pictures`` [N, C, H, W] or, once the pool is full and with probability 1/2, one that it replaces.

        Returns:
            [N, C, H, W], without a graph.
        """
        return torch.stack([self._exchange(picture.detach()) for picture in pictures])

    def _exchange(self, picture: Tensor) -> Tensor:
        if len(self.pictures) < self.capacity:
            self.pictures.append(picture.clone())  # a view would keep, and save, the whole batch
            return picture
        if random.random() < 0.5:
            return picture
        place = random.randrange(self.capacity)
        earlier, self.pictures[place] = self.pictures[place], picture.clone()
        return earlier
