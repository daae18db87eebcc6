"""Training runs in processes of their own: killed, stopped, out of disk, and several at once."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from PIL import Image

from artkernels import cli
from artkernels.training.runs import load_state

pytestmark = pytest.mark.cpu_only

OPTIONS = {"resolution": 32, "ngf": 4, "ndf": 4, "nz": 8, "batch": 8, "tick": 1, "device": "cpu"}
SMALL = [text for name, value in OPTIONS.items() for text in (f"--{name}", str(value))]
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("pictures")
    for index in range(20):
        Image.effect_noise((40, 36), 4 * index).convert("RGB").save(folder / f"{index}.png")
    return folder


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """As the processes have, for the same bits."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def command(*arguments: object, launcher: tuple[str, ...] = (sys.executable,)) -> list[str]:
    return [*launcher, "-m", "artkernels", "train", "dcgan", *map(str, arguments)]


def run(arguments: list[str]) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(arguments, capture_output=True, text=True, env=ENVIRONMENT, timeout=240)


def losses(folder: Path) -> list[dict[str, float]]:
    lines = [json.loads(line) for line in (folder / "stats.jsonl").read_text().splitlines()]
    return [{name: value for name, value in line.items() if name != "images_per_second"} for line in lines]


@pytest.fixture(scope="module")
def never_stopped(data, tmp_path_factory) -> list[dict[str, float]]:
    """The losses of ten steps."""
    outdir = tmp_path_factory.mktemp("never")
    assert cli.run(["train", "dcgan", "--data", str(data), "--outdir", str(outdir), "--steps", "10", *SMALL]) == 0
    (folder,) = outdir.iterdir()
    return losses(folder)


def continued(folder: Path) -> list[dict[str, float]]:
    assert cli.run(["train", "dcgan", "--resume", str(folder)]) == 0
    return losses(folder)


# Runs the command line in a process to which something happens when it has written a file and is about to rename it.
FAILING = """
import os, resource, signal, sys
from pathlib import Path
from artkernels.__main__ import main

saves = 0
def replace(self, target, replace=Path.replace):
    global saves
    saves += target.name == "state.pt"
    if {when}:
        {happens}
    return replace(self, target)
Path.replace = replace
sys.argv = sys.argv[1:]
sys.exit(main())
"""


@pytest.mark.parametrize("file", ["state.pt", "network-snapshot-000004.safetensors"])
def test_killed_in_the_midst_of_saving_a_run_goes_on_as_if_nothing_had_happened(data, tmp_path, never_stopped, file):
    when = f"saves == 3 and target.name == {file!r}"
    script = FAILING.format(when=when, happens="os.kill(os.getpid(), signal.SIGKILL)")
    arguments = ["--data", data, "--outdir", tmp_path, "--steps", 10, "--snap", 2, *SMALL]
    made = run([sys.executable, "-c", script, *command(*arguments)[2:]])
    assert made.returncode == -signal.SIGKILL, made.stderr
    (folder,) = tmp_path.iterdir()
    assert load_state(folder)["step"] == (2 if file == "state.pt" else 4)
    assert continued(folder) == never_stopped
    assert {f"fakes{step:06d}.png" for step in range(0, 11, 2)} <= {path.name for path in folder.iterdir()}


def test_on_a_full_disk_a_run_ends_with_a_sentence_and_goes_on_when_there_is_room(data, tmp_path, never_stopped):
    # As if the disk were full: after the second state no file may grow beyond 50 kB.
    limit = "resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, resource.RLIM_INFINITY))"
    script = FAILING.format(when="saves == 2", happens=limit)
    arguments = ["--data", data, "--outdir", tmp_path, "--steps", 10, "--snap", 2, *SMALL]
    made = run([sys.executable, "-c", script, *command(*arguments)[2:]])
    assert made.returncode == 2
    assert "cannot be written" in made.stderr.splitlines()[-1]
    assert "Traceback" not in made.stderr
    (folder,) = tmp_path.iterdir()
    assert load_state(folder)["step"] == 2
    assert not [path for path in folder.iterdir() if path.name.endswith(".tmp")]
    assert continued(folder) == never_stopped


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGKILL, -9)])
def test_interrupted_from_outside_at_any_moment_a_run_goes_on(data, tmp_path, never_stopped, number, code):
    arguments = command("--data", data, "--outdir", tmp_path, "--steps", 10, "--snap", 1, *SMALL)
    with subprocess.Popen(arguments, stderr=subprocess.PIPE, text=True, env=ENVIRONMENT) as process:
        while process.poll() is None and not list(tmp_path.glob("*/fakes000003.png")):
            time.sleep(0.01)
        process.send_signal(number)
        _, said = process.communicate(timeout=120)
    assert process.returncode == code, said
    assert "Traceback" not in said
    (folder,) = tmp_path.iterdir()
    step = load_state(folder)["step"]
    assert 3 <= step < 10
    if number != signal.SIGKILL:
        assert f"stopped at step {step}; continue with --resume {folder}" in said
        assert losses(folder) == never_stopped[:step]
    assert continued(folder) == never_stopped


def test_two_processes_train_as_one_with_their_batches_together(data, tmp_path, never_stopped):
    torchrun = (sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")
    made = run(command("--data", data, "--outdir", tmp_path, "--steps", 10, *SMALL, launcher=torchrun))
    assert made.returncode == 0, made.stderr
    (folder,) = tmp_path.iterdir()  # the first process alone has written
    assert len(list(folder.glob("events.*"))) == 1
    together = losses(folder)
    assert [line["step"] for line in together] == list(range(1, 11))
    for line, expected in zip(together, never_stopped, strict=True):
        assert line == pytest.approx(expected, rel=1e-3, abs=1e-3)
    assert load_state(folder)["step"] == 10
