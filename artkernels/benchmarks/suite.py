"""Every contest as a test of pytest-benchmark; runner.py chooses them and reads what comes out."""

from pytest_benchmark.fixture import BenchmarkFixture

from artkernels.benchmarks.contest import Arena, Contest


def test_speed(benchmark: BenchmarkFixture, contest: Contest, arena: Arena) -> None:
    row = contest.run(benchmark, arena)
    benchmark.group = row.op
    benchmark.extra_info.update(row.to_plain())
