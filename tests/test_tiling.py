"""A network in bands of rows makes the picture that it makes at once, whatever must wait on the disk meanwhile."""

import itertools
import os
import subprocess
import sys
import tempfile

import pytest
import torch
from torch import nn

import artkernels
from artkernels.errors import UserError
from artkernels.feed_forward import paint
from artkernels.models import AdaINDecoder, AdaINEncoder, ResnetGenerator, TransformerNet
from artkernels.recipes.adain import adain_stylize
from artkernels.tiling import Photograph, Plan, Tiling, feature_map, pixels_of, run, statistics
from artkernels.tiling import plan as planning
from artkernels.tiling.maps import FeatureMap, band_of, picture_of

pytestmark = pytest.mark.cpu_only  # the networks' operations have tests of their own

CPU = torch.device("cpu")
# A dozen layers of float32's rounding, of values about 1. Where bands are cut wrongly the difference is above 0.01.
TOLERANCE = {"rtol": 0, "atol": 2e-5}


def plan_of(network, picture, rows=0, memory=None, multiple=1) -> Plan:
    photograph = Photograph(picture[0], multiple=multiple)
    return Plan(feature_map(network, photograph), Tiling(rows, memory), CPU, torch.float32)


def computed(plan: Plan) -> torch.Tensor:
    height, width, channels = plan.output.shape
    result = torch.empty(1, channels, height, width)
    run(plan, pixels_of(result[0]))
    return result


@pytest.fixture(autouse=True)
def _without_gradients():
    with torch.inference_mode():
        yield


NETWORKS = {
    "fast style": lambda: TransformerNet(),
    "fast style, transposed": lambda: TransformerNet(transposed=True),
    "CycleGAN": lambda: ResnetGenerator(ngf=8, n_blocks=2),
    "CycleGAN with dropout": lambda: ResnetGenerator(ngf=8, n_blocks=1, use_dropout=True),
    "pix2pix": lambda: ResnetGenerator(ngf=8, n_blocks=2, norm="batch"),
}


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize(("shape", "rows"), [((64, 52), 16), ((36, 100), 7), ((101, 43), 1), ((17, 16), 1000)])
def test_a_picture_in_bands_is_that_painted_at_once(name, shape, rows):
    network = NETWORKS[name]().eval()
    picture = torch.rand(1, 3, *shape)
    multiple = torch.nn.functional.pad(picture, (0, -shape[1] % 4, 0, -shape[0] % 4), mode="reflect")
    expected = network(multiple)
    assert expected.std() > 0.01
    torch.testing.assert_close(computed(plan_of(network, picture, rows, multiple=4)), expected, **TOLERANCE)


def test_bands_each_painted_by_itself_are_not_that_picture():
    network = TransformerNet().eval()
    picture = torch.rand(1, 3, 64, 48)
    halo = 32  # of rows that are cut off again: it is the statistics that are of a band alone
    upper = network(picture[..., : 32 + halo // 2, :])[..., :32, :]
    lower = network(picture[..., 32 - halo // 2 :, :])[..., halo // 2 :, :]
    assert (torch.cat([upper, lower], 2) - network(picture)).abs().max() > 1000 * TOLERANCE["atol"]


@pytest.mark.parametrize("level", [1.0, 200 / 255, 0.0])
def test_a_blank_picture_in_bands_is_blank(level):
    network = TransformerNet().eval()
    with torch.no_grad():
        network.deconv3.conv2d.weight.mul_(255)  # a trained network's range
        network.deconv3.conv2d.bias.add_(128)
    network = artkernels.fuse(network)
    blank = torch.full((1, 3, 200, 150), level)
    torch.testing.assert_close(paint(network, blank, Tiling(63)), paint(network, blank), **TOLERANCE)


@pytest.mark.parametrize("shape", [(40, 56), (37, 51), (16, 17)])
@pytest.mark.parametrize("rows", [8, 13, 1])
def test_adain_in_bands_is_adain_at_once(shape, rows):
    encoder, decoder = AdaINEncoder().eval(), AdaINDecoder().eval()
    for module in (*encoder.modules(), *decoder.modules()):
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
    photo, *styles = torch.rand(1, 3, *shape), torch.rand(1, 3, 33, 24), torch.rand(1, 3, 16, 40).square()
    for alpha, preserve_color in ((0.7, False), (1.0, True)):
        arguments = (encoder, decoder, photo, styles, [1, 2], alpha, preserve_color)
        expected = adain_stylize(*arguments)
        assert expected.std() > 0.01
        torch.testing.assert_close(adain_stylize(*arguments, Tiling(rows)), expected, **TOLERANCE)


@pytest.mark.parametrize("tiling", [None, Tiling(3), Tiling(memory=2**23), Tiling(1000)], ids=str)
@pytest.mark.parametrize("name", ["fast style", "CycleGAN", "AdaIN"])
def test_progress_rises_to_exactly_one(name, tiling):
    told: list[float] = []
    photos = torch.rand(2, 3, 50, 44)
    if name == "AdaIN":
        adain_stylize(
            AdaINEncoder(), AdaINDecoder(), photos[:1], [photos[1:]] * 2, tiling=tiling, on_progress=told.append
        )
    else:
        paint(NETWORKS[name]().eval(), photos, tiling, told.append)
    assert told[0] > 0
    assert told == sorted(set(told))
    assert told[-1] == 1
    if tiling == Tiling(3):  # so many bands that none is much of the work
        assert max(after - before for before, after in itertools.pairwise([0, *told])) < 0.05


@pytest.mark.parametrize("price_of_disk", [0, 400, 1e9])
@pytest.mark.parametrize("mebibytes", [2, 3, 100])
def test_where_maps_wait_changes_nothing(monkeypatch, price_of_disk, mebibytes):
    monkeypatch.setattr(planning, "_FLOPS_PER_BYTE_ON_DISK", price_of_disk)
    network = TransformerNet().eval()
    picture = torch.rand(1, 3, 144, 120)
    plan = plan_of(network, picture, rows=4, memory=mebibytes * 2**20)
    torch.testing.assert_close(computed(plan), network(picture), **TOLERANCE)
    if mebibytes == 100:
        assert plan.disk == 0
    if mebibytes == 2 and price_of_disk == 0:  # everything is kept, little of it in memory
        assert plan.disk > 2**20
        assert any(0 < rows < map.shape.height for map, rows in plan.resident.items())


def test_maps_are_computed_again_where_that_is_cheaper_than_the_disk():
    network, picture = TransformerNet().eval(), torch.rand(1, 3, 144, 120)
    little, much = (plan_of(network, picture, 4, memory) for memory in (3 * 2**19, None))
    times = [sum(m.flops for step in plan.passes for m in step.computed) for plan in (little, much)]
    assert times[0] > 1.1 * times[1]


def test_residual_blocks_take_two_maps_however_many_they_are():
    picture = torch.rand(1, 3, 64, 64)
    for n_blocks in (2, 5):
        plan = plan_of(ResnetGenerator(ngf=8, n_blocks=n_blocks).eval(), picture)
        in_blocks = {m for m in plan.resident if m.shape == (16, 16, 32)}
        assert len(in_blocks - plan.takes_over.keys()) == 2


def test_a_band_is_a_channels_last_picture_as_it_is():
    bands = torch.rand(9, 5, 4)
    for band in (bands, bands[2:7], bands[:1]):
        assert picture_of(band).is_contiguous(memory_format=torch.channels_last)
        assert picture_of(band).data_ptr() == band.data_ptr() == band_of(picture_of(band)).data_ptr()


def test_no_row_is_computed_twice_in_a_pass_nor_more_than_a_band_at_once(monkeypatch):
    network, picture = nn.Sequential(*AdaINEncoder(), *AdaINDecoder()).eval(), torch.rand(1, 3, 72, 24)
    plan = plan_of(network, picture, rows=8)
    spans: dict[FeatureMap, list[tuple[int, int]]] = {}
    for map in plan.passes[0].computed:

        def compute(windows, first, end, *, map=map, original=map.compute):
            spans.setdefault(map, []).append((first, end))
            return original(windows, first, end)

        monkeypatch.setattr(map, "compute", compute)
    computed(plan)
    assert len(spans) == len(plan.passes[0].computed) > 20
    for map, of_map in spans.items():
        assert [0, *(end for _, end in of_map)] == [*(first for first, _ in of_map), map.shape.height]
        assert max(end - first for first, end in of_map) <= plan.rows_of(map) < map.shape.height


LAYERS = [
    nn.Conv2d(3, 4, 5, padding=2, padding_mode="reflect"),
    nn.Conv2d(3, 4, (2, 3), stride=(3, 2), padding=(0, 1)),
    nn.Conv2d(3, 6, 3, padding="same", dilation=2, groups=3),
    nn.Conv2d(3, 4, 4, padding=5),
    nn.ConvTranspose2d(3, 4, 4, stride=2, padding=1),
    nn.ConvTranspose2d(3, 4, 3, stride=2, padding=1, output_padding=1),
    nn.ConvTranspose2d(3, 4, 5, stride=3, padding=1, output_padding=(2, 1), dilation=2),
    nn.ConvTranspose2d(3, 6, 2, stride=4, output_padding=3, groups=3),
    nn.Sequential(nn.Upsample(scale_factor=2), nn.Conv2d(3, 4, 3, padding=1)),
    nn.Sequential(nn.Upsample(scale_factor=2), nn.ReflectionPad2d(1), nn.Conv2d(3, 4, 3)),
    nn.Sequential(nn.ZeroPad2d(1), nn.Conv2d(3, 4, 3, padding=1), nn.GELU()),
    nn.Sequential(nn.Conv2d(3, 4, 1), nn.InstanceNorm2d(4, affine=True), nn.LeakyReLU(0.3)),
    nn.Sequential(nn.Conv2d(3, 4, 1), nn.InstanceNorm2d(4, track_running_stats=True)),
    nn.Sequential(nn.Conv2d(3, 4, 1), nn.MaxPool2d(2)),
    nn.Sequential(nn.Conv2d(3, 4, 1), nn.MaxPool2d(3, ceil_mode=True)),
]


@pytest.mark.parametrize("layer", LAYERS, ids=str)
@pytest.mark.parametrize("height", [16, 11])
def test_a_layer_in_bands_is_the_layer(layer, height):
    network = nn.Sequential(nn.Identity(), layer).eval()
    picture = torch.randn(1, 3, height, 9)
    for rows in (1, 2, 3, 5, 100):
        torch.testing.assert_close(computed(plan_of(network, picture, rows)), network(picture), rtol=0, atol=2e-6)


def test_statistics_are_those_of_the_whole_far_from_zero_too():
    picture = 1000 + torch.rand(1, 3, 50, 31)
    mean, var = statistics(plan_of(nn.Sequential(nn.Identity()), picture, rows=7), unbiased=True)
    exact = torch.var_mean(picture.double().flatten(2), -1, correction=1)
    torch.testing.assert_close(mean.double(), exact[1], rtol=1e-7, atol=0)
    torch.testing.assert_close(var.double(), exact[0], rtol=1e-5, atol=0)


@pytest.mark.parametrize(
    ("layer", "named"),
    [
        (nn.AdaptiveAvgPool2d(1), "AdaptiveAvgPool2d"),
        (nn.MaxPool2d(3, stride=2), "MaxPool2d"),
        (nn.PixelShuffle(2), "PixelShuffle"),
        (nn.BatchNorm2d(4, track_running_stats=False), "norm"),
    ],
)
def test_a_network_that_is_not_computed_by_rows_is_refused_by_name(layer, named):
    network = nn.Sequential(nn.Conv2d(3, 4, 1), layer).eval()
    with pytest.raises(UserError, match=f"Sequential cannot be tiled: .*{named}.* is not computed by rows"):
        plan_of(network, torch.rand(1, 3, 8, 8))


def test_a_forward_that_is_no_graph_is_refused():
    class Undecided(nn.Module):
        def forward(self, x):
            return x if x.sum() > 0 else -x

    with pytest.raises(UserError, match="Undecided cannot be tiled: it is not one graph of layers"):
        plan_of(Undecided().eval(), torch.rand(1, 3, 8, 8))


def test_bands_that_do_not_fit_are_refused_before_anything_is_computed():
    with pytest.raises(UserError, match=r"bands of 64 x 64 pixels need about \d+ MiB of memory .* 1 MiB are left"):
        plan_of(TransformerNet().eval(), torch.rand(1, 3, 64, 64), rows=64, memory=2**20)


def test_less_memory_makes_lower_bands():
    network, picture = TransformerNet().eval(), torch.rand(1, 3, 256, 256)
    heights = [plan_of(network, picture, memory=mebibytes * 2**20).rows for mebibytes in (1000, 60, 20)]
    assert heights == sorted(heights, reverse=True)
    assert heights[0] > heights[-1]


# ---- the disk --------------------------------------------------------------------------------------------------------


@pytest.fixture
def on_disk() -> Plan:
    plan = plan_of(TransformerNet().eval(), torch.rand(1, 3, 144, 120), rows=4, memory=3 * 2**19)
    assert plan.disk > 0
    return plan


def test_no_file_is_left(on_disk, tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    before = len(os.listdir("/proc/self/fd"))
    computed(on_disk)
    assert list(tmp_path.iterdir()) == []
    assert len(os.listdir("/proc/self/fd")) == before


def test_a_disk_without_enough_room_is_told_before_anything_is_computed(on_disk, tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    on_disk.disk = 2**60
    with pytest.raises(UserError, match=rf"{tmp_path}: feature maps need \d+\.\d GiB on disk .* are free: .*TMPDIR"):
        computed(on_disk)


def test_a_disk_that_fills_up_meanwhile_is_one_sentence(on_disk, tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "pwritev", full)
    with pytest.raises(UserError, match=rf"{tmp_path}: .* cannot be kept here \(No space left on device\): .*TMPDIR"):
        computed(on_disk)


def test_a_missing_folder_for_temporary_files_is_one_sentence(on_disk, tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "none"))
    with pytest.raises(UserError, match=r"none: .* cannot be kept here \(No such file or directory\): .*TMPDIR"):
        computed(on_disk)


# ---- memory ----------------------------------------------------------------------------------------------------------

_PROCESS = """
import sys, torch, artkernels
from pathlib import Path
from artkernels.feed_forward import paint, tiling
from artkernels.models import TransformerNet
from artkernels.recipes.style_memory import memory_in_use
artkernels.use_pooled_allocator()
network = artkernels.fuse(TransformerNet().eval())
photo = torch.rand(1, 3, 768, 512)
cpu = torch.device("cpu")
allowed = memory_in_use(cpu) + int(sys.argv[1])
paint(network, photo, tiling(768, 512, cpu, "auto", allowed))
peak = 1024 * int(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0])
print(allowed - peak)
"""


def left_by_a_fresh_process(allowed: int) -> int:
    command = [sys.executable, "-c", _PROCESS, str(allowed)]
    return int(subprocess.run(command, capture_output=True, text=True, check=True, timeout=300).stdout)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the peak is read from /proc")
def test_the_memory_allowed_is_not_exceeded_by_a_fresh_process():
    assert left_by_a_fresh_process(allowed=160 * 2**20) >= 0  # a painting at once takes 400 MiB
