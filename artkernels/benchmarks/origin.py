"""Where a file of results comes from: the machine and the commit, and how it is written."""

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import artkernels

__all__ = ["commit", "describe", "one_line_a_row"]

_HERE = Path(__file__)


def describe(machine_info: dict[str, Any], threads: int) -> None:
    """Add to what pytest-benchmark tells of the machine what matters here, and leave out what is only the owner's."""
    del machine_info["node"], machine_info["cpu"]["flags"]
    info = artkernels.build_info()
    pages = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    machine_info.update(torch=info["torch_running"], threads=threads, memory=pages)
    machine_info.update(cpu_instruction_set=info["cpu_instruction_set"], gpus=info["gpus"])


def commit() -> dict[str, Any]:
    """Of the checkout that this package is in, if it is in one."""

    def git(*arguments: str) -> str:
        done = subprocess.run(["git", "-C", str(_HERE.parent), *arguments], capture_output=True, text=True, check=True)
        return done.stdout.strip()

    try:
        if not git("ls-files", _HERE.name):
            return {}  # installed into a folder that somebody else keeps in git
        return {"id": git("rev-parse", "HEAD"), "dirty": bool(git("status", "--porcelain", "--untracked-files=no"))}
    except (OSError, subprocess.CalledProcessError):
        return {}


def one_line_a_row(file: dict[str, Any]) -> str:
    """JSON that git can compare."""
    rows = ",\n".join(json.dumps(benchmark) for benchmark in file.pop("benchmarks"))
    return f'{json.dumps(file)[:-1]}, "benchmarks": [\n{rows}\n]}}\n'
