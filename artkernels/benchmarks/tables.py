"""Results as tables: for the terminal, for Markdown and for spreadsheets."""

import csv
import functools
import io
import math
import statistics
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

import typer

from artkernels.benchmarks.results import EAGER, OURS, Ratio, Results, Row, quartiles

__all__ = [
    "DOUBTFUL",
    "LEGEND",
    "MAYBE_SLOWER",
    "SLOWER",
    "Cell",
    "Table",
    "blocks",
    "bytes_text",
    "csv_text",
    "input_text",
    "mark",
    "markdown",
    "of_limit_text",
    "ratio_cell",
    "rows_table",
    "seconds_text",
    "significant",
    "summary_table",
    "tally",
    "terminal_head",
    "terminal_line",
    "verdict",
    "worst_table",
]

SLOWER, MAYBE_SLOWER, DOUBTFUL = "▼", "▽", "?"
_BEYOND = 1.1  # of the limit: more than it and ours may differ by when both are timed in the same rounds
LEGEND = (
    "Ratios are time of the peer / time of ours, round by round: the median and, in brackets, the quartiles; above 1 "
    f"ours is faster. {SLOWER} ours is slower; {MAYBE_SLOWER} the median is below 1 and 1 lies between the quartiles. "
    f"{DOUBTFUL} beyond the machine's limit: it was disturbed, or ours needs fewer FLOPs than stock."
)


@dataclass(frozen=True)
class Cell:
    """What stands in a table: of a ratio its median, its quartiles, and the mark of a loss if it is one."""

    text: str
    spread: str = ""
    mark: str = ""

    def __str__(self) -> str:
        return " ".join(part for part in (self.mark, self.text, self.spread) if part)


@dataclass(frozen=True)
class Table:
    """Cells under a head.

    Attributes:
        head: titles of the columns.
        rows: as many cells each.
        labels: how many columns, from the left, say what a row is about; the others are figures.
        caption: what all rows have in common.
    """

    head: Sequence[str]
    rows: Sequence[Sequence[Cell]]
    labels: int
    caption: str = ""


def significant(number: float) -> str:
    """Three significant digits, never in powers of ten."""
    if not number:
        return "0"
    digits = math.floor(math.log10(float(f"{abs(number):.3g}")))
    return f"{number:.{max(0, 2 - digits)}f}"


def _with_unit(number: float, units: Sequence[tuple[float, str]]) -> str:
    """In the largest unit of which there is at least one, after rounding; else in the last."""
    rounded = float(f"{number:.3g}")
    size, unit = next((pair for pair in units if rounded >= pair[0]), units[-1])
    return f"{significant(number / size)} {unit}"


def seconds_text(seconds: float) -> str:
    """For example 1.46 ms."""
    return _with_unit(seconds, [(1, "s"), (1e-3, "ms"), (1e-6, "us")])


def bytes_text(count: float) -> str:
    """For example 12.0 MiB."""
    if count < 1024:
        return f"{count:.0f} B"
    return _with_unit(count, [(2.0**30, "GiB"), (2.0**20, "MiB"), (2.0**10, "KiB")])


def input_text(row: Row) -> str:
    """The shape, and the layout where it is not PyTorch's usual one."""
    return " x ".join(map(str, row.shape)) + (" channels_last" if row.layout == "channels_last" else "")


def of_limit_text(row: Row) -> str:
    """For example 0.86 memory; with a question mark what cannot be, or not without fewer FLOPs than stock."""
    return f"{row.of_limit:.2f}{DOUBTFUL if row.of_limit > _BEYOND else ''} {row.limit.by}"


def verdict(against: Ratio) -> Literal["faster", "equal", "slower"]:
    """What the quartiles allow to be said of ours: equal when 1 lies between them."""
    return "faster" if against.low > 1 else "slower" if against.high < 1 else "equal"


def mark(against: Ratio) -> str:
    """The sign of a loss, for those who see no colours: every median below 1 has one."""
    if against.median >= 1:
        return ""
    return SLOWER if verdict(against) == "slower" else MAYBE_SLOWER


def ratio_cell(row: Row, peer: str) -> Cell:
    """The row's ratio to a peer, marked when it is a loss; empty where the peer was not timed."""
    if peer not in row.seconds:
        return Cell("")
    against = row.versus(peer)
    median, spread = str(against).split(" ", 1)
    return Cell(median, spread if len(row.seconds[peer]) > 1 else "(1 round)", mark(against))


def blocks(rows: Sequence[Row]) -> list[list[Row]]:
    """The rows by pass and, within it, by dtype, in the order in which these first come."""
    found: dict[tuple[str, str], list[Row]] = {}
    for row in rows:
        found.setdefault((row.kind, row.dtype), []).append(row)
    kinds, dtypes = (list(dict.fromkeys(names)) for names in zip(*found, strict=True))
    return [found[kind, dtype] for kind in kinds for dtype in dtypes if (kind, dtype) in found]


def rows_table(rows: Sequence[Row], peers: Iterable[str]) -> Table:
    """All that was found of each row; what is the same for all of them is said once, in the caption."""
    labels: dict[str, Callable[[Row], str]] = {"case": lambda row: row.title, "input": input_text}
    common = []
    for name, value, unit in (
        ("pass", lambda row: row.kind, ""),
        ("dtype", lambda row: row.dtype, ""),
        ("device", lambda row: row.device, ""),
        ("threads", lambda row: str(row.threads), " threads"),
    ):
        values = {value(row) for row in rows}
        if len(values) == 1:
            common.append(values.pop() + unit)
        else:
            labels[name] = value
    columns: dict[str, Callable[[Row], Cell]] = {
        "ours": lambda row: Cell(seconds_text(row.ours)),
        "of limit": lambda row: Cell(of_limit_text(row)),
    }
    for peer in peers:
        if any(peer in row.seconds for row in rows):
            columns[f"vs {peer}"] = functools.partial(ratio_cell, peer=peer)
    for name, candidate in (("memory", OURS), ("eager's memory", EAGER)):
        if any(candidate in row.memory for row in rows):
            columns[name] = functools.partial(_memory_cell, candidate=candidate)
    cells = [[*(Cell(get(row)) for get in labels.values()), *(get(row) for get in columns.values())] for row in rows]
    return Table([*labels, *columns], cells, len(labels), ", ".join(common))


def _memory_cell(row: Row, candidate: str) -> Cell:
    return Cell(bytes_text(row.memory[candidate]) if candidate in row.memory else "")


def tally(results: Results, peer: str) -> dict[str, int]:
    """In how many rows ours is faster than the peer, equal to it and slower, in this order."""
    found = Counter(verdict(row.versus(peer)) for row in results.rows if peer in row.seconds)
    return {"faster": found["faster"], "equal": found["equal"], "slower": found["slower"]}


def summary_table(results: Results) -> Table:
    """A line for each peer: how often ours is faster, equal and slower, and by how much."""
    lines = []
    for peer in results.peers:
        faster, equal, slower = tally(results, peer).values()
        against = sorted((row.versus(peer) for row in results.rows if peer in row.seconds), key=lambda one: one.median)
        median = statistics.median(one.median for one in against)
        lines.append(
            [
                Cell(peer),
                *(Cell(str(count)) for count in (faster + equal + slower, faster, equal)),
                Cell(str(slower), mark=SLOWER if slower else ""),
                Cell(f"{median:.2f}", mark=SLOWER if median < 1 else ""),
                Cell(f"{against[0].median:.2f}", mark=mark(against[0])),
                Cell(f"{against[-1].median:.2f}", mark=mark(against[-1])),
            ]
        )
    return Table(["peer", "rows", "faster", "equal", "slower", "median ratio", "lowest", "highest"], lines, 1)


def worst_table(results: Results, count: int = 3) -> Table:
    """The rows in which each peer does best against ours, be they losses or not."""
    lines = []
    for peer in results.peers:
        rows = sorted((row for row in results.rows if peer in row.seconds), key=lambda row: row.versus(peer).median)
        for row in rows[:count]:
            lines.append(
                [Cell(peer), Cell(row.op), Cell(row.name), Cell(seconds_text(row.ours)), ratio_cell(row, peer)]
            )
    return Table(["peer", "group", "row", "ours", "ratio"], lines, 3)


def markdown(table: Table) -> str:
    """As GitHub and most others read it; losses are bold and carry their mark."""

    def text(cell: Cell) -> str:
        escaped = str(cell).replace("|", r"\|")
        return f"**{escaped}**" if cell.mark else escaped

    rule = ["---"] * table.labels + ["---:"] * (len(table.head) - table.labels)
    lines = [list(table.head), rule, *([text(cell) for cell in row] for row in table.rows)]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def csv_text(results: Results) -> str:
    """A line for each row and candidate: its key, the quartiles of its seconds and of its ratio to ours, its memory."""
    records = [_record(row, candidate) for row in results.rows for candidate in row.seconds]
    out = io.StringIO(newline="")
    writer = csv.DictWriter(out, records[0] if records else [], lineterminator="\n")
    writer.writeheader()
    writer.writerows(records)
    return out.getvalue()


def _record(row: Row, candidate: str) -> dict[str, object]:
    low, median, high = quartiles(row.seconds[candidate])
    against = row.versus(candidate)
    return {
        "op": row.op,
        "case": row.case,
        "title": row.title,
        "shape": "x".join(map(str, row.shape)),
        "layout": row.layout,
        "dtype": row.dtype,
        "pass": row.kind,
        "device": row.device,
        "threads": row.threads,
        "axis": row.axis,
        "candidate": candidate,
        "rounds": len(row.seconds[candidate]),
        "seconds": median,
        "seconds_low": low,
        "seconds_high": high,
        "ratio": against.median,
        "ratio_low": against.low,
        "ratio_high": against.high,
        "memory_bytes": row.memory.get(candidate, ""),
        "limit_seconds": statistics.median(row.limit.seconds),
        "limit_by": row.limit.by,
        "limit_bytes": row.limit.bytes,
        "limit_flops": row.limit.flops,
    }


_LABEL_WIDTHS = {"case": 28, "input": 20, "dtype": 8, "pass": 9, "ours": 7, "limit": 5}
_PEER_WIDTH = 20
_PEERS_IN_A_LINE = 3  # more would not fit beside the labels; the others go below


def terminal_head(peers: Sequence[str]) -> str:
    """The titles of what :func:`terminal_line` prints, at most 150 characters wide.

    Args:
        peers: everyone that any line may have, as :attr:`Results.peers`.
    """
    names = [peer.removeprefix("torch.") for peer in peers]
    return "\n".join(_terminal([*_LABEL_WIDTHS], [Cell(name) for name in names]))


def terminal_line(row: Row, peers: Sequence[str], *, colour: bool = False) -> str:
    """A row in fixed columns; past the third peer it goes on in further lines, if the row has such peers.

    Args:
        peers: those that the head was given.
        colour: losses in red, beside their mark.
    """
    shape = "x".join(map(str, row.shape)) + (" NHWC" if row.layout == "channels_last" else "")
    labels = [row.title, shape, row.dtype, row.kind, seconds_text(row.ours), of_limit_text(row).split()[0]]
    first, *others = _terminal(labels, [ratio_cell(row, peer) for peer in peers], colour=colour)
    return "\n".join([first, *(line for line in others if line)])


def _terminal(labels: Sequence[str], cells: Sequence[Cell], *, colour: bool = False) -> list[str]:
    left = "  ".join(_fit(text, width) for text, width in zip(labels, _LABEL_WIDTHS.values(), strict=True))
    texts = []
    for cell in cells:
        text = _fit(f"{cell.mark or ' '}{cell.text} {cell.spread}".rstrip(), _PEER_WIDTH)
        texts.append(typer.style(text, fg=typer.colors.RED) if colour and cell.mark else text)
    lines = [" ".join(texts[i : i + _PEERS_IN_A_LINE]) for i in range(0, max(len(texts), 1), _PEERS_IN_A_LINE)]
    indents = [left, *[" " * len(left)] * (len(lines) - 1)]
    return [f"{indent} {line}".rstrip() for indent, line in zip(indents, lines, strict=True)]


def _fit(text: str, width: int) -> str:
    return (text if len(text) <= width else text[: width - 1] + "…").ljust(width)
