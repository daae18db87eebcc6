"""Run directories, as runs/00000-dcgan-emoji: what a training run was told, what it said, and what it made."""

import json
import logging
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save as serialize
from torch import Tensor, nn
from torch.utils.tensorboard import SummaryWriter
from torchvision.utils import make_grid

from artkernels import files, images
from artkernels.errors import UserError
from artkernels.training.runs import METADATA_KEY, OPTIONS, STATE

__all__ = ["RunDirectory"]

_STATS = "stats.jsonl"

logger = logging.getLogger("artkernels")


class RunDirectory:
    """Writes a run's files, each whole or not at all; every method belongs to one process, the first.

    Attributes:
        path: the folder.
    """

    def __init__(self, path: Path, made_with: dict[str, Any], step: int) -> None:
        """Open the log and the event files of a run that is about to make step ``step`` + 1."""
        self.path = path
        self._made_with = made_with
        with files.whole_or_not_at_all(path / OPTIONS) as temporary:
            temporary.write_text(json.dumps(made_with, indent=2) + "\n")
        self._log = logging.FileHandler(path / "log.txt")
        self._log.setFormatter(logging.Formatter("%(asctime)s %(message)s", "%Y-%m-%d %H:%M:%S"))
        logger.addHandler(self._log)
        logger.setLevel(logging.INFO)
        self.forget_after(step)
        self._stats = (path / _STATS).open("a")
        self._events = SummaryWriter(str(path), purge_step=step + 1)

    @classmethod
    def create(cls, outdir: Path, recipe: str, data: Path, made_with: dict[str, Any]) -> "RunDirectory":
        """Make the next numbered folder in ``outdir``.

        Raises:
            UserError: it cannot be written to.
        """
        name = f"{recipe}-{re.sub(r'[^A-Za-z0-9._-]+', '-', data.stem) or 'data'}"
        try:
            outdir.mkdir(parents=True, exist_ok=True)
            path = _next_folder(outdir, name)
        except OSError as error:
            raise UserError(f"{outdir}: cannot be written ({error.strerror or error})") from error
        return cls(path, made_with, 0)

    def close(self) -> None:
        """Close the files. The log says no more."""
        logger.removeHandler(self._log)
        with self._writing():
            self._log.close()
            self._stats.close()
            self._events.close()

    def stats(self, step: int, values: Mapping[str, float]) -> None:
        """Append a line to stats.jsonl and the same numbers to TensorBoard's events."""
        with self._writing():
            print(json.dumps({"step": step, **values}), file=self._stats, flush=True)
            for name, value in values.items():
                self._events.add_scalar(name, value, step)

    def grid(self, name: str, pictures: Tensor, step: int | None = None) -> None:
        """Save pictures [N, 3, H, W] in [0, 1] side by side, as ``name``.png, or as ``name``000200.png at step 200."""
        columns = max(1, round((len(pictures) * pictures.shape[-2] / pictures.shape[-1]) ** 0.5))
        sheet = make_grid(pictures.float().cpu().clamp(0, 1), nrow=columns, padding=2, pad_value=1.0)
        file = f"{name}.png" if step is None else f"{name}{step:06d}.png"
        images.save(sheet, self.path / file, self._made_with)
        with self._writing():
            self._events.add_image(name, sheet, step or 0)

    def has_grid(self, name: str, step: int) -> bool:
        """Whether :meth:`grid` has saved this one."""
        return (self.path / f"{name}{step:06d}.png").exists()

    def snapshot(self, step: int, networks: Mapping[str, nn.Module]) -> None:
        """Save the networks that make pictures, one file each, with the names and shapes of stock PyTorch."""
        for name, network in networks.items():
            suffix = f"-{name}" if len(networks) > 1 else ""
            path = self.path / f"network-snapshot-{step:06d}{suffix}.safetensors"
            metadata = {METADATA_KEY: json.dumps({**self._made_with, "network": name, "step": step})}
            state = {key: value.detach().cpu().contiguous() for key, value in network.state_dict().items()}
            with files.whole_or_not_at_all(path) as temporary:
                temporary.write_bytes(serialize(state, metadata))

    def save_state(self, state: dict[str, Any]) -> None:
        """Replace state.pt, all that is needed to go on from here."""
        with files.whole_or_not_at_all(self.path / STATE) as temporary:
            try:
                torch.save(state, temporary)
            except RuntimeError as error:  # what torch.save makes of a full disk
                raise OSError(str(error).partition("\n")[0]) from error

    @contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise UserError(f"{self.path}: cannot be written ({error.strerror or error})") from error

    def forget_after(self, step: int) -> None:
        """Drop the lines of stats.jsonl that are going to be written again, and one that was cut short."""
        path, kept = self.path / _STATS, 0
        if not path.exists():
            return
        for line in path.read_bytes().splitlines(keepends=True):
            try:
                if not line.endswith(b"\n") or json.loads(line)["step"] > step:
                    break
            except (ValueError, KeyError, TypeError):
                break
            kept += len(line)
        os.truncate(path, kept)  # an open handle that appends goes on from there


def _next_folder(outdir: Path, name: str) -> Path:
    while True:
        numbers = [int(match[1]) for entry in os.listdir(outdir) if (match := re.match(r"(\d{5,})-", entry))]
        path = outdir / f"{max(numbers, default=-1) + 1:05d}-{name}"
        try:
            path.mkdir()
        except FileExistsError:  # another run began at the same moment
            continue
        return path
