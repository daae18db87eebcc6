"""What can be read from a run directory."""

import json
import re
from pathlib import Path
from typing import Any

import torch

from artkernels.errors import UserError

__all__ = ["METADATA_KEY", "OPTIONS", "STATE", "latest_snapshots", "load_state", "read_options"]

OPTIONS = "options.json"
STATE = "state.pt"
METADATA_KEY = "artkernels"
"""The entry of a snapshot's metadata that holds, as JSON, the recipe and its options."""

_SNAPSHOT = re.compile(r"network-snapshot-(\d{6,})(?:-(\w+))?\.safetensors")


def read_options(run: Path) -> dict[str, Any]:
    """The content of a run's options.json: ``recipe``, ``version`` and the recipe's ``options``.

    Raises:
        UserError: ``run`` is no run directory.
    """
    if not run.is_dir():
        raise UserError(f"{run}: no such run directory")
    try:
        content = json.loads((run / OPTIONS).read_text())
        return {"recipe": content["recipe"], "version": content["version"], "options": dict(content["options"])}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{run}: not a run directory: it has no readable {OPTIONS}") from error


def latest_snapshots(run: Path) -> dict[str, Path]:
    """The last network snapshots of a run, by the names of the networks ("" where the recipe saves but one).

    Raises:
        UserError: there is none.
    """
    matches = [(_SNAPSHOT.fullmatch(path.name), path) for path in run.iterdir()]
    found = [(int(match[1]), match[2] or "", path) for match, path in matches if match]
    if not found:
        raise UserError(f"{run}: has no network snapshot yet")
    last = max(step for step, *_ in found)
    return {name: path for step, name, path in found if step == last}


def load_state(run: Path) -> dict[str, Any]:
    """The content of a run's state.pt, read without running code from it.

    Raises:
        UserError: there is none, or it is damaged.
    """
    path = run / STATE
    if not path.is_file():
        raise UserError(f"{run}: no run to continue: it has no {STATE}")
    try:
        state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # zip and pickle each raise their own kinds
        raise UserError(f"{path}: damaged, or not the state of a training run") from error
    return state
