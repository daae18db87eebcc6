"""The report says what the rows say: every loss is marked, and every figure is computed from the rows."""

import csv
import json
import random
import re
import runpy
import statistics
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from xml.etree import ElementTree

import pytest

from artkernels.benchmarks import modelled, plots, tables
from artkernels.benchmarks.modelled import Bound, Launch, Modelled
from artkernels.benchmarks.modelled_tables import modelled_tables
from artkernels.benchmarks.plots import PALETTE
from artkernels.benchmarks.report import write_report
from artkernels.benchmarks.results import Limit, Ratio, Results, Row
from artkernels.benchmarks.tables import MAYBE_SLOWER, SLOWER, Cell, markdown
from artkernels.errors import UserError

ROOT = Path(__file__).resolve().parents[1]

ABOUT = {
    "allocator": "torch",
    "command": "artkernels bench --report out/bench",
    "missing": {"OpenVINO": "the package openvino is not installed"},
    "peaks": {"copy": 11.3e9, "float32": 142e9, "bfloat16": 910e9},
}
MACHINE = {
    "node": "vm",
    "machine": "x86_64",
    "system": "Linux",
    "release": "6.1",
    "python_version": "3.11.7",
    "python_build": ["main", "May"],
    "torch": "2.14.1",
    "cpu": {"brand_raw": "Synthetic(R) Processor", "count": 2, "flags": ["avx2"]},
}
COMMIT = {"id": "0123456789abcdef0123", "dirty": False}


def row(op="norm_act", ours=(1e-3,), threads=2, flops=0, memory=None, axis="", **options) -> Row:
    """A made-up row; the other candidates' seconds are given by ``peers``."""
    peers = options.pop("peers", {"eager": (2e-3,)})
    limit_seconds = options.pop("limit_seconds", None)
    values = {
        "case": "made-up",
        "title": "instance norm + relu",
        "shape": (1, 64, 32, 32),
        "layout": "contiguous",
        "dtype": "float32",
        "kind": "inference",
        "device": "cpu",
    } | options
    seconds = {"ours": list(ours)} | {name: list(theirs) for name, theirs in peers.items()}
    of_limit = [limit_seconds or 0.5 * s for s in ours]
    limit = Limit(1 << 20, flops, of_limit, "arithmetic" if flops else "memory")
    return Row(op=op, threads=threads, axis=axis, seconds=seconds, limit=limit, memory=memory or {}, **values)


def results(rows, **about) -> Results:
    return Results(rows, MACHINE, COMMIT, "2026-11-22T18:00:00+00:00", ABOUT | about)


TITLES = {
    "norm_act": [
        ("instance norm + relu", (1, 128, 256, 256)),
        ("batch norm + leaky_relu", (64, 64, 32, 32)),
        ("adaptive instance norm", (4, 512, 32, 32)),
    ],
    "conv_transpose": [
        ("100 → 512, k4 s1, batch norm + relu", (64, 100, 1, 1)),
        ("64 → 3, 7x7, reflect, tanh", (1, 64, 256, 256)),
    ],
    "gram": [("Gram matrix + MSE", (4, 512, 32, 32))],
    "models": [("DCGAN generator", (64, 100, 1, 1)), ("CycleGAN generator, 9 blocks", (1, 3, 512, 512))],
}
ENGINES = ("torch.compile, freezing", "ONNX Runtime")


def a_whole_run(seed: int = 0) -> Results:
    """Rows of every kind that a long run has, with peers that are missing here and there; invented from a seed."""
    chance = random.Random(seed)

    def rows_of(op, title, shape, axis="", threads=2):
        kinds = ("inference",) if axis else ("inference", "backward", "step")
        for kind in kinds:
            for dtype in ("float32",) if axis else ("float32", "bfloat16"):
                for layout in ("contiguous",) if axis else ("contiguous", "channels_last"):
                    yield made(op, title, shape, kind, dtype, layout, axis, threads)

    def made(op, title, shape, kind, dtype, layout, axis, threads):
        rounds = chance.choice((1, 3, 5, 11, 21))
        count = 1.0
        for size in shape:
            count *= size
        scale = 10 ** chance.uniform(-0.5, 0.5) * count * 1e-9 * (40 if op == "models" else 1) / threads**0.8
        names = ["eager", *(["eager channels_last"] if layout == "contiguous" else [])]
        names += ["torch.compile"] if dtype == "float32" else []
        names += ENGINES if op == "models" and kind == "inference" else ()
        ratios = {"ours": 1.0} | {name: 2 ** chance.gauss(0.6, 0.7) for name in names}
        seconds = {
            name: [scale * one * 2 ** chance.gauss(0, 0.08) for _ in range(rounds)] for name, one in ratios.items()
        }
        flops = 0 if op == "norm_act" else int(count * 10 ** chance.uniform(1, 2.5))
        limit = Limit(int(8 * count), flops, [scale * chance.uniform(0.3, 0.95)] * rounds, "memory")
        memory = {} if chance.random() < 0.3 else {"ours": int(4 * count), "eager": int(9 * count)}
        case = title.lower().replace(" ", "-")
        return Row(op, case, title, shape, layout, dtype, kind, "cpu", threads, axis, seconds, limit, memory)

    rows = [made for op, cases in TITLES.items() for case in cases for made in rows_of(op, *case)]
    for batch in (1, 4, 16, 64):
        rows += rows_of("scaling", "DCGAN generator", (batch, 100, 1, 1), "batch")
    for size in (64, 128, 256, 512):
        rows += rows_of("scaling", "TransformerNet", (1, 3, size, size), "resolution")
        rows += rows_of("scaling", "instance norm + relu", (1, 64, size, size), "resolution")
    for threads in (1, 2):
        rows += rows_of("scaling", "TransformerNet", (1, 3, 256, 256), "threads", threads)
    return results(rows)


LOSS = row(title="a loss", case="loss", ours=(1e-3, 1e-3, 1e-3), peers={"eager": (0.8e-3, 0.82e-3, 0.84e-3)})
UNDECIDED = row(title="undecided", case="undecided", ours=(1e-3,) * 3, peers={"eager": (0.9e-3, 0.99e-3, 1.2e-3)})
WIN = row(title="a win", case="win", ours=(1e-3,) * 3, peers={"eager": (2e-3, 2.1e-3, 2.2e-3)})


class Parser(HTMLParser):
    """What a page is made of: its elements with their attributes and text, and those that were never closed."""

    VOID = ("meta", "img", "br", "link")

    def __init__(self, page: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.rows: list[list[tuple[str, str]]] = []
        self.feed(page)
        self.close()

    def handle_starttag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))
        if tag not in self.VOID:
            self.open.append(tag)
        if tag == "tr":
            self.rows.append([])
        elif tag in ("td", "th"):
            self.rows[-1].append((dict(attributes).get("class") or "", ""))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if "td" in self.open or "th" in self.open:
            kind, text = self.rows[-1][-1]
            self.rows[-1][-1] = kind, text + data

    def cells(self, label: str) -> list[list[tuple[str, str]]]:
        """The rows of tables that begin with ``label``: class and text of each cell."""
        return [cells for cells in self.rows if cells and cells[0][1] == label]


def written(run: Results, folder: Path) -> tuple[str, str]:
    """The report as HTML and as Markdown."""
    page = write_report(run, folder)
    return page.read_text(), (folder / "report.md").read_text()


@pytest.fixture(scope="module")
def whole_run(tmp_path_factory) -> tuple[Results, Path]:
    run, folder = a_whole_run(), tmp_path_factory.mktemp("report")
    write_report(run, folder)
    return run, folder


def test_a_loss_is_marked_and_red_in_html(tmp_path):
    page = Parser(written(results([LOSS, UNDECIDED, WIN]), tmp_path)[0])
    cell = {name: page.cells(name)[0][-1] for name in ("a loss", "undecided", "a win")}
    assert cell["a loss"] == ("figure loss", f"{SLOWER} {Ratio(0.81, 0.82, 0.83)}")
    assert cell["undecided"] == ("figure loss", f"{MAYBE_SLOWER} {Ratio(0.945, 0.99, 1.095)}")
    assert cell["a win"] == ("figure", str(Ratio(2.05, 2.1, 2.15)))


def test_a_loss_is_marked_and_bold_in_markdown(tmp_path):
    text = written(results([LOSS, UNDECIDED, WIN]), tmp_path)[1]
    assert f"| a loss | 1 x 64 x 32 x 32 | 1.00 ms | 0.50 memory | **{SLOWER} {Ratio(0.81, 0.82, 0.83)}** |" in text
    assert f"| **{MAYBE_SLOWER} {Ratio(0.945, 0.99, 1.095)}** |" in text
    assert f"| a win | 1 x 64 x 32 x 32 | 1.00 ms | 0.50 memory | {Ratio(2.05, 2.1, 2.15)} |" in text


def test_a_loss_is_marked_on_the_terminal_and_red_when_asked():
    plain, red = (tables.terminal_line(LOSS, ["eager"], colour=colour) for colour in (False, True))
    assert plain.endswith(f"{SLOWER}{Ratio(0.81, 0.82, 0.83)}")
    assert "\x1b[31m" in red
    assert "\x1b" not in plain
    assert "\x1b" not in tables.terminal_line(WIN, ["eager"], colour=True)
    assert re.sub(r"\x1b\[\d+m", "", red).rstrip() == plain


def test_a_loss_is_red_in_the_plot_and_named_in_its_alternative_text(tmp_path):
    page = Parser(written(results([LOSS, WIN]), tmp_path)[0])
    alt = next(attributes["alt"] for tag, attributes in page.elements if tag == "img")
    assert alt.startswith(f"Ratios of norm_act with their quartiles. eager: 2 rows, 1 below 1 ({LOSS.name} at 0.82)")
    red = f"fill: {PALETTE['loss'][0]}"
    assert red in (tmp_path / "ratio-norm-act-1.svg").read_text()
    write_report(results([WIN]), tmp_path / "wins")
    assert red not in (tmp_path / "wins" / "ratio-norm-act-1.svg").read_text().split("</style>", 1)[1]


def test_a_ratio_that_rounds_to_one_is_still_a_loss():
    nearly = row(ours=(1e-3,) * 3, peers={"eager": (0.998e-3,) * 3})
    assert tables.ratio_cell(nearly, "eager") == Cell("1.00", str(Ratio(1, 1, 1)).removeprefix("1.00 "), SLOWER)


def test_what_is_beyond_the_limit_is_doubted_in_every_output():
    beyond, within = (row(ours=[1e-3], limit_seconds=seconds) for seconds in (3e-3, 1e-3))
    assert tables.of_limit_text(beyond) == "3.00? memory"
    assert tables.of_limit_text(within) == "1.00 memory"
    assert "3.00?" in tables.terminal_line(beyond, ["eager"])
    assert "? beyond the machine's limit" in tables.LEGEND


def test_the_summary_counts_what_the_quartiles_allow_to_be_said(tmp_path):
    run = results([LOSS, UNDECIDED, WIN, WIN])
    assert tables.tally(run, "eager") == {"faster": 2, "equal": 1, "slower": 1}
    page = Parser(written(run, tmp_path)[0])
    assert [text for _, text in page.cells("eager")[0]] == [
        "eager", "4", "2", "1", f"{SLOWER} 1", "1.54", f"{SLOWER} 0.82", "2.10"
    ]  # fmt: skip


def test_the_summary_names_the_rows_in_which_a_peer_does_best(whole_run):
    run, folder = whole_run
    page = Parser((folder / "report.html").read_text())
    for peer in run.peers:
        rows = sorted((r for r in run.rows if peer in r.seconds), key=lambda r: r.versus(peer).median)
        named = [cells[2][1] for cells in page.cells(peer)[1:]]
        assert named == [r.name for r in rows[:3]]


def test_every_figure_of_the_tables_is_computed_from_its_row(whole_run):
    run, folder = whole_run
    text = (folder / "report.md").read_text()
    for op in {r.op for r in run.rows}:
        found = text.split(f"\n## {op}\n", 1)[1].split("\n## ", 1)[0]
        lines = [line for line in found.splitlines() if line.startswith("| ") and "---" not in line]
        for r in (r for r in run.rows if r.op == op):
            wanted = [f"{tables.seconds_text(statistics.median(r.seconds['ours']))} | {r.of_limit:.2f} memory"]
            for peer in r.peers:
                ratios = sorted(p / o for p, o in zip(r.seconds[peer], r.seconds["ours"], strict=True))
                wanted.append(f"{statistics.median(ratios):.2f} (")
            wanted += [tables.bytes_text(count) for count in r.memory.values()]
            own = [line for line in lines if line.startswith(f"| {r.title} | {tables.input_text(r)} |")]
            assert any(all(part in line for part in wanted) for line in own), r.name


def test_missing_dropped_and_failed_are_named_with_their_reasons(tmp_path):
    about = {"dropped": ["gram: torch.compile: values differ"], "failures": ["models: not the same"]}
    for text in written(results([WIN], interrupted=True, **about), tmp_path):
        assert "OpenVINO" in text
        assert "the package openvino is not installed" in text
        assert "gram: torch.compile: values differ" in text
        assert "models: not the same" in text
        assert "stopped before its end" in text


def test_the_csv_file_has_every_row_and_candidate_with_its_figures(whole_run):
    run, folder = whole_run
    with (folder / "results.csv").open(newline="", encoding="utf-8") as file:
        records = list(csv.DictReader(file))
    expected = [(r, candidate) for r in run.rows for candidate in r.seconds]
    assert len(records) == len(expected)
    for record, (r, candidate) in zip(records, expected, strict=True):
        assert (record["op"], record["case"], record["candidate"]) == (r.op, r.case, candidate)
        assert tuple(map(int, record["shape"].split("x"))) == r.shape
        assert (record["layout"], record["dtype"], record["pass"]) == (r.layout, r.dtype, r.kind)
        assert int(record["rounds"]) == len(r.seconds[candidate])
        assert float(record["seconds"]) == statistics.median(r.seconds[candidate])
        assert float(record["ratio"]) == r.versus(candidate).median
        assert float(record["seconds_low"]) <= float(record["seconds"]) <= float(record["seconds_high"])
        assert record["memory_bytes"] == str(r.memory.get(candidate, ""))
        assert float(record["limit_seconds"]) == statistics.median(r.limit.seconds)


def test_the_page_parses_names_its_pictures_and_refers_only_to_files_that_exist(whole_run):
    _, folder = whole_run
    page = Parser((folder / "report.html").read_text())
    assert page.open == []
    anchors = {attributes["id"] for _, attributes in page.elements if "id" in attributes}
    references = [attributes.get("href") or attributes.get("src") for _, attributes in page.elements]
    pictures = [attributes for tag, attributes in page.elements if tag == "img"]
    assert len(pictures) > 5
    assert all(attributes["alt"] for attributes in pictures)
    assert not any(tag in ("script", "link", "iframe") for tag, _ in page.elements)
    for reference in filter(None, references):
        assert reference[1:] in anchors if reference.startswith("#") else (folder / reference).is_file(), reference
    for reference in re.findall(r"\]\(([^)]+)\)", (folder / "report.md").read_text()):
        assert (folder / reference).is_file(), reference


def test_plots_are_valid_svg_no_wider_than_a_page_and_have_a_dark_version(whole_run):
    _, folder = whole_run
    plots = sorted(folder.glob("*.svg"))
    assert {plot.name for plot in plots} >= {"roofline.svg", "scaling.svg", "ratio-models-1.svg"}
    for plot in plots:
        root = ElementTree.parse(plot).getroot()
        assert float(root.get("width").removesuffix("pt")) <= 7.3 * 72
        assert float(root.get("height").removesuffix("pt")) <= 10.5 * 72
        text = plot.read_text()
        assert "prefers-color-scheme:dark" in text
        assert "http" not in re.sub(r'xmlns(:\w+)?="[^"]*"|"http://[^"]*"|<!DOCTYPE[^>]*>', "", text)


def test_every_row_is_in_exactly_one_ratio_plot_of_a_peer_that_it_has():
    rows = [r for r in a_whole_run().rows if r.op == "norm_act"] * 3
    pages = plots._pages(rows)
    assert sum(map(len, pages)) == len(rows)
    assert max(map(len, pages)) <= plots._ROWS_IN_A_PLOT
    assert {id(r) for page in pages for r in page} == {id(r) for r in rows}


def test_a_ratio_stands_beside_the_name_of_its_own_row(monkeypatch, tmp_path):
    drawn = []
    monkeypatch.setattr(plots, "_draw_verdicts", lambda panel, heights, rows, peer: drawn.append((panel, rows)))
    settings = [("step", "bfloat16"), ("inference", "float32"), ("inference", "bfloat16")]  # as a page may begin
    rows = [row(title=f"{kind} {dtype}", kind=kind, dtype=dtype) for kind, dtype in settings]
    with plots._drawn(tmp_path / "ratio.svg") as figure:
        plots._draw_ratios(figure, rows, ["eager"], (0.5, 4))
        ((panel, timed),) = drawn
        assert [label.get_text() for label in panel.get_yticklabels()] == [plots._label(one) for one in timed]


def test_the_same_results_make_the_same_report(tmp_path):
    run = results([LOSS, WIN, row(axis="batch", flops=1 << 20)])
    for folder in ("once", "again"):
        write_report(run, tmp_path / folder)
    for path in (tmp_path / "once").iterdir():
        assert path.read_bytes() == (tmp_path / "again" / path.name).read_bytes(), path.name


@pytest.mark.parametrize("seconds", [1e-6, 30.0])
@pytest.mark.parametrize("peers", [{}, {"eager": (1.0,)}])
def test_one_row_of_one_round_makes_a_report(tmp_path, seconds, peers):
    page, text = written(results([row(ours=(seconds,), peers=peers)], missing={}, peaks={}), tmp_path)
    assert tables.seconds_text(seconds) in page
    assert tables.seconds_text(seconds) in text
    assert ("(1 round)" in text) == bool(peers)


def test_a_run_without_rows_makes_none(tmp_path):
    with pytest.raises(UserError, match="no row was timed"):
        write_report(results([]), tmp_path / "report")
    assert not (tmp_path / "report").exists()


def test_names_from_results_cannot_break_the_page_or_the_tables(tmp_path):
    odd = row(title="a | b <script>", op="<b>", peers={"x & y": (2e-3,)})
    page, text = written(results([odd]), tmp_path)
    assert "<script>" not in page
    assert Parser(page).cells("a | b <script>")
    assert r"| a \| b <script> |" in text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (1.234e-6, "1.23 us"),
        (9.999e-4, "1.00 ms"),
        (0.0123, "12.3 ms"),
        (0.99951, "1.00 s"),
        (30.04, "30.0 s"),
        (2e-8, "0.0200 us"),
        (0.0, "0 us"),
    ],
)
def test_seconds_have_three_digits_and_the_unit_that_suits_them(seconds, text):
    assert tables.seconds_text(seconds) == text


def test_terminal_lines_stand_under_their_heads_and_fit_in_150_columns():
    run = a_whole_run()
    lines = tables.terminal_head(run.peers).splitlines()
    columns = {peer: lines[0].index(f" {peer.removeprefix('torch.')}") for peer in run.peers[:3]}
    for r in run.rows:
        found = tables.terminal_line(r, run.peers).splitlines()
        lines += found
        for peer, column in columns.items():
            expected = str(tables.ratio_cell(r, peer)).replace(f"{SLOWER} ", SLOWER).replace("▽ ", "▽")
            assert found[0][column : column + 20].strip() == expected
        assert (len(found) == 2) == any(engine in r.seconds for engine in ENGINES)
    assert max(map(len, lines)) <= 150


def test_modelled_figures_are_all_in_a_section_that_says_so(whole_run):
    _, folder = whole_run
    text = (folder / "report.md").read_text()
    assert "modelled" not in text.split("\n## CUDA kernels: modelled, not measured\n")[0]
    section = text.split("\n## CUDA kernels: modelled, not measured\n")[1].split("\n## ")[0]
    rows = [line for line in section.splitlines() if line.startswith("| ") and not re.match(r"\| (case|---)", line)]
    assert len(rows) == len(Modelled.load().rows)


def test_a_kernel_that_moves_more_than_stock_is_marked():
    bounds, occupancy = {"h100": Bound(12.5, "dram")}, {"h100": 0.75}
    launch = Launch("gram", (1, 1, 1), (128, 1, 1), 1, 1, 1, 1, 1, 0, {"h100": 32}, occupancy)
    key = ("gram", "relu1_1", "float32", "contiguous", "forward", (1, 64, 256, 256), (1, 64, 32, 32), "h100")
    moved = {"least": 1 << 20, "dram": 3 << 19, "passed_on": 1 << 18, "l2": 1 << 21}
    counts = {"banks": 1.25, "instructions": 4096, "tensor_share": 0.5, "bounds": bounds, "launches": (launch,)}
    more, less = (modelled.Row(*key, stock=stock, **moved, **counts) for stock in (5 << 18, 2 << 20))
    lines = markdown(modelled_tables(Modelled("13.0", (more, less)))[0]).splitlines()
    labels = "| relu1_1 | 1 x 64 x 32 x 32 | forward | 1.00 MiB |"
    figures = "| 2.00 | 1.25 | 4,096 | 50% | 12.5 us (dram, 0.75) |"
    assert lines[2:] == [
        f"{labels} **{SLOWER} 1.50 (1.25)** | 1.25 {figures}",
        f"{labels} 1.50 (1.25) | 2.00 {figures}",
    ]


@pytest.fixture
def readme(tmp_path):
    """A README with two tables, and the results that they are of; runs benchmarks/readme_tables.py on them."""
    (tmp_path / "results").mkdir()
    script = runpy.run_path(str(ROOT / "benchmarks" / "readme_tables.py"))
    for name in ("2-core-xeon.json", "2-core-xeon-pooled.json"):
        save(a_whole_run(len(name)), tmp_path / "results" / name)
    path = tmp_path / "README.md"
    path.write_text(
        "# A title\n\n<!-- table: norm_act -->\nold\n<!-- end of table -->\n\nWords.\n\n"
        "<!-- table: models -->\n<!-- end of table -->\n\nThe end.\n"
    )
    options = ["--readme", str(path), "--results", str(tmp_path / "results")]
    return path, lambda *more: script["main"]([*options, *more])


def save(run: Results, path: Path) -> None:
    """As the suite does, as far as Results.load reads it."""
    benchmarks = [{"extra_info": r.to_plain()} for r in run.rows]
    about = {"machine_info": run.machine, "commit_info": run.commit, "datetime": run.date, "artkernels": run.about}
    path.write_text(json.dumps({"benchmarks": benchmarks, **about}))


def test_readme_tables_are_written_between_their_markers_and_nowhere_else(readme):
    path, run = readme
    assert run() == 0
    text = path.read_text()
    assert text.startswith("# A title\n\n<!-- table: norm_act -->\n")
    assert "old" not in text
    assert "<!-- end of table -->\n\nWords.\n\n<!-- table: models -->\n" in text
    assert text.endswith("<!-- end of table -->\n\nThe end.\n")
    assert run() == 0
    assert path.read_text() == text


def test_readme_tables_show_their_rows_and_say_where_they_were_measured(readme):
    path, run = readme
    assert run() == 0
    text = path.read_text()
    pooled, own = (Results.load(path.parent / "results" / f"2-core-xeon{name}.json") for name in ("-pooled", ""))

    def find(run, kind):
        return next(
            r for r in run.rows if (r.op, r.kind, r.dtype, r.layout) == ("norm_act", kind, "float32", "contiguous")
        )

    line = next(line for line in text.splitlines() if line.startswith("| instance norm + relu | 1 x 128 x 256 x 256 |"))
    for kind in ("inference", "step"):
        assert tables.seconds_text(find(pooled, kind).ours) in line
        assert str(find(pooled, kind).versus("eager")) in line
        assert str(find(own, kind).versus("eager")) in line
    assert "Measured on 2026-11-22 by `artkernels bench --report out/bench` on Synthetic(R) Processor, 2 cores" in text
    assert "commit 0123456789ab" in text


def test_readme_check_finds_a_stale_table_and_leaves_it(readme, capsys):
    path, run = readme
    assert run("--check") == 1
    assert "make readme-tables" in capsys.readouterr().err
    assert "old" in path.read_text()
    assert run() == 0
    assert run("--check") == 0
    stale = re.sub(r"\d ms", "9 ms", path.read_text(), count=1)
    path.write_text(stale)
    assert run("--check") == 1
    assert path.read_text() == stale


def test_readme_tables_refuse_names_and_files_that_are_not_there(readme, capsys):
    path, run = readme
    (path.parent / "results" / "2-core-xeon.json").unlink()
    assert run() == 1
    assert "2-core-xeon.json: cannot be read" in capsys.readouterr().err
    path.write_text("<!-- table: typo -->\n<!-- end of table -->\n")
    assert run() == 1
    assert "README table typo: no such table, one of norm_act" in capsys.readouterr().err


def test_a_table_of_memory_has_each_candidates_bytes_and_how_many_times_ours(readme):
    path, run = readme
    memory = {"ours": 100 << 20, "eager": 150 << 20}
    small = row("style_memory", case="step", title="a step", shape=(1, 3, 256, 256), memory=memory)
    large = row(
        "style_memory", case="step", title="a step", shape=(1, 3, 512, 512), memory=memory | {"tiles": 25 << 20}
    )
    save(results([small, large]), path.parent / "results" / "style_memory.json")
    path.write_text("<!-- table: style_memory -->\n<!-- end of table -->\n")
    assert run() == 0
    lines = path.read_text().splitlines()
    assert "| memory of | picture | ours | eager | tiles |" in lines
    assert "| a step | 1 x 3 x 256 x 256 | 100 MiB | 150 MiB (1.50) |  |" in lines
    assert "| a step | 1 x 3 x 512 x 512 | 100 MiB | 150 MiB (1.50) | 25.0 MiB (0.25) |" in lines


def test_the_readme_shows_the_results_that_are_committed():
    assert (ROOT / "README.md").read_text().count("<!-- table: ") == 8
    done = subprocess.run([sys.executable, "benchmarks/readme_tables.py", "--check"], cwd=ROOT, capture_output=True)
    assert done.returncode == 0, done.stderr.decode()
