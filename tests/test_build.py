"""The build's choices and complaints, and what keeps one binary safe on every CPU."""

import os
import re
import runpy
import stat
import subprocess
import sys
from pathlib import Path

import pytest
import setuptools
import torch

import artkernels
from artkernels import _version_check, doctor

pytestmark = pytest.mark.cpu_only

ROOT = Path(__file__).resolve().parents[1]
IS_X86 = os.uname().machine == "x86_64"
INSTRUCTION_SETS = ("baseline", "avx2", "avx512", "avx512bf16")


@pytest.fixture
def setup_py(monkeypatch: pytest.MonkeyPatch) -> dict:
    """The functions of setup.py, without building anything."""
    monkeypatch.setattr(setuptools, "setup", lambda **_: None)
    return runpy.run_path(str(ROOT / "setup.py"))


def fake_toolkit(folder: Path, release: str) -> Path:
    (folder / "bin").mkdir()
    nvcc = folder / "bin" / "nvcc"
    nvcc.write_text(f"#!/bin/sh\necho 'Cuda compilation tools, release {release}, V{release}.1'\n")
    nvcc.chmod(nvcc.stat().st_mode | stat.S_IXUSR)
    return folder


# ---- the build's complaints ------------------------------------------------------------------------------------------


def test_without_torch_the_build_says_how_to_let_it_see_one() -> None:
    hide = "import sys, runpy; sys.modules['torch'] = None; runpy.run_path('setup.py')"
    done = subprocess.run([sys.executable, "-c", hide], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 1
    assert "--no-build-isolation" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.skipif(torch.version.cuda is None, reason="this torch has no CUDA version to disagree with")
def test_another_major_version_of_cuda_is_refused(setup_py, tmp_path, monkeypatch) -> None:
    major = int(torch.version.cuda.split(".")[0])
    monkeypatch.setenv("CUDA_HOME", str(fake_toolkit(tmp_path, f"{major - 1}.4")))
    with pytest.raises(SystemExit) as caught:
        setup_py["choose_cuda"]()
    assert f"nvcc is CUDA {major - 1}.4 and torch was built with CUDA {torch.version.cuda}" in str(caught.value)


@pytest.mark.skipif(torch.version.cuda is None, reason="this torch has no CUDA version to disagree with")
def test_another_minor_version_of_cuda_only_warns(setup_py, tmp_path, monkeypatch, capfd) -> None:
    release = torch.version.cuda.split(".")[0] + ".99"
    monkeypatch.setenv("CUDA_HOME", str(fake_toolkit(tmp_path, release)))
    assert setup_py["choose_cuda"]() == ("native", tmp_path / "bin" / "nvcc", tmp_path, release)
    assert f"warning: nvcc is CUDA {release}" in capfd.readouterr().err


def test_cuda_can_be_switched_off_and_says_so(setup_py, monkeypatch, capfd) -> None:
    monkeypatch.setenv("ARTKERNELS_CUDA", "0")
    assert setup_py["choose_cuda"]()[0] == "host"
    assert "CPU kernels only, because ARTKERNELS_CUDA=0" in capfd.readouterr().err


def test_cuda_wanted_without_a_compiler_is_an_error(setup_py, tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("ARTKERNELS_CUDA", "1")
    monkeypatch.delenv("CUDA_HOME", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setitem(setup_py["find_nvcc"].__globals__, "cuda_libraries", lambda: tmp_path)
    monkeypatch.setattr(torch.version, "cuda", torch.version.cuda or "13.0")
    with pytest.raises(SystemExit, match="ARTKERNELS_CUDA=1, but no nvcc"):
        setup_py["choose_cuda"]()


def test_unknown_settings_are_refused(setup_py, monkeypatch) -> None:
    monkeypatch.setenv("ARTKERNELS_CUDA", "yes")
    with pytest.raises(SystemExit, match="must be auto, 0, 1 or emulate, got yes"):
        setup_py["choose_cuda"]()
    with pytest.raises(SystemExit, match="TORCH_CUDA_ARCH_LIST must hold numbers"):
        setup_py["gencode_flags"]("8.0 Ampere")


def test_architecture_list_becomes_gencode_flags(setup_py) -> None:
    assert setup_py["gencode_flags"]("8.0;9.0a+PTX") == [
        "-gencode=arch=compute_80,code=sm_80",
        "-gencode=arch=compute_90a,code=sm_90a",
        "-gencode=arch=compute_90a,code=compute_90a",
    ]


def test_cuda_sources_include_no_torch_header() -> None:
    sources = [*(ROOT / "csrc" / "cuda").glob("*.cu*"), ROOT / "csrc" / "include" / "params.h"]
    assert len(sources) > 1
    for source in sources:
        assert not re.search(r"#include\s*[<\"](torch|ATen|c10)/", source.read_text()), source.name


# ---- one binary for every CPU ----------------------------------------------------------------------------------------


@pytest.mark.skipif(not IS_X86, reason="only x86-64 has several instruction sets in one binary")
def test_code_of_one_instruction_set_cannot_leak() -> None:
    """A weak symbol (an inline function, a template) could be the copy that the linker keeps for every caller."""
    objects = list((ROOT / "build").glob("objects-*/cpu-*-*-*.o"))
    if not objects:
        pytest.skip("no build/objects-*: this checkout was installed from a wheel")
    isas = {o: re.search(rf"-({'|'.join(INSTRUCTION_SETS)})-", o.name).group(1) for o in objects}
    assert set(isas.values()) == set(INSTRUCTION_SETS)
    for object_file, isa in isas.items():
        listing = subprocess.run(["nm", "-C", object_file], capture_output=True, text=True, check=True).stdout
        defined = re.findall(r"^[0-9a-f]+ ([A-Za-z]) (.*)$", listing, re.MULTILINE)
        assert not [symbol for kind, symbol in defined if kind in "WwVvu"], object_file.name
        assert all(f"artkernels::cpu::{isa}::" in symbol for kind, symbol in defined if kind == "T"), object_file.name


CHECK_KERNELS = """
import torch, artkernels
from artkernels import functional as F, reference
assert artkernels.build_info()["cpu_instruction_set"] == "{isa}"
for dtype in (torch.float32, torch.bfloat16, torch.float16):
    for layout in (torch.contiguous_format, torch.channels_last):
        x = torch.randn(2, 37, 11, 13).to(dtype).contiguous(memory_format=layout).requires_grad_()
        y, target = x.detach().double().requires_grad_(), torch.randn(37, 37)
        loss, exact = F.gram_mse_loss(x, target), reference.gram_mse_loss(y, target.double())
        torch.testing.assert_close(loss.double(), exact, rtol=1e-5, atol=0.0)
        (grad,), (exact_grad,) = torch.autograd.grad(loss * 1024, x), torch.autograd.grad(exact * 1024, y)
        torch.testing.assert_close(grad.double(), exact_grad, rtol=4 * torch.finfo(dtype).eps, atol=1e-5)
        weight = torch.randn(40, 37, 3, 3).to(dtype)
        output = F.conv2d_act(x.detach(), weight, stride=2)
        exact = torch.nn.functional.conv2d(x.detach().double(), weight.double(), stride=2)
        torch.testing.assert_close(output.double(), exact, rtol=torch.finfo(dtype).eps, atol=1e-4)
"""


@pytest.mark.parametrize("isa", INSTRUCTION_SETS)
def test_every_instruction_set_computes_the_same(isa: str) -> None:
    environment = {**os.environ, "ARTKERNELS_CPU_ISA": isa}
    done = subprocess.run(
        [sys.executable, "-c", CHECK_KERNELS.format(isa=isa)], capture_output=True, text=True, env=environment
    )
    if f"ARTKERNELS_CPU_ISA is {isa}, which this CPU does not have" in done.stderr:
        pytest.skip(f"this CPU has no {isa}")
    assert done.returncode == 0, done.stderr


def test_unknown_instruction_set_is_refused() -> None:
    done = subprocess.run(
        [sys.executable, "-c", "import artkernels; artkernels.build_info()"],
        capture_output=True,
        text=True,
        env={**os.environ, "ARTKERNELS_CPU_ISA": "sse9"},
    )
    assert "ARTKERNELS_CPU_ISA must be baseline, avx2, avx512 or avx512bf16, got sse9" in done.stderr


# ---- what is running -------------------------------------------------------------------------------------------------


def test_another_torch_is_named_before_it_can_crash(monkeypatch) -> None:
    monkeypatch.setattr("artkernels._build_info.TORCH", "1.13.0")
    with pytest.raises(
        ImportError, match=f"built against torch 1.13.0, but torch {re.escape(torch.__version__)} is running"
    ):
        _version_check.check_torch()


def test_a_torch_without_cuda_cannot_run_a_build_with_it(monkeypatch) -> None:
    monkeypatch.setattr("artkernels._build_info.CUDA", "13.0")
    monkeypatch.setattr(torch.version, "cuda", None)
    with pytest.raises(ImportError, match="built against torch"):
        _version_check.check_torch()


def test_a_checkout_that_was_not_built_says_how(monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "artkernels._build_info", None)
    monkeypatch.delattr(artkernels, "_build_info")
    with pytest.raises(ImportError, match="build them with `pip install --no-build-isolation"):
        _version_check.check_torch()


def test_build_info_says_what_is_built_and_running() -> None:
    info = artkernels.build_info()
    assert info["torch_running"] == torch.__version__
    assert info["torch_built"].split(".")[:2] == torch.__version__.split(".")[:2]
    assert info["cpu_instruction_set"] in INSTRUCTION_SETS
    assert info["threads"] == torch.get_num_threads()


def test_doctor_names_what_is_missing_and_how_to_get_it(monkeypatch) -> None:
    present = doctor.importlib.util.find_spec
    monkeypatch.setattr(doctor.importlib.util, "find_spec", lambda name: None if name == "typer" else present(name))
    report = doctor.report()
    assert torch.__version__ in report
    assert 'the command line: pip install "artkernels[cli]"' in report
