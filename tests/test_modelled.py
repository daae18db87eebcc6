"""The modelled figures are those of the kernels as they are: no kernel moves, computes or waits more unnoticed."""

import json
import re
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).resolve().parents[1]))

from artkernels.benchmarks.modelled import COLUMNS, Launch, Modelled, Row
from artkernels.errors import UserError
from benchmarks.modelled.__main__ import all_cases, all_registers
from benchmarks.modelled.case import Case, cuda, nvcc_version, row
from benchmarks.modelled.occupancy import occupancy, resident_blocks

# Every kernel and every op, in seconds: op, case, dtype, layout, device that plans the launches.
EMULATED = [
    ("gram", "relu1_1", "float32", "channels_last", "h100"),
    ("gram", "relu1_1", "bfloat16", "contiguous", "h100"),
    ("gram", "relu4_1", "bfloat16", "channels_last", "h100"),
    ("norm_act", "transformer in, instance", "float32", "contiguous", "h100"),
    ("norm_act", "transformer in, instance", "bfloat16", "channels_last", "h100"),
    ("norm_act", "dcgan 4x4, batch", "bfloat16", "contiguous", "h100"),
    ("norm_act", "vqgan 16x16, group", "float32", "channels_last", "h100"),
    ("conv_transpose", "dcgan 1x1, to 512 channels, batch", "float32", "contiguous", "h100"),
    ("conv_transpose", "dcgan 4x4, to 256 channels, batch", "bfloat16", "channels_last", "h100"),
    ("conv_transpose", "dcgan sample, to 256 channels, relu", "bfloat16", "contiguous", "h100"),
    ("conv_transpose", "dcgan image, to 3 channels, tanh", "bfloat16", "channels_last", "h100"),
    ("conv_transpose", "dcgan image, to 3 channels, tanh", "float32", "contiguous", "rtx4090"),
    ("reparameterize_kl", "latent maps", "bfloat16", "contiguous", "h100"),
    ("reparameterize_kl", "large maps", "float32", "contiguous", "h100"),
]
COUNTS = ("instructions", "sectors", "requested", "passes", "conflict_free_passes", "shared")


@pytest.fixture(autouse=True)
def emulator() -> None:
    """These tests open emulator sessions of their own, whatever the build of the extension."""


@pytest.fixture(scope="module")
def modelled() -> Modelled:
    return Modelled.load()


def require_nvcc(version: str) -> None:
    try:
        running = nvcc_version()
    except cuda.cudaemu.BuildError as error:
        pytest.skip(f"no nvcc: {error}")
    if running != version:
        pytest.skip(f"the counts are those of nvcc {version}'s code, this is nvcc {running}")


def find_case(key: Sequence[str]) -> Case:
    return next(c for c in all_cases() if (c.op, c.name, c.dtype, c.layout, c.devices[0]) == tuple(key))


def kernel_of(launch: Launch) -> str:
    """Without template arguments."""
    return launch.kernel.split("<")[0]


def changes(before: Row, now: Row) -> list[str]:
    """One sentence a difference: what grew or shrank, and by how much."""
    planned = [[(launch.kernel, launch.grid, launch.block) for launch in r.launches] for r in (before, now)]
    if planned[0] != planned[1]:
        return [f"the launches were {planned[0]} and are {planned[1]}"]
    found = []
    for old, new in zip(before.launches, now.launches, strict=True):
        for name in COUNTS:
            a, b = getattr(old, name), getattr(new, name)
            if a != b:
                share = f" ({(b - a) / a:+.1%})" if a else ""
                found.append(f"{name} of {old.kernel} {'grew' if b > a else 'shrank'} from {a} to {b}{share}")
    for name in ("dram", "passed_on", "least", "stock", "l2", "banks", "instructions", "tensor_share", "bounds"):
        a, b = getattr(before, name), getattr(now, name)
        if a != b and not found:
            found.append(f"{name} was {a} and is {b}")
    return found


# ---- the guard -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("key", EMULATED, ids=lambda key: "-".join(key).replace(" ", "_"))
def test_kernels_do_what_the_committed_figures_say(key, modelled):
    require_nvcc(modelled.nvcc)
    case = find_case(key)
    committed = {r.key: r for r in modelled.rows}
    found = []
    for call in case.calls():
        now = row(case, call)
        found += [f"{call.kind}: {change}" for change in changes(committed[now.key], now)]
    if found:
        pytest.fail(f"{', '.join(key)}: {'; '.join(found)}. When this is meant, `make modelled` rewrites modelled.json")


def test_every_kernel_is_emulated_here(modelled):
    sources = "".join(path.read_text() for path in sorted((cuda.CSRC / "cuda").glob("*.cu*")))
    kernels = set(re.findall(r"__launch_bounds__\([^;{]*?\)\s*void (\w+)\(", sources))
    chosen = [r for r in modelled.rows if (r.op, r.case, r.dtype, r.layout, r.grid) in EMULATED]
    assert len(kernels) >= 17
    assert {kernel_of(launch) for r in chosen for launch in r.launches} == kernels


def test_the_file_has_every_case(modelled):
    cases = {(c.op, c.name, c.dtype, c.layout, c.devices[0], c.shape, c.emulated) for c in all_cases()}
    rows = {(r.op, r.case, r.dtype, r.layout, r.grid, r.shape, r.emulated) for r in modelled.rows}
    assert cases == rows
    assert len({r.key for r in modelled.rows}) == len(modelled.rows)


def test_a_change_is_named(modelled):
    before = modelled.rows[0]
    first = before.launches[0]
    more = replace(first, sectors=2 * first.sectors)
    assert changes(before, before) == []
    assert changes(before, replace(before, launches=(more, *before.launches[1:]))) == [
        f"sectors of {first.kernel} grew from {first.sectors} to {2 * first.sectors} (+100.0%)"
    ]
    assert "the launches were" in changes(before, replace(before, launches=before.launches[:1]))[0]


# ---- what the figures hold -------------------------------------------------------------------------------------------


def test_nothing_moves_less_than_the_least(modelled):
    for r in modelled.rows:
        assert r.least <= r.dram - r.passed_on / 2, r.key
        assert r.l2 >= r.dram, r.key
        assert r.banks >= 1, r.key


def test_every_launch_fits_on_every_device(modelled):
    for r in modelled.rows:
        for launch in r.launches:
            assert set(launch.occupancy) == set(launch.registers) == set(r.bounds), r.key
            assert all(0 < share <= 1 for share in launch.occupancy.values()), (r.key, launch)


def test_16_bit_matrix_products_run_on_tensor_cores(modelled):
    rows = [r for r in modelled.rows if r.op in ("gram", "conv_transpose") and r.dtype == "bfloat16"]
    assert all(r.tensor_share > 0.9 for r in rows)


# ---- occupancy -------------------------------------------------------------------------------------------------------


# By hand, from the tables of compute capabilities 9.0, 8.0 and 8.9 (64, 64 and 48 warps, 32, 32 and 24 blocks, 228, 164
# and 100 KiB of shared memory) and 65536 registers an SM, 256 at a time a warp, 1 KiB reserved for each block.
@pytest.mark.parametrize(
    ("device", "threads", "registers", "shared", "blocks", "share"),
    [
        pytest.param("h100", 256, 32, 0, 8, 1.0, id="warps"),
        pytest.param("rtx4090", 256, 32, 0, 6, 1.0, id="fewer warps"),
        pytest.param("a100", 32, 16, 0, 32, 0.5, id="blocks"),
        pytest.param("rtx4090", 32, 16, 0, 24, 0.5, id="fewer blocks"),
        pytest.param("h100", 256, 128, 0, 2, 0.25, id="registers"),  # 4096 a warp: 16 warps
        pytest.param("h100", 128, 33, 0, 12, 0.75, id="registers, rounded up"),  # 1280 a warp: 12 a quarter, 48 warps
        pytest.param("a100", 96, 168, 0, 4, 0.1875, id="registers, whole blocks"),  # 5376 a warp: 3 a quarter, 12 warps
        pytest.param("a100", 1024, 64, 0, 1, 0.5, id="one block"),
        pytest.param("h100", 128, 32, 98304, 2, 0.125, id="shared memory"),  # 97 KiB of 228
        pytest.param("a100", 128, 32, 98304, 1, 0.0625, id="shared memory, one block"),
        pytest.param("rtx4090", 128, 32, 49 << 10, 2, 0.1667, id="shared memory, with what is reserved"),
        pytest.param("rtx4090", 128, 32, (49 << 10) + 1, 1, 0.0833, id="shared memory, one byte too much"),
        pytest.param("h100", 128, 256, 227 << 10, 1, 0.0625, id="all of it"),
        pytest.param("rtx4090", 128, 32, 100 << 10, 0, 0.0, id="too much"),
    ],
)
def test_occupancy_is_that_of_cudas_tables(device, threads, registers, shared, blocks, share):
    assert resident_blocks(device, threads, registers, shared) == blocks
    assert occupancy(device, threads, registers, shared) == share


def test_registers_are_those_of_ptxas(modelled):
    require_nvcc(modelled.nvcc)
    case = next(c for c in all_cases() if c.op == "reparameterize_kl" and c.name == "vae")
    calls = [(case, call) for call in case.calls()]
    committed = {r.key: r for r in modelled.rows}
    for _, call in calls:
        now = row(case, call, all_registers(calls))
        assert now == committed[now.key]


# ---- the file --------------------------------------------------------------------------------------------------------


def test_a_file_reads_back_as_it_was_written(modelled, tmp_path):
    modelled.save(tmp_path / "again.json")
    assert Modelled.load(tmp_path / "again.json") == modelled
    file = json.loads((tmp_path / "again.json").read_text())
    assert file["columns"] == COLUMNS
    assert "not measured" in file["modelled"]


def test_another_file_is_refused_in_a_sentence(tmp_path):
    path = tmp_path / "other.json"
    with pytest.raises(UserError, match=r"other\.json: cannot be read"):
        Modelled.load(path)
    for text in ("{", "[]", '{"nvcc": "13.0", "rows": [{}]}'):
        path.write_text(text)
        with pytest.raises(UserError, match=r"not modelled figures, a file that make modelled wrote is needed"):
            Modelled.load(path)
