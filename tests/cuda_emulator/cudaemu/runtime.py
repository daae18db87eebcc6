"""The emulator in this process: sessions, launches, statistics."""
from __future__ import annotations

import ctypes
import functools
import json
import subprocess
from dataclasses import dataclass, field
from typing import Any, Sequence

from . import build


class EmulationError(RuntimeError):
    """A check failed, or the kernel used something the emulator does not cover."""

    def __init__(self, kind: str, message: str):
        super().__init__(message)
        self.kind = kind


@functools.cache
def control() -> ctypes.CDLL:
    """The emulator library with the prototypes of its control functions."""
    lib = ctypes.CDLL(str(build.library()))
    text, integer, size = ctypes.c_char_p, ctypes.c_int, ctypes.c_size_t
    for name, result, arguments in [
        ("set_profile", integer, [text]), ("profiles", text, []),
        ("configure", text, [text, ctypes.c_uint64, ctypes.c_uint, ctypes.c_uint64, integer]),
        ("register_region", None, [ctypes.c_void_p, size, integer, text]),
        ("unregister_region", None, [ctypes.c_void_p]), ("clear_regions", None, []),
        ("launch_count", integer, []), ("clear_launches", None, []), ("launch_json", text, [integer]),
        ("message", text, []), ("roofline_json", text, [integer, text]),
    ]:
        f = getattr(lib, "cudaemu_" + name)
        f.restype, f.argtypes = result, arguments
    return lib


@functools.cache
def _demangle(name: str) -> str:
    try:
        out = subprocess.run(["c++filt", name], capture_output=True, text=True).stdout.strip()
    except OSError:
        return name
    out = out.replace("(anonymous namespace)::", "").removeprefix("void ")
    depth = 0
    for i, letter in enumerate(out):  # up to the parameters: template arguments may hold parentheses too
        depth += {"<": 1, ">": -1}.get(letter, 0)
        if letter == "(" and depth == 0:
            return out[:i]
    return out


@dataclass
class Launch:
    """One kernel launch: configuration, error, counters. Raw counters are in `data`."""
    index: int
    data: dict[str, Any] = field(repr=False)
    _rooflines: dict[str, str] = field(repr=False)

    @classmethod
    def from_library(cls, index: int) -> "Launch":
        """The library's record, complete: it is gone when the next session begins."""
        lib = control()
        data = json.loads(lib.cudaemu_launch_json(index))
        profiles = lib.cudaemu_profiles().decode().split(", ")
        return cls(index, data, {p: lib.cudaemu_roofline_json(index, p.encode()) for p in profiles})

    def __getattr__(self, name: str) -> Any:
        try:
            return self.__dict__["data"][name]
        except KeyError:
            raise AttributeError(name) from None

    @property
    def name(self) -> str:
        return _demangle(self.data["kernel"])

    @property
    def total_warp_instructions(self) -> int:
        return sum(self.data["warp_instructions"].values())

    @property
    def total_thread_instructions(self) -> int:
        return sum(self.data["thread_instructions"].values())

    @property
    def active_lanes(self) -> float:
        """Mean active lanes per warp instruction, of 32."""
        return self.total_thread_instructions / max(1, self.total_warp_instructions)

    @staticmethod
    def _coalescing(g: dict[str, int]) -> float | None:
        return g["bytes"] / (32 * g["sectors"]) if g["sectors"] else None

    @property
    def load_efficiency(self) -> float | None:
        """Useful bytes over bytes of the 32-byte sectors that global loads touch; None without loads."""
        return self._coalescing(self.data["global_load"])

    @property
    def store_efficiency(self) -> float | None:
        return self._coalescing(self.data["global_store"])

    @property
    def bank_conflict_factor(self) -> float | None:
        """Shared-memory passes over the passes without conflicts: 1 is ideal, 32 the worst."""
        both = self.data["shared_load"], self.data["shared_store"]
        ideal = sum(s["ideal"] for s in both)
        return sum(s["wavefronts"] for s in both) / ideal if ideal else None

    @property
    def speed(self) -> float:
        """Emulated thread instructions per second."""
        return self.total_thread_instructions / max(self.data["seconds"], 1e-9)

    def roofline(self, profile: str) -> dict[str, Any]:
        """Lower bounds on the launch's time on a device, and what they assume."""
        if profile not in self._rooflines:
            raise ValueError(f"unknown profile {profile!r}; known: {', '.join(self._rooflines)}")
        return json.loads(self._rooflines[profile])


class Session:
    """Settings and results of the launches inside one `with cudaemu.session(...)`."""

    def __init__(self, profile: str, checks: str, seed: int, threads: int, max_instructions: int, verbose: bool):
        self.profile = profile
        self._settings = checks.encode(), seed, threads, max_instructions, int(verbose)
        self._keep: list[Any] = []

    def __enter__(self) -> "Session":
        lib = control()
        if lib.cudaemu_set_profile(self.profile.encode()):
            raise ValueError(f"unknown profile {self.profile!r}; known: {lib.cudaemu_profiles().decode()}")
        problem = lib.cudaemu_configure(*self._settings)
        if problem:
            raise ValueError(problem.decode())
        lib.cudaemu_clear_regions()
        lib.cudaemu_clear_launches()
        lib.cudaGetLastError()
        return self

    def __exit__(self, *_: object) -> None:
        self.launches  # noqa: B018  keep the records: the next session clears the library's
        control().cudaemu_clear_regions()
        self._keep.clear()

    def register(self, array: Any, *, read_only: bool = False, name: str | None = None) -> Any:
        """Makes an array (numpy, or a CPU torch tensor) known to the bounds check; returns its address.

        As soon as one array is registered, kernels may touch only registered memory.
        """
        address, size = address_of(array), nbytes_of(array)
        self._keep.append(array)
        control().cudaemu_register_region(address, size, int(read_only), (name or f"array{len(self._keep)}").encode())
        return address

    @property
    def launches(self) -> list[Launch]:
        lib = control()
        known: list[Launch] = self.__dict__.setdefault("_launches", [])
        for i in range(len(known), lib.cudaemu_launch_count()):
            known.append(Launch.from_library(i))
        return known

    @property
    def message(self) -> str:
        return control().cudaemu_message().decode()

    def check(self) -> None:
        """Raises EmulationError when a launch of the session failed."""
        for launch in self.launches:
            if launch.error:
                raise EmulationError(launch.error_kind, launch.error)

    def table(self) -> str:
        from .report import table
        return table(self.launches, self.profile)


def session(profile: str = "h100", checks: str = "all", seed: int = 0, threads: int = 1,
            max_instructions: int = 0, verbose: bool = False) -> Session:
    """Settings for the launches in a `with` block. See README.md for `checks`; seed 0 is the deterministic order."""
    return Session(profile, checks, seed, threads, max_instructions, verbose)


def aligned(array: Any) -> Any:
    """A copy of a numpy array whose data start on a 512-byte boundary, as cudaMalloc gives it.

    Numpy itself promises only 16 bytes, which costs sectors that a device would not touch. Torch aligns to 64 bytes.
    """
    import numpy as np
    raw = np.empty(array.nbytes + 512, np.uint8)
    start = -raw.ctypes.data % 512
    out = raw[start:start + array.nbytes].view(array.dtype).reshape(array.shape)
    out[...] = array
    return out


def address_of(array: Any) -> int:
    if hasattr(array, "data_ptr"):
        return array.data_ptr()
    return array.ctypes.data


def nbytes_of(array: Any) -> int:
    if hasattr(array, "data_ptr"):
        return array.untyped_storage().nbytes() - array.storage_offset() * array.element_size()
    return array.nbytes


def load(path: Any) -> ctypes.CDLL:
    """Loads a compiled kernel library (see cudaemu.compile)."""
    control()
    return ctypes.CDLL(str(path))


def arguments(*values: Any) -> Sequence[Any]:
    """Python values as ctypes arguments: arrays and tensors become pointers, floats become C float."""
    out: list[Any] = []
    for v in values:
        if isinstance(v, bool) or isinstance(v, int):
            out.append(ctypes.c_int(v))
        elif isinstance(v, float):
            out.append(ctypes.c_float(v))
        elif v is None:
            out.append(ctypes.c_void_p())
        elif hasattr(v, "data_ptr") or hasattr(v, "ctypes"):
            out.append(ctypes.c_void_p(address_of(v)))
        else:
            out.append(v)
    return out
