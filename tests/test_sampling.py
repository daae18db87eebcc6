"""Pictures of seeds, of photographs and on the way between them: the same every time, streamed, and never half made."""

import itertools
import json
import math
import sys
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

import artkernels
from artkernels import cli, images
from artkernels.cli.sample import _parse_seeds
from artkernels.errors import UserError
from artkernels.models import ConvVAE, DCGANGenerator, KerasDCGANGenerator, ResnetGenerator
from artkernels.sampling import Sampler, sample, seed_code, sheet, slerp, walk, write_video

pytestmark = pytest.mark.cpu_only  # of the networks' operations, each has a test of its own on CUDA

NETWORKS = {
    "DCGAN": lambda: DCGANGenerator(5, 4, size=32),
    "grey DCGAN": lambda: DCGANGenerator(5, 4, 1, size=32),
    "Keras DCGAN": lambda: KerasDCGANGenerator(5),
    "VAE": lambda: ConvVAE(5, 4, size=32),
}


def network(name: str = "DCGAN") -> torch.nn.Module:
    """With weights large enough for pictures of different seeds to differ."""
    made = NETWORKS[name]()
    for parameter in made.parameters():
        if parameter.dim() > 1:
            torch.nn.init.kaiming_normal_(parameter)
    return made.eval()


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    """The current folder: checkpoints of a generator, an autoencoder and another network, and two photographs."""
    monkeypatch.chdir(tmp_path)
    save_file(network().state_dict(), "netG.safetensors")
    torch.save(network("VAE").state_dict(), "vae.pth")
    torch.save(ResnetGenerator(3, 3, 4, 6).state_dict(), "cyclegan.pth")
    for name in ("a", "b"):
        Image.effect_noise((50, 40), 80).convert("RGB").save(f"{name}.jpg")
    (tmp_path / "text.png").write_text("hello")
    (tmp_path / "empty").mkdir()
    return tmp_path


def run(*arguments: str) -> int:
    return cli.run(["sample", "--device", "cpu", *arguments])


def made(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*")}


def pixels(path: str) -> bytes:
    with Image.open(path) as picture:
        return picture.tobytes()


def settings(path: str) -> dict[str, object]:
    with Image.open(path) as picture:
        return json.loads(picture.info[images.METADATA_KEY])


# ---- the library -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NETWORKS)
def test_a_picture_of_a_seed_is_what_the_network_makes_of_its_noise(name):
    stock = network(name)
    (picture,) = sample(artkernels.fuse(stock), [7], truncation=0.5)
    noise = 0.5 * torch.randn(1, 5, generator=torch.Generator().manual_seed(7))
    with torch.no_grad():
        if name == "VAE":
            expected = stock.decode(noise)
        else:
            expected = (stock(noise if "Keras" in name else noise[..., None, None]) + 1) / 2
    assert picture.shape == (3, expected.shape[-1], expected.shape[-1])
    torch.testing.assert_close(picture, expected[0].expand(3, -1, -1), atol=1e-5, rtol=0)


@pytest.mark.parametrize("name", NETWORKS)
def test_a_seed_gives_bit_for_bit_the_same_picture_among_any_others(name):
    fused = artkernels.fuse(network(name))
    (alone,) = sample(fused, [3])
    for seeds in (range(10), [9, 8, 3], [3, 3], range(20, -1, -1), range(2, 40)):
        together = dict(zip(seeds, sample(fused, seeds), strict=True))
        assert torch.equal(together[3], alone)
    assert not torch.equal(together[4], alone)


def test_seeds_are_read_as_pictures_are_asked_for():
    read = itertools.count()
    pictures = sample(network(), read)
    for _ in range(20):
        next(pictures)
    assert next(read) < 40


def test_truncation_to_nothing_leaves_the_average_picture():
    first, second = sample(network(), [1, 2], truncation=0.0)
    assert torch.equal(first, second)


def test_pictures_can_be_written_to_by_their_owner():
    (picture,) = sample(network(), [1])
    picture.mul_(0.5)


def test_a_network_that_cannot_sample_is_named():
    with pytest.raises(ValueError, match="a ResnetGenerator does not make pictures of noise"):
        sample(ResnetGenerator(3, 3, 4, 6).eval(), [0])
    with pytest.raises(ValueError, match="is in training mode"):
        sample(network().train(), [0])
    with pytest.raises(ValueError, match="makes pictures of 2 channels"):
        sample(DCGANGenerator(5, 4, 2, size=32).eval(), [0])
    with pytest.raises(ValueError, match="a DCGANGenerator has no encoder"):
        Sampler(network()).encode([])


def test_a_picture_is_encoded_as_the_mean_of_its_distribution_whatever_else_is():
    vae, pictures = network("VAE"), torch.rand(20, 3, 32, 32)
    sampler = Sampler(vae)
    codes = torch.stack(list(sampler.encode(pictures)))
    with torch.no_grad():
        torch.testing.assert_close(codes, vae.encode(pictures)[0], rtol=1e-4, atol=1e-4)
    assert torch.equal(next(sampler.encode(pictures[19:])), codes[19])


def test_spherical_interpolation_keeps_to_the_sphere_at_a_constant_speed():
    start, end = (code * math.sqrt(50) / code.norm() for code in (seed_code(0, 50), seed_code(1, 50)))
    way = torch.stack([slerp(start, end, t / 8) for t in range(9)])
    torch.testing.assert_close(way.norm(dim=1), torch.full((9,), math.sqrt(50)))
    torch.testing.assert_close(way[0], start)
    torch.testing.assert_close(way[8], end)
    steps = way.diff(dim=0).norm(dim=1)
    torch.testing.assert_close(steps, steps[:1].expand(8), rtol=1e-4, atol=0)


def test_spherical_interpolation_of_parallel_opposite_and_zero_codes_is_a_straight_line():
    code = seed_code(0, 6)
    for start, end in ((code, code), (code, 2 * code), (code, -code), (code, 0 * code), (0 * code, 0 * code)):
        torch.testing.assert_close(slerp(start, end, 0.25), 0.75 * start + 0.25 * end)


def test_a_walk_goes_over_every_stop_and_ends_one_step_before_the_first():
    stops = [seed_code(seed, 6) for seed in range(3)]
    way = list(walk(iter(stops), 4))
    assert len(way) == 12
    for index, stop in enumerate(stops):
        torch.testing.assert_close(way[4 * index], stop)
    torch.testing.assert_close(way[11], slerp(stops[2], stops[0], 0.75))


def test_a_sheet_has_the_pictures_in_rows_on_white():
    whole = sheet(torch.zeros(5, 3, 8, 8), 5, 2, 8)
    assert whole.shape == (3, 32, 22)
    assert int((whole[0] == 0).sum()) == 5 * 64
    assert whole[:, 22:30, 12:20].min() == 1  # the sixth place


@pytest.mark.parametrize(
    ("side", "expected"),
    [((32, 32), (256, 256)), ((28, 28), (280, 280)), ((301, 400), (602, 800)), ((300, 20), (3900, 260))],
)
def test_a_video_is_enlarged_by_a_whole_factor_until_it_can_be_watched_and_its_sides_are_even(tmp_path, side, expected):
    write_video(tmp_path / "out.mp4", torch.rand(2, 3, *side))
    with av.open(tmp_path / "out.mp4") as video:
        stream = video.streams.video[0]
        assert (stream.height, stream.width) == expected
        assert stream.pix_fmt == "yuv420p"


def test_a_video_has_each_picture_for_a_thirtieth_of_a_second(tmp_path):
    colours = torch.tensor([[1.0, 0, 0], [0, 1, 0], [0, 0, 1], [1, 1, 1], [0, 0, 0]])
    write_video(tmp_path / "out.mp4", (colour[:, None, None].expand(3, 32, 32) for colour in colours))
    with av.open(tmp_path / "out.mp4") as video:
        assert video.streams.video[0].average_rate == 30
        frames = [frame.to_ndarray(format="rgb24") for frame in video.decode(video=0)]
    assert len(frames) == 5
    for frame, colour in zip(frames, colours, strict=True):
        assert np.abs(frame.mean((0, 1)) / 255 - colour.numpy()).max() < 0.03


def test_a_video_that_fails_half_way_leaves_nothing(tmp_path):
    def pictures():
        yield torch.zeros(3, 32, 32)
        raise RuntimeError("no more")

    with pytest.raises(RuntimeError, match="no more"):
        write_video(tmp_path / "out.mp4", pictures())
    assert not list(tmp_path.iterdir())


def test_a_video_without_the_package_for_it_is_refused_with_its_name(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(UserError, match="pip install av"):
        write_video(tmp_path / "out.mp4", torch.zeros(1, 3, 32, 32))


# ---- the command -----------------------------------------------------------------------------------------------------


def test_seeds_are_numbers_and_ranges():
    assert _parse_seeds("0-3,7, 9-9") == [range(0, 4), range(7, 8), range(9, 10)]


def test_a_seed_is_saved_under_its_number_with_its_settings_and_the_same_pixels_among_others(folder, capsys):
    assert run("netG.safetensors", "--seeds", "3", "--outdir", "one") == 0
    assert capsys.readouterr().out == "one\n"
    assert run("netG.safetensors", "--seeds", "0-9", "--outdir", "ten") == 0
    assert {path.name for path in Path("ten").iterdir()} == {f"seed{seed:04d}.png" for seed in range(10)}
    assert {path.name for path in Path("one").iterdir()} == {"seed0003.png"}
    assert Path("one/seed0003.png").read_bytes() == Path("ten/seed0003.png").read_bytes()
    assert pixels("ten/seed0003.png") != pixels("ten/seed0004.png")
    assert settings("one/seed0003.png") == {
        "artkernels": artkernels.__version__,
        "network": f"{folder.name}/netG.safetensors",
        "trunc": 1.0,
        "seed": 3,
    }


def test_the_saved_picture_is_that_of_the_library(folder):
    assert run("vae.pth", "--seeds", "5", "--trunc", "0.7") == 0
    (expected,) = sample(artkernels.fuse(artkernels.load("vae.pth")), [5], truncation=0.7)
    assert (images.load("out/seed0005.png")[0] - expected).abs().max() <= 0.5 / 255 + 1e-6


def test_a_grid_is_one_sheet_of_all_seeds(folder, capsys):
    assert run("netG.safetensors", "--seeds", "0-8", "--grid") == 0
    assert capsys.readouterr().out == "out/grid.png\n"
    assert {path.name for path in Path("out").iterdir()} == {"grid.png"}
    assert settings("out/grid.png")["seeds"] == "0-8"
    whole = images.load("out/grid.png")[0]
    assert whole.shape == (3, 104, 104)
    (fifth,) = sample(artkernels.fuse(artkernels.load("netG.safetensors")), [4])
    assert (whole[:, 36:68, 36:68] - fifth).abs().max() <= 0.5 / 255 + 1e-6


def test_a_walk_has_its_stops_as_they_are_alone(folder):
    assert run("netG.safetensors", "--seeds", "2,5", "--interpolate", "--frames", "3") == 0
    assert run("netG.safetensors", "--seeds", "2,5") == 0
    assert {path.name for path in Path("out").glob("frame*")} == {f"frame{frame:05d}.png" for frame in range(6)}
    assert pixels("out/frame00000.png") == pixels("out/seed0002.png")
    assert pixels("out/frame00003.png") == pixels("out/seed0005.png")
    assert settings("out/frame00004.png").items() >= {"seeds": "2,5", "frames": 3, "frame": 4}.items()


def test_a_grid_of_a_walk_has_a_row_from_each_stop_to_the_next(folder):
    assert run("netG.safetensors", "--seeds", "0-2", "--interpolate", "--frames", "5", "--grid") == 0
    assert images.load("out/grid.png").shape == (1, 3, 3 * 34 + 2, 5 * 34 + 2)


def test_a_video_of_a_walk_can_be_read_back_with_all_its_frames(folder, capsys):
    assert run("netG.safetensors", "--seeds", "0-2", "--interpolate", "--frames", "7", "--video", "walk.mp4") == 0
    assert capsys.readouterr().out == "walk.mp4\n"
    assert not Path("out").exists()
    with av.open("walk.mp4") as video:
        assert sum(1 for _ in video.decode(video=0)) == 21


def test_photographs_are_reconstructed_by_a_vae_beside_the_originals_on_a_grid(folder):
    assert run("vae.pth", "--reconstruct", "a.jpg", "b.jpg") == 0
    assert {path.name for path in Path("out").iterdir()} == {"a-reconstructed.png", "b-reconstructed.png"}
    assert settings("out/b-reconstructed.png")["photo"] == "b.jpg"
    assert run("vae.pth", "--reconstruct", "a.jpg", "b.jpg", "--grid") == 0
    whole, reconstruction = images.load("out/grid.png")[0], images.load("out/b-reconstructed.png")[0]
    assert whole.shape == (3, 2 + 2 * 34, 2 + 2 * 34)
    assert torch.equal(whole[:, 36:68, 36:68], reconstruction)
    middle = images.resize(images.load("b.jpg")[..., 5:45], 32)[0]
    assert (whole[:, 36:68, 2:34] - middle).abs().mean() < 0.05


def test_a_vae_of_grey_pictures_takes_photographs_in_grey(folder):
    torch.save(ConvVAE(5, 4, 1, size=32).state_dict(), "grey.pth")
    assert run("grey.pth", "--reconstruct", "a.jpg") == 0
    assert images.load("out/a-reconstructed.png").shape == (1, 3, 32, 32)


def test_a_walk_between_photographs_begins_at_the_first_reconstruction(folder):
    assert run("vae.pth", "--reconstruct", "a.jpg", "b.jpg", "--interpolate", "--frames", "2") == 0
    assert run("vae.pth", "--reconstruct", "a.jpg") == 0
    assert len(list(Path("out").glob("frame*"))) == 4
    assert pixels("out/frame00000.png") == pixels("out/a-reconstructed.png")


def test_a_run_is_sampled_by_its_last_snapshot(folder):
    for step in (5, 10):
        save_file(network().state_dict(), folder / "empty" / f"network-snapshot-{step:06d}.safetensors")
    assert run("empty", "--seeds", "1") == 0
    assert settings("out/seed0001.png")["network"] == "empty/network-snapshot-000010.safetensors"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "RUN|CHECKPOINT"),
        (["absent.pth"], "absent.pth: no such file"),
        (["text.png"], "text.png: not a readable checkpoint"),
        (["empty"], "empty: has no network snapshot yet"),
        (["cyclegan.pth"], "cyclegan.pth: a ResnetGenerator does not make pictures of noise"),
        (
            ["netG.safetensors", "--seeds", "one"],
            "--seeds must be numbers below 2**32 and ranges of them, as 0-35,40,41",
        ),
        (["netG.safetensors", "--seeds", ""], "--seeds must be numbers"),
        (["netG.safetensors", "--seeds", "1,,2"], "--seeds must be numbers"),
        (["netG.safetensors", "--seeds=-3"], "--seeds must be numbers"),
        (["netG.safetensors", "--seeds", "4294967296"], "below 2**32"),
        (["netG.safetensors", "--seeds", "5-3"], "--seeds must be ranges from a lower to a higher number, got 5-3"),
        (["netG.safetensors", "--trunc", "nan"], "--trunc must be a finite number"),
        (["netG.safetensors", "--trunc", "much"], "--trunc"),
        (["netG.safetensors", "--frames", "3"], "--frames is of a walk, it needs --interpolate"),
        (["netG.safetensors", "--video", "out.mp4"], "--video is of a walk, it needs --interpolate"),
        (["netG.safetensors", "--interpolate", "--frames", "0"], "--frames must be at least 1, got 0"),
        (["netG.safetensors", "--interpolate", "--seeds", "3"], "--interpolate needs two stops at least, got 1"),
        (["netG.safetensors", "--interpolate", "--video", "out.avi"], "must end in .mp4"),
        (["netG.safetensors", "--interpolate", "--video", "absent/out.mp4"], "the folder absent does not exist"),
        (["netG.safetensors", "--interpolate", "--video", "out.mp4", "--grid"], "choose one"),
        (["netG.safetensors", "--interpolate", "--video", "out.mp4", "--outdir", "out"], "the video is out.mp4"),
        (["netG.safetensors", "--seeds", "0-999999", "--grid"], "more than 100 million"),
        (["netG.safetensors", "--outdir", "text.png"], "text.png: cannot be written"),
        (["netG.safetensors", "--outdir", "/proc/out"], "/proc/out: cannot be written"),
        (["netG.safetensors", "a.jpg"], "a.jpg beside it only with --reconstruct"),
        (["netG.safetensors", "--reconstruct", "a.jpg"], "--reconstruct: a DCGANGenerator has no encoder"),
        (["vae.pth", "--reconstruct"], "--reconstruct needs photographs"),
        (["vae.pth", "--reconstruct", "a.jpg", "--seeds", "1"], "--seeds cannot be given with it"),
        (["vae.pth", "--reconstruct", "a.jpg", "absent.jpg"], "absent.jpg: no such file"),
        (["vae.pth", "--reconstruct", "a.jpg", "text.png"], "text.png: not a picture"),
        (["vae.pth", "--reconstruct", "a.jpg", "a.jpg"], "two pictures would be saved under this name"),
        (["vae.pth", "--device", "abacus"], "unknown device 'abacus'"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_wrong_input_is_told_in_one_sentence_and_leaves_nothing(folder, capsys, arguments, words):
    before = made(folder)
    assert run(*arguments) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("artkernels: ")
    assert captured.err.count("\n") == 1
    assert words in captured.err
    assert made(folder) == before


def test_a_photograph_is_not_overwritten_by_what_is_made_of_it(folder, capsys):
    Image.new("RGB", (40, 40)).save("grid.png")
    assert run("vae.pth", "--reconstruct", "grid.png", "--grid", "--outdir", ".") == 2
    assert "grid.png: a photograph that is reconstructed would be overwritten" in capsys.readouterr().err
    assert images.load("grid.png").shape == (1, 3, 40, 40)
