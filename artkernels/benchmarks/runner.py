"""A run of the suite: which contests, on what, and what came of them. pytest-benchmark collects, times and records."""

import json
import os
import tempfile
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from pytest_benchmark.logger import PytestBenchmarkWarning

import artkernels
from artkernels.benchmarks import limits, origin, peers
from artkernels.benchmarks.ahead import compile_ahead
from artkernels.benchmarks.case import Setting
from artkernels.benchmarks.cases import OPS, Shape, cases_of
from artkernels.benchmarks.contest import Arena, Contest
from artkernels.benchmarks.processes import Processes
from artkernels.benchmarks.results import Results, Row
from artkernels.benchmarks.timing import Effort
from artkernels.errors import UserError

__all__ = ["NothingTimedError", "Request", "contests", "run"]

_SUITE = Path(__file__).with_name("suite.py")
_FULL, _QUICK = Effort(0.4, fewest=5, most=15), Effort(0.2, fewest=5, most=9)
_IN_QUICK = ("norm_act", "conv_transpose", "gram", "reparameterize_kl", "models")


class NothingTimedError(RuntimeError):
    """Every row failed; the message says why each."""


@dataclass(frozen=True)
class Request:
    """What to time.

    Attributes:
        ops: groups of cases.
        shapes: of the user's own, for ops that are layers; none: the shapes of real networks.
        dtypes: float32, bfloat16, float16; none: the first two, or of a quick run the first.
        device: cpu, cuda or cuda:N.
        quick: few cases, and without torch.compile.
        pooled: with the pooled allocator, for ours and for the peers.
    """

    ops: tuple[str, ...] = OPS
    shapes: tuple[Shape, ...] = ()
    dtypes: tuple[str, ...] = ()
    device: str = "cpu"
    quick: bool = False
    pooled: bool = False

    @property
    def command(self) -> str:
        """What asks for the same at a terminal."""
        options = {
            "ops": "" if self.ops == OPS else ",".join(self.ops),
            "shapes": ",".join("x".join(map(str, shape)) for shape in self.shapes),
            "dtype": ",".join(self.dtypes),
            "device": "" if self.device == "cpu" else self.device,
        }
        flags = [flag for flag, is_set in (("--quick", self.quick), ("--pooled", self.pooled)) if is_set]
        given = [f"--{name} {value}" for name, value in options.items() if value]
        return " ".join(["artkernels bench", *given, *flags])

    def absent(self) -> dict[str, str]:
        """Peers that take no part -> why."""
        missing = peers.missing() if self.device == "cpu" else {}
        if not self.quick:
            return missing
        compile_takes = "not in a quick run: it takes longer to compile than all the rest"
        return missing | {peers.COMPILE: compile_takes, peers.FREEZING: compile_takes}


def contests(request: Request) -> list[Contest]:
    """All rows that the request asks for.

    Float32 in planes shows how a step divides into forward and backward; channels_last and 16 bits are timed in whole
    passes alone, and 16 bits in planes, beside peers in both layouts. A quick run has models in inference alone.
    """
    found: list[Contest] = []
    dtypes = request.dtypes or ("float32", "bfloat16")[: 1 if request.quick else 2]
    for op in request.ops:
        for case in cases_of(op, request.shapes):
            if request.quick and not request.shapes and not (case.quick and op in _IN_QUICK):
                continue
            for dtype in (dtype for dtype in dtypes if dtype in case.dtypes):
                for layout in case.layouts[: 1 if request.quick or dtype != "float32" else 2]:
                    all_passes = dtype == "float32" and layout == "contiguous" and not request.quick
                    passes = case.passes[:1] if request.quick and op == "models" else case.passes
                    kinds = [kind for kind in passes if kind != "backward" or all_passes]
                    found += [Contest(case, Setting(kind, layout, dtype, request.device)) for kind in kinds]
    return found


def run(request: Request, on_row: Callable[[Row], None] = lambda row: None) -> tuple[Results, str]:
    """Time everything that was asked for.

    Args:
        request: what.
        on_row: told of each row when it is there.

    Returns:
        the results, and the text of the file that keeps them. ``about`` says what failed, and whether Ctrl-C ended it.

    Raises:
        UserError: there is nothing to time.
        NothingTimedError: no row could be timed.
        KeyboardInterrupt: stopped before the first row.
    """
    chosen = contests(request)
    if not chosen:
        raise UserError("nothing to time: no case of the chosen ops has these shapes and dtypes")
    modules = ["artkernels.benchmarks.ahead", *(["artkernels.training.trainer"] if "training" in request.ops else [])]
    processes = Processes(request.shapes, modules)
    arena = Arena(_QUICK if request.quick else _FULL, torch.get_num_threads(), request.absent(), processes)
    recorder = _Recorder(request, chosen, arena, on_row)
    with tempfile.TemporaryDirectory() as folder, _allocator(request.pooled):
        path = Path(folder) / "results.json"
        try:
            compile_ahead(chosen, arena.absent, processes, arena.threads)
            _pytest(path, recorder)
        finally:
            torch.set_num_threads(arena.threads)  # a case may have others
        if not path.exists():
            raise KeyboardInterrupt if recorder.interrupted else NothingTimedError("\n".join(recorder.failures))
        text = origin.one_line_a_row(json.loads(path.read_text()))
        path.write_text(text)
        return Results.load(path), text


@contextmanager
def _allocator(pooled: bool) -> Iterator[None]:
    """The one that is asked for; the command line has the pooled one on."""
    before = artkernels.pooled_allocator_statistics().max_bytes
    artkernels.use_pooled_allocator(None if pooled else 0)
    try:
        yield
    finally:
        artkernels.use_pooled_allocator(before)


def _pytest(path: Path, recorder: "_Recorder") -> None:
    """pytest on the suite alone: no configuration, plugins or caches of the folder that the user is in."""
    quiet = ["-qq", "-s", "--no-header", "--no-summary", "--tb=short", "--benchmark-quiet"]
    alone = ["-c", os.devnull, "--rootdir", str(_SUITE.parent), "--noconftest", "-p", "no:cacheprovider"]
    arguments = [str(_SUITE), *quiet, *alone, "-p", "pytest_benchmark.plugin", f"--benchmark-json={path}"]
    with pytest.MonkeyPatch.context() as patch, warnings.catch_warnings():
        patch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")
        warnings.simplefilter("ignore", PytestBenchmarkWarning)  # that there is nothing to save: run() says it
        pytest.main(arguments, plugins=[recorder])


@dataclass
class _Recorder:
    """The plugin by which pytest learns what to run, and by which we learn what came of it."""

    request: Request
    chosen: Sequence[Contest]
    the_arena: Arena
    on_row: Callable[[Row], None]
    failures: list[str] = field(default_factory=list)
    interrupted: bool = False

    @pytest.fixture
    def arena(self) -> Arena:
        return self.the_arena

    def pytest_generate_tests(self, metafunc: pytest.Metafunc) -> None:
        metafunc.parametrize("contest", self.chosen, ids=str)

    def pytest_report_teststatus(self, report: pytest.TestReport) -> tuple[str, str, str]:
        """Nothing: a row says it."""
        return "", "", ""

    def pytest_runtest_makereport(self, item: pytest.Item, call: pytest.CallInfo[None]) -> None:
        if call.excinfo and not call.excinfo.errisinstance(KeyboardInterrupt):
            self.failures.append(f"{item.name}: {call.excinfo.exconly()}")

    def pytest_keyboard_interrupt(self) -> None:
        self.interrupted = True

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_call(self, item: pytest.Function) -> Any:
        done = yield
        benchmark: Any = item.funcargs["benchmark"]
        self.on_row(Row.from_plain(benchmark.extra_info))
        return done

    def pytest_benchmark_update_machine_info(self, machine_info: dict[str, Any]) -> None:
        origin.describe(machine_info, self.the_arena.threads)

    @pytest.hookimpl(tryfirst=True)
    def pytest_benchmark_generate_commit_info(self) -> dict[str, Any]:
        return origin.commit()

    def pytest_benchmark_update_json(self, output_json: dict[str, Any]) -> None:
        for benchmark in output_json["benchmarks"]:
            del benchmark["params"], benchmark["stats"]["data"]  # the contest, and what is in extra_info
        device = self.request.device
        speeds = {dtype: limits.peak(work, device) for dtype, work in self.the_arena.works.items()}
        output_json["artkernels"] = {
            "version": artkernels.__version__,
            "command": self.request.command,
            "allocator": "pooled" if self.request.pooled else "torch",
            "missing": dict(self.the_arena.absent),
            "dropped": self.the_arena.dropped,
            "failures": self.failures,
            "interrupted": self.interrupted,
            "peaks": {"copy": limits.copy_speed(device), **speeds},
        }
