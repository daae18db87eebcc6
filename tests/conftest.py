"""Fixtures of all tests. In a build against the CUDA emulator every test runs inside an emulator session, checks on."""

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

import artkernels

EMULATED = artkernels.build_info()["cuda"] == "emulated"


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--emulator-seeds", help="schedules of the CUDA emulator, such as 0,1,7; needs the emulated build")


def pytest_configure(config: pytest.Config) -> None:
    if config.getoption("--emulator-seeds") and not EMULATED:
        raise pytest.UsageError("--emulator-seeds was given, but the artkernels on the path is not the emulated build")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if EMULATED:
        seeds = (metafunc.config.getoption("--emulator-seeds") or "0").split(",")
        metafunc.fixturenames.append("emulator_seed")
        metafunc.parametrize("emulator_seed", list(map(int, seeds)), ids=lambda seed: f"schedule{seed}")


def pytest_report_header() -> str:
    info = artkernels.build_info()
    kernels = "CUDA kernels, emulated" if EMULATED else f"CPU kernels for {info['cpu_instruction_set']}"
    return f"artkernels: {kernels}, torch {info['torch_running']}"


@pytest.fixture(autouse=True)
def emulator(request: pytest.FixtureRequest) -> Iterator[object]:
    """The emulator session of this test, which fails it when any check does; None in an ordinary build."""
    if not EMULATED:
        yield None
        return
    sys.path.insert(0, str(Path(__file__).parent / "cuda_emulator"))
    import cudaemu

    with cudaemu.session(profile="h100", checks="all", seed=request.getfixturevalue("emulator_seed")) as session:
        yield session
        session.check()


@pytest.fixture(autouse=True)
def exact_convolutions(monkeypatch: pytest.MonkeyPatch) -> None:
    """Float32 convolutions on CUDA may use TF32 unless they are told not to: torch's default, which ours follow."""
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)
