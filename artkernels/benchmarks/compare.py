"""Two runs compared, and a bar that a run must clear.

What is compared is a row's ratio to eager PyTorch in its own run, not its seconds: eager was timed in the same rounds,
so that most of what makes a machine faster or slower between two runs cancels.
"""

from collections.abc import Iterable
from dataclasses import dataclass

from artkernels.benchmarks.results import EAGER, Ratio, Results, Row

__all__ = ["Change", "changes", "too_slow"]


@dataclass(frozen=True)
class Change:
    """The same row in two runs.

    Attributes:
        row: as it is now.
        before, now: ours against eager in each.
    """

    row: Row
    before: Ratio
    now: Ratio

    @property
    def gain(self) -> Ratio:
        """How many times its former speed ours has; at least and at most by what the quartiles allow."""
        before, now = self.before, self.now
        return Ratio(now.low / before.high, now.median / before.median, now.high / before.low)

    @property
    def is_clear(self) -> bool:
        """Whether the quartiles of the two runs do not overlap."""
        return not self.gain.low <= 1 <= self.gain.high


def changes(now: Results, before: Results) -> list[Change]:
    """Of the rows that both runs have, the worst first."""
    old = {row.key: row for row in before.rows}
    found = [Change(row, old[row.key].versus(EAGER), row.versus(EAGER)) for row in now.rows if row.key in old]
    return sorted(found, key=lambda change: change.gain.median)


def too_slow(gains: Iterable[tuple[Row, Ratio]], least: float) -> list[str]:
    """The rows whose speed is below ``least`` of what it is compared with, even by the better quartile."""
    return [f"{row.name}: {gain}" for row, gain in gains if gain.high < least]
