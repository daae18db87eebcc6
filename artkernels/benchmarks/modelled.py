"""What the CUDA kernels move and compute, modelled: rows, and the file that keeps them.

Nothing here was measured. ``make modelled`` runs the kernels on the repository's emulator (``tests/cuda_emulator``),
which counts what they do, and writes ``modelled.json``.
"""

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from artkernels.errors import UserError
from artkernels.files import whole_or_not_at_all

__all__ = ["COLUMNS", "PATH", "Bound", "Launch", "Modelled", "Row"]

PATH = Path(__file__).with_name("modelled.json")

COLUMNS = {
    "shape": "of the input in a real network",
    "emulated": "of the input that was emulated, with fewer channels, pixels or images where the real one takes too "
    "long: all figures are for this one",
    "grid": "the device whose number of SMs and instruction set the launches were planned for",
    "dram": "bytes of the 32-byte sectors that each launch touches, each once, added over the launches",
    "passed_on": "of dram, what one launch of the call writes and a later one reads (partial sums, packed weights), "
    "both times: it stays in L2",
    "least": "bytes that any implementation must move: each operand once",
    "stock": "bytes that PyTorch's sequence of kernels moves, an operand read or written once per kernel",
    "l2": "bytes of all sectors requested by loads and stores, however often",
    "banks": "passes over shared memory, over those without bank conflicts; 1 where shared memory is not used",
    "instructions": "of warps, counted in PTX, before ptxas",
    "tensor_share": "of all FLOPs issued, the share done by tensor cores; products with padding and the three of "
    "3xTF32 are counted as issued",
    "bounds": "per device, a lower bound in microseconds: the slowest of DRAM, arithmetic, issue, shared memory and "
    "special functions at published peaks with perfect overlap, for the launches one after the other, without their "
    "latency; and what limits the longest",
    "launches": "per kernel launch: sectors as in dram, requested as in l2, passes and conflict-free passes over "
    "shared memory; registers a thread that ptxas gives the emulated PTX, bytes of shared memory a block, and "
    "occupancy, the share of an SM's warps that fit at once",
}


@dataclass(frozen=True)
class Bound:
    """The least time on a device: ``microseconds``, and what limits the longest launch (dram, compute, issue, ...)."""

    microseconds: float
    limiter: str


@dataclass(frozen=True)
class Launch:
    """One kernel launch of a call.

    Attributes:
        kernel: its name with template arguments.
        grid, block: in blocks and in threads.
        instructions: of warps.
        sectors: of 32 bytes, touched, each once for reading and once for writing.
        requested: sectors, each as often as it is asked for.
        passes: over shared memory.
        conflict_free_passes: those without bank conflicts.
        shared: bytes of shared memory a block, static and dynamic.
        registers: device -> registers a thread.
        occupancy: device -> share of an SM's warps that fit at once, in (0, 1].
    """

    kernel: str
    grid: tuple[int, int, int]
    block: tuple[int, int, int]
    instructions: int
    sectors: int
    requested: int
    passes: int
    conflict_free_passes: int
    shared: int
    registers: dict[str, int]
    occupancy: dict[str, float]


@dataclass(frozen=True)
class Row:
    """One call of an op's forward or backward; :data:`COLUMNS` says what each figure means."""

    op: str
    case: str
    dtype: str
    layout: Literal["contiguous", "channels_last"]
    kind: Literal["forward", "backward"]
    shape: tuple[int, ...]
    emulated: tuple[int, ...]
    grid: str
    dram: int
    passed_on: int
    least: int
    stock: int
    l2: int
    banks: float
    instructions: int
    tensor_share: float
    bounds: dict[str, Bound]
    launches: tuple[Launch, ...]

    @property
    def key(self) -> tuple[str, ...]:
        """What names the row in the file."""
        return self.op, self.case, self.dtype, self.layout, self.kind, self.grid

    @classmethod
    def from_plain(cls, plain: dict[str, Any]) -> "Row":
        """From what ``dataclasses.asdict`` made, after JSON."""
        launches = (
            Launch(**launch | {name: tuple(launch[name]) for name in ("grid", "block")}) for launch in plain["launches"]
        )
        nested = {
            "shape": tuple(plain["shape"]),
            "emulated": tuple(plain["emulated"]),
            "bounds": {device: Bound(**bound) for device, bound in plain["bounds"].items()},
            "launches": tuple(launches),
        }
        return cls(**plain | nested)


@dataclass(frozen=True)
class Modelled:
    """All modelled figures.

    Attributes:
        nvcc: version of the compiler whose PTX was emulated: another's has other counts.
        rows: in the order in which they were emulated.
    """

    nvcc: str
    rows: tuple[Row, ...]

    @classmethod
    def load(cls, path: Path = PATH) -> "Modelled":
        """Reads the figures, by default those that come with the package.

        Raises:
            UserError: there is no such file, or it is another's.
        """
        try:
            file = json.loads(path.read_text())
            return cls(file["nvcc"], tuple(map(Row.from_plain, file["rows"])))
        except OSError as error:
            raise UserError(f"{path}: cannot be read ({error.strerror})") from error
        except (ValueError, KeyError, TypeError) as error:
            raise UserError(f"{path}: not modelled figures, a file that make modelled wrote is needed") from error

    def save(self, path: Path = PATH) -> None:
        """Writes the file that :meth:`load` reads, one launch a line."""
        head = {"modelled": "counted by an emulator, not measured", "nvcc": self.nvcc, "columns": COLUMNS}
        text = json.dumps(head, indent=1).removesuffix("\n}")
        with whole_or_not_at_all(path) as temporary:
            temporary.write_text(f'{text},\n "rows": [\n{_lines(map(_row_text, self.rows))}\n]\n}}\n')


def _row_text(row: Row) -> str:
    plain = asdict(row)
    launches = _lines(f"  {json.dumps(launch)}" for launch in plain.pop("launches"))
    return f'{json.dumps(plain).removesuffix("}")}, "launches": [\n{launches}]}}'


def _lines(texts: Iterable[str]) -> str:
    return ",\n".join(texts)
