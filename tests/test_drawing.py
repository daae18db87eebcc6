"""Every style is a series of colourful pictures, the same on every call and at every size; sets are whole files."""

import functools
import json
import re

import pytest
import torch
from PIL import Image

from artkernels import drawing, images
from artkernels.drawing import STYLES, draw, draw_set
from artkernels.errors import UserError

every_style = pytest.mark.parametrize("style", STYLES)


def difference(a: torch.Tensor, b: torch.Tensor) -> float:
    return (a - b).abs().mean().item()


@functools.cache
def series(style: str) -> torch.Tensor:
    return torch.cat([draw(style, index) for index in range(40)])


def interrupt() -> None:
    raise KeyboardInterrupt


@every_style
def test_a_picture_is_an_image_of_whole_255ths(style):
    picture = draw(style, 0, size=48)
    assert picture.shape == (1, 3, 48, 48)
    assert picture.dtype == torch.float32
    assert picture.is_contiguous()
    assert picture.min() >= 0
    assert picture.max() <= 1
    torch.testing.assert_close(picture * 255, (picture * 255).round(), atol=1e-4, rtol=0)


@every_style
def test_style_index_and_seed_make_the_picture_and_nothing_else_does(style):
    picture = draw(style, 3, seed=7)
    torch.manual_seed(1)
    draw(style, 4, seed=7)
    assert torch.equal(draw(style, 3, seed=7), picture)
    assert difference(draw(style, 4, seed=7), picture) > 0.04
    assert difference(draw(style, 3, seed=8), picture) > 0.04
    assert difference(draw(style, 7, seed=3), picture) > 0.04


@pytest.mark.parametrize(
    ("style", "mean_color"),
    [
        ("suns", (164, 195, 177)),
        ("rosettes", (101, 60, 77)),
        ("mosaic", (191, 167, 161)),
        ("truchet", (152, 157, 151)),
        ("waves", (161, 135, 121)),
        ("flow", (76, 111, 106)),
    ],
)
def test_the_series_stay_what_they_are(style, mean_color):
    """A network trained on a series is trained on the same one after numpy, Pillow or a painter here has changed."""
    assert (255 * draw(style, 5, seed=1)).mean((0, 2, 3)).tolist() == pytest.approx(mean_color, abs=1)


@every_style
def test_every_picture_has_colours_and_contrast(style):
    pictures = series(style)
    assert (pictures.amax((2, 3)) - pictures.amin((2, 3))).amax(1).min() > 0.6, "from dark to bright, in some channel"
    chroma = (pictures.amax(1) - pictures.amin(1)).mean((1, 2))
    assert chroma.mean() > 0.2
    assert chroma.min() > 0.05


@every_style
def test_a_series_varies_over_the_whole_range(style):
    pictures = series(style)
    assert pictures.min() < 0.05
    assert pictures.max() > 0.95
    assert pictures.mean((2, 3)).std(0).mean() > 0.05, "palettes differ"
    assert pictures.mean(1).std(0).mean() > 0.1, "layouts differ"


@every_style
@pytest.mark.parametrize(("size", "smaller"), [(256, 64), (64, 32)])
def test_another_size_is_the_same_picture_larger_or_smaller(style, size, smaller):
    # Outlines are rounded to quarters of a pixel: over 40 pictures of each style that made 0.0133 at the most for 256
    # and 64, 0.0196 for 64 and 32. Two different pictures are at least 0.048 apart.
    for index in range(4):
        shrunk = torch.nn.functional.avg_pool2d(draw(style, index, size=size), size // smaller)
        assert difference(shrunk, draw(style, index, size=smaller)) < 0.02


def test_the_least_and_the_largest_size_are_drawn():
    for size in (drawing.SIZES[0], drawing.SIZES[-1]):
        assert draw("rosettes", 0, size=size).shape[-2:] == (size, size)


def test_a_mosaic_has_lines_paper_and_all_three_colours():
    for index in range(10):
        flat = (255 * draw("mosaic", index, size=128)).round().long()[0].flatten(1)
        _, pixels = (flat[0] * 65536 + flat[1] * 256 + flat[2]).unique(return_counts=True)
        assert (pixels > 50).sum() >= 5


def test_a_set_is_files_that_load_as_drawn_and_tell_how_they_were_made(tmp_path):
    pictures = []
    draw_set("suns", tmp_path / "new" / "suns", 3, seed=9, size=40, on_picture=lambda: pictures.append(1))
    paths = sorted((tmp_path / "new" / "suns").iterdir())
    assert [path.name for path in paths] == ["suns00000.png", "suns00001.png", "suns00002.png"]
    assert len(pictures) == 3
    for index, path in enumerate(paths):
        assert torch.equal(images.load(path), draw("suns", index, seed=9, size=40))
        with Image.open(path) as picture:
            settings = json.loads(picture.info[images.METADATA_KEY])
        assert settings == {"style": "suns", "seed": 9, "index": index, "size": 40}


def test_a_set_is_completed_by_the_same_call_and_leaves_other_files_alone(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(KeyboardInterrupt):
        draw_set("mosaic", tmp_path, 150, on_picture=interrupt)
    begun = {path.name for path in tmp_path.iterdir()}
    assert begun >= {"notes.txt", "mosaic00000.png"}
    assert len(begun) < 150, "an interruption ends it"
    draw_set("mosaic", tmp_path, 150)
    assert len(list(tmp_path.iterdir())) == 151, "all pictures, the notes, and no half file"
    assert (tmp_path / "notes.txt").read_text() == "mine"


def test_names_have_room_for_the_last_number_of_a_large_set(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        draw_set("mosaic", tmp_path, 100_001, on_picture=interrupt)
    assert (tmp_path / "mosaic000000.png").exists()


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"style": "cubism"}, "cubism: no such style, one of suns, .* is needed"),
        ({"count": 0}, "0 pictures: 1 or more are needed"),
        ({"size": 31}, "a size of 31 pixels: 32 to 1024 are needed"),
        ({"size": 1025}, "a size of 1025 pixels: 32 to 1024 are needed"),
        ({"seed": -1}, "seed -1: 0 or more is needed"),
    ],
)
def test_what_cannot_be_drawn_is_refused_in_a_sentence_before_anything_is_made(tmp_path, arguments, sentence):
    with pytest.raises(UserError, match=sentence):
        draw_set(**{"style": "suns", "folder": tmp_path / "set", "count": 2, **arguments})
    assert not (tmp_path / "set").exists()


def test_a_folder_that_cannot_be_made_or_written_to_is_refused_before_anything_is_drawn(tmp_path, monkeypatch):
    monkeypatch.setattr(drawing, "draw", lambda *arguments, **keywords: pytest.fail("drawn"))
    (tmp_path / "file").write_text("in the way")
    for folder in (tmp_path / "file", tmp_path / "file" / "set"):
        with pytest.raises(UserError, match=f"{re.escape(str(folder))}: the folder cannot be made"):
            draw_set("suns", folder, 1)
    (tmp_path / "suns00000.png").mkdir()
    with pytest.raises(UserError, match="a folder of that name is in the way"):
        draw_set("suns", tmp_path, 1)


def test_a_picture_that_is_in_no_series_is_refused():
    with pytest.raises(UserError, match="index -1: 0 or more is needed"):
        draw("suns", -1)
    with pytest.raises(UserError, match="no such style"):
        draw("Suns", 0)
