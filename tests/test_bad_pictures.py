"""Pictures of every kind are painted as a viewer shows them, or refused in one sentence, with nothing half made."""

import os
import struct
import sys
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageCms

from artkernels import cli, images
from artkernels.cli import painters

sys.path.insert(0, str(Path(__file__).parent))

from noise import noise
from painting_networks import link_networks, save_networks
from random_vgg import random_vgg

pytestmark = pytest.mark.cpu_only

RUST, SEA, WHITE = (200, 60, 30), (20, 90, 160), (255, 255, 255)
DARK, LIGHT, BLACK = (60, 60, 60), (204, 204, 204), (0, 0, 0)
WIDTH, HEIGHT = 44, 40


def halves(mode: str = "RGB", left=RUST, right=SEA) -> Image.Image:
    """One colour at the left of the middle, and another at the right of it."""
    picture = Image.new(mode, (WIDTH, HEIGHT), right)
    picture.paste(left, (0, 0, WIDTH // 2, HEIGHT))
    return picture


def levels(dtype: str, left: float, right: float) -> Image.Image:
    """The same of numbers."""
    values = np.full((HEIGHT, WIDTH), right, dtype)
    values[:, : WIDTH // 2] = left
    return Image.fromarray(values)


def deep() -> np.ndarray:
    """[H, W, 3]: 16-bit colours, whose lower eight bits are not the upper ones."""
    return np.asarray(halves()).astype(np.uint16) * 256 + 99


def png_of_16_bits(pixels: np.ndarray) -> bytes:
    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in pixels)
    header = struct.pack(">IIBBBBB", WIDTH, HEIGHT, 16, 2, 0, 0, 0)
    chunks = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + chunks


def tiff_of_16_bits(pixels: np.ndarray, order: str) -> bytes:
    long, short = 4, 3
    entries = [(256, long, WIDTH), (257, long, HEIGHT), (259, short, 1), (262, short, 2), (277, short, 3)]
    bits_at = 8 + 2 + 12 * (len(entries) + 3) + 4
    entries += [(258, short, bits_at), (273, long, bits_at + 6), (279, long, pixels.nbytes)]
    header = (b"II" if order == "<" else b"MM") + struct.pack(order + "HIH", 42, 8, len(entries))
    for tag, kind, value in sorted(entries):
        in_place = (
            struct.pack(order + "HH", value, 0) if kind == short and tag != 258 else struct.pack(order + "I", value)
        )
        header += struct.pack(order + "HHI", tag, kind, 3 if tag == 258 else 1) + in_place
    return header + bytes(4) + struct.pack(order + "HHH", 16, 16, 16) + pixels.astype(order + "u2").tobytes()


def srgb_and_its_tags() -> tuple[bytearray, dict[str, slice]]:
    """The ICC profile of sRGB, and where in it each tag has its content."""
    srgb = bytearray(ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes())
    places = {srgb[at : at + 4].decode(): struct.unpack(">II", srgb[at + 4 : at + 12]) for at in range(132, 264, 12)}
    return srgb, {tag: slice(first, first + size) for tag, (first, size) in places.items()}


def red_and_green_swapped() -> bytes:
    """An ICC profile: that of sRGB, whose red is green."""
    srgb, tags = srgb_and_its_tags()
    srgb[tags["rXYZ"]], srgb[tags["gXYZ"]] = srgb[tags["gXYZ"]], srgb[tags["rXYZ"]]
    return bytes(srgb)


def linear() -> bytes:
    """An ICC profile: that of sRGB, whose levels are proportional to light."""
    srgb, tags = srgb_and_its_tags()
    for tag in ("rTRC", "gTRC", "bTRC"):
        srgb[tags[tag]] = b"curv".ljust(tags[tag].stop - tags[tag].start, b"\0")  # of no points
    return bytes(srgb)


def of_light(colour: tuple[int, ...]) -> tuple[int, ...]:
    """The levels that sRGB, IEC 61966-2-1, has for light of levels from 1 to 255."""
    return tuple(round(255 * (1.055 * (level / 255) ** (1 / 2.4) - 0.055)) for level in colour)


def lab() -> Image.Image:
    picture = ImageCms.profileToProfile(
        halves(), ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB"), outputMode="LAB"
    )
    assert picture is not None
    return picture


def palette() -> Image.Image:
    picture = Image.new("P", (WIDTH, HEIGHT), 1)
    picture.putpalette([*RUST, *SEA])
    picture.paste(0, (0, 0, WIDTH // 2, HEIGHT))
    return picture


def turned() -> tuple[Image.Image, Image.Exif]:
    """A picture on its side, and the EXIF that says so."""
    exif = Image.Exif()
    exif[0x0112] = 6
    return halves().transpose(Image.Transpose.ROTATE_90), exif


CLEAR_SEA = halves("RGBA", (*RUST, 255), (*SEA, 0))
GREY16 = 60 * 257, 204 * 257
INK = halves("CMYK", (55, 195, 225, 0), (0, 0, 0, 51))
SEVERAL = {"save_all": True, "append_images": [Image.new("RGB", (WIDTH, HEIGHT))]}
SIDEWAYS, EXIF = turned()
GAMUT = {"icc_profile": red_and_green_swapped()}
GREENISH, PURPLE = (60, 200, 30), (90, 20, 160)  # RUST and SEA in that gamut

# Of each file the picture, what a viewer shows at its left and at its right, and how it is saved.
KINDS: dict[str, tuple[Image.Image | bytes, tuple[int, ...], tuple[int, ...], dict[str, Any]]] = {
    "alpha.png": (CLEAR_SEA, RUST, WHITE, {}),
    "alpha.tif": (CLEAR_SEA, RUST, WHITE, {}),
    "alpha.webp": (CLEAR_SEA, RUST, WHITE, {"lossless": True}),
    "grey-alpha.png": (halves("LA", (60, 255), (0, 51)), DARK, LIGHT, {}),
    "palette.png": (palette(), RUST, SEA, {}),
    "palette-transparent.png": (palette(), RUST, WHITE, {"transparency": 1}),
    "palette-half-transparent.png": (palette(), RUST, (208, 222, 236), {"transparency": bytes((255, 51))}),
    "transparent-colour.png": (halves(), RUST, WHITE, {"transparency": SEA}),
    "bits.png": (halves("1", 0, 1), BLACK, WHITE, {}),
    "bits.tif": (halves("1", 0, 1), BLACK, WHITE, {"compression": "group4"}),
    "grey16.png": (levels("u2", *GREY16), DARK, LIGHT, {}),
    "grey16.pgm": (levels("u2", *GREY16), DARK, LIGHT, {}),
    "grey16-little.tif": (levels("<u2", *GREY16), DARK, LIGHT, {}),
    "grey16-big.tif": (levels(">u2", *GREY16), DARK, LIGHT, {}),
    "grey16-in-32.tif": (levels("i4", *GREY16), DARK, LIGHT, {}),
    "rgb16.png": (png_of_16_bits(deep()), RUST, SEA, {}),
    "rgb16-little.tif": (tiff_of_16_bits(deep(), "<"), RUST, SEA, {}),
    "rgb16-big.tif": (tiff_of_16_bits(deep(), ">"), RUST, SEA, {}),
    "float.tif": (levels("f4", 60 / 255, 0.8), DARK, LIGHT, {}),
    "float-overshooting.tif": (levels("f4", -0.1, 1.1), BLACK, WHITE, {}),
    "cmyk.jpg": (INK, RUST, LIGHT, {"quality": 98}),
    "cmyk.tif": (INK, RUST, LIGHT, {}),
    "ycbcr.jpg": (halves(), RUST, SEA, {"quality": 98}),
    "ycbcr.tif": (halves().convert("YCbCr"), RUST, SEA, {}),
    "lab.tif": (lab(), RUST, SEA, {}),
    "animated.gif": (palette(), RUST, SEA, SEVERAL),
    "animated.png": (halves(), RUST, SEA, SEVERAL),
    "animated.webp": (halves(), RUST, SEA, {"lossless": True, **SEVERAL}),
    "two.mpo": (halves(), RUST, SEA, {"quality": 98, **SEVERAL}),
    "turned.jpg": (SIDEWAYS, RUST, SEA, {"exif": EXIF, "quality": 98}),
    "turned.png": (SIDEWAYS, RUST, SEA, {"exif": EXIF}),
    "turned.tif": (SIDEWAYS, RUST, SEA, {"exif": EXIF}),
    "gamut.jpg": (halves(), GREENISH, PURPLE, {"quality": 98, **GAMUT}),
    "gamut-alpha.png": (CLEAR_SEA, GREENISH, WHITE, GAMUT),
    "gamut-palette.png": (palette(), GREENISH, PURPLE, GAMUT),
    "gamut-of-colours-in-grey.png": (halves("L", 60, 204), DARK, LIGHT, GAMUT),
    "linear.png": (halves(), of_light(RUST), of_light(SEA), {"icc_profile": linear()}),
    "gamut-damaged.png": (halves(), RUST, SEA, {"icc_profile": b"nonsense"}),
}

NOT_A_NUMBER = np.full((HEIGHT, WIDTH), 0.5, np.float32)
NOT_A_NUMBER[3, 4] = np.nan

# Of each file that is refused, what is in it and why.
REFUSED: dict[str, tuple[Image.Image | bytes, str]] = {
    "thin.png": (Image.new("RGB", (1, HEIGHT)), "pixels, and its shorter side must be at least"),
    "low.png": (Image.new("RGB", (WIDTH, 1)), "pixels, and its shorter side must be at least"),
    "nan.tif": (Image.fromarray(NOT_A_NUMBER), "numbers from nan to nan, and must be from 0, black, to 1, white"),
    "float-of-255ths.tif": (levels("f4", 0, 255), "numbers from 0 to 255, and must be from 0, black, to 1, white"),
    "numbers.tif": (levels("i4", -5, 10**6), "numbers from -5 to 1e+06, and must be from 0, black, to 65535, white"),
    "nothing.png": (b"", "not a picture"),
    "text.png": (b"hello", "not a picture"),
    "truncated.png": (png_of_16_bits(deep())[:-30], "damaged or incomplete picture"),
}
STYLED = ("optimize", "adain")
METHODS = {
    "optimize": ["--vgg", "vgg.pth", "--steps", "1"],
    "fast-style": ["--model", "fast.pth"],
    "adain": ["--model", "decoder.pth", "--vgg", "encoder.pth"],
    "cyclegan": ["--model", "cycle.pth"],
}


def write(path: Path, content: Image.Image | bytes, options: dict[str, Any] | None = None) -> None:
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        content.save(path, **(options or {}))


@pytest.fixture(scope="module")
def networks(tmp_path_factory) -> Path:
    return save_networks(tmp_path_factory.mktemp("networks"))


@pytest.fixture
def folder(tmp_path, monkeypatch, networks) -> Path:
    """The current folder, with a photograph, a painting, networks, and a folder for results."""
    link_networks(networks, tmp_path)
    for seed, name in enumerate(("photo.png", "style.png")):
        noise((50, 41), seed).save(tmp_path / name)
    (tmp_path / "out").mkdir()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(painters, "load_vgg19", lambda *_, **__: random_vgg(slim=True))
    return tmp_path


def stylize(method: str, photos: list[str], styles: list[str], *options: str) -> int:
    style = [part for name in styles for part in ("--style", name)] if method in STYLED else []
    arguments = ["stylize", *photos, *METHODS[method], *style, "--output", "out", "--device", "cpu", *options]
    return cli.run(arguments)


def sizes_made(folder: Path) -> dict[str, tuple[int, int]]:
    return {path.name: Image.open(path).size for path in (folder / "out").iterdir()}


def refusal(capsys: pytest.CaptureFixture[str], folder: Path) -> str:
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("artkernels: ")
    assert captured.err.count("\n") == 1
    assert sizes_made(folder) == {}
    return captured.err


@pytest.mark.parametrize("name", KINDS)
def test_a_picture_is_loaded_as_a_viewer_shows_it(tmp_path, name):
    content, left, right, options = KINDS[name]
    write(tmp_path / name, content, options)
    image = images.load(tmp_path / name)
    assert image.shape == (1, 3, HEIGHT, WIDTH)
    rounded = name.endswith(("jpg", "mpo")) or name.startswith(("lab", "ycbcr"))  # by the file itself
    tolerance = 3 if rounded else 1  # of 255
    for column, colour in ((WIDTH // 4, left), (3 * WIDTH // 4, right)):
        expected = torch.tensor(colour).view(3, 1).expand(3, HEIGHT)
        torch.testing.assert_close(255 * image[0, :, :, column], expected.float(), atol=tolerance, rtol=0)


@pytest.mark.parametrize("method", METHODS)
def test_every_kind_is_painted_at_its_size(folder, method):
    for name, (content, _, _, options) in KINDS.items():
        write(folder / f"{name}.{name.partition('.')[2]}", content, options)
    names = [f"{name}.{name.partition('.')[2]}" for name in KINDS]
    assert stylize(method, names, ["style.png"], "--size", str(WIDTH)) == 0
    assert sizes_made(folder) == {f"{name}.png": (WIDTH, HEIGHT) for name in KINDS}


@pytest.mark.parametrize("method", STYLED)
def test_every_kind_is_a_style(folder, method):
    for name, (content, _, _, options) in KINDS.items():
        write(folder / name, content, options)
    assert stylize(method, ["photo.png"], list(KINDS), "--size", "50") == 0
    assert sizes_made(folder) == {"photo.png": (50, 41)}


@pytest.mark.parametrize("name", REFUSED)
@pytest.mark.parametrize(
    ("method", "role"), [*((method, "photograph") for method in METHODS), *((method, "style") for method in STYLED)]
)
def test_what_is_no_picture_to_paint_is_one_sentence(folder, capsys, method, role, name):
    content, words = REFUSED[name]
    write(folder / name, content)
    pictures = (["photo.png", name], ["style.png"]) if role == "photograph" else (["photo.png"], ["style.png", name])
    assert stylize(method, *pictures, "--size", "50") == 2
    message = refusal(capsys, folder)
    assert words in message
    assert (role if "shorter side" in words else name) in message


def test_a_picture_of_one_pixel_is_painted_larger_and_is_no_style_of_adain(folder, capsys):
    Image.new("RGB", (1, 1)).save(folder / "dot.png")
    for method in METHODS:
        assert stylize(method, ["dot.png"], ["style.png"], "--size", "50") == 0
    assert sizes_made(folder) == {"dot.png": (50, 50)}
    assert stylize("adain", ["photo.png"], ["dot.png"], "--size", "50") == 2
    words = (
        "style picture would be 1x1 pixels, and its shorter side must be at least 16: choose a larger size, or another"
    )
    assert words in capsys.readouterr().err


@pytest.mark.skipif(os.geteuid() == 0, reason="nothing is forbidden to root")
def test_a_picture_that_may_not_be_read_is_one_sentence(folder, capsys):
    (folder / "photo.png").chmod(0)
    assert stylize("fast-style", ["photo.png"], []) == 2
    assert "no permission to read it" in refusal(capsys, folder)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("shape", [(400, 32), (33, 401)])
def test_a_thin_picture_is_painted_at_once_and_in_parts(folder, method, shape):
    noise(shape, 2).save(folder / "thin.png")
    painted = []
    for tile in ("off", "auto", "40"):
        assert stylize(method, ["thin.png"], ["style.png"], "--size", str(max(shape)), "--tile", tile) == 0
        painted.append(np.asarray(Image.open("out/thin.png")).astype(int))
    assert painted[0].shape[:2] == shape[::-1]
    assert painted[0].std((0, 1)).min() > 10  # of 255: what has no contrast is the same in any way
    for other in painted[1:]:
        assert np.abs(other - painted[0]).max() <= 1
