"""What a run of the suite found: rows, and the file that keeps them.

The file is pytest-benchmark's JSON, so that its tools read it; what it has no place for, the peers' times among them,
is in the ``extra_info`` of each benchmark and in a section ``artkernels``.
"""

import json
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal

from artkernels.errors import UserError

__all__ = ["EAGER", "OURS", "PASSES", "Limit", "Pass", "Ratio", "Results", "Row", "quartiles", "ratio"]

Pass = Literal["inference", "forward", "backward", "step"]

PASSES: dict[Pass, str] = {
    "inference": "evaluation mode, no gradients",
    "forward": "training mode, no gradients",
    "backward": "gradients alone, of a forward that was kept",
    "step": "forward + backward; of a recipe also its optimizers and averages",
}
OURS, EAGER = "ours", "eager"


@dataclass(frozen=True)
class Ratio:
    """Time of a peer over time of ours, round by round: above 1 ours is faster.

    Attributes:
        low, median, high: the quartiles.
    """

    low: float
    median: float
    high: float

    def __str__(self) -> str:
        return f"{self.median:.2f} ({self.low:.2f}–{self.high:.2f})"  # noqa: RUF001


def ratio(peer: Sequence[float], ours: Sequence[float]) -> Ratio:
    """How many times faster ``ours`` is, of the seconds of the same rounds."""
    return Ratio(*quartiles([p / o for p, o in zip(peer, ours, strict=True)]))


def quartiles(values: Sequence[float]) -> tuple[float, float, float]:
    """The first, the median and the third; a single value is all three."""
    if len(values) == 1:
        return values[0], values[0], values[0]
    low, median, high = statistics.quantiles(values, n=4, method="inclusive")
    return low, median, high


@dataclass(frozen=True)
class Limit:
    """What no implementation can be faster than, measured in the rounds in which the candidates were.

    Attributes:
        bytes: that must be read and written: inputs, outputs, parameters, gradients, each once.
        flops: that must be done, multiplications and additions; 0 where they do not count.
        seconds: of each round: copying so many bytes, or so many FLOPs at the machine's peak.
        by: which of the two takes longer.
    """

    bytes: int
    flops: int
    seconds: list[float]
    by: Literal["memory", "arithmetic"]


@dataclass(frozen=True)
class Row:
    """One thing computed in one way of asking for it, by everyone who can.

    Attributes:
        op: the group: an op's name, models, training, video or scaling.
        case: its name within the group.
        title: what is computed, for a table.
        shape: of the input.
        layout: contiguous or channels_last, of ours; a peer's is in its name.
        dtype: float32, bfloat16 or float16.
        kind: which pass.
        device: as torch calls it.
        threads: of the CPU.
        axis: of rows that belong to a series, what varies in it: batch, resolution or threads; else empty.
        seconds: candidate -> seconds of a call in each round.
        limit: the machine's.
        memory: candidate -> most bytes allocated by a call beyond input and weights; empty where it was not measured.
    """

    op: str
    case: str
    title: str
    shape: tuple[int, ...]
    layout: str
    dtype: str
    kind: Pass
    device: str
    threads: int
    axis: str
    seconds: dict[str, list[float]]
    limit: Limit
    memory: dict[str, int]

    @property
    def key(self) -> tuple[object, ...]:
        """What the same row of another run has too."""
        return self.op, self.case, self.shape, self.layout, self.dtype, self.kind, self.device, self.threads

    @property
    def name(self) -> str:
        """For people: what the key says."""
        layout = " channels_last" if self.layout == "channels_last" else ""
        return f"{self.title}, {' x '.join(map(str, self.shape))}{layout}, {self.dtype}, {self.kind}"

    @property
    def ours(self) -> float:
        """Median seconds of a call."""
        return statistics.median(self.seconds[OURS])

    @property
    def peers(self) -> list[str]:
        """Everyone else who was timed."""
        return [name for name in self.seconds if name != OURS]

    def versus(self, peer: str) -> Ratio:
        """How many times faster ours is than the peer."""
        return ratio(self.seconds[peer], self.seconds[OURS])

    @property
    def of_limit(self) -> float:
        """The fraction of the machine's limit that ours runs at; 1 is as fast as can be."""
        return ratio(self.limit.seconds, self.seconds[OURS]).median

    def to_plain(self) -> dict[str, Any]:
        """As JSON has it."""
        plain = {field.name: getattr(self, field.name) for field in fields(self)}
        return plain | {"shape": list(self.shape), "limit": vars(self.limit)}

    @classmethod
    def from_plain(cls, plain: dict[str, Any]) -> "Row":
        """What :meth:`to_plain` made."""
        values = {field.name: plain[field.name] for field in fields(cls)}
        return cls(**values | {"shape": tuple(plain["shape"]), "limit": Limit(**plain["limit"])})


@dataclass(frozen=True)
class Results:
    """A run of the suite.

    Attributes:
        rows: in the order in which they were timed.
        machine: processor, memory, versions.
        commit: of the sources, empty where they are not in a git checkout.
        date: when the run ended, ISO 8601.
        about: allocator, missing peers -> why, measured peaks: what the suite itself says of the run.
    """

    rows: list[Row]
    machine: dict[str, Any]
    commit: dict[str, Any]
    date: str
    about: dict[str, Any]

    @classmethod
    def load(cls, path: Path) -> "Results":
        """Reads a file that the suite wrote.

        Raises:
            UserError: there is none, or it is another's.
        """
        try:
            file = json.loads(path.read_text())
            rows = [Row.from_plain(benchmark["extra_info"]) for benchmark in file["benchmarks"]]
            return cls(rows, file["machine_info"], file["commit_info"], file["datetime"], file["artkernels"])
        except OSError as error:
            raise UserError(f"{path}: cannot be read ({error.strerror})") from error
        except (ValueError, KeyError, TypeError) as error:
            raise UserError(f"{path}: not a file of results, one that artkernels bench wrote is needed") from error

    @property
    def peers(self) -> list[str]:
        """Everyone who was timed beside ours, in the order in which they first appear."""
        return list(dict.fromkeys(peer for row in self.rows for peer in row.peers))
