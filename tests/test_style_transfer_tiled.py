"""Style transfer in tiles is style transfer: the same loss and gradient, of any size, in a bounded memory."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor

from artkernels.errors import UserError
from artkernels.models.vgg import VGG19
from artkernels.recipes import style_transfer
from artkernels.recipes.style_memory import Footprint
from artkernels.recipes.style_network import modules
from artkernels.recipes.style_objective import CONTENT_LAYER, STYLE_LAYERS, Objective, TiledObjective, Weights
from artkernels.recipes.style_tiles import Reach, reach, spans
from artkernels.recipes.style_transfer import Settings, check, stylize

sys.path.insert(0, str(Path(__file__).parent))

from random_vgg import random_vgg

WEIGHTS = Weights(content=1, style=10, tv=6)
SIZES = [((96, 128), 64), ((101, 147), 48), ((299, 67), 16), ((83, 85), 1), ((40, 410), 80)]


def pictures(height: int, width: int, channels: int = 3, dtype: torch.dtype = torch.float32) -> list[Tensor]:
    """A canvas, a photograph of its size, and two paintings of others."""
    shapes = [(height, width), (height, width), (70, 91), (64, 49)]
    return [torch.rand(1, channels, *shape, dtype=dtype) for shape in shapes]


def loss_and_gradient(objective: Objective, canvas: Tensor) -> tuple[float, Tensor]:
    canvas = canvas.clone().requires_grad_()
    loss = objective.backward(canvas)
    assert canvas.grad is not None
    return loss, canvas.grad


def difference(ours: Tensor, exact: Tensor) -> float:
    return float((ours - exact).abs().max() / exact.abs().max())


def test_vgg19s_loss_and_gradient_are_those_of_the_whole():
    vgg = random_vgg()
    canvas, photo, *styles = pictures(101, 147)
    whole = loss_and_gradient(Objective(vgg, photo, styles, [0.7, 0.3], WEIGHTS), canvas)
    tiled = loss_and_gradient(TiledObjective(vgg, photo, styles, [0.7, 0.3], WEIGHTS, 80), canvas)
    assert tiled[0] == pytest.approx(whole[0], rel=5e-6)
    assert difference(tiled[1], whole[1]) < 5e-6


# In float64 the smallest term of the deepest layer is far above the rounding, so that none can be wrong unseen.
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 5e-6), (torch.float64, 1e-12)])
@pytest.mark.parametrize("pooling", ["average", "max"])
@pytest.mark.parametrize(("size", "tile"), SIZES)
def test_loss_and_gradient_are_those_of_the_whole(size, tile, pooling, dtype, tolerance):
    vgg = random_vgg(pooling, slim=True).to(dtype)
    canvas, photo, *styles = pictures(*size, dtype=dtype)
    whole = loss_and_gradient(Objective(vgg, photo, styles, [0.7, 0.3], WEIGHTS), canvas)
    tiled = loss_and_gradient(TiledObjective(vgg, photo, styles, [0.7, 0.3], WEIGHTS, tile), canvas)
    assert tiled[0] == pytest.approx(whole[0], rel=tolerance)
    assert difference(tiled[1], whole[1]) < tolerance


@pytest.mark.parametrize(
    "weights", [Weights(1, 0, 0), Weights(0, 1, 0), Weights(0, 0, 1)], ids=["content", "style", "tv"]
)
def test_so_is_each_term_of_a_luminance_picture(weights):
    vgg = random_vgg(slim=True).double()
    canvas, photo, *styles = pictures(101, 67, channels=1, dtype=torch.float64)
    whole = loss_and_gradient(Objective(vgg, photo, styles, [0.5, 0.5], weights), canvas)
    tiled = loss_and_gradient(TiledObjective(vgg, photo, styles, [0.5, 0.5], weights, 32), canvas)
    assert tiled[0] == pytest.approx(whole[0], rel=1e-12)
    assert difference(tiled[1], whole[1]) < 1e-12


def test_each_tiles_own_style_loss_would_have_another_gradient():
    vgg = random_vgg(slim=True).double()
    canvas, photo, *styles = pictures(96, 96, dtype=torch.float64)

    def gradient(canvas: Tensor, photo: Tensor) -> Tensor:
        return loss_and_gradient(Objective(vgg, photo, styles, [0.5, 0.5], Weights(0, 1, 0)), canvas)[1]

    halves = zip(canvas.split(48, dim=2), photo.split(48, dim=2), strict=True)
    naive = torch.cat([gradient(*half) / 2 for half in halves], dim=2)
    assert difference(naive, gradient(canvas, photo)) > 0.01


def test_a_smaller_halo_would_have_another_gradient():
    vgg = random_vgg(slim=True).double()
    canvas, photo, *styles = pictures(160, 96, dtype=torch.float64)
    whole = Objective(vgg, photo, styles, [0.5, 0.5], Weights(0, 1, 0))
    tiled = TiledObjective(vgg, photo, styles, [0.5, 0.5], Weights(0, 1, 0), 16)
    stride, radius = tiled.reach["relu5_1"]
    tiled.reach["relu5_1"] = Reach(stride, radius - stride)
    assert difference(loss_and_gradient(tiled, canvas)[1], loss_and_gradient(whole, canvas)[1]) > 1e-9


@pytest.mark.parametrize("layer", [*STYLE_LAYERS, CONTENT_LAYER])
def test_the_reach_of_a_layer_is_as_far_as_its_gradient_goes(layer):
    vgg = random_vgg().double()
    stride, radius = reach(modules(vgg, layer))
    picture = torch.rand(1, 3, 192, 16, dtype=torch.float64, requires_grad=True)
    features = vgg(picture, [layer])[layer]
    assert features.shape[-2] == 192 // stride
    row = 96 // stride
    features[..., row, :].sum().backward()
    rows = picture.grad.abs().sum((0, 1, 3)).nonzero().flatten().tolist()
    assert (rows[0], rows[-1]) == (row * stride - radius, (row + 1) * stride - 1 + radius)


@pytest.mark.parametrize("length", [16, 31, 64, 101, 4128])
@pytest.mark.parametrize("side", [1, 16, 40, 64, 5000, None])
def test_spans_own_every_pixel_once_and_see_the_halo(length, side):
    cut = spans(length, side, Reach(16, 70))
    assert [span.start for span in cut] == [0, *(span.stop for span in cut[:-1])]
    assert cut[-1].stop == length
    for span in cut:
        assert span.first <= max(0, span.start - 70)
        assert span.last >= min(length, span.stop + 70)
        assert span.first % 16 == 0
        assert span.last % 16 == 0 or span.last == length
        assert side is None or span.stop - span.start <= -(-side // 16) * 16


@pytest.mark.parametrize("preserve_color", [False, True])
def test_the_picture_is_that_of_the_whole(preserve_color):
    _, photo, *styles = pictures(50, 100)
    settings = Settings(size=200, steps=4, optimizer="adam", preserve_color=preserve_color)
    vgg = random_vgg(slim=True)
    whole = stylize(photo, styles, vgg, settings, tile=None)
    tiled = stylize(photo, styles, vgg, settings, tile=64)
    torch.testing.assert_close(tiled, whole, atol=1e-3, rtol=0)


def test_the_tile_is_the_largest_that_fits():
    footprint = Footprint(VGG19(), "adam", (4128, 4128), ((4096, 3000),))
    for budget in (2**31, 2**32):
        tile = footprint.largest_tile(budget)
        assert tile is not None
        assert footprint.bytes(tile) <= budget < footprint.bytes(tile + 64)
    assert footprint.largest_tile(2**36) is None
    assert footprint.largest_tile(0) == 64


def test_a_small_picture_needs_no_tiles(monkeypatch):
    monkeypatch.setattr(style_transfer, "TiledObjective", None)
    _, photo, *styles = pictures(40, 40)
    for memory in ({"tile": 80}, {"max_memory": 2**40}):
        stylize(photo, styles, random_vgg(slim=True), Settings(size=48, steps=1), **memory)


def test_memory_for_tiles_only_makes_tiles(monkeypatch):
    monkeypatch.setattr(style_transfer, "Objective", None)
    _, photo, *styles = pictures(160, 160)
    settings = Settings(size=160, steps=1)
    vgg = random_vgg(slim=True)
    whole = Footprint(vgg, "lbfgs", (192, 192), tuple(style.shape[-2:] for style in styles)).bytes(None)
    in_use = style_transfer.memory_in_use(torch.device("cpu"))
    monkeypatch.setattr(style_transfer, "memory_in_use", lambda device: in_use)
    stylize(photo, styles, vgg, settings, max_memory=in_use + whole - 1)


def poster(size: int, optimizer: str, **memory: int) -> None:
    photo = torch.zeros(1, 3, 1, 1).expand(1, 3, size, size)
    check(photo, [photo], VGG19(), Settings(size=size, optimizer=optimizer), **memory)


def test_4096_pixels_fit_in_4_gb_with_adam_and_not_with_lbfgs(monkeypatch):
    monkeypatch.setattr(style_transfer, "memory_in_use", lambda device: 10**9)
    monkeypatch.setattr(style_transfer, "memory_available", lambda device: 2**36)
    poster(4096, "adam", max_memory=4 * 10**9)
    poster(2048, "lbfgs", max_memory=4 * 10**9)
    with pytest.raises(UserError, match=r"in tiles of 64 pixels, and 2\.8 GiB are available: .* the optimizer adam"):
        poster(4096, "lbfgs", max_memory=4 * 10**9)


def test_what_does_not_fit_is_refused_and_the_way_out_is_named(monkeypatch):
    monkeypatch.setattr(style_transfer, "memory_available", lambda device: 3 * 2**30)
    with pytest.raises(UserError, match=r"4096x4096 pixels would need about .* or let it be computed in tiles$"):
        poster(4096, "adam", tile=None)
    with pytest.raises(UserError, match=r"in tiles of 2048 pixels, and 3\.0 GiB are available: choose a smaller size"):
        poster(4096, "adam", tile=2048)
    with pytest.raises(UserError, match="the side of a tile must be at least 1 pixel, got 0"):
        poster(64, "adam", tile=0)


# In a process of its own: prints what a step of Adam takes beyond what was resident before it, and the estimate.
STEP = """
import sys, torch
from pathlib import Path
from artkernels.models.vgg import VGG19
from artkernels.recipes.style_memory import Footprint
from artkernels.recipes.style_objective import Objective, TiledObjective, Weights

def status(field):
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith(field + ":"))

side, tile = int(sys.argv[1]), int(sys.argv[2]) or None
torch.set_num_threads(1)
vgg = VGG19(pooling="average").requires_grad_(False)
photo, style = torch.rand(1, 3, side, side), torch.rand(1, 3, 64, 64)
Path("/proc/self/clear_refs").write_text("5")  # the high-water mark falls to what is resident
before = status("VmRSS")
canvas = photo.clone().requires_grad_()
kind = TiledObjective if tile else Objective
objective = kind(vgg, photo.clone(), [style], [1.0], Weights(1, 10, 6), tile)
torch.optim.Adam([canvas], fused=True).step(lambda: objective.backward(canvas))
print(status("VmHWM") - before, Footprint(vgg, "adam", (side, side), [(64, 64)]).bytes(tile))
"""


@pytest.mark.cpu_only
@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="the system does not tell the high-water mark")
@pytest.mark.parametrize(("side", "tile"), [(320, None), (256, 128)])
def test_the_estimate_is_within_a_quarter_of_the_high_water_mark(side, tile):
    command = [sys.executable, "-c", STEP, str(side), str(tile or 0)]
    taken, estimate = map(int, subprocess.run(command, check=True, capture_output=True, text=True).stdout.split())
    assert 0.75 * taken < estimate < 1.25 * taken
