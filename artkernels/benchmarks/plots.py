"""Results as pictures: ratios with their spread, the roofline, scaling. SVG that follows the reader's light or dark.

Every picture is at most as wide as a printed page.
"""

import io
import re
import statistics
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, FuncFormatter, LogLocator, NullLocator

from artkernels.benchmarks.results import OURS, Ratio, Results, Row, quartiles
from artkernels.benchmarks.tables import MAYBE_SLOWER, SLOWER, blocks, input_text, mark, significant
from artkernels.files import whole_or_not_at_all

__all__ = ["PALETTE", "Plot", "ratio_plots", "roofline_plot", "scaling_plot"]

T = TypeVar("T")

# Name -> the colour in light, the colour in dark. Red is for losses alone.
PALETTE = {
    "surface": ("#ffffff", "#0d1117"),
    "ink": ("#1f2328", "#e6edf3"),
    "muted": ("#59636e", "#9198a1"),
    "line": ("#d1d9e0", "#3d444d"),
    "ours": ("#0969da", "#4493f8"),
    "loss": ("#c1121f", "#ff7b72"),
}
# Colours (light, dark) and markers of those who are compared, in the order in which they come: no two share both.
_SERIES = [
    (("#bc4c00", "#f0883e"), "s"),
    (("#1a7f37", "#3fb950"), "^"),
    (("#8250df", "#ab7df8"), "D"),
    (("#1b7c83", "#39c5cf"), "v"),
    (("#bf3989", "#f778ba"), "P"),
    (("#7d5c00", "#d29922"), "X"),
    (("#57606b", "#8d96a0"), "<"),
]
_LIGHT = {name: light for name, (light, _) in PALETTE.items()}
_WIDTH = 7.2  # inches: A4 without its margins
_ROWS_IN_A_PLOT = 48
_PEERS_IN_A_PLOT = 3
_PANELS_IN_A_LINE = 3
_STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",  # text stays text
    "svg.hashsalt": "artkernels",  # the same results give the same file
    "text.parse_math": False,
    "font.size": 8.0,
    "axes.titlesize": 8.5,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "lines.linewidth": 1.4,
    "lines.markersize": 4.5,
    "legend.frameon": False,
    "text.color": _LIGHT["ink"],
    "axes.labelcolor": _LIGHT["ink"],
    "axes.titlecolor": _LIGHT["ink"],
    "axes.edgecolor": _LIGHT["muted"],
    "xtick.color": _LIGHT["muted"],
    "ytick.color": _LIGHT["muted"],
    "grid.color": _LIGHT["line"],
    "grid.linewidth": 0.6,
    "figure.facecolor": _LIGHT["surface"],
    "axes.facecolor": _LIGHT["surface"],
}


@dataclass(frozen=True)
class Plot:
    """A picture in a file, and what it shows in words."""

    file: str
    alt: str


def ratio_plots(op: str, rows: Sequence[Row], peers: Sequence[str], folder: Path) -> list[Plot]:
    """Every row of a group against the peers that it has: the median and the quartiles of the ratio, losses red."""
    peers = [peer for peer in peers if any(peer in row.seconds for row in rows)]
    spreads = [row.versus(peer) for row in rows for peer in peers if peer in row.seconds]
    if not spreads:
        return []
    limits = min(0.5, 0.9 * min(one.low for one in spreads)), max(2.0, 1.1 * max(one.high for one in spreads))
    plots: list[Plot] = []
    for some_peers in _chunks(peers, _PEERS_IN_A_PLOT):
        theirs = [row for row in rows if any(peer in row.seconds for peer in some_peers)]
        for some_rows in _pages(theirs):
            file = f"ratio-{_slug(op)}-{len(plots) + 1}.svg"
            with _drawn(folder / file) as figure:
                here = [peer for peer in some_peers if any(peer in row.seconds for row in some_rows)]
                _draw_ratios(figure, some_rows, here, limits)
            plots.append(Plot(file, _ratio_alt(op, some_rows, here)))
    return plots


def _draw_ratios(figure: Figure, rows: Sequence[Row], peers: Sequence[str], limits: tuple[float, float]) -> None:
    groups = blocks(rows)
    rows = [row for group in groups for row in group]
    figure.set_size_inches(_WIDTH, 0.62 + 0.165 * (len(rows) + 1.2 * len(groups)))
    panels = figure.subplots(1, len(peers), sharey=True, squeeze=False)[0]
    heights, labels, heads, y = [], [], [], 0.0
    for group in groups:
        heads.append((y, f"{group[0].kind}, {group[0].dtype}"))
        for row in group:
            y += 1
            heights.append(y)
            labels.append(_label(row))
        y += 1.2
    for panel, peer in zip(panels, peers, strict=True):
        panel.set_title(f"vs {peer}")
        _ratio_axis(panel, limits)
        panel.axvline(1, color=_LIGHT["ink"], linewidth=0.9)
        _draw_verdicts(panel, heights, rows, peer)
        panel.tick_params(axis="y", length=0)
        panel.spines["left"].set_visible(False)
    panels[0].set_ylim(y - 0.4, -0.8)
    panels[0].set_yticks(heights, labels, color=_LIGHT["ink"], fontsize=7)
    for height, name in heads:
        panels[0].annotate(
            name, (0, height), (-4, 0), ("axes fraction", "data"), "offset points", ha="right", va="center",
            fontsize=7, fontweight="bold",
        )  # fmt: skip
    figure.supxlabel("time of the peer / time of ours: right of 1 ours is faster", fontsize=7.5, color=_LIGHT["muted"])


def _draw_verdicts(panel: Axes, heights: Sequence[float], rows: Sequence[Row], peer: str) -> None:
    """Wins are dots; losses are red and triangles, hollow where the quartiles leave it open."""
    found: dict[str, list[tuple[float, Ratio]]] = {"": [], SLOWER: [], MAYBE_SLOWER: []}
    for height, row in zip(heights, rows, strict=True):
        if peer in row.seconds:
            against = row.versus(peer)
            found[mark(against)].append((height, against))
    for sign, some in found.items():
        if some:
            y, ratios = zip(*some, strict=True)
            colour = _LIGHT["loss" if sign else "ours"]
            fill = _LIGHT["surface"] if sign == MAYBE_SLOWER else colour
            panel.hlines(y, [r.low for r in ratios], [r.high for r in ratios], color=colour, linewidth=1.6, alpha=0.55)
            panel.plot([r.median for r in ratios], y, "v" if sign else "o", color=colour, markerfacecolor=fill)


def _ratio_axis(panel: Axes, limits: tuple[float, float]) -> None:
    panel.set_xscale("log", base=2)
    panel.set_xlim(*limits)
    span = limits[1] / limits[0]
    panel.xaxis.set_major_locator(LogLocator(2 if span < 40 else 4 if span < 1000 else 16, numticks=20))
    panel.xaxis.set_major_formatter(
        FuncFormatter(lambda value, _: f"{value:g}" if value >= 0.1 else significant(value))
    )
    panel.xaxis.set_minor_locator(NullLocator())
    panel.grid(axis="x")


def _ratio_alt(op: str, rows: Sequence[Row], peers: Sequence[str]) -> str:
    found = []
    for peer in peers:
        against = {row.name: row.versus(peer) for row in rows if peer in row.seconds}
        losses = [f"{name} at {one.median:.2f}" for name, one in against.items() if mark(one)]
        says = f"{len(losses)} below 1 ({'; '.join(losses[:3])}{'; ...' if len(losses) > 3 else ''})"
        found.append(f"{peer}: {len(against)} rows, {says if losses else 'none below 1'}")
    return f"Ratios of {op} with their quartiles. {'. '.join(found)}. The table has all figures."


def roofline_plot(results: Results, folder: Path) -> Plot | None:
    """FLOP/s against FLOPs per byte, under what the machine was measured to copy and to compute.

    Rows without FLOPs and rows with fewer threads than the peaks were measured with are not in it; None when no row is.
    """
    threads = max((row.threads for row in results.rows), default=0)
    rows = [row for row in results.rows if row.limit.flops > 0 and row.threads == threads]
    if not rows:
        return None
    dtypes, ops = [*dict.fromkeys(row.dtype for row in rows)], [*dict.fromkeys(row.op for row in rows)]
    peaks = results.about.get("peaks", {})
    with _drawn(folder / "roofline.svg") as figure:
        lines = -(-len(dtypes) // 2)
        figure.set_size_inches(_WIDTH, 3.2 * lines + 0.4)
        grid = figure.subplots(lines, min(len(dtypes), 2), sharex=True, sharey=True, squeeze=False).flatten()
        for panel, dtype in zip(grid, dtypes, strict=False):
            _draw_roofline(panel, [row for row in rows if row.dtype == dtype], ops, peaks)
        for panel in grid[len(dtypes) :]:
            panel.remove()
        figure.supxlabel("FLOPs per byte that must move", fontsize=7.5, color=_LIGHT["muted"])
        figure.supylabel("GFLOP/s", fontsize=7.5, color=_LIGHT["muted"])
        _legend(figure)
    share = statistics.median(row.of_limit for row in rows)
    return Plot(
        "roofline.svg",
        f"Roofline of {len(rows)} rows ({', '.join(dtypes)}): FLOP/s of ours against FLOPs per byte, beneath the "
        f"measured speeds of copying and computing. The median row runs at {share:.2f} of its limit.",
    )


def _draw_roofline(panel: Axes, rows: Sequence[Row], ops: Sequence[str], peaks: dict[str, float]) -> None:
    panel.set_title(rows[0].dtype)
    panel.set_xscale("log")
    panel.set_yscale("log")
    for axis in (panel.xaxis, panel.yaxis):
        axis.set_major_locator(LogLocator(subs=(1, 3), numticks=20))
        axis.set_major_formatter(EngFormatter(sep=""))
        axis.set_minor_locator(NullLocator())
    panel.grid()
    intensities = [row.limit.flops / row.limit.bytes for row in rows]
    left, right = min(intensities) / 2, max(intensities) * 2
    copy, peak = (peaks.get(name, 0.0) / 1e9 for name in ("copy", rows[0].dtype))
    if copy and peak:
        ridge = peak / copy
        left, right = min(left, ridge / 4), max(right, ridge * 4)
        panel.plot([left, ridge, right], [left * copy, peak, peak], color=_LIGHT["ink"], linewidth=1.2, label="limit")
        panel.set_title(f"{rows[0].dtype}: copy {significant(copy)} GB/s, peak {significant(peak)} GFLOP/s")
    for op in ops:
        own = [row for row in rows if row.op == op]
        if own:
            (colour, _), marker = _SERIES[ops.index(op) % len(_SERIES)]
            x, y = [row.limit.flops / row.limit.bytes for row in own], [row.limit.flops / row.ours / 1e9 for row in own]
            panel.plot(x, y, marker, color=colour, alpha=0.75, markeredgewidth=0, label=op)


def scaling_plot(results: Results, folder: Path) -> Plot | None:
    """What is done in a second, as the batch, the resolution or the threads grow: a panel for each series of rows.

    None when no row belongs to a series.
    """
    series: dict[tuple[str, str], list[Row]] = {}
    for row in results.rows:
        if row.axis:
            series.setdefault((row.axis, _series_name(row)), []).append(row)
    if not series:
        return None
    with _drawn(folder / "scaling.svg") as figure:
        lines = -(-len(series) // _PANELS_IN_A_LINE)
        figure.set_size_inches(_WIDTH, 2.2 * lines + 0.4)
        grid = figure.subplots(lines, _PANELS_IN_A_LINE, squeeze=False).flatten()
        for panel, ((axis, name), rows) in zip(grid, series.items(), strict=False):
            panel.set_title(name)
            panel.set_xlabel(axis)
            panel.set_ylabel(f"{_RATES[axis]} / s")
            _draw_scaling(panel, sorted(rows, key=_axis_value), results.peers)
        for panel in grid[len(series) :]:
            panel.remove()
        _legend(figure)
    return Plot("scaling.svg", _scaling_alt(series))


def _draw_scaling(panel: Axes, rows: Sequence[Row], peers: Sequence[str]) -> None:
    for candidate in [*peers, OURS]:
        own = [row for row in rows if candidate in row.seconds]
        if own:
            _draw_series(panel, candidate, own, peers)
    values = sorted({_axis_value(row) for row in rows})
    panel.set_xscale("log", base=2)
    panel.set_xticks(values, [str(value) for value in values])
    panel.xaxis.set_minor_locator(NullLocator())
    panel.yaxis.set_major_formatter(EngFormatter(sep=""))
    panel.set_ylim(bottom=0)
    panel.grid()


def _draw_series(panel: Axes, candidate: str, rows: Sequence[Row], peers: Sequence[str]) -> None:
    if candidate == OURS:
        colour, marker, width = _LIGHT["ours"], "o", 2.2
    else:
        (colour, _), marker = _SERIES[peers.index(candidate) % len(_SERIES)]
        width = 1.2
    spread = [quartiles([_work(row) / seconds for seconds in row.seconds[candidate]]) for row in rows]
    values, (low, median, high) = [_axis_value(row) for row in rows], zip(*spread, strict=True)
    panel.fill_between(values, low, high, color=colour, alpha=0.18, linewidth=0)
    panel.plot(values, median, marker + "-", color=colour, linewidth=width, label=candidate)


def _scaling_alt(series: dict[tuple[str, str], list[Row]]) -> str:
    found = []
    for (axis, name), rows in series.items():
        first, last = min(rows, key=_axis_value), max(rows, key=_axis_value)
        rates = [f"{significant(_work(row) / row.ours)} at {axis} {_axis_value(row)}" for row in (first, last)]
        found.append(f"{name}: {_RATES[axis]} per second {rates[0]}, {rates[1]}")
    return f"Scaling of ours and its peers. Ours, {'; '.join(found)}.".replace("\n", ", ")


_RATES = {"batch": "inputs", "resolution": "megapixels", "threads": "calls"}


def _axis_value(row: Row) -> int:
    return {"batch": row.shape[0], "resolution": row.shape[-1], "threads": row.threads}[row.axis]


def _work(row: Row) -> float:
    """What a call does, in the unit of its axis."""
    if row.axis == "resolution":
        return row.shape[0] * row.shape[-2] * row.shape[-1] / 1e6
    return row.shape[0] if row.axis == "batch" else 1


def _series_name(row: Row) -> str:
    """What the rows of a series have in common."""
    return f"{_short(row.title, 27)}\n{row.kind}, {row.dtype}{', channels_last' * (row.layout == 'channels_last')}"


def _short(title: str, length: int) -> str:
    return title if len(title) <= length else title[: length - 1] + "…"


def _label(row: Row) -> str:
    return f"{_short(row.title, 32)}  {input_text(row).replace(' x ', '×')}"  # noqa: RUF001


def _pages(rows: Sequence[Row]) -> list[list[Row]]:
    """Rows of one pass and dtype together, and as many of such blocks in a picture as fit."""
    pages: list[list[Row]] = [[]]
    for block in blocks(rows):
        for part in _chunks(block, _ROWS_IN_A_PLOT):
            if pages[-1] and len(pages[-1]) + len(part) > _ROWS_IN_A_PLOT:
                pages.append([])
            pages[-1] += part
    return pages


def _chunks(values: Sequence[T], size: int) -> list[Sequence[T]]:
    return [values[first : first + size] for first in range(0, len(values), size)]


def _slug(name: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")


def _legend(figure: Figure) -> None:
    """One for all panels, above them."""
    found = [panel.get_legend_handles_labels() for panel in figure.axes]
    handles = {label: handle for pair in found for handle, label in zip(*pair, strict=True)}
    figure.legend(handles.values(), handles.keys(), loc="outside upper center", ncols=5, fontsize=7.5)


@contextmanager
def _drawn(path: Path) -> Iterator[Figure]:
    """A figure to draw on; what it holds when the block ends is the file's."""
    with mpl.rc_context(_STYLE):
        figure = Figure(layout="constrained")
        yield figure
        out = io.StringIO()
        figure.savefig(out, format="svg", metadata={"Date": None, "Creator": None})
    with whole_or_not_at_all(path) as temporary:
        temporary.write_text(_with_dark(out.getvalue()))


def _with_dark(svg: str) -> str:
    """The picture with each colour's dark one for readers whose screen is dark."""
    pairs = [*PALETTE.values(), *(colours for colours, _ in _SERIES)]
    rules = "".join(
        f'[style*="{property}: {light}"]{{{property}:{dark}!important}}'
        for light, dark in pairs
        for property in ("fill", "stroke")
    )
    return svg.replace("<defs>", f"<style>@media (prefers-color-scheme:dark){{{rules}}}</style>\n<defs>", 1)
