"""The benchmark suite: what is compared is equal, what is timed takes turns, and what is found can be read again."""

import json
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from artkernels.benchmarks import cases
from artkernels.benchmarks.case import Setting
from artkernels.benchmarks.compare import changes, too_slow
from artkernels.benchmarks.memory import peak
from artkernels.benchmarks.module_case import Function, ModuleCase
from artkernels.benchmarks.processes import Processes
from artkernels.benchmarks.results import Limit, Results, Row, ratio
from artkernels.benchmarks.runner import Request, contests, run
from artkernels.cli import run as command
from artkernels.errors import UserError

pytestmark = pytest.mark.alone

SMALL = ((2, 32, 4, 4),)


def case(ours: Callable[..., Tensor], stock: Callable[..., Tensor] = torch.relu, **more) -> ModuleCase:
    options = {"compiled": (), **more}
    return ModuleCase(
        "gram", "made-up", "made up", (1, 4, 8, 8), lambda: Function(stock), lambda _: Function(ours), **options
    )


@pytest.fixture
def only(monkeypatch) -> Callable[[ModuleCase], Request]:
    """A request for one case of the test's own."""

    def request(made: ModuleCase) -> Request:
        monkeypatch.setitem(cases._GROUPS, "gram", lambda: [made])
        return Request(ops=("gram",), quick=False, dtypes=("float32",))

    return request


@pytest.fixture(scope="module")
def small_run(tmp_path_factory) -> tuple[Results, Path]:
    shown: list[Row] = []
    request = Request(("gram", "reparameterize_kl"), SMALL, quick=True)
    results, text = run(request, shown.append)
    path = tmp_path_factory.mktemp("bench") / "results.json"
    path.write_text(text)
    assert shown == results.rows
    return results, path


def test_a_row_has_the_seconds_of_everyone_in_every_round_the_limit_and_memory(small_run):
    results, _ = small_run
    assert {row.op for row in results.rows} == {"gram", "reparameterize_kl"}
    assert {row.shape for row in results.rows} == {SMALL[0]}
    for row in results.rows:
        rounds = {name: len(seconds) for name, seconds in row.seconds.items()}
        assert {"ours", "eager"} <= rounds.keys()
        assert len(set(rounds.values())) == 1
        assert len(row.limit.seconds) == rounds["ours"]
        assert all(second > 0 for seconds in row.seconds.values() for second in seconds)
    assert not results.about["failures"]
    assert not results.about["dropped"]


def test_the_file_says_on_what_and_of_what_it_was_measured(small_run):
    results, path = small_run
    assert Results.load(path) == results
    assert results.machine["torch"] == torch.__version__
    assert results.machine["threads"] == torch.get_num_threads()
    assert "node" not in results.machine
    assert results.about["allocator"] == "torch"
    assert results.about["peaks"]["copy"] > 0
    assert results.about["peaks"]["float32"] > 0
    if results.commit:
        assert len(results.commit["id"]) == 40


def test_the_file_is_pytest_benchmarks_with_one_line_a_row(small_run):
    results, path = small_run
    text = path.read_text()
    file = json.loads(text)
    assert {"machine_info", "commit_info", "benchmarks", "datetime", "version"} <= file.keys()
    assert all({"name", "fullname", "stats", "extra_info"} <= row.keys() for row in file["benchmarks"])
    assert len(text.splitlines()) == len(results.rows) + 2


def test_a_file_of_something_else_is_refused(tmp_path):
    path = tmp_path / "other.json"
    path.write_text('{"benchmarks": []}')
    with pytest.raises(UserError, match="not a file of results"):
        Results.load(path)
    with pytest.raises(UserError, match="cannot be read"):
        Results.load(tmp_path / "none.json")


def test_ours_is_not_timed_where_it_computes_something_else(only):
    wrong = case(lambda x: torch.relu(x) * 1.001)
    right = case(torch.relu)
    results, _ = run(only(right))
    assert {row.kind for row in results.rows} == {"inference", "backward", "step"}
    with pytest.raises(RuntimeError, match="ours is not what eager PyTorch computes: values of"):
        run(only(wrong))


def test_an_output_of_another_shape_is_not_taken_for_the_same(only):
    with pytest.raises(RuntimeError, match=r"values of \[\(1, 1, 8, 8\)\] instead of \[\(1, 4, 8, 8\)\]"):
        run(only(case(lambda x: x[:, :1] * 0, lambda x: x * 0, passes=("inference",))))


def test_a_wrong_gradient_is_seen_where_gradients_are_asked_for(only):
    class Halved(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            ctx.save_for_backward(x)
            return x.relu()

        @staticmethod
        def backward(ctx, grad):
            return grad * (ctx.saved_tensors[0] > 0) * 0.5

    results, _ = run(only(case(Halved.apply)))
    assert {row.kind for row in results.rows} == {"inference"}
    assert len(results.about["failures"]) == 3  # backward, and step in both layouts
    assert all("gradients of (1, 4, 8, 8) differ by 5.0e-01" in line for line in results.about["failures"])


def test_a_peer_that_computes_something_else_or_fails_is_named_and_not_timed(only, monkeypatch):
    def compile(module: nn.Module, options: object) -> Callable[..., Tensor]:
        return lambda x: module(x) + 1

    monkeypatch.setattr(torch, "compile", compile)
    results, _ = run(only(case(torch.relu, passes=("inference",), compiled=("inference",))))
    contiguous = next(row for row in results.rows if row.layout == "contiguous")
    assert contiguous.peers == ["eager", "eager channels_last"]
    assert len(results.about["dropped"]) == 1
    assert "torch.compile: values of (1, 4, 8, 8) differ by" in results.about["dropped"][0]

    def fails(module: nn.Module, options: object) -> None:
        raise NotImplementedError("no compiler here")

    monkeypatch.setattr(torch, "compile", fails)
    results, _ = run(only(case(torch.relu, passes=("inference",), compiled=("inference",))))
    assert "torch.compile: NotImplementedError: no compiler here" in results.about["dropped"][0]


def test_engines_that_are_not_installed_are_named_with_what_to_install(monkeypatch):
    from artkernels.benchmarks import peers

    monkeypatch.setattr(peers.importlib.util, "find_spec", lambda name: None)
    assert Request().absent() == {
        "ONNX Runtime": "onnxruntime, onnx, onnxscript not installed",
        "OpenVINO": "openvino not installed",
    }
    assert "torch.compile" in Request(quick=True).absent()


def test_everyone_takes_a_turn_in_every_round(only):
    turns: list[str] = []

    def ours(x: Tensor) -> Tensor:
        turns.append("ours")
        time.sleep(0.001)
        return torch.relu(x)

    def stock(x: Tensor) -> Tensor:
        if not x.is_meta:
            turns.append("channels_last" if x.is_contiguous(memory_format=torch.channels_last) else "eager")
            time.sleep(0.002)
        return torch.relu(x)

    ends: list[int] = []
    results, _ = run(only(case(ours, stock, passes=("inference",))), lambda row: ends.append(len(turns)))
    row = results.rows[0]
    last = turns[ends[0] - 3 * len(row.seconds["ours"]) : ends[0]]
    for start in range(0, len(last), 3):
        assert sorted(last[start : start + 3]) == ["channels_last", "eager", "ours"]
    assert 1.2 < row.versus("eager").median < 3
    assert min(row.seconds["eager"]) >= 0.002


def test_least_bytes_and_flops_of_a_transposed_convolution_are_those_counted_by_hand():
    layer = next(made for made in cases.cases_of("conv_transpose") if made.name == "dcgan-16")
    x, weight, output, affine = 64 * 128 * 16 * 16, 128 * 64 * 4 * 4, 64 * 64 * 32 * 32, 2 * 64
    products = 2 * 64 * 128 * 16 * 16 * 64 * 4 * 4
    nbytes, flops = layer.least(Setting("inference"))
    assert (nbytes, flops) == (4 * (x + weight + affine + output), products)
    assert layer.least(Setting("step"))[1] == 3 * products
    nbytes, flops = layer.least(Setting("backward", dtype="bfloat16"))
    assert (nbytes, flops) == (2 * (2 * x + 2 * weight + 2 * affine + output), 2 * products)


def test_a_gram_matrix_counts_half_of_stocks_products():
    gram = next(made for made in cases.cases_of("gram") if made.name == "relu3_1")
    nbytes, flops = gram.least(Setting("forward"))
    assert flops == 256 * 256 * 64 * 64  # half of 2 C C H W
    assert nbytes == 4 * (256 * 64 * 64 + 256 * 256 + 1)


def test_all_names_are_unique_and_every_case_can_be_made():
    for op in cases.OPS:
        made = cases.cases_of(op)
        assert len({case.name for case in made}) == len(made)
        assert all(cases.find(op, case.name, case.shape) is not None for case in made)
        for case in made:
            assert case.peers(Setting(case.passes[0]))[0] == "eager"


def test_a_quick_run_has_every_op_and_no_slow_group():
    chosen = contests(Request(quick=True))
    assert {contest.case.op for contest in chosen} == set(cases.OPS) - {"training", "video", "scaling"}
    assert {contest.setting.dtype for contest in chosen} == {"float32"}
    assert {contest.setting.kind for contest in chosen if contest.case.op == "models"} == {"inference"}
    assert 10 < len(chosen) < 30


def test_a_full_run_has_both_layouts_both_dtypes_and_all_passes():
    settings = [(contest.case.op, contest.setting) for contest in contests(Request())]
    for op in ("norm_act", "conv_transpose", "gram", "models"):
        of_op = [setting for name, setting in settings if name == op]
        assert {setting.layout for setting in of_op} == {"contiguous", "channels_last"}
        assert {setting.dtype for setting in of_op} == {"float32", "bfloat16"}
    assert {setting.kind for _, setting in settings} == {"inference", "forward", "backward", "step"}
    assert {case.axis for case in cases.cases_of("scaling")} == {"batch", "resolution", "threads"}


def test_nothing_to_time_is_said():
    with pytest.raises(UserError, match="nothing to time"):
        run(Request(ops=("models",), shapes=SMALL))


def test_resident_peak_is_what_a_call_allocates():
    processes, setting = Processes(((1, 128, 256, 256),)), Setting("forward")
    (instance,) = [case for case in cases.cases_of("norm_act", processes.shapes) if case.name == "instance"]
    output = 4 * 128 * 256 * 256
    ours = peak(instance, "ours", setting, 1, processes)
    eager = peak(instance, "eager", setting, 1, processes)
    assert output <= ours < 1.25 * output  # the result
    assert 2 * output <= eager < 2.25 * output  # and the map between norm and activation


def row(ours: list[float], eager: list[float], name: str = "case") -> Row:
    limit = Limit(8, 0, [0.1] * len(ours), "memory")
    about = "gram", name, "a case", (1, 4, 8, 8), "contiguous", "float32", "forward", "cpu", 2, ""
    return Row(*about, {"ours": ours, "eager": eager}, limit, {})


def results_of(*rows: Row) -> Results:
    return Results([*rows], {"cpu": {}}, {}, "2026-01-01", {})


def test_ratios_are_those_of_the_same_round():
    assert ratio([2.0, 20.0, 3.0], [1.0, 10.0, 1.0]).median == 2.0
    assert str(ratio([2.0] * 5, [1.0] * 5)) == "2.00 (2.00–2.00)"  # noqa: RUF001
    assert ratio([3.0], [2.0]).low == 1.5


def test_a_change_is_of_the_ratio_to_eager_so_that_a_slower_machine_is_none():
    before = results_of(row([1.0, 1.0, 1.0], [2.0, 2.0, 2.0]))
    slower_machine = results_of(row([3.0, 3.0, 3.0], [6.0, 6.0, 6.0]))
    (change,) = changes(slower_machine, before)
    assert change.gain.median == 1.0
    assert not change.is_clear
    regressed = results_of(row([1.0, 1.0, 1.0], [1.5, 1.5, 1.5]), row([1.0], [1.0], "new"))
    (change,) = changes(regressed, before)
    assert change.gain.median == 0.75
    assert change.is_clear


def test_too_slow_is_what_even_the_better_quartile_says():
    noisy = row([1.0] * 5, [0.5, 0.9, 0.9, 1.2, 1.3])
    slow = row([1.0] * 5, [0.5, 0.6, 0.7, 0.7, 1.3])
    gains = [(made, made.versus("eager")) for made in (noisy, slow)]
    assert len(too_slow(gains, 0.95)) == 1
    assert too_slow(gains, 0.95)[0].startswith(slow.name)
    assert too_slow(gains, 0.5) == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--ops", "norm_act,nonsense"], "--ops must be some of norm_act,"),
        (["--shapes", "1x64x0x64"], "--shapes must be sizes as 1x64x256x256"),
        (["--dtype", "int8"], "--dtype must be some of float32, bfloat16, float16, got 'int8'"),
        (["--fail-if-slower", "0"], "--fail-if-slower must be more than 0"),
        (["--compare", "none.json"], "none.json: cannot be read"),
        (["--ops", "models", "--shapes", "1x4x8x8"], "nothing to time"),
        (["--report", "/proc/none"], "--report /proc/none: cannot be made"),
    ],
)
def test_mistakes_are_one_sentence_before_anything_is_timed(arguments, message, capsys):
    assert command(["bench", *arguments]) == 2
    assert message in capsys.readouterr().err


def test_a_run_without_any_row_leaves_with_the_reasons_and_no_traceback(capsys):
    # A batch norm of one value has no variance.
    assert command(["bench", "--ops", "norm_act", "--shapes", "1x1x1x1", "--quick", "--device", "cpu"]) == 1
    error = capsys.readouterr().err
    assert "Expected more than 1" in error
    assert "Traceback" not in error


def test_the_command_writes_a_report_and_fails_when_it_is_slower_than_asked(tmp_path, capsys):
    timed = ["bench", "--ops", "reparameterize_kl", "--shapes", "4x8", "--quick", "--dtype", "float32"]
    assert command([*timed, "--report", str(tmp_path / "a" / "b")]) == 0
    shown = capsys.readouterr().out
    assert "reparameterisation + KL" in shown
    written = {path.name for path in (tmp_path / "a" / "b").iterdir()}
    assert {"results.json", "results.csv", "report.md", "report.html"} <= written
    old = tmp_path / "a" / "b" / "results.json"
    assert command([*timed, "--compare", str(old), "--fail-if-slower", "0.01"]) == 0
    assert "2 rows were timed before" in capsys.readouterr().out
    assert command([*timed, "--compare", str(old), "--fail-if-slower", "100"]) == 1
    assert "too slow: reparameterisation + KL, 4 x 8, float32, forward" in capsys.readouterr().err


def test_what_was_timed_before_ctrl_c_is_kept(only, monkeypatch):
    calls = []

    def ours(x: Tensor) -> Tensor:
        calls.append(x)
        if not x.is_contiguous():
            raise KeyboardInterrupt
        return torch.relu(x)

    results, _ = run(only(case(ours, passes=("inference",))))
    assert [row.layout for row in results.rows] == ["contiguous"]
    assert results.about["interrupted"]


def test_candidates_of_a_recipe_take_the_same_step():
    vae = next(made for made in cases.cases_of("training") if made.name == "vae")
    with ExitStack() as resources:
        losses = [vae.candidate(name, Setting("step"), resources).results()[0][0] for name in ("ours", "eager")]
    torch.testing.assert_close(*losses, rtol=1e-3, atol=0)
    assert len(losses[0]) >= 2
