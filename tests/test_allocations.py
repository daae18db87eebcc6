"""How many tensors an op allocates, of how many bytes, and which ops it calls: counts that no machine's speed changes.

allocations.json beside this file has the counts; `python tests/test_allocations.py` rewrites it when a change is meant.
Not counted are what a kernel's threads keep for themselves (csrc/cpu/scratch.h), which is no tensor, and what PyTorch's
own convolution does inside, which is oneDNN's choice for the CPU.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import pytest
import torch
from torch import Tensor

import artkernels
import artkernels.functional as F
from artkernels import reference

pytestmark = pytest.mark.cpu_only

TABLE = Path(__file__).with_name("allocations.json")
THREADS = 2
STOCK_CONVOLUTIONS = ("aten::convolution", "mkldnn::_convolution_pointwise")
N, C, H, K = 2, 16, 24, 8
PASSES = ("inference", "forward", "backward")
LAYOUTS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}


@dataclass
class Case:
    """A call of an op; of what it returns, the first tensor is differentiated with respect to the inputs."""

    call: Callable[[ModuleType], Tensor | tuple[Tensor, ...]]
    inputs: tuple[Tensor, ...]

    def output(self, functions: ModuleType) -> Tensor:
        result = self.call(functions)
        return result if isinstance(result, Tensor) else result[0]


def feature_map(layout: str, *shape: int) -> Tensor:
    return torch.randn(shape).to(memory_format=LAYOUTS[layout]).requires_grad_()


def parameters(*shapes: tuple[int, ...]) -> list[Tensor]:
    return [torch.randn(shape).requires_grad_() for shape in shapes]


def norm(name: str, *arguments: object, **options: object) -> Callable[[str], Case]:
    def case(layout: str) -> Case:
        x = feature_map(layout, N, C, H, H)
        weight, bias = parameters((C,), (C,))
        affine = dict(weight=weight, bias=bias, activation="relu", **options)
        return Case(lambda f: getattr(f, name)(x, *arguments, **affine), (x, weight, bias))

    return case


def adain(layout: str) -> Case:
    x, mean, std = feature_map(layout, N, C, H, H), *parameters((N, C), (N, C))
    return Case(lambda f: f.adaptive_instance_norm(x, mean, std, 0.5), (x, mean, std))


def conv(name: str, shape: tuple[int, ...], weight: tuple[int, ...], **options: object) -> Callable[[str], Case]:
    def case(layout: str) -> Case:
        x, w = feature_map(layout, *shape), feature_map(layout, *weight)
        return Case(lambda f: getattr(f, name)(x, w, None, **options), (x, w))

    return case


def gram(layout: str) -> Case:
    x = feature_map(layout, N, C, H, H)
    return Case(lambda f: f.gram_matrix(x), (x,))


def gram_loss(layout: str) -> Case:
    x, target = feature_map(layout, N, C, H, H), torch.zeros(C, C)
    return Case(lambda f: f.gram_mse_loss(x, target), (x,))


def statistics(layout: str) -> Case:
    x = feature_map(layout, N, C, H, H)
    return Case(lambda f: f.feature_statistics(x), (x,))


def vae(layout: str) -> Case:
    mean, logvar, noise = (feature_map(layout, N, C, H, H) for _ in range(3))
    noise = noise.detach()
    return Case(lambda f: f.reparameterize_kl(mean, logvar, noise), (mean, logvar))


UPSAMPLES = dict(stride=2, padding=1, activation="relu")
CASES: dict[str, Callable[[str], Case]] = {
    "batch_norm_act": norm("batch_norm_act", None, None, training=True),
    "instance_norm_act": norm("instance_norm_act"),
    "group_norm_act": norm("group_norm_act", 4),
    "adaptive_instance_norm": adain,
    "conv2d_act": conv("conv2d_act", (N, C, 8, 8), (K, C, 3, 3), padding=1, activation="relu"),
    "conv2d_norm_act": conv("conv2d_norm_act", (N, C, 8, 8), (K, C, 3, 3), padding=1, training=True),
    "conv_transpose2d_act": conv("conv_transpose2d_act", (N, C, H, H), (C, K, 4, 4), **UPSAMPLES),
    "conv_transpose2d_norm_act": conv(
        "conv_transpose2d_norm_act", (N, C, H, H), (C, K, 4, 4), norm="instance", training=True, **UPSAMPLES
    ),
    "feature_statistics": statistics,
    "gram_matrix": gram,
    "gram_mse_loss": gram_loss,
    "reparameterize_kl": vae,
}


@pytest.fixture(autouse=True)
def _threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(THREADS)
    yield
    torch.set_num_threads(before)


@dataclass(frozen=True)
class Counts:
    """bytes: of each allocation, largest first; ops: name -> calls, of those that PyTorch's dispatcher runs."""

    bytes: list[int]
    ops: dict[str, int]

    def changes_to(self, now: Counts) -> list[str]:
        """One sentence a difference: what grew or shrank."""
        found = []
        if now.bytes != self.bytes:
            old, new = (f"{len(c.bytes)} tensors of {sum(c.bytes)} bytes in all {c.bytes}" for c in (self, now))
            word = "grew" if sum(now.bytes) >= sum(self.bytes) else "shrank"
            found.append(f"allocations {word} from {old} to {new}")
        for name in sorted(self.ops.keys() | now.ops.keys()):
            old, new = self.ops.get(name, 0), now.ops.get(name, 0)
            if old != new:
                found.append(f"calls of {name} {'grew' if new > old else 'shrank'} from {old} to {new}")
        return found


def count(call: Callable[[], object], opaque: tuple[str, ...] = ()) -> Counts:
    """opaque: ops that are counted, but not what they do inside."""
    with torch.autograd.profiler.profile(profile_memory=True) as profile:
        call()
    events = profile.kineto_results.events()
    spans = [(e.start_ns(), e.start_ns() + e.duration_ns()) for e in events if e.name() in opaque]
    events = [e for e in events if not any(start < e.start_ns() <= end for start, end in spans)]
    sizes = [e.nbytes() for e in events if e.name() == "[memory]" and e.nbytes() > 0]
    ops = Counter(e.name() for e in events if e.name().startswith(("aten::", "artkernels::", "mkldnn::")))
    return Counts(sorted(sizes, reverse=True), dict(sorted(ops.items())))


def count_pass(
    case: Case, kind: str, functions: ModuleType = F, opaque: tuple[str, ...] = STOCK_CONVOLUTIONS
) -> Counts:
    """Of the second call: the first one packs weights to keep."""
    if kind == "backward":
        output = case.output(functions)
        grad_output = torch.ones_like(output)

        def call() -> object:
            return torch.autograd.grad(output, case.inputs, grad_output, retain_graph=True)
    else:

        def call() -> object:
            with torch.inference_mode(kind == "inference"):
                return case.call(functions)

    call()
    return count(call, opaque)


def table() -> dict[str, dict[str, object]]:
    return {
        f"{name} {layout} {kind}": vars(count_pass(make(layout), kind))
        for name, make in CASES.items()
        for layout in LAYOUTS
        for kind in PASSES
    }


def written() -> dict[str, dict[str, object]]:
    file = json.loads(TABLE.read_text())
    if file["torch"] != torch.__version__.split("+")[0]:
        pytest.skip(f"the counts are those of torch {file['torch']}, this is {torch.__version__}")
    return file["counts"]


def test_every_op_is_counted():
    assert sorted(CASES) == sorted(F.__all__)


@pytest.mark.parametrize("kind", PASSES)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("name", CASES)
def test_an_op_allocates_and_calls_what_the_table_says(name, layout, kind):
    expected = Counts(**written()[f"{name} {layout} {kind}"])
    changes = expected.changes_to(count_pass(CASES[name](layout), kind))
    if changes:
        pytest.fail(
            f"{name}, {layout}, {kind}: {'; '.join(changes)}. When this is meant, `python tests/test_allocations.py` "
            f"rewrites {TABLE.name}"
        )


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("name", CASES)
def test_an_op_allocates_no_more_than_the_stock_sequence(name, layout):
    """But for tensors of a few hundred bytes, such as statistics: of those, feature_statistics' backward has more."""
    case = CASES[name](layout)
    counts = {(k, f): count_pass(case, k, f, opaque=()) for k in PASSES for f in (F, reference)}
    for passes in (("inference",), ("forward", "backward")):
        ours, stock = (sum(size for k in passes for size in counts[k, f].bytes if size >= 1024) for f in (F, reference))
        assert ours <= stock, f"{' + '.join(passes)}: {ours} bytes, stock {stock}"


def test_a_packed_weight_is_allocated_once():
    case = CASES["conv_transpose2d_act"]("contiguous")
    artkernels.clear_packed_weights()
    with torch.inference_mode():
        first, second = (count(lambda: case.call(F)) for _ in range(2))
    kept = artkernels.packed_weight_statistics().bytes
    assert kept > 0
    assert sum(first.bytes) - sum(second.bytes) == kept


def test_a_change_is_named():
    before = Counts([400, 100], {"aten::empty": 2})
    now = Counts([400, 400, 100], {"aten::empty": 3, "aten::clone": 1})
    assert before.changes_to(before) == []
    assert before.changes_to(now) == [
        "allocations grew from 2 tensors of 500 bytes in all [400, 100] to 3 tensors of 900 bytes in all "
        "[400, 400, 100]",
        "calls of aten::clone grew from 0 to 1",
        "calls of aten::empty grew from 2 to 3",
    ]
    assert now.changes_to(before)[0].startswith("allocations shrank from 3 tensors of 900 bytes")


if __name__ == "__main__":
    torch.set_num_threads(THREADS)
    lines = (f"  {json.dumps(name)}: {json.dumps(counts)}" for name, counts in table().items())
    head = f'{{"torch": "{torch.__version__.split("+")[0]}", "threads": {THREADS}, "counts": {{'
    TABLE.write_text(head + "\n" + ",\n".join(lines) + "\n}}\n")
