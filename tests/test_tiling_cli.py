"""artkernels stylize --tile and --max-memory: the same picture, less memory, or one sentence why not."""

import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from artkernels import cli, feed_forward
from artkernels.cli.values import parse_memory, parse_tile
from artkernels.errors import UserError
from artkernels.recipes.style_memory import memory_in_use

sys.path.insert(0, str(Path(__file__).parent))

from noise import noise
from painting_networks import link_networks, save_networks

pytestmark = pytest.mark.cpu_only

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def networks(tmp_path_factory) -> Path:
    return save_networks(tmp_path_factory.mktemp("networks"))


@pytest.fixture
def folder(tmp_path, monkeypatch, networks) -> Path:
    """The current folder, with a photograph, a painting and networks."""
    monkeypatch.chdir(tmp_path)
    for seed, name in enumerate(("photo.png", "style.png")):
        noise((50, 41), seed).save(tmp_path / name)
    link_networks(networks, tmp_path)
    return tmp_path


def painted(*options: str) -> np.ndarray:
    assert cli.run(["stylize", "photo.png", "--device", "cpu", "--output", "out.png", *options]) == 0
    return np.asarray(Image.open("out.png")).astype(int)


def refusal(capsys, *options: str) -> str:
    assert cli.run(["stylize", "photo.png", "--device", "cpu", "--output", "out.png", *options]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert not Path("out.png").exists()
    return error


WITH = {
    "fast-style": ["--model", "fast.pth"],
    "cyclegan": ["--model", "cycle.pth"],
    "adain": ["--model", "decoder.pth", "--vgg", "encoder.pth", "--style", "style.png"],
}


@pytest.mark.parametrize("method", WITH)
@pytest.mark.parametrize("size", ["37", "64"])
def test_the_picture_is_the_same_in_bands(folder, method, size):
    at_once = painted(*WITH[method], "--size", size, "--tile", "off")
    in_bands = painted(*WITH[method], "--size", size, "--tile", "9")
    assert at_once.std((0, 1)).min() > 10  # of 255: what has no contrast is the same in any way
    assert np.abs(in_bands - at_once).max() <= 1  # rounding may fall to either side
    assert (in_bands != at_once).mean() < 0.001


def test_auto_paints_in_bands_what_would_not_fit_otherwise(monkeypatch):
    monkeypatch.setattr(feed_forward, "memory_in_use", lambda _: 2**30)
    monkeypatch.setattr(feed_forward, "memory_available", lambda _: 64 * 2**30)
    sizes = {side: feed_forward.tiling(side, side, CPU, "auto", 4 * 2**30) for side in (512, 1024, 2048, 8192)}
    assert [side for side, tiling in sizes.items() if tiling is None] == [512, 1024]
    assert all(tiling.rows == 0 and tiling.memory < 3 * 2**30 for tiling in sizes.values() if tiling)
    assert feed_forward.tiling(2048, 2048, CPU) is None
    assert feed_forward.tiling(8192, 8192, CPU).memory < 64 * 2**30
    assert feed_forward.tiling(512, 512, CPU, 100).rows == 100
    assert feed_forward.tiling(8192, 8192, CPU, None, 2**30) is None


def test_a_picture_in_bands_may_be_larger_than_one_at_once():
    photo = torch.zeros(1, 3, 10, 10)
    with pytest.raises(UserError, match="GiB are available: choose a smaller size"):
        feed_forward.check(photo, 10**5, CPU, tile=None)
    feed_forward.check(photo, 10**5, CPU, tile="auto")


def test_too_little_memory_is_one_sentence(folder, capsys):
    little = f"{memory_in_use(CPU) // 2**20 + 100}MiB"  # enough to read the photograph
    assert "MiB are left: allow more" in refusal(capsys, *WITH["fast-style"], "--max-memory", little)
    assert "GiB are available" in refusal(capsys, *WITH["fast-style"], "--tile", "off", "--max-memory", little)


@pytest.mark.parametrize(
    ("text", "size"),
    [("4GB", 4 * 10**9), ("4GiB", 2**32), ("4g", 2**32), ("1.5 MiB", 3 * 2**19), ("500mb", 5 * 10**8), ("1T", 2**40)],
)
def test_sizes_of_memory_are_read_as_people_write_them(text, size):
    assert parse_memory(text) == size


@pytest.mark.parametrize("text", ["4", "GB", "-4GB", "4XB", "four GB", ""])
def test_what_is_no_size_of_memory_is_refused(text):
    with pytest.raises(UserError, match="--max-memory must be a number and a unit, as 4GB or 500MiB"):
        parse_memory(text)


def test_what_is_no_tile_is_refused():
    assert [parse_tile(text) for text in ("auto", "off", "64")] == ["auto", None, 64]
    for text in ("0", "-8", "8.5", "large", "", "64px"):
        with pytest.raises(UserError, match="--tile must be auto, off, or a number of pixels from 1 up"):
            parse_tile(text)
