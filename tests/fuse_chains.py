"""What the tests of fuse and of explain share: models, random ones among them, and how fused is compared with stock."""

import copy
from collections.abc import Callable, Iterator

import torch
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.autograd import profiler_legacy

from artkernels.fusion.chains import Chain
from artkernels.fusion.model import Graph, fused_modules, state_of


def ops(model: nn.Module) -> list[str]:
    """The fused functions that a fused model calls as it is now, in order."""
    graph = graph_of(model)
    assert graph.run is not None, graph.why_not
    return [chain.__name__ for chain in graph.chains]


def links(model: nn.Module) -> int:
    """How many layers and functions those take the place of."""
    return sum(len(call.links) for call in graph_of(model).chains if isinstance(call, Chain))


def graph_of(model: nn.Module) -> Graph:
    """That of a fused model as it is now."""
    graph = state_of(model).graph(model)
    assert graph is not None
    return graph


def fused_ops(model: nn.Module, *inputs: Tensor) -> list[str]:
    """The operations of artkernels that a call of the model runs, in order."""
    with profiler_legacy.profile() as profile, torch.no_grad():
        model(*inputs)
    names = [event.name.partition("::") for event in profile.function_events]
    return [name for library, _, name in names if library == "artkernels"]


def compiled_ops(model: nn.Module, *inputs: Tensor) -> tuple[Tensor, set[str]]:
    """The output of the model compiled in one graph, and the fused operations in that."""
    found: set[str] = set()

    def backend(graph: torch.fx.GraphModule, _: list[Tensor]) -> torch.fx.GraphModule:
        found.update(str(n.target).partition(".")[2] for n in graph.graph.nodes if "artkernels" in str(n.target))
        return graph

    torch._dynamo.reset()
    return torch.compile(model, fullgraph=True, backend=backend)(*inputs), found


def is_fused(model: nn.Module) -> bool:
    return bool(fused_modules(model))


def images(channels: int = 3, size: int = 8, batch: int = 2) -> Tensor:
    return torch.randn(batch, channels, size, size)


def randomize(model: nn.Module) -> nn.Module:
    """No parameter is 0 or 1 any more, no convolution's output has a deviation that vanishes."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.2 if name.endswith("weight") else 0.1)
    return model


def tensors(output: object) -> Iterator[Tensor]:
    """Those in what a model returns."""
    if isinstance(output, Tensor):
        yield output
    else:
        for value in output.values() if isinstance(output, dict) else output:  # type: ignore[attr-defined]
            yield from tensors(value)


def assert_close(actual: Tensor, expected: Tensor, what: str, tolerance: float = 1e-4) -> None:
    """To the rounding of float32 in networks: as a fraction of the largest value."""
    assert actual.shape == expected.shape, what
    if not expected.is_floating_point():
        assert torch.equal(actual, expected), what
        return
    assert actual.dtype == expected.dtype, what
    largest = (actual.double() - expected.double()).abs().max() if actual.numel() else 0.0
    assert largest <= tolerance * expected.double().abs().max().clamp_min(1e-2), f"{what}: differs by {largest:.2e}"


def assert_same_state(a: nn.Module, b: nn.Module, tolerance: float = 1e-4) -> None:
    assert list(a.state_dict()) == list(b.state_dict())
    for (name, value), other in zip(a.state_dict().items(), b.state_dict().values(), strict=True):
        assert_close(value, other, name, tolerance)


def assert_trains_alike(stock: nn.Module, fused: nn.Module, batches: list[Tensor], tolerance: float = 1e-3) -> None:
    """Outputs, gradients, and state after each of some steps; then the outputs of evaluation."""
    models = stock.train(), fused.train()
    optimizers = [torch.optim.SGD(model.parameters(), lr=1e-3) for model in models]
    for x in batches:
        leaves, outputs = [x.clone().requires_grad_() for _ in models], []
        for model, leaf, optimizer in zip(models, leaves, optimizers, strict=True):
            optimizer.zero_grad()
            torch.manual_seed(1)  # of what the model draws
            outputs.append(list(tensors(model(leaf))))
            torch.manual_seed(2)
            sum((y * torch.randn_like(y)).sum() for y in outputs[-1]).backward()
        for theirs, ours in zip(*outputs, strict=True):
            assert_close(ours, theirs, "output", tolerance)
        assert_close(leaves[1].grad, leaves[0].grad, "gradient of the input", tolerance)
        for (name, theirs), ours in zip(stock.named_parameters(), fused.parameters(), strict=True):
            if theirs.grad is not None and theirs.grad.abs().max() > 1e-3:  # a bias before a norm has none
                assert_close(ours.grad, theirs.grad, f"gradient of {name}", tolerance)
        for optimizer in optimizers:
            optimizer.step()
        assert_same_state(fused, stock, tolerance)
    assert_infers_alike(stock.eval(), fused.eval(), batches[0], tolerance)


def assert_alike(stock: nn.Module, fused: nn.Module, batches: list[Tensor]) -> None:
    """Training in float64, where no rounding moves a value across the kink of a ReLU; outputs in float32 too."""
    assert_trains_alike(stock.double(), fused.double(), [x.double() for x in batches], tolerance=1e-6)
    for training in (True, False):
        assert_infers_alike(stock.float().train(training), fused.float().train(training), batches[0], tolerance=1e-3)
    assert_same_state(fused, stock, 1e-3)


def assert_infers_alike(stock: nn.Module, fused: nn.Module, x: Tensor, tolerance: float = 1e-4) -> None:
    for mode in (torch.enable_grad, torch.no_grad, torch.inference_mode):
        outputs = []
        for model in (stock, fused):
            torch.manual_seed(1)
            with mode():
                outputs.append(list(tensors(model(x))))
        for theirs, ours in zip(*outputs, strict=True):
            assert_close(ours, theirs, f"output under {mode.__name__}", tolerance)


# ---- models ----------------------------------------------------------------------------------------------------------


class Functional(nn.Module):
    """A forward that is written with functions, and a residual that is added in place."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 6, 3, stride=2)
        self.norm1 = nn.BatchNorm2d(6)
        self.conv2 = nn.Conv2d(6, 6, 3, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(6)
        self.up = nn.ConvTranspose2d(6, 4, 4, 2, 1)
        self.last = nn.Conv2d(4, 3, 3)

    def forward(self, x: Tensor) -> Tensor:
        f = nn.functional
        x = f.pad(x, (1, 1, 1, 1), mode="reflect")
        x = f.leaky_relu(self.norm1(self.conv1(x)), 0.2)
        y = self.norm2(self.conv2(x))
        y += x
        y = self.up(y.relu())
        y = f.interpolate(torch.sigmoid(y), scale_factor=2, mode="nearest")
        return torch.tanh(self.last(f.pad(y, [1, 1, 1, 1])))


class Residual(nn.Module):
    def __init__(self, channels: int, after: Callable[[], nn.Module] = nn.Identity) -> None:
        super().__init__()
        self.block = nn.Sequential(
            nn.ReflectionPad2d(1),
            nn.Conv2d(channels, channels, 3),
            nn.InstanceNorm2d(channels),
            nn.ReLU(True),
            nn.ReflectionPad2d(1),
            nn.Conv2d(channels, channels, 3),
            nn.InstanceNorm2d(channels, affine=True),
        )
        self.after = after()

    def forward(self, x: Tensor) -> Tensor:
        return self.after(x + self.block(x))


def painter() -> nn.Module:
    """Every kind of chain of a network that paints."""
    return randomize(
        nn.Sequential(
            nn.ReflectionPad2d(2),
            nn.Conv2d(3, 6, 5),
            nn.BatchNorm2d(6),
            nn.ReLU(inplace=True),
            Residual(6),
            Residual(6, nn.ReLU),
            nn.ConvTranspose2d(6, 6, 3, 2, 1, 1),
            nn.InstanceNorm2d(6),
            nn.LeakyReLU(0.2),
            nn.Upsample(scale_factor=2),
            nn.ReflectionPad2d(1),
            nn.Conv2d(6, 4, 3),
            nn.GroupNorm(2, 4),
            nn.SiLU(),
            nn.Conv2d(4, 3, 3, padding=1),
            nn.Tanh(),
        )
    )


class Sum(nn.Module):
    """A branch and what it is added to, on either side, in place or not, and what follows."""

    def __init__(self, branch: nn.Module, order: str, after: nn.Module) -> None:
        super().__init__()
        self.branch, self.order, self.after = branch, order, after

    def forward(self, x: Tensor) -> Tensor:
        y = self.branch(x)
        if self.order == "in place":
            y += x
            return self.after(y)
        return self.after(y + x if self.order == "left" else torch.add(x, y))


def _norms(channels: int) -> st.SearchStrategy[nn.Module | None]:
    affine, running = st.booleans(), st.booleans()
    return st.one_of(
        st.none(),
        st.builds(nn.BatchNorm2d, st.just(channels), momentum=st.sampled_from([0.1, None]), affine=affine),
        st.builds(nn.InstanceNorm2d, st.just(channels), affine=affine, track_running_stats=running),
        st.builds(nn.GroupNorm, st.sampled_from([1, channels]), st.just(channels), affine=affine),
    )


def _activations() -> st.SearchStrategy[nn.Module | None]:
    in_place = st.booleans()
    return st.one_of(
        st.none(),
        st.builds(nn.ReLU, inplace=in_place),
        st.builds(nn.LeakyReLU, st.sampled_from([0.01, 0.3]), inplace=in_place),
        st.builds(nn.SiLU, inplace=in_place),
        st.sampled_from([nn.Tanh, nn.Sigmoid, nn.GELU, nn.Identity, nn.Softplus]).map(lambda layer: layer()),
        st.builds(nn.GELU, approximate=st.just("tanh")),
        st.builds(nn.Dropout, st.just(0.5)),
    )


@st.composite
def _convolutions(draw: st.DrawFn, C: int, K: int) -> list[nn.Module]:
    """With what may come before them; sizes grow or stay, so that what follows has pixels."""
    bias = draw(st.booleans())
    if draw(st.booleans()):
        window = draw(st.sampled_from([(4, 2, 1), (3, 2, 1, 1), (3, 1, 1), (2, 2)]))
        return [nn.ConvTranspose2d(C, K, *window, bias=bias)]
    before = draw(st.sampled_from([[], [nn.Upsample(scale_factor=2)]]))
    kernel = draw(st.sampled_from([1, 3, 5]))
    p = kernel // 2
    pads = {
        "own": ([], {"padding": p}),
        "same": ([], {"padding": "same"}),
        "own reflect": ([], {"padding": p, "padding_mode": "reflect"}),
        "circular": ([], {"padding": p, "padding_mode": "circular"}),
        "reflect": ([nn.ReflectionPad2d(p)], {}),
        "replicate": ([nn.ReplicationPad2d(p)], {}),
        "zeros": ([nn.ZeroPad2d(p)], {}),
        "lopsided": ([nn.ZeroPad2d((2 * p, 0, p, p))], {}),
        "both": ([nn.ReflectionPad2d(1)], {"padding": p}),
    }
    pad, own = pads[draw(st.sampled_from(sorted(pads)))]
    return [*before, *pad, nn.Conv2d(C, K, kernel, bias=bias, **own)]


@st.composite
def random_models(draw: st.DrawFn) -> nn.Module:
    """Chains of all sorts, those that cannot be fused among them; input [N, 4, 6, 6]."""
    layers: list[nn.Module | None] = []
    for _ in range(draw(st.integers(1, 3))):
        if draw(st.integers(0, 2)):
            layers += draw(_convolutions(4, 4))
            layers += [draw(_norms(4)), draw(_activations())]
        else:
            order = draw(st.sampled_from(["left", "right", "in place"]))
            branch = [nn.Conv2d(4, 4, 3, padding=1), draw(_norms(4))]
            if order != "in place":  # which stock's backward of most activations refuses
                branch.append(draw(_activations()))
            layers.append(Sum(nn.Sequential(*filter(None, branch)), order, draw(_activations()) or nn.Identity()))
    torch.manual_seed(draw(st.integers(0, 3)))
    return randomize(copy.deepcopy(nn.Sequential(*filter(None, layers))))
