"""Writes the README's tables of figures from the results that are kept in benchmarks/results/.

python benchmarks/readme_tables.py [--check] [--readme README.md] [--results benchmarks/results]

A table NAME stands between `<!-- table: NAME -->` and `<!-- end of table -->`; VIEWS says what each NAME shows.
"""

import argparse
import functools
import re
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from artkernels.benchmarks import facts
from artkernels.benchmarks.results import EAGER, OURS, Pass, Results, Row
from artkernels.benchmarks.tables import (
    DOUBTFUL,
    MAYBE_SLOWER,
    SLOWER,
    Cell,
    Table,
    bytes_text,
    input_text,
    markdown,
    of_limit_text,
    ratio_cell,
    seconds_text,
)
from artkernels.errors import UserError
from artkernels.files import whole_or_not_at_all

ROOT = Path(__file__).resolve().parents[1]
OWN_ALLOCATOR, POOLED, VIDEO = "2-core-xeon.json", "2-core-xeon-pooled.json", "2-core-epyc-video.json"
EAGER_CHANNELS_LAST = f"{EAGER} channels_last"
_MARKED = re.compile(r"(<!-- table: (\S+) -->\n).*?(<!-- end of table -->)", re.DOTALL)


@dataclass(frozen=True)
class View:
    """What a table of the README shows: the float32 rows of a group, a line for each case, input and layout.

    Attributes:
        op: the group.
        label: title of the first column.
        file: the results.
        passes: title of a column -> the passes that it takes, of which a case has one.
        further_peers: all that were timed, not only eager in the layout of ours.
        other_file: results with the other allocator, of which the ratios to eager are shown, too.
    """

    op: str
    label: str
    file: str
    passes: Mapping[str, tuple[Pass, ...]]
    further_peers: bool = False
    other_file: str = ""


_LAYER: dict[str, tuple[Pass, ...]] = {"forward": ("forward", "inference"), "forward + backward": ("step",)}
_NETWORK: dict[str, tuple[Pass, ...]] = {"inference": ("inference",), "forward + backward": ("step",)}
VIEWS = {
    "norm_act": View("norm_act", "layer", POOLED, _LAYER, other_file=OWN_ALLOCATOR),
    "conv_transpose": View("conv_transpose", "layer", OWN_ALLOCATOR, _NETWORK, further_peers=True),
    "models": View("models", "model", OWN_ALLOCATOR, _NETWORK, further_peers=True),
    "gram": View("gram", "loss", OWN_ALLOCATOR, _LAYER, further_peers=True),
    "reparameterize_kl": View("reparameterize_kl", "layer", OWN_ALLOCATOR, _LAYER, further_peers=True),
    "video": View("video", "video", VIDEO, {"from file to file": ("inference",)}),
    "training": View("training", "recipe", POOLED, {"a step": ("step",)}),
}

MEMORY_VIEWS = {"style_memory": "style_memory.json"}
"""Tables of peak memory: the group -> its results."""

Line = dict[str, Row]  # title of a column -> the row


def _lines(view: View, results: Results) -> dict[tuple[object, ...], Line]:
    """Key of a line -> its rows."""
    lines: dict[tuple[object, ...], Line] = {}
    for row in results.rows:
        for title, kinds in view.passes.items():
            if row.op == view.op and row.dtype == "float32" and row.kind in kinds:
                lines.setdefault((row.case, row.shape, row.layout), {})[title] = row
    return lines


def table(view: View, load: Callable[[str], Results]) -> str:
    """The table as Markdown, and the line that says where its figures come from.

    Raises:
        UserError: the results have no such rows.
    """
    results = load(view.file)
    lines = _lines(view, results)
    if not lines:
        raise UserError(f"{view.file}: no float32 row of {view.op}, the README shows some")
    first = [next(iter(line.values())) for line in lines.values()]
    columns = [(view.label, [Cell(row.title) for row in first]), ("input", [Cell(input_text(row)) for row in first])]
    for title in view.passes:
        rows = [line.get(title) for line in lines.values()]
        columns += [(title, _column(rows, lambda row: Cell(seconds_text(row.ours))))]
        columns += [("vs eager", _column(rows, _versus_eager))]
        for peer in results.peers if view.further_peers else []:
            if peer != EAGER:
                columns += [(f"vs {peer}", _column(rows, functools.partial(_versus_further, peer=peer)))]
        columns += [("of limit", _column(rows, lambda row: Cell(of_limit_text(row))))]
    sources = [_source(results, _rows(lines))]
    if view.other_file:
        other = load(view.other_file)
        others = _lines(view, other)
        for title in view.passes:
            rows = [others.get(key, {}).get(title) for key in lines]
            columns += [(f"{_allocator(other)}: {title} vs eager", _column(rows, _versus_eager))]
        sources += [_source(other, _rows(others))]
    filled = [(title, cells) for title, cells in columns if any(cell.text for cell in cells)]
    cells = [*zip(*(cells for _, cells in filled), strict=True)]
    made = markdown(Table([title for title, _ in filled], cells, labels=2))
    meanings = {
        SLOWER: "slower",
        MAYBE_SLOWER: "below 1, with 1 between the quartiles",
        DOUBTFUL: "beyond the limit: the machine was disturbed, or ours needs fewer FLOPs than stock",
    }
    signs = "; ".join(f"{sign} {meaning}" for sign, meaning in meanings.items() if sign in made)
    notes = ["Eager has its input in the layout of ours.", *([f"{signs}."] if signs else [])]
    return f"{made}\n\n{' '.join([*sources, *notes])}\n"


def memory_table(op: str, load: Callable[[str], Results]) -> str:
    """The same of a table of peak memory: a column for each candidate, of the others also how many times ours."""
    file = MEMORY_VIEWS[op]
    results = load(file)
    rows = [row for row in results.rows if row.op == op]
    if not rows:
        raise UserError(f"{file}: no row of {op}, the README shows some")
    names = max((list(row.memory) for row in rows), key=len)  # not every candidate has a row for every input
    lines = [
        [Cell(row.title), Cell(input_text(row)), *(_memory(row, name) for name in names)]
        for row in sorted(rows, key=lambda row: row.case)
    ]
    made = markdown(Table(["memory of", "picture", *names], lines, labels=2))
    return f"{made}\n\n{_source(results, rows)}\n"


def _memory(row: Row, name: str) -> Cell:
    if name not in row.memory:
        return Cell("")
    times = "" if name == OURS else f"({row.memory[name] / row.memory[OURS]:.2f})"
    return Cell(bytes_text(row.memory[name]), times)


def _rows(lines: Mapping[tuple[object, ...], Line]) -> list[Row]:
    return [row for line in lines.values() for row in line.values()]


def _column(rows: list[Row | None], cell: Callable[[Row], Cell]) -> list[Cell]:
    return [cell(row) if row else Cell("") for row in rows]


def _beside(row: Row) -> str:
    """Eager in the layout of ours."""
    in_layout = row.layout == "channels_last" and EAGER_CHANNELS_LAST in row.seconds
    return EAGER_CHANNELS_LAST if in_layout else EAGER


def _versus_eager(row: Row) -> Cell:
    return ratio_cell(row, _beside(row))


def _versus_further(row: Row, peer: str) -> Cell:
    return Cell("") if peer == _beside(row) else ratio_cell(row, peer)


def _allocator(results: Results) -> str:
    return f"{results.about.get('allocator', 'unknown')} allocator"


def _source(results: Results, rows: list[Row]) -> str:
    """Where the figures come from, in a line."""
    threads = ", ".join(map(str, sorted({row.threads for row in rows})))
    what = [f"commit {facts.commit(results) or 'unknown'}", f"PyTorch {results.machine.get('torch', 'unknown')}"]
    what += [_counted(threads, "thread"), _counted(facts.rounds(rows), "round"), _allocator(results)]
    command = results.about.get("command", "artkernels bench")
    return f"Measured on {results.date[:10]} by `{command}` on {facts.processor(results)} ({', '.join(what)})."


def _counted(number: str, noun: str) -> str:
    return f"{number} {noun}" if number == "1" else f"{number} {noun}s"


def rewritten(readme: str, load: Callable[[str], Results]) -> str:
    """The README with every marked table made anew.

    Raises:
        UserError: a NAME is none of VIEWS, or its results cannot be read.
    """

    def made(match: re.Match[str]) -> str:
        head, name, end = match.groups()
        if name in MEMORY_VIEWS:
            return f"{head}\n{memory_table(name, load)}\n{end}"
        if name not in VIEWS:
            names = ", ".join([*VIEWS, *MEMORY_VIEWS])
            raise UserError(f"README table {name}: no such table, one of {names} is needed")
        return f"{head}\n{table(VIEWS[name], load)}\n{end}"

    return _MARKED.sub(made, readme)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="change nothing, leave with 1 when a table is stale")
    parser.add_argument("--readme", type=Path, default=ROOT / "README.md")
    parser.add_argument("--results", type=Path, default=ROOT / "benchmarks" / "results")
    args = parser.parse_args(arguments)
    load = functools.cache(lambda name: Results.load(args.results / name))
    before = args.readme.read_text(encoding="utf-8")
    try:
        after = rewritten(before, load)
        if args.check and after != before:
            raise UserError(f"{args.readme}: its tables are not those of {args.results}: make readme-tables")
        if after != before:
            with whole_or_not_at_all(args.readme) as temporary:
                temporary.write_text(after, encoding="utf-8")
    except UserError as error:
        print(f"readme_tables: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
