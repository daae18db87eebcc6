"""torch.compile's kernels made ahead, on all cores at once: one after the other, in the contests, takes much longer.

They are found again in the cache that PyTorch keeps on disk.
"""

import os
from collections.abc import Container, Sequence
from contextlib import ExitStack

import torch
import torch._inductor.config
from tqdm import tqdm

from artkernels.benchmarks.case import Setting
from artkernels.benchmarks.contest import Contest
from artkernels.benchmarks.peers import COMPILE, FREEZING
from artkernels.benchmarks.processes import Address, Processes

__all__ = ["compile_ahead", "compiled"]

Task = tuple[Address, str, Setting, int]


def compiled(contests: Sequence[Contest], processes: Processes, threads: int) -> list[Task]:
    """What torch.compile will be asked for, each graph once: a step's serves its backward alone, too."""
    tasks = [
        (processes.address(contest.case), name, contest.setting, contest.case.threads or threads)
        for contest in contests
        for name in contest.case.peers(contest.setting)
        if name in (COMPILE, FREEZING) and contest.setting.kind != "backward"
    ]
    return list(dict.fromkeys(tasks))


def compile_ahead(contests: Sequence[Contest], absent: Container[str], processes: Processes, threads: int) -> None:
    """Compile all that the contests will ask for."""
    tasks = [task for task in compiled(contests, processes, threads) if task[1] not in absent]
    if not tasks:
        return
    with processes.pool(min(len(tasks), len(os.sched_getaffinity(0)))) as pool:
        done = pool.imap_unordered(_compile, tasks)
        for _ in tqdm(done, total=len(tasks), desc="torch.compile", unit="graph", disable=None):
            pass


def _compile(task: Task) -> None:
    address, name, setting, threads = task
    torch.set_num_threads(threads)  # they are part of the code
    torch._inductor.config.compile_threads = 1  # no further processes of its own
    torch._dynamo.reset()  # or it gives up at the eighth shape
    with ExitStack() as resources:
        try:
            address.case().candidate(name, setting, resources).results()
        except Exception:  # the contest meets it again, and says so
            return
