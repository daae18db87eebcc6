"""The modelled figures of the CUDA kernels as tables."""

import functools
from collections.abc import Callable

from artkernels.benchmarks.modelled import Modelled, Row
from artkernels.benchmarks.tables import SLOWER, Cell, Table, bytes_text, seconds_text

__all__ = ["MEANINGS", "modelled_tables"]

MEANINGS = {
    "least": "bytes that any implementation must move: each operand once",
    "moved": "DRAM sectors that ours touches, as a multiple of the least; in brackets without what one launch leaves "
    f"in L2 for the next; {SLOWER} more than stock's",
    "stock moves": "the same of PyTorch's sequence of kernels",
    "through L2": "sectors requested, however often, as a multiple of the least",
    "banks": "passes over shared memory, over those without bank conflicts",
    "instructions": "of warps",
    "tensor cores": "their share of the FLOPs issued",
    "devices": "a lower bound of the time at published peaks; in brackets what limits it, and the occupancy of its "
    "launches",
}


def modelled_tables(modelled: Modelled) -> list[Table]:
    """A table for each op, dtype and device that the launches were planned for."""
    groups: dict[str, list[Row]] = {}
    for row in modelled.rows:
        groups.setdefault(f"{row.op}, {row.dtype}, launches planned for {row.grid}, modelled", []).append(row)
    return [_table(caption, rows) for caption, rows in groups.items()]


def _table(caption: str, rows: list[Row]) -> Table:
    columns: dict[str, Callable[[Row], Cell]] = {
        "case": lambda row: Cell(row.case),
        "emulated input": lambda row: Cell(_input_text(row)),
        "pass": lambda row: Cell(row.kind),
        "least": lambda row: Cell(bytes_text(row.least)),
        "moved": _moved_cell,
        "stock moves": lambda row: _times(row.stock, row),
        "through L2": lambda row: _times(row.l2, row),
        "banks": lambda row: Cell(f"{row.banks:.2f}"),
        "instructions": lambda row: Cell(f"{row.instructions:,}"),
        "tensor cores": lambda row: Cell(f"{row.tensor_share:.0%}"),
    }
    for device in dict.fromkeys(device for row in rows for device in row.bounds):
        columns[device] = functools.partial(_device_cell, device=device)
    return Table([*columns], [[get(row) for get in columns.values()] for row in rows], 3, caption)


def _input_text(row: Row) -> str:
    return " x ".join(map(str, row.emulated)) + (" channels_last" if row.layout == "channels_last" else "")


def _times(count: int, row: Row) -> Cell:
    return Cell(f"{count / row.least:.2f}")


def _moved_cell(row: Row) -> Cell:
    spread = f"({(row.dram - row.passed_on) / row.least:.2f})" if row.passed_on else ""
    return Cell(f"{row.dram / row.least:.2f}", spread, SLOWER if row.dram > row.stock else "")


def _device_cell(row: Row, device: str) -> Cell:
    if device not in row.bounds:
        return Cell("")
    bound = row.bounds[device]
    shares = [launch.occupancy[device] for launch in row.launches if device in launch.occupancy]
    between = " to ".join(dict.fromkeys(f"{share:.2f}" for share in (min(shares), max(shares)))) if shares else ""
    return Cell(seconds_text(bound.microseconds / 1e6), f"({', '.join(filter(None, (bound.limiter, between)))})")
