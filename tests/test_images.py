"""Every kind of picture comes in as the viewer would show it, and goes out whole or not at all."""

import io
import json
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from artkernels import images
from artkernels.errors import UserError


def refuses(call, *words: str) -> None:
    with pytest.raises(UserError) as caught:
        call()
    assert "\n" not in str(caught.value)
    for word in words:
        assert word in str(caught.value)


def test_what_is_saved_is_loaded(tmp_path):
    image = torch.randint(0, 256, (1, 3, 7, 5)) / 255
    images.save(image, tmp_path / "a.png")
    torch.testing.assert_close(images.load(tmp_path / "a.png"), image)


@pytest.mark.parametrize(
    ("mode", "colour", "expected"),
    [
        ("L", 51, (0.2, 0.2, 0.2)),
        ("1", 1, (1, 1, 1)),
        ("RGBA", (255, 0, 0, 0), (1, 1, 1)),
        ("RGBA", (255, 0, 0, 255), (1, 0, 0)),
        ("LA", (0, 51), (0.8, 0.8, 0.8)),
        ("I;16", 13107, (0.2, 0.2, 0.2)),
        ("CMYK", (0, 255, 255, 0), (1, 0, 0)),
    ],
)
def test_every_mode_becomes_rgb_over_white(tmp_path, mode, colour, expected):
    path = tmp_path / ("a.tif" if mode == "CMYK" else "a.png")
    Image.new(mode, (4, 3), colour).save(path)
    image = images.load(path)
    assert image.shape == (1, 3, 3, 4)
    torch.testing.assert_close(image[0, :, 1, 1], torch.tensor(expected).float(), atol=0.003, rtol=0)


def test_a_palette_with_a_transparent_colour(tmp_path):
    picture = Image.new("P", (2, 1))
    picture.putpalette([0, 0, 0, 255, 0, 0])
    picture.putpixel((1, 0), 1)
    picture.save(tmp_path / "a.png", transparency=0)
    torch.testing.assert_close(images.load(tmp_path / "a.png")[0, :, 0].T, torch.tensor([[1.0, 1, 1], [1, 0, 0]]))


def test_a_transparent_level_of_16_bits(tmp_path):
    levels = np.array([[60 * 257, 204 * 257]], np.uint16)
    Image.fromarray(levels).save(tmp_path / "grey.png", transparency=204 * 257)
    assert (255 * images.load(tmp_path / "grey.png")[0, :, 0].T).tolist() == [[60.0] * 3, [255.0] * 3]


def test_a_photograph_is_turned_as_its_exif_says(tmp_path):
    picture = Image.new("RGB", (6, 2), "black")
    exif = picture.getexif()
    exif[0x0112] = 6
    picture.save(tmp_path / "a.jpg", exif=exif)
    assert images.load(tmp_path / "a.jpg").shape == (1, 3, 6, 2)


def test_resize_keeps_the_shape_and_averages_what_it_drops():
    image = torch.rand(1, 3, 300, 200)
    small = images.resize(image, 30)
    assert small.shape == (1, 3, 30, 20)
    assert small.std() < 0.5 * image.std()
    assert images.resize(small, 60).shape == (1, 3, 60, 40)
    assert images.resize(image, 300) is image


def test_the_settings_travel_in_the_file(tmp_path):
    images.save(torch.zeros(3, 2, 2), tmp_path / "a.png", {"seed": 7, "styles": ["été.jpg"]})
    with Image.open(tmp_path / "a.png") as picture:
        assert json.loads(picture.info[images.METADATA_KEY]) == {"seed": 7, "styles": ["été.jpg"]}


def test_a_contact_sheet_sets_pictures_side_by_side():
    sheet = images.contact_sheet([torch.zeros(1, 3, 10, 20), torch.zeros(1, 3, 30, 15)], height=20, gap=2)
    assert sheet.shape == (1, 3, 20, 40 + 2 + 10)
    assert sheet[..., 40:42].min() == 1


def png_claiming(width: int, height: int) -> bytes:
    header = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + struct.pack(">I", 13)
        + header
        + struct.pack(">I", zlib.crc32(header))
        + struct.pack(">I", 100)
        + b"IDAT"
    )


def test_files_that_cannot_be_read_are_refused(tmp_path):
    refuses(lambda: images.load(tmp_path / "absent.png"), "absent.png: no such file")
    refuses(lambda: images.load(tmp_path), "a folder")
    text = tmp_path / "text.png"
    text.write_text("hello")
    refuses(lambda: images.load(text), "text.png: not a picture")
    text.write_bytes(b"")
    refuses(lambda: images.load(text), "text.png: not a picture")
    bomb = tmp_path / "bomb.png"
    bomb.write_bytes(png_claiming(60000, 60000))
    refuses(lambda: images.load(bomb), "million pixels")


@pytest.mark.parametrize("kind", ["png", "jpeg", "tiff", "gif", "webp", "bmp"])
@pytest.mark.parametrize("part", [0.3, 0.6, 0.9])
def test_a_truncated_file_is_refused(tmp_path, kind, part):
    pixels = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format=kind)
    path = tmp_path / "cut"
    path.write_bytes(buffer.getvalue()[: int(part * buffer.tell())])
    refuses(lambda: images.load(path), str(path))


def test_places_that_cannot_be_written_are_refused_and_nothing_is_left(tmp_path):
    image = torch.zeros(1, 3, 2, 2)
    (tmp_path / "folder.png").mkdir()
    for path, words in [
        (tmp_path / "absent" / "a.png", "the folder"),
        (tmp_path / "folder.png", "folder.png"),
        (tmp_path / "a.jpg", ".png"),
        (Path("/proc/a.png"), "cannot be written"),
    ]:
        refuses(lambda path=path: images.check_writable(path), str(path), words)
        refuses(lambda path=path: images.save(image, path), str(path))
    assert [path.name for path in tmp_path.iterdir()] == ["folder.png"]


def test_a_failed_save_keeps_the_old_picture_and_leaves_nothing_beside_it(tmp_path, monkeypatch):
    path = tmp_path / "a.png"
    images.save(torch.zeros(1, 3, 2, 2), path)
    before = path.read_bytes()

    def full_disk(self, file, **options):
        file.write(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Image.Image, "save", full_disk)
    refuses(lambda: images.save(torch.ones(1, 3, 2, 2), path), "No space left on device")
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]
