"""artkernels train and data: flags, configuration files and runs say what is done, and what cannot be is refused."""

import dataclasses
import json
import sys
from pathlib import Path

import pytest
from PIL import Image

from artkernels import cli, drawing
from artkernels.recipes import RECIPES

pytestmark = pytest.mark.cpu_only

OPTIONS = {"resolution": 32, "ngf": 4, "ndf": 4, "nz": 8, "batch": 4, "steps": 2, "tick": 1, "device": "cpu"}
SMALL = [text for name, value in OPTIONS.items() for text in (f"--{name}", str(value))]


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    """The current folder, with a folder of pictures."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "pictures").mkdir()
    for index in range(4):
        Image.effect_noise((40, 36), 4 * index).convert("RGB").save(tmp_path / "pictures" / f"{index}.png")
    return tmp_path


def refused(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """The sentence with which a command is refused."""
    assert cli.run([*arguments]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("artkernels: ")
    assert captured.err.count("\n") == 1
    return captured.err


def planned(capsys: pytest.CaptureFixture[str], *arguments: str) -> dict[str, object]:
    """The options that a dry run prints."""
    assert cli.run([*arguments, "--dry-run"]) == 0
    return json.loads(capsys.readouterr().out)


def test_a_dry_run_prints_every_option_and_makes_nothing(folder, capsys):
    options = planned(capsys, "train", "dcgan", "--data", "pictures", "--lr", "1e-3", "--mirror", "--loss", "hinge")
    assert options["data"] == str(folder / "pictures")
    assert (options["lr"], options["mirror"], options["loss"], options["batch"]) == (1e-3, True, "hinge", 64)
    assert [path.name for path in folder.iterdir()] == ["pictures"]


@pytest.mark.parametrize("recipe", RECIPES)
def test_help_names_every_option_of_a_recipe(recipe, capsys):
    assert cli.run(["train", recipe, "--help"]) == 0
    said = capsys.readouterr().out
    names = [field.name for field in dataclasses.fields(RECIPES[recipe].options_type)]
    for name in (*names, "resume", "config", "dry-run"):
        # The help may be too narrow for long names.
        assert f"--{name.replace('_', '-')}"[:16] in said


def test_flags_win_over_a_configuration_file_and_that_over_defaults(folder, capsys):
    (folder / "config.yaml").write_text("data: pictures\nlr: 5e-4\nbatch: 16\nnz: 12\n")
    options = planned(capsys, "train", "dcgan", "--config", "config.yaml", "--batch", "8")
    assert (options["lr"], options["batch"], options["nz"], options["ngf"]) == (5e-4, 8, 12, 64)
    (folder / "config.json").write_text(json.dumps({"data": "pictures", "beta-warmup": 30}))
    assert planned(capsys, "train", "vae", "--config", "config.json")["beta_warmup"] == 30


def test_how_long_to_train_is_said_once(folder, capsys):
    (folder / "config.yaml").write_text("data: pictures\nkimg: 1\namp: no\n")
    assert planned(capsys, "train", "dcgan", "--config", "config.yaml")["steps"] == 16
    assert planned(capsys, "train", "dcgan", "--config", "config.yaml", "--steps", "3")["steps"] == 3
    both = refused(capsys, "train", "dcgan", "--data", "pictures", "--steps", "3", "--kimg", "1")
    assert "--steps and --kimg both say how long to train" in both


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        ("data: pictures\nlearning_rate: 1", "unknown option 'learning_rate'; there are data, outdir, steps"),
        ("data: pictures\nbatch: many", "batch must be a whole number, got 'many'"),
        ("data: pictures\nsteps: 10.7", "steps must be a whole number, got 10.7"),
        ("data: pictures\nkimg: .inf", "kimg must be a finite number, got inf"),
        ("data: pictures\nmirror: 1", "mirror must be true or false, got 1"),
        ("data: pictures\nloss: best", "loss must be one of bce, hinge, wgan-gp, got 'best'"),
        ("- data\n- pictures", "config.yaml: must hold options by their names"),
        ("data: [", "config.yaml: neither YAML nor JSON"),
    ],
)
def test_a_configuration_file_that_cannot_be_is_refused(folder, capsys, content, sentence):
    (folder / "config.yaml").write_text(content)
    assert sentence in refused(capsys, "train", "dcgan", "--config", "config.yaml")


def test_what_cannot_be_trained_on_is_refused(folder, capsys):
    assert "--data is needed" in refused(capsys, "train", "dcgan")
    assert "missing: no such folder" in refused(capsys, "train", "dcgan", "--data", "missing", *SMALL)
    (folder / "empty").mkdir()
    assert "empty: no readable picture" in refused(capsys, "train", "dcgan", "--data", "empty", *SMALL)
    assert not (folder / "runs").exists()


def test_a_run_is_continued_with_its_own_options(folder, capsys):
    assert cli.run(["train", "dcgan", "--data", "pictures", "--seed", "7", *SMALL]) == 0
    run = folder / "runs" / "00000-dcgan-pictures"
    capsys.readouterr()
    options = planned(capsys, "train", "dcgan", "--resume", str(run), "--steps", "3")
    assert (options["seed"], options["steps"], options["ngf"]) == (7, 3, 4)
    assert cli.run(["train", "dcgan", "--resume", str(run), "--steps", "3"]) == 0
    assert [json.loads(line)["step"] for line in (run / "stats.jsonl").read_text().splitlines()] == [1, 2, 3]
    capsys.readouterr()
    assert planned(capsys, "train", "dcgan", "--config", str(run / "options.json"))["ngf"] == 4
    said = refused(capsys, "train", "dcgan", "--resume", str(run), "--outdir", "elsewhere")
    assert "--outdir is for a run that begins" in said
    assert "a run of dcgan, not of vae" in refused(capsys, "train", "vae", "--resume", str(run))


def test_only_a_run_can_be_continued(folder, capsys):
    assert "missing: no such run directory" in refused(capsys, "train", "dcgan", "--resume", "missing")
    assert "pictures: not a run directory" in refused(capsys, "train", "dcgan", "--resume", "pictures")


def test_a_missing_package_is_named_with_what_installs_it(folder, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "accelerate", None)
    for module in [name for name in sys.modules if name.startswith("artkernels.training.")]:
        monkeypatch.delitem(sys.modules, module)
    said = refused(capsys, "train", "dcgan", "--data", "pictures", *SMALL)
    assert 'training needs accelerate: pip install "artkernels[train]"' in said


def test_data_draw_fills_a_folder_and_says_which(folder, capsys):
    assert cli.run(["data", "draw", "waves", "--count", "3", "--size", "32"]) == 0
    assert capsys.readouterr().out == "waves\n"
    assert [path.name for path in sorted((folder / "waves").iterdir())] == [f"waves0000{n}.png" for n in range(3)]
    assert cli.run(["data", "draw", "suns", "--count", "1", "--output", "a/b"]) == 0
    assert (folder / "a" / "b" / "suns00000.png").is_file()


def test_a_style_that_nobody_draws_is_refused(folder, capsys):
    said = refused(capsys, "data", "draw", "dadaism")
    assert "dadaism: no such style" in said
    assert all(style in said for style in drawing.STYLES)
    assert not (folder / "dadaism").exists()
