"""The fastest way to compute an op is measured once and remembered, by every process that shares the file.

Times are made up. Where a test speaks of another process, a tuner of its own mostly stands for it: it shares with the
others nothing but the file.
"""

import os
import resource
import signal
import subprocess
import sys
import tempfile
import textwrap
import threading
import time
import traceback
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest
import torch

import artkernels
from artkernels import _C

pytestmark = pytest.mark.cpu_only

HEADER = "artkernels autotune 1\n"
INF, NAN = float("inf"), float("nan")


class Tuner:
    """A tuner, and the candidates that it measured."""

    def __init__(self, file: Path | str, versions: str = "torch 2.10") -> None:
        self.tuner = _C.Tuner(str(file), versions)
        self.measured: list[int] = []

    def __call__(
        self,
        problem: str,
        times: Sequence[float] = (2.0, 1.0),
        op: str = "conv2d",
        device: str = "GPU",
        fixed_rule: int = 0,
        capturing: bool = False,
    ) -> int:
        def milliseconds(candidate: int) -> float:
            self.measured.append(candidate)
            return times[candidate]

        return self.tuner.choose(_C.TuningKey(op, problem, device), len(times), fixed_rule, capturing, milliseconds)

    def knows(self, problem: str, candidate: int = 1) -> bool:
        """Whether the candidate is remembered; measuring would choose the other one."""
        before = len(self.measured)
        return self(problem, times=(1.0, 1.0 + candidate)) == candidate and len(self.measured) == before


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "new" / "cache" / "autotune-v1.txt"


def lines(file: Path) -> list[str]:
    text = file.read_text()
    assert text.startswith(HEADER)
    assert text.endswith("\n")
    return text.splitlines()[1:]


def fork(work: Callable[[], None]) -> int:
    """A process that does the work; what goes wrong in it is in the test's report."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of Python 3.12, that this process may have other threads
        child = os.fork()
    if child == 0:
        try:
            work()
        except BaseException:
            traceback.print_exc()
            sys.stderr.flush()
            os._exit(1)
        os._exit(0)
    return child


def ends_well(child: int) -> bool:
    return os.waitpid(child, 0)[1] == 0


# ---- what it chooses -------------------------------------------------------------------------------------------------


def test_the_fastest_is_chosen_and_every_candidate_measured_once(file: Path) -> None:
    tune = Tuner(file)
    for _ in range(3):
        assert tune("64x64", times=(3.0, 1.0, 2.0)) == 1
        assert tune.measured == [0, 1, 2]
    assert tune.knows("64x64")


def test_problems_ops_and_devices_are_told_apart(file: Path) -> None:
    tune = Tuner(file)
    assert tune("64x64") == 1
    assert tune("64x65", times=(1.0, 2.0)) == 0
    assert tune("64x64", times=(1.0, 2.0), op="conv_transpose2d") == 0
    assert tune("64x64", times=(1.0, 2.0), device="other GPU") == 0
    assert tune.knows("64x64")
    assert len(lines(file)) == 4


def test_a_candidate_that_cannot_run_is_not_chosen(file: Path) -> None:
    tune = Tuner(file)
    assert tune("a", times=(INF, 7.0)) == tune("b", times=(NAN, 7.0, NAN)) == 1
    assert tune("c", times=(INF, NAN, INF), fixed_rule=2) == 2  # and is not remembered:
    assert tune("c", times=(INF, 1.0, NAN), fixed_rule=2) == 1
    assert len(lines(file)) == 3


def test_an_error_while_measuring_is_passed_on_and_nothing_remembered(file: Path) -> None:
    tune = Tuner(file)
    with pytest.raises(IndexError):
        tune.tuner.choose(_C.TuningKey("conv2d", "64x64", "GPU"), 2, 0, False, [1.0].__getitem__)
    assert tune("64x64") == 1
    assert tune.measured == [0, 1]


def test_a_candidate_may_be_tuned_itself(file: Path) -> None:
    tune = Tuner(file)
    outer = _C.TuningKey("conv_transpose2d", "64x64", "GPU")
    assert tune.tuner.choose(outer, 2, 0, False, lambda candidate: (2.0, tune("inner"))[candidate]) == 1
    assert len(lines(file)) == 2


# ---- when nothing may be measured ------------------------------------------------------------------------------------


@pytest.fixture
def deterministic() -> Iterator[None]:
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


def test_deterministic_algorithms_follow_the_fixed_rule_whatever_is_remembered(file: Path, deterministic: None) -> None:
    torch.use_deterministic_algorithms(False)
    tune = Tuner(file)
    assert tune("known") == 1
    tune.measured.clear()
    torch.use_deterministic_algorithms(True)
    assert tune("known", fixed_rule=0) == tune("new", fixed_rule=0) == 0
    assert not tune.measured
    assert len(lines(file)) == 1


def test_a_captured_cuda_graph_uses_what_is_remembered_and_measures_nothing(file: Path) -> None:
    tune = Tuner(file)
    assert tune("new", capturing=True, fixed_rule=0) == 0
    assert not tune.measured
    assert tune("new") == 1
    assert tune("new", capturing=True, fixed_rule=0) == 1


# ---- from one process to the next ------------------------------------------------------------------------------------


def test_the_next_process_remembers(file: Path) -> None:
    first = Tuner(file)
    assert first("a") == 1
    assert first("b", times=(1.0, 2.0)) == 0
    assert ends_well(fork(lambda: os._exit(not (Tuner(file).knows("a") and Tuner(file).knows("b", 0)))))


def test_the_file_can_be_read_by_people_and_nothing_else_is_left(file: Path) -> None:
    Tuner(file)("N4 C64 H64 W64 float16", device="NVIDIA H100 80GB HBM3")
    assert file.read_text() == HEADER + "conv2d\tN4 C64 H64 W64 float16\tNVIDIA H100 80GB HBM3\ttorch 2.10\t1\n"
    assert sorted(path.name for path in file.parent.iterdir()) == ["autotune-v1.lock", "autotune-v1.txt"]


def test_other_versions_measure_anew_and_forget_nothing(file: Path) -> None:
    assert Tuner(file)("64x64") == 1
    assert Tuner(file, "torch 2.11")("64x64", times=(1.0, 2.0)) == 0
    assert Tuner(file).knows("64x64")
    assert Tuner(file, "torch 2.11").knows("64x64", 0)


def test_no_more_than_4096_are_kept_and_the_oldest_go(file: Path) -> None:
    Tuner(file)("one")
    (line,) = lines(file)
    many = [line.replace("one", str(i)) for i in range(5000)]
    file.write_text(HEADER + "\n".join(many) + "\n")
    Tuner(file)("new")
    assert lines(file) == [*many[-4095:], line.replace("one", "new")]


# ---- files and folders that are not as they should be ----------------------------------------------------------------

SPOILED: dict[str, Callable[[bytes], bytes]] = {
    "empty": lambda text: b"",
    "cut off in the header": lambda text: text[:10],
    "cut off in the last line": lambda text: text[:-1],
    "of another version": lambda text: text.replace(b"autotune 1", b"autotune 2"),
    "random": lambda text: bytes((i * i * 7919 + i) % 256 for i in range(100_000)),
    "too large": lambda text: text + b"x" * 2**24,
    "without a candidate": lambda text: text.replace(b"\t1\n", b"\t\n"),
    "with an impossible candidate": lambda text: text.replace(b"\t1\n", b"\t7\n"),
    "with a negative candidate": lambda text: text.replace(b"\t1\n", b"\t-1\n"),
    "with a huge candidate": lambda text: text.replace(b"\t1\n", b"\t99999999999999999999\n"),
    "with words behind the candidate": lambda text: text.replace(b"\t1\n", b"\t1 fast\n"),
    "with another column": lambda text: text.replace(b"\t1\n", b"\t1\t1\n"),
}


@pytest.mark.parametrize("spoil", SPOILED.values(), ids=SPOILED.keys())
def test_a_spoiled_file_is_measured_anew_and_replaced(spoil: Callable[[bytes], bytes], file: Path) -> None:
    Tuner(file)("64x64")
    good = file.read_bytes()
    file.write_bytes(spoil(good))
    tune = Tuner(file)
    assert tune("64x64") == 1
    assert tune.measured == [0, 1]
    assert Tuner(file).knows("64x64")
    assert file.read_bytes() == good


def test_a_spoiled_line_spoils_no_other(file: Path) -> None:
    tune = Tuner(file)
    tune("a"), tune("b")
    a, b = lines(file)
    file.write_text(f"{HEADER}{a}\n\n\t\t\t\t\n{b[:20]}\0{b[20:-1]}x\n{b}\n")
    assert Tuner(file).knows("a")
    assert Tuner(file).knows("b")


def remembers_for_itself(file: Path | str) -> bool:
    tune = Tuner(file)
    return tune("64x64") == tune("64x64") == 1 and tune.measured == [0, 1]


def test_a_folder_that_cannot_be_made_is_no_error(tmp_path: Path) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("")
    assert remembers_for_itself(blocked / "autotune-v1.txt")
    assert remembers_for_itself(blocked / "folder" / "autotune-v1.txt")
    assert remembers_for_itself("/proc/artkernels/autotune-v1.txt")
    assert remembers_for_itself("")
    assert blocked.read_text() == ""
    assert len(list(tmp_path.iterdir())) == 1


def test_a_folder_in_place_of_the_file_is_no_error(file: Path) -> None:
    file.mkdir(parents=True)
    assert remembers_for_itself(file)


def test_a_read_only_folder_is_read() -> None:
    def work() -> None:
        if os.geteuid() == 0:
            os.seteuid(65534)  # the superuser may write everywhere, nobody may not
        assert Tuner(file).knows("64x64")
        assert Tuner(file)("new") == 1

    with tempfile.TemporaryDirectory() as folder:  # pytest's own are closed to other users
        file = Path(folder) / "autotune-v1.txt"
        Tuner(file)("64x64")
        Path(folder).chmod(0o555)
        good = ends_well(fork(work))
        Path(folder).chmod(0o755)
        assert good
        assert len(lines(file)) == 1


def test_a_full_disk_keeps_what_was_remembered(file: Path) -> None:
    def work() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))  # no file can grow beyond
        assert remembers_for_itself(file)

    tune = Tuner(file)
    for i in range(100):
        tune(str(i))
    before = lines(file)
    assert ends_well(fork(work))
    assert lines(file) == before
    assert not file.with_suffix(".partial").exists()


# ---- threads and processes -------------------------------------------------------------------------------------------


def test_threads_measure_each_problem_once_and_one_at_a_time(file: Path) -> None:
    tuner, busy = _C.Tuner(str(file), "torch 2.10"), threading.Lock()
    measured: list[tuple[int, int]] = []
    chosen: list[int] = []
    overlaps: list[int] = []

    def work() -> None:
        for problem in range(20):

            def milliseconds(candidate: int, problem: int = problem) -> float:
                if not busy.acquire(blocking=False):
                    overlaps.append(problem)
                    return 0
                measured.append((problem, candidate))
                time.sleep(0.0005)
                busy.release()
                return (2.0, 1.0)[candidate]

            chosen.append(tuner.choose(_C.TuningKey("conv2d", str(problem), "GPU"), 2, 0, False, milliseconds))

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not overlaps
    assert sorted(measured) == [(problem, i) for problem in range(20) for i in (0, 1)]
    assert chosen == [1] * 160
    assert len(lines(file)) == 20


def tune_many(file: Path, name: object, count: int) -> None:
    tune = Tuner(file)
    for i in range(count):
        tune(f"{name}: {i}")


def test_processes_that_tune_at_once_lose_nothing(file: Path) -> None:
    children = [fork(lambda name=name: tune_many(file, name, 100)) for name in range(4)]
    assert all([ends_well(child) for child in children])
    assert sorted(line.split("\t")[1] for line in lines(file)) == sorted(
        f"{n}: {i}" for n in range(4) for i in range(100)
    )


def test_a_process_killed_while_it_writes_leaves_a_whole_file(file: Path) -> None:
    tune_many(file, "known", 300)
    known = set(lines(file))
    for turn in range(30):
        child = fork(lambda turn=turn: tune_many(file, turn, 10**6))
        time.sleep(0.03 + 0.0017 * turn)
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        assert known <= set(lines(file))
        assert all(line.count("\t") == 4 for line in lines(file))
    assert len(lines(file)) > len(known) + 30
    assert Tuner(file).knows("known: 7")
    assert Tuner(file)("after") == 1
    assert not file.with_suffix(".partial").exists()


def test_a_child_forked_while_the_file_is_locked_does_not_keep_the_lock(file: Path) -> None:
    Tuner(file)("one")
    (line,) = lines(file)
    file.write_text(HEADER + "".join(line.replace("one", f"old {i}") + "\n" for i in range(4000)))  # slow to write
    tune, stop, count = Tuner(file), threading.Event(), 0

    def work() -> None:
        nonlocal count
        while not stop.is_set():
            tune(str(count))
            count += 1

    thread = threading.Thread(target=work)
    thread.start()
    children = [fork(lambda: time.sleep(60)) for _ in range(30)]
    before, deadline = count, time.monotonic() + 20
    while count < before + 3 and time.monotonic() < deadline:
        time.sleep(0.01)
    goes_on = count >= before + 3
    stop.set()
    for child in children:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
    thread.join()
    assert goes_on


# ---- the tuner of a process ------------------------------------------------------------------------------------------


def autotune(folder: Path, **variables: str) -> list[int]:
    """What a process of its own, with these variables, chooses by measuring, by memory, and the candidates measured."""
    code = """
        import os, sys
        from artkernels import _C
        measured = []
        def milliseconds(candidate):
            measured.append(candidate)
            return 1.0 - candidate
        for _ in range(2): print(_C.autotune(_C.TuningKey("conv2d", "64x64", "GPU"), 2, 0, False, milliseconds))
        print(*measured)
    """
    kept = {name: value for name, value in os.environ.items() if not name.startswith("ARTKERNELS_")}
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)],
        capture_output=True,
        text=True,
        timeout=120,
        env={**kept, "HOME": str(folder / "home"), "XDG_CACHE_HOME": "", **variables},
    )
    assert (done.returncode, done.stderr) == (0, ""), done.stderr
    return list(map(int, done.stdout.split()))


def test_the_file_lies_where_the_user_wants_caches(tmp_path: Path) -> None:
    home, xdg, own = tmp_path / "home" / ".cache" / "artkernels", tmp_path / "xdg", tmp_path / "own"
    assert autotune(tmp_path) == [1, 1, 0, 1]
    (line,) = lines(home / "autotune-v1.txt")
    versions = f"artkernels {artkernels.__version__}, torch {torch.__version__.partition('+')[0]}"
    assert line.startswith(f"conv2d\t64x64\tGPU\t{versions}")
    assert line.endswith("\t1")
    assert autotune(tmp_path, XDG_CACHE_HOME=str(xdg)) == [1, 1, 0, 1]
    assert lines(xdg / "artkernels" / "autotune-v1.txt") == [line]
    both = {"XDG_CACHE_HOME": str(xdg), "ARTKERNELS_CACHE_DIR": str(own)}
    assert autotune(tmp_path, **both) == [1, 1, 0, 1]
    assert lines(own / "autotune-v1.txt") == [line]
    assert autotune(tmp_path, **both) == [1, 1]  # remembered


def test_it_can_be_turned_off(tmp_path: Path) -> None:
    assert autotune(tmp_path, ARTKERNELS_AUTOTUNE="0") == [0, 0]
    assert not (tmp_path / "home").exists()
    assert autotune(tmp_path, ARTKERNELS_AUTOTUNE="1") == [1, 1, 0, 1]
    assert autotune(tmp_path, ARTKERNELS_AUTOTUNE="0") == [0, 0]  # whatever is remembered
