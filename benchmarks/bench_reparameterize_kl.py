"""Reparameterisation + KL divergence of a VAE, forward and forward + backward, against stock PyTorch on the CPU.

python benchmarks/bench_reparameterize_kl.py [--rounds 21] [--compile] [--pooled] [--case NAME ...]
"""

import functools
from collections.abc import Callable

import torch
from harness import arguments, begin, interleave, ratio
from torch import Tensor

from artkernels import functional as F

CASES = {
    "vae-128": (64, 128),
    "vae-512": (64, 512),
    "wide": (256, 4096),
    "latent-maps": (16, 4, 32, 32),
    "one-picture": (1, 4, 64, 64),
}
CALLS = 20  # a turn: one is too short for the clock

Loss = Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]


def stock(mean: Tensor, logvar: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
    """As it is written by hand."""
    divergence = 1 + logvar - mean.pow(2) - logvar.exp()
    return mean + noise * torch.exp(0.5 * logvar), -0.5 * divergence.flatten(1).sum(1)


def repeat(call: Callable[[], object]) -> Callable[[], None]:
    def turn() -> None:
        for _ in range(CALLS):
            call()

    return turn


def train_step(function: Loss, leaves: list[Tensor], noise: Tensor, grad_codes: Tensor) -> tuple[Tensor, ...]:
    codes, kl = function(*leaves, noise)
    return torch.autograd.grad((codes, kl.mean()), leaves, (grad_codes, torch.ones(())))


def line(name: str, rounds: int, compile: bool) -> str:
    torch.manual_seed(0)
    mean, logvar, noise, grad_codes = (torch.randn(CASES[name]) for _ in range(4))
    functions: dict[str, Loss] = {"ours": F.reparameterize_kl, "eager": stock}
    if compile:
        torch._dynamo.reset()
        functions["compile"] = torch.compile(stock)
    with torch.no_grad():
        calls = {peer: repeat(functools.partial(f, mean, logvar, noise)) for peer, f in functions.items()}
        forward = interleave(calls, rounds)
    leaves = [mean.requires_grad_(), logvar.requires_grad_()]
    steps = {peer: repeat(functools.partial(train_step, f, leaves, noise, grad_codes)) for peer, f in functions.items()}
    train = interleave(steps, rounds)
    columns = [f"{name:<12} {'x'.join(map(str, CASES[name])):<12}"]
    for what, timings in (("forward", forward), ("train", train)):
        columns.append(f"{what} {1e6 * timings['ours'].median / CALLS:8.1f} us")
        columns += [f"{peer} {ratio(timings[peer], timings['ours'])}" for peer in functions if peer != "ours"]
    return "  ".join(columns)


def main() -> None:
    args = arguments(__doc__, CASES).parse_args()
    begin(args)
    print("ratio: time of the peer / ours, median (quartiles) of rounds")
    for name in args.case or CASES:
        print(line(name, args.rounds, args.compile), flush=True)


if __name__ == "__main__":
    main()
