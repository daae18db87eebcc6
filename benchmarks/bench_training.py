"""Training steps of the recipes on the CPU, float32: the trainer with --kernels fused against --kernels stock.

    python benchmarks/bench_training.py [--case dcgan ...] [--rounds 11] [--pooled]

Both trainers take the same steps on the same pictures: everything from the noise to the optimizers and the averaged
weights, but for reading files and writing them. Losses of the first step are compared before anything is timed.
"""

import tempfile
from collections.abc import Callable
from pathlib import Path

import torch
from harness import arguments, begin, interleave, ratio

from artkernels import images
from artkernels.recipes import RECIPES, build
from artkernels.training.options import from_plain
from artkernels.training.trainer import Trainer

CASES: dict[str, tuple[str, dict[str, object]]] = {
    "dcgan": ("dcgan", {"batch": 64, "resolution": 64}),
    "vae": ("vae", {"batch": 64, "resolution": 64}),
    "fast-style": ("fast-style", {"batch": 1, "resolution": 256}),
    "fast-style-4": ("fast-style", {"batch": 4, "resolution": 256}),
    "adain": ("adain", {"batch": 4, "resolution": 256, "style": "PICTURES"}),
    "cyclegan": ("cyclegan", {"batch": 1, "resolution": 256, "data_b": "PICTURES"}),
}


def noise(folder: Path) -> Path:
    """Pictures: nothing that is timed depends on what they show."""
    folder.mkdir()
    for index in range(4):
        images.save(torch.rand(3, 256, 256), folder / f"{index}.png")
    return folder


def trainer(recipe: str, values: dict[str, object], kernels: str, pictures: Path) -> Trainer:
    """A trainer of one kind."""
    if recipe == "fast-style":
        values = {**values, "style": pictures / "0.png"}
    values = {name: pictures if value == "PICTURES" else value for name, value in values.items()}
    kind = RECIPES[recipe].options_type
    common = {"data": pictures, "outdir": pictures.parent / "runs", "kernels": kernels, "device": "cpu"}
    return Trainer(build(recipe, from_plain(kind, {**common, **values})))


def step(trainer: Trainer) -> Callable[[], None]:
    """One step on pictures of random numbers, the same for both trainers."""
    options = trainer.options
    generator = torch.Generator().manual_seed(0)
    shape = (options.batch, 3, options.resolution, options.resolution)
    batch = {source: torch.rand(shape, generator=generator) for source in trainer.recipe.sources()}
    return lambda: trainer.train_step([dict(batch)])


def main() -> None:
    parser = arguments(__doc__, CASES)
    args = parser.parse_args()
    begin(args)
    print("| recipe | batch | pictures | ours | pictures a second | vs stock |\n|---|---|---|---|---|---|")
    for name in args.case or CASES:
        recipe, values = CASES[name]
        with tempfile.TemporaryDirectory() as folder:
            pictures = noise(Path(folder) / "pictures")
            trainers = {kernels: trainer(recipe, values, kernels, pictures) for kernels in ("fused", "stock")}
            calls = {kernels: step(made) for kernels, made in trainers.items()}
            first = {}
            for kernels, call in calls.items():
                torch.manual_seed(0)
                call()
                first[kernels] = trainers[kernels]._means()
            for loss, value in first["stock"].items():
                torch.testing.assert_close(first["fused"][loss], value, rtol=1e-3, atol=1e-3)
            timings = interleave(calls, args.rounds)
            for made in trainers.values():
                made.directory.close()
        ours, side = timings["fused"].median, values["resolution"]
        rate = values["batch"] / ours
        gain = ratio(timings["stock"], timings["fused"])
        print(
            f"| {recipe} | {values['batch']} | {side} x {side} | {1000 * ours:.0f} ms | {rate:.1f} | {gain} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
