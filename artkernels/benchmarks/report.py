"""A run of the suite as a report for people: HTML and Markdown with plots, and a CSV file for spreadsheets."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import jinja2

from artkernels.benchmarks.facts import dropped, facts, failures, missing
from artkernels.benchmarks.modelled import Modelled
from artkernels.benchmarks.modelled_tables import MEANINGS, modelled_tables
from artkernels.benchmarks.plots import PALETTE, Plot, ratio_plots, roofline_plot, scaling_plot
from artkernels.benchmarks.results import PASSES, Results, quartiles
from artkernels.benchmarks.tables import (
    LEGEND,
    SLOWER,
    Table,
    blocks,
    csv_text,
    markdown,
    rows_table,
    summary_table,
    tally,
    worst_table,
)
from artkernels.errors import UserError
from artkernels.files import whole_or_not_at_all

__all__ = ["write_report"]


@dataclass(frozen=True)
class Section:
    """A part of the report under a heading of its own."""

    title: str
    plots: Sequence[Plot]
    tables: Sequence[Table] = ()
    text: str = ""

    @property
    def anchor(self) -> str:
        """What links name it by."""
        return self.title.lower().replace(" ", "-")


def write_report(results: Results, folder: Path) -> Path:
    """Writes report.html, report.md, results.csv and the plots that both show; what is modelled has its own section.

    Args:
        results: of one run, at least one row.
        folder: made if it is not there; files of these names in it are replaced, each whole or not at all.

    Returns:
        The HTML file.

    Raises:
        UserError: there are no rows, or the folder cannot be written to.
    """
    if not results.rows:
        raise UserError("no row was timed, a report needs at least one")
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{folder}: cannot be made a folder ({error.strerror})") from error
    modelled = Modelled.load()
    content = {
        "facts": facts(results),
        "missing": missing(results),
        "dropped": dropped(results),
        "failures": failures(results),
        "legend": LEGEND,
        "passes": {kind: text for kind, text in PASSES.items() if any(row.kind == kind for row in results.rows)},
        "rows": len(results.rows),
        "of_limit": [f"{share:.2f}" for share in quartiles([row.of_limit for row in results.rows])],
        "tallies": {peer: tally(results, peer) for peer in results.peers},
        "summary": summary_table(results),
        "worst": worst_table(results),
        "sections": _sections(results, folder),
        "modelled": modelled_tables(modelled),
        "nvcc": modelled.nvcc,
        "meanings": MEANINGS,
        "palette": PALETTE,
        "slower": SLOWER,
    }
    templates = jinja2.Environment(
        loader=jinja2.PackageLoader("artkernels.benchmarks"),
        autoescape=jinja2.select_autoescape(["html.jinja"]),
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        undefined=jinja2.StrictUndefined,
    )
    templates.filters["markdown"] = markdown
    _write(folder / "results.csv", csv_text(results))
    for name in ("report.md", "report.html"):
        _write(folder / name, templates.get_template(f"{name}.jinja").render(content))
    return folder / "report.html"


def _sections(results: Results, folder: Path) -> list[Section]:
    sections = []
    for op in dict.fromkeys(row.op for row in results.rows):
        rows = [row for row in results.rows if row.op == op]
        plots = ratio_plots(op, rows, results.peers, folder)
        sections.append(Section(op, plots, [rows_table(block, results.peers) for block in blocks(rows)]))
    roofline, scaling = roofline_plot(results, folder), scaling_plot(results, folder)
    if scaling:
        text = "What is done in a second as one thing grows; the band is from quartile to quartile."
        sections.insert(0, Section("Scaling curves", [scaling], text=text))
    if roofline:
        text = "Ours against what the machine was measured to copy and to compute; every point is a row of the tables."
        sections.insert(0, Section("Roofline", [roofline], text=text))
    return sections


def _write(path: Path, text: str) -> None:
    with whole_or_not_at_all(path) as temporary:
        temporary.write_text(text, encoding="utf-8")
