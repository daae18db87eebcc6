"""Modelled traffic of reparameterisation + KL divergence: python benchmarks/modelled_reparameterize_kl.py

modelled.py says what the columns are. least: three arrays read, one written; backward four and two. stock: what each of
its kernels reads and writes. Forward, scale, exp, multiply and add (10 arrays), square, exp, add, two subtractions and
sum (13); backward, through the codes (11), through the divergence (10), and the sums of both (5).
"""

from __future__ import annotations

import torch
from modelled import DTYPES, HEADER, cuda, parser, require_nvcc, row

SHAPES = {"vae": (64, 128), "latent maps": (16, 4096), "large maps": (4, 65536)}
STOCK = {"forward": 23, "backward": 26}  # arrays


def main() -> None:
    options = parser(__doc__)
    options.add_argument("--case", nargs="*", choices=SHAPES, default=list(SHAPES))
    args = options.parse_args()
    require_nvcc("modelled_reparameterize_kl")
    print(f"modelled on {args.profile}'s grid; MB, microseconds\n")
    print(f"{'case':<12} {'dtype':<9} {'N x D':<12} {'op':<8} {HEADER}")
    for case in args.case:
        N, D = SHAPES[case]
        for name in args.dtype:
            mean, logvar, noise, grad_codes = (cuda.place(torch.randn(N, D).to(DTYPES[name])) for _ in range(4))
            grad_kl, modelled = cuda.place(torch.randn(N)), dict(profile=args.profile, checks="none,traffic")
            forward = cuda.reparameterize_kl(mean, logvar, noise, **modelled)[2]
            backward = cuda.reparameterize_kl_backward(
                grad_codes, grad_kl, mean, logvar, noise, wanted=(True, True, False), **modelled
            )[3]
            for op, launches, arrays in (("forward", forward, 4), ("backward", backward, 6)):
                least, stock = arrays * mean.nbytes + 4 * N, STOCK[op] * mean.nbytes + 4 * N
                print(f"{case:<12} {name:<9} {f'{N} x {D}':<12} {op:<8} {row(launches, least, stock)}")


if __name__ == "__main__":
    main()
