"""artkernels stylize on videos: the video asked for, with its sound, or one sentence why not."""

import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from artkernels import cli, images
from artkernels.cli import painters
from artkernels.cli.values import parse_rate, parse_time
from artkernels.errors import UserError
from artkernels.recipes.style_memory import memory_in_use
from artkernels.video import Clip, Encoder, Job

sys.path.insert(0, str(Path(__file__).parent))

from noise import noise
from painting_networks import NETWORKS, link_networks, save_networks
from random_vgg import random_vgg
from video_frames import assert_same_video, moving_noise

pytestmark = pytest.mark.cpu_only

WITH = {
    "optimize": ["--style", "style.png", "--steps", "2"],
    "fast-style": ["--model", "fast.pth"],
    "cyclegan": ["--model", "cycle.pth"],
    "adain": ["--model", "decoder.pth", "--vgg", "encoder.pth", "--style", "style.png"],
}
SIZE = ["--size", "48"]


@pytest.fixture(scope="module")
def networks(tmp_path_factory) -> Path:
    return save_networks(tmp_path_factory.mktemp("networks"))


@pytest.fixture
def folder(tmp_path, monkeypatch, networks) -> Path:
    """The current folder, with a clip of 8 frames, a photograph, a painting and networks."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(painters, "load_vgg19", lambda *_, **__: random_vgg(slim=True))
    for seed, name in enumerate(("photo.png", "style.png")):
        noise((50, 41), seed).save(tmp_path / name)
    link_networks(networks, tmp_path)
    write_clip(tmp_path / "clip.mp4", moving_noise(8, 48, 64))
    return tmp_path


def write_clip(path: Path, pictures: Iterable[Tensor]) -> None:
    with Encoder(path, Fraction(8)) as encoder:
        for index, picture in enumerate(pictures):
            encoder.add(Fraction(index, 8), picture[0])


def stylize(*options: str) -> int:
    return cli.run(["stylize", *options, "--device", "cpu"])


def made(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()} - {"clip.mp4", "photo.png", "style.png", *NETWORKS}


def frames(path: str) -> list[np.ndarray]:
    with av.open(path) as container:
        return [frame.to_ndarray(format="rgb24").astype(int) for frame in container.decode(video=0)]


@pytest.mark.parametrize("method", WITH)
def test_every_method_paints_a_clip_frame_by_frame_and_prints_its_flicker(folder, capsys, method):
    assert stylize("clip.mp4", *WITH[method], *SIZE) == 0
    assert made(folder) == {"clip-stylized.mp4"}
    out = capsys.readouterr().out.splitlines()
    assert out[0] == "clip-stylized.mp4"
    assert out[1].startswith("flicker 0.")
    painted = frames("clip-stylized.mp4")
    assert [frame.shape for frame in painted] == [(36, 48, 3)] * 8
    with av.open("clip-stylized.mp4") as container:
        made_with = json.loads(container.metadata["comment"])
    assert (made_with["method"], made_with["photo"], made_with["consistency"]) == (method, "clip.mp4", 0.7)


@pytest.mark.parametrize("method", WITH)
def test_a_frame_is_what_the_command_makes_of_it_as_a_photograph(folder, method):
    assert stylize("clip.mp4", *WITH[method], *SIZE, "--consistency", "0", "--output", "out.mp4") == 0
    Path("out").mkdir()
    photos = [f"{index}.png" for index in range(8)]
    for name, frame in zip(photos, Clip(Path("clip.mp4")).frames(), strict=True):
        Image.fromarray(frame.picture.permute(1, 2, 0).numpy()).save(name)
    assert stylize(*photos, *WITH[method], *SIZE, "--output", "out") == 0
    painted = [images.load(Path("out", name)) for name in photos]
    assert min(picture.std((-2, -1)).min() for picture in painted) > 0.05
    write_clip(Path("wanted.mp4"), painted)
    assert_same_video(Path("out.mp4"), Path("wanted.mp4"))


@pytest.mark.parametrize(("height", "width"), [(47, 63), (48, 63), (47, 64)])
def test_odd_sides_get_one_row_or_column_more(folder, height, width):
    with av.open("odd.mkv", "w") as container:
        stream = container.add_stream("ffv1", rate=8, width=width, height=height, pix_fmt="bgr0")
        for frame in moving_noise(3, height, width):
            pixels = frame[0].mul(255).byte().permute(1, 2, 0).contiguous().numpy()
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        container.mux(stream.encode())
    assert stylize("odd.mkv", *WITH["cyclegan"], "--size", str(width), "--output", "out.mp4") == 0
    assert frames("out.mp4")[0].shape == (height + height % 2, width + width % 2, 3)


def test_a_section_at_another_rate(folder):
    options = ["--start", "0:00.25", "--end", "0.75", "--fps", "24000/1001", "--output", "out.mp4"]
    assert stylize("clip.mp4", *WITH["cyclegan"], *SIZE, *options) == 0
    assert len(frames("out.mp4")) == 12
    with av.open("out.mp4") as container:
        assert container.streams.video[0].average_rate == Fraction(24000, 1001)


def test_photographs_and_clips_go_to_one_folder(folder, capsys):
    Path("out").mkdir()
    assert stylize("photo.png", "clip.mp4", *WITH["cyclegan"], *SIZE, "--output", "out") == 0
    assert {path.name for path in Path("out").iterdir()} == {"photo.png", "clip.mp4"}
    lines = capsys.readouterr().out.splitlines()
    assert lines[:2] == ["out/photo.png", "out/clip.mp4"]


def test_an_animated_picture_is_a_clip_if_a_video_is_asked_for(folder):
    images = [Image.fromarray(frame) for frame in np.uint8(frames("clip.mp4"))]
    images[0].save("clip.gif", save_all=True, append_images=images[1:], duration=100)
    assert stylize("clip.gif", *WITH["cyclegan"], *SIZE, "--output", "out.mp4") == 0
    assert len(frames("out.mp4")) == 8
    assert stylize("clip.gif", *WITH["cyclegan"], *SIZE, "--output", "out.png") == 0


def test_a_truncated_clip_is_painted_as_far_as_it_goes_and_the_end_is_missed(folder, capsys):
    with av.open("clip.mp4") as source, av.open("clip.mkv", "w") as container:
        stream = container.add_stream_from_template(source.streams.video[0])
        for packet in source.demux(video=0):
            if packet.pts is not None:
                packet.stream = stream
                container.mux(packet)
    whole = Path("clip.mkv").read_bytes()
    Path("cut.mkv").write_bytes(whole[: len(whole) * 6 // 10])
    assert stylize("cut.mkv", *WITH["cyclegan"], *SIZE, "--output", "out.mp4") == 0
    assert 1 <= len(frames("out.mp4")) < 8
    error = capsys.readouterr().err
    assert error.startswith("artkernels: cut.mkv")
    assert "damaged or incomplete" in error


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["photo.png", *WITH["cyclegan"], "--fps", "10"], "--fps is an option of videos, and photo.png is not one"),
        (["clip.mp4", *WITH["cyclegan"], "--tile", "16"], "--tile is for pictures"),
        (["clip.mp4", *WITH["optimize"], "--save-every", "1"], "--save-every is an option of pictures"),
        (["clip.mp4", *WITH["cyclegan"], "--output", "out.png"], "the name must end in .mp4"),
        (["clip.mp4", *WITH["cyclegan"], "--output", "absent/out.mp4"], "the folder absent does not exist"),
        (["clip.mp4", *WITH["cyclegan"], "--output", "clip.mp4"], "would overwrite a file that it is made of"),
        (["clip.mp4", *WITH["cyclegan"], "--fps", "fast"], "--fps must be a number of frames a second"),
        (["clip.mp4", *WITH["cyclegan"], "--fps", "0"], "fps must be from 0.001 to 1000, got 0"),
        (["clip.mp4", *WITH["cyclegan"], "--start", "x"], "--start must be seconds or H:MM:SS"),
        (["clip.mp4", *WITH["cyclegan"], "--start", "2", "--end", "1"], "end must be after 2 seconds"),
        (["clip.mp4", *WITH["cyclegan"], "--start", "60"], "clip.mp4: 1 seconds long"),
        (["clip.mp4", *WITH["cyclegan"], "--consistency", "1"], "--consistency must be from 0 to below 1"),
        (["clip.mp4", *WITH["cyclegan"], "--size", "12"], "the video would be 12x9 pixels, and its"),
        (["clip.mp4", *WITH["optimize"], "--size", "34"], "the video would be 34x26 pixels, and its"),
        (["clip.mp4", *WITH["cyclegan"], "--size", "100000"], "GiB"),
        (["absent.mp4", *WITH["cyclegan"]], "absent.mp4: no such file"),
        (["text.mp4", *WITH["cyclegan"]], "text.mp4: not a video"),
        (["sound.mkv", *WITH["cyclegan"]], "sound.mkv: "),
        (["photo.png", *WITH["cyclegan"], "--output", "out.mp4"], "photo.png: "),
        (["half.mp4", *WITH["cyclegan"]], "half.mp4: "),
        (["line.mov", *WITH["cyclegan"]], "1x48 pixels"),
    ],
)
def test_wrong_input_is_told_in_one_sentence_and_leaves_nothing(folder, capsys, arguments, words):
    Path("text.mp4").write_text("not a video")
    Path("half.mp4").write_bytes(Path("clip.mp4").read_bytes()[:500])
    with av.open("sound.mkv", "w") as container:
        stream = container.add_stream("pcm_s16le", rate=8000)
        silence = av.AudioFrame.from_ndarray(np.zeros((1, 800), np.int16), "s16", "mono")
        silence.sample_rate = 8000
        container.mux(stream.encode(silence))
    with av.open("line.mov", "w") as container:
        stream = container.add_stream("png", rate=8, width=1, height=200, pix_fmt="rgb24")
        container.mux(stream.encode(av.VideoFrame.from_ndarray(np.zeros((200, 1, 3), np.uint8), format="rgb24")))
        container.mux(stream.encode())
    before = made(folder)
    size = [] if "--size" in arguments else SIZE
    assert stylize(*arguments, *size) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("artkernels: ")
    assert captured.err.count("\n") == 1
    assert words in captured.err
    assert made(folder) == before


@pytest.mark.parametrize("kill", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_an_interrupted_clip_goes_on_with_the_same_command(folder, capsys, kill):
    count = 240  # the first 32 are kept, the others take the second in which to see it and to send the signal
    write_clip(folder / "clip.mp4", moving_noise(count, 48, 64))
    options = [*WITH["cyclegan"], *SIZE, "--consistency", "0.95", "--device", "cpu"]
    command = [sys.executable, "-m", "artkernels", "stylize", "clip.mp4", *options, "--output", "out.mp4"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 100
    while not Path("out.mp4.part/state.pt").exists() and time.monotonic() < deadline:
        assert process.poll() is None
        time.sleep(0.01)
    process.send_signal(kill)
    _, error = process.communicate()
    if kill != signal.SIGKILL:
        assert process.returncode == 130
        assert "the same command goes on from there" in error
    assert not Path("out.mp4").exists()
    done = torch.load("out.mp4.part/state.pt", weights_only=True)["frames"]
    assert 0 < done < count

    assert cli.run(command[3:]) == 0
    assert made(folder) == {"out.mp4"}
    assert cli.run(["stylize", "clip.mp4", *options, "--output", "whole.mp4"]) == 0
    _, flicker, _, flicker_of_whole = capsys.readouterr().out.splitlines()
    assert flicker == flicker_of_whole
    assert np.array(frames("out.mp4")).std((1, 2)).min() > 10  # of 255
    assert_same_video(Path("out.mp4"), Path("whole.mp4"))


@pytest.mark.parametrize("kill", [signal.SIGINT, signal.SIGTERM])
def test_a_clip_stops_at_the_next_frame_if_what_a_signal_raises_is_lost(folder, monkeypatch, kill):
    run, painted = Job.run, []

    def lose(job: Job, on_frame: Callable[[], object]) -> object:
        def on_frame_and_signal() -> None:
            on_frame()
            painted.append(job.frames)
            with pytest.raises(KeyboardInterrupt):
                signal.raise_signal(kill)

        return run(job, on_frame_and_signal)

    monkeypatch.setattr(Job, "run", lose)
    assert stylize("clip.mp4", *WITH["cyclegan"], *SIZE) == 130
    assert painted == [1]
    assert made(folder) == set()


@pytest.mark.parametrize("method", WITH)
def test_a_clip_is_painted_in_the_memory_allowed_or_refused_beforehand(folder, capsys, monkeypatch, method):
    command = ["clip.mp4", *WITH[method], "--output", "out.mp4", "--max-memory"]
    too_little = f"{memory_in_use(torch.device('cpu')) // 2**20 + 500}MiB"  # 2000x1500 pixels take more
    with monkeypatch.context() as patch:
        patch.setattr(Job, "run", None)  # what would be refused there only comes too late
        assert stylize(*command, too_little, "--size", "2000") == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("artkernels: 2000x1500 pixels would need about ")
    assert captured.err.count("\n") == 1
    assert made(folder) == set()
    assert stylize(*command, "100GB", *SIZE) == 0
    assert len(frames("out.mp4")) == 8


def tints(path: str) -> np.ndarray:
    """Of the left and of the right half of each frame the mean colour without its luminance: [2, frames, 3], of 255."""
    colours = np.array([half.mean((1, 2)) for half in np.split(np.array(frames(path)), 2, axis=2)])
    return colours - colours @ [[0.299], [0.587], [0.114]]


@pytest.mark.parametrize("method", ["optimize", "adain"])
def test_a_clip_keeps_its_own_colours_if_that_is_asked_for(folder, method):
    warm_and_cool = torch.tensor([[0.1, -0.1], [0.0, 0.0], [-0.1, 0.1]]).repeat_interleave(32, 1).unsqueeze(1)
    write_clip(folder / "clip.mp4", [0.4 + 0.2 * frame[:, :1] + warm_and_cool for frame in moving_noise(8, 48, 64)])
    init = ["--init", "noise"] if method == "optimize" else []  # after two steps the clip would still have its colours
    command = ["clip.mp4", *WITH[method], *SIZE, *init]
    assert stylize(*command, "--output", "plain.mp4") == 0
    assert stylize(*command, "--output", "kept.mp4", "--preserve-color") == 0
    away, kept = (np.abs(tints(path) - tints("clip.mp4")).max(-1) for path in ("plain.mp4", "kept.mp4"))
    assert away.max(0).min() > 20
    assert kept.max() < 3


@pytest.mark.parametrize(("text", "seconds"), [("12.5", 12.5), ("1:02", 62), ("1:02:03.25", 3723.25), ("0", 0)])
def test_times_are_read_as_players_show_them(text, seconds):
    assert parse_time(text, "--start") == seconds


@pytest.mark.parametrize("text", ["", "-1", "1:2:3:4", "ten", "1e3", 400 * "9"])
def test_what_is_no_time_is_refused(text):
    with pytest.raises(UserError, match="--end must be seconds"):
        parse_time(text, "--end")


def test_rates_are_numbers_or_ratios():
    assert [parse_rate(text) for text in ("25", "12.5", "30000/1001")] == [25, Fraction(25, 2), Fraction(30000, 1001)]
    assert parse_rate("29.97002997002997") == Fraction(30000, 1001)
    for text in ("", "25/0", "25/00", "many", "-3", "nan", "1e400", 10 * "9"):
        with pytest.raises(UserError, match="--fps must be a number"):
            parse_rate(text)
