"""Whole models on the CPU, float32: `artkernels.fuse(model)` against the model itself, inference and training steps.

python benchmarks/bench_models.py [--rounds 11] [--compile] [--engines] [--pooled] [--case NAME ...]

Peers: stock PyTorch in both memory formats; --compile: torch.compile in the format that ours has; --engines: ONNX
Runtime and OpenVINO, of inference. What is printed is Markdown, for the README.
"""

import argparse
from collections.abc import Callable
from dataclasses import dataclass

import torch
from harness import Timing, arguments, begin, interleave, ratio
from peers import ENGINES, engines, missing, missing_note
from torch import Tensor, nn
from torch.nn import functional as torch_functional

import artkernels
from artkernels.models import ConvVAE, DCGANDiscriminator, DCGANGenerator, ResnetGenerator, TransformerNet

Networks = list[nn.Module]
Call = Callable[[], Tensor]

FORMATS = {"": torch.contiguous_format, " channels_last": torch.channels_last}


def inference(networks: Networks, x: Tensor) -> Call:
    (model,) = networks
    model.eval()

    @torch.no_grad()
    def call() -> Tensor:
        return model(x)

    return call


def vae_step(networks: Networks, pictures: Tensor) -> Call:
    """One step on the evidence lower bound."""
    (model,) = networks
    optimizer = torch.optim.Adam(model.parameters())

    def step() -> Tensor:
        optimizer.zero_grad()
        decoded, mean, logvar = model(pictures)
        reconstruction = torch_functional.binary_cross_entropy(decoded, pictures, reduction="sum")
        divergence = 0.5 * (mean.square() + logvar.exp() - logvar - 1).sum()
        loss = (reconstruction + divergence) / len(pictures)
        loss.backward()
        optimizer.step()
        return loss.detach()

    return step


def dcgan_step(networks: Networks, pictures: Tensor) -> Call:
    """The step of pytorch/examples: the discriminator on real and on generated pictures, then the generator."""
    generator, discriminator = networks
    adam = {network: torch.optim.Adam(network.parameters(), lr=2e-4, betas=(0.5, 0.999)) for network in networks}
    ones, zeros = torch.ones(len(pictures)), torch.zeros(len(pictures))

    def loss_of(generated_or_real: Tensor, labels: Tensor) -> Tensor:
        loss = torch_functional.binary_cross_entropy(discriminator(generated_or_real), labels)
        loss.backward()
        return loss.detach()

    def step() -> Tensor:
        adam[discriminator].zero_grad()
        generated = generator(torch.randn(len(pictures), 100, 1, 1))
        losses = [loss_of(pictures, ones), loss_of(generated.detach(), zeros)]
        adam[discriminator].step()
        adam[generator].zero_grad()
        losses.append(loss_of(generated, ones))
        adam[generator].step()
        return torch.stack(losses)

    return step


@dataclass(frozen=True)
class Case:
    """Something that networks are used for.

    Attributes:
        shape: of the input, or of the pictures to be learned.
        use: (networks, input) -> a call that returns what they make of it, or the losses of a training step.
    """

    name: str
    title: str
    networks: tuple[type[nn.Module], ...]
    shape: tuple[int, ...]
    use: Callable[[Networks, Tensor], Call] = inference

    def stock(self) -> Networks:
        torch.manual_seed(0)
        return [network() for network in self.networks]

    def input(self) -> Tensor:
        torch.manual_seed(1)
        return torch.rand(self.shape)


CASES = [
    Case("dcgan-1", "DCGAN generator", (DCGANGenerator,), (1, 100, 1, 1)),
    Case("dcgan-64", "DCGAN generator", (DCGANGenerator,), (64, 100, 1, 1)),
    Case("fast-style-256", "TransformerNet", (TransformerNet,), (1, 3, 256, 256)),
    Case("fast-style-512", "TransformerNet", (TransformerNet,), (1, 3, 512, 512)),
    Case("cyclegan-256", "CycleGAN generator, 9 blocks", (ResnetGenerator,), (1, 3, 256, 256)),
    Case("cyclegan-512", "CycleGAN generator, 9 blocks", (ResnetGenerator,), (1, 3, 512, 512)),
    Case("vae-step", "VAE training step", (ConvVAE,), (64, 3, 64, 64), vae_step),
    Case("dcgan-step", "DCGAN training step", (DCGANGenerator, DCGANDiscriminator), (64, 3, 64, 64), dcgan_step),
]


@dataclass(frozen=True)
class Candidate:
    """A call, and the networks in which a training step leaves gradients."""

    call: Callable[[], object]
    networks: Networks

    def results(self) -> list[Tensor]:
        """What a call with a seed of its own returns, and the gradients that it leaves."""
        torch.manual_seed(2)
        output = torch.as_tensor(self.call())
        gradients = [parameter.grad for network in self.networks for parameter in network.parameters()]
        return [output, *(gradient.clone() for gradient in gradients if gradient is not None)]


def prepare(case: Case, args: argparse.Namespace) -> dict[str, Candidate]:
    """All candidates, with the same weights and the same input."""
    transforms: dict[str, Callable[[nn.Module], nn.Module]] = {"ours": artkernels.fuse, "eager": lambda model: model}
    if args.compile:
        torch._dynamo.reset()
        torch._inductor.config.fallback_random = True  # eager's random numbers, so that results can be compared
        transforms["compile"] = torch.compile
    candidates = {}
    for name, transform in transforms.items():
        for suffix, layout in FORMATS.items():
            networks = [transform(network.to(memory_format=layout)) for network in case.stock()]
            x = case.input().contiguous(memory_format=layout)
            candidates[name + suffix] = Candidate(case.use(networks, x), networks)
    if args.engines and case.use is inference:
        (stock,) = case.stock()
        calls = engines(stock.eval(), case.input())
        candidates |= {engine: Candidate(call, []) for engine, call in calls.items()}
    return candidates


def check(candidates: dict[str, Candidate]) -> None:
    """Everything makes what eager makes, and leaves its gradients."""
    results = {name: candidate.results() for name, candidate in candidates.items()}
    for name, found in results.items():
        errors = [((f - e).norm() / e.norm()).item() for f, e in zip(found, results["eager"], strict=True)]
        # Gradients can agree no better: a value within rounding of a leaky ReLU's kink has the other slope, a gradient
        # within rounding of zero the other sign in Adam's first step, which comes before the generator's gradients.
        # Between the two memory formats of eager they differ by up to 0.02.
        if not (errors[0] < 1e-4 and all(error < 5e-2 for error in errors[1:])):
            raise AssertionError(f"{name}: relative errors of the output and of the gradients: {errors}")


def peers(args: argparse.Namespace, suffix: str = "") -> dict[str, str]:
    """The table's columns -> the candidates that ours in the format of a row is compared with."""
    columns = {name: name for name in ("eager", "eager channels_last")}
    if args.compile:
        columns["torch.compile"] = f"compile{suffix}"
    return columns | {engine: engine for engine in ENGINES if args.engines and not missing(engine)}


def head(args: argparse.Namespace) -> str:
    columns = ["model", "input", "ours", *(f"vs {peer}" for peer in peers(args))]
    return f"| {' | '.join(columns)} |\n{'|---' * len(columns)}|"


def row(case: Case, suffix: str, timings: dict[str, Timing], args: argparse.Namespace) -> str:
    ours = timings[f"ours{suffix}"]
    cells = [case.title, " x ".join(map(str, case.shape)) + suffix, f"{1e3 * ours.median:.2f} ms"]
    for peer in peers(args, suffix).values():
        cells.append(str(ratio(timings[peer], ours)).strip() if peer in timings else "")
    return f"| {' | '.join(cells)} |"


def main() -> None:
    parser = arguments(__doc__, (case.name for case in CASES))
    parser.add_argument("--engines", action="store_true", help="ONNX Runtime and OpenVINO as further peers")
    args = parser.parse_args()
    begin(args)
    print("ratio: time of the peer / ours, median (quartiles) of rounds" + (missing_note() if args.engines else ""))
    print(f"\n{head(args)}")
    for case in CASES:
        if args.case and case.name not in args.case:
            continue
        candidates = prepare(case, args)
        check(candidates)
        timings = interleave({name: candidate.call for name, candidate in candidates.items()}, args.rounds)
        for suffix in FORMATS:
            print(row(case, suffix, timings, args), flush=True)


if __name__ == "__main__":
    main()
