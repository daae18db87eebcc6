"""The one training loop: any recipe, on a CPU, a GPU or several processes; stopped and continued at any step."""

import contextlib
import logging
import math
import signal
import time
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import broadcast_object_list, gather_object
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from tqdm import tqdm

import artkernels
from artkernels.errors import UserError
from artkernels.training.batches import Batches, loader
from artkernels.training.options import to_plain
from artkernels.training.parallel import (
    average_gradients,
    broadcast_networks,
    make_accelerator,
    synchronise_batch_norms,
)
from artkernels.training.pictures import to_unit
from artkernels.training.random_state import get_random_state, seed_everything, set_random_state
from artkernels.training.recipe import Batch, Phase, Recipe
from artkernels.training.run_directory import RunDirectory
from artkernels.training.runs import load_state, read_options
from artkernels.training.signals import on_signals
from artkernels.training.sources import open_sources, sample_batch

__all__ = ["Trainer"]

logger = logging.getLogger("artkernels")

_MOST_ROLL_BACKS = 3  # between two saves


class Trainer:
    """Trains a recipe's networks and keeps its run directory.

    Everything that the losses depend on is part of state.pt: networks, their averages, optimizers, random numbers of
    every library, and the position in the data. On a CPU a run that was stopped, at any instant, and continued with as
    many threads gives bit for bit the losses of one that was not.

    Gradients are averaged over the processes once a phase, by hand: DistributedDataParallel allows one forward for
    each backward, no frozen weights that thaw, and no second derivatives, and adversarial training needs all three.

    Args:
        recipe: not trained yet.
        run: a run directory to continue; None begins a new one in ``recipe.options.outdir``.

    Raises:
        UserError: data, device or options that cannot be.
    """

    def __init__(self, recipe: Recipe, run: Path | None = None) -> None:
        self.recipe, self.options = recipe, recipe.options
        self.accelerator = make_accelerator(recipe.options)
        recipe.device = self.accelerator.device
        recipe.rank, recipe.world_size = self.accelerator.process_index, self.accelerator.num_processes
        self._check_batch()
        self._early_reports: list[str] = []
        self.directory: RunDirectory | None = None
        self.pictures = open_sources(recipe, self._report_picture)
        self._prepare_networks()
        self.step = 0
        self.position = 0  # in the data: batches seen, the parts of a step counted each
        self.roll_backs = 0  # since the last save
        self._sums: dict[str, Tensor] = {}  # of what was measured since the last line of the log
        self.stopped: signal.Signals | None = None
        if run is not None:
            self._continue(run)  # first: what does not fit must leave the run as it is
        self._open_directory(run)

    def train(self) -> None:
        """Run to the last step; SIGTERM or Ctrl-C saves and returns early, and ``stopped`` says which it was.

        Raises:
            UserError: losses are no longer finite, and going back did not help; a file cannot be written.
        """
        try:
            self._train()
            if self.stopped and self.directory:
                logger.info("stopped at step %d; continue with --resume %s", self.step, self.path)
        finally:
            if self.directory:
                self.directory.close()
            if self.recipe.world_size > 1:
                self.accelerator.end_training()

    def _train(self) -> None:
        options = self.options
        progress = tqdm(initial=self.step, total=options.steps, unit="step", disable=None if self.directory else True)
        with contextlib.closing(self._batches()) as batches, progress, on_signals(self._stop):
            self._clock, self._clock_step = time.perf_counter(), self.step
            if self.step == 0:
                self._save()
            elif self.directory and not self.directory.has_grid("fakes", self.step):
                self._show()  # the run was killed after its state was saved
            while self.step < options.steps and not self._must_stop():
                self.train_step([next(batches) for _ in range(options.accumulate)])
                self._end_step(progress)
            if self.step < options.steps:
                self._save_if_sound(self.means())
            else:
                self.stopped = None  # told to stop in the last step: nothing is left to continue

    # ---- a step ------------------------------------------------------------------------------------------------------

    def train_step(self, batches: list[Batch]) -> None:
        """All phases of a step, on a batch that may come in several parts of one size."""
        for network in self.recipe.networks.values():
            network.train()
        with self.accelerator.autocast():
            for batch in batches:
                self.recipe.share(batch, self.step)
        for phase in self.recipe.phases:
            if self.step % phase.every == 0:
                self._train_phase(phase, batches)
        for name, average in self.averages.items():
            average.update_parameters(self.recipe.networks[name])
        self.step += 1

    def _train_phase(self, phase: Phase, batches: list[Batch]) -> None:
        optimizer = self.optimizers[phase.name]
        factor = phase.schedule(self.step / self.options.steps)
        for group, rate in zip(optimizer.param_groups, self._rates[phase.name], strict=True):
            group["lr"] = factor * rate
        with self._others_frozen(phase):
            for batch in batches:
                with self.accelerator.autocast():
                    losses = phase.loss(batch)
                self.accelerator.backward(losses["loss"] / len(batches))
                for name, value in losses.items():
                    self._measure(f"{phase.name}/{name}", value)
        average_gradients(self.accelerator, phase.networks)
        optimizer.step()
        optimizer.zero_grad()

    @contextlib.contextmanager
    def _others_frozen(self, phase: Phase) -> Iterator[None]:
        """No gradients for the weights that the phase does not train: they would be computed for nothing."""
        others = [
            parameter
            for network in self.recipe.networks.values()
            if network not in phase.networks
            for parameter in network.parameters()
            if parameter.requires_grad
        ]
        for parameter in others:
            parameter.requires_grad_(False)
        try:
            yield
        finally:
            for parameter in others:
                parameter.requires_grad_(True)

    def _end_step(self, progress: "tqdm[Any]") -> None:
        progress.update()
        at_tick, at_snap = self.step % self.options.tick == 0, self.step % self.options.snap == 0
        at_snap |= self.step == self.options.steps
        if not (at_tick or at_snap):
            return
        means = self.means()
        if not self._is_sound(means):
            self._roll_back(progress)
            return
        if at_tick:
            self._report(means, progress)
        if at_snap:
            self._save()

    # ---- what is said ------------------------------------------------------------------------------------------------

    def _report_picture(self, message: str) -> None:
        """Pictures are opened before there is a directory, whose making should be the last thing that can fail."""
        if self.directory:
            logger.warning("%s", message)
        else:
            self._early_reports.append(message)

    def _measure(self, name: str, value: Tensor) -> None:
        one = torch.stack([value.detach().double(), value.new_ones((), dtype=torch.float64)])
        self._sums[name] = self._sums[name] + one if name in self._sums else one

    def means(self) -> dict[str, float]:
        """Of what was measured since the last line of the log, over all processes."""
        if not self._sums:
            return {}
        sums = self.accelerator.reduce(torch.stack(list(self._sums.values())), "sum")
        return dict(zip(self._sums, (sums[:, 0] / sums[:, 1]).tolist(), strict=True))

    def _report(self, means: dict[str, float], progress: "tqdm[Any]") -> None:
        now = time.perf_counter()
        rate = (self.step - self._clock_step) * self.options.batch / (now - self._clock)
        self._clock, self._clock_step = now, self.step
        self._sums.clear()
        if self.directory:
            kimg = self.step * self.options.batch / 1000
            self.directory.stats(self.step, {**means, "kimg": kimg, "images_per_second": rate})
            losses = {name.removesuffix("/loss"): f"{value:.3f}" for name, value in means.items() if "/loss" in name}
            progress.set_postfix({**losses, "images/s": f"{rate:.0f}"}, refresh=False)

    # ---- stopping, saving, going back --------------------------------------------------------------------------------

    def _stop(self, number: int) -> None:
        if self.stopped:
            raise KeyboardInterrupt  # asked twice: without saving
        self.stopped = signal.Signals(number)

    def _must_stop(self) -> bool:
        """Whether a process was told to stop; all must agree, and one number a step is little beside the gradients."""
        if self.recipe.world_size == 1:
            return self.stopped is not None
        own = torch.tensor([self.stopped or 0], device=self.recipe.device)
        number = int(self.accelerator.gather(own).max())
        self.stopped = signal.Signals(number) if number else None
        return number != 0

    def _is_sound(self, means: dict[str, float]) -> bool:
        parameters = [p for network in self.recipe.networks.values() for p in network.parameters()]
        finite = torch.stack([parameter.detach().isfinite().all() for parameter in parameters]).all()
        return all(map(math.isfinite, means.values())) and bool(finite)

    def _save_if_sound(self, means: dict[str, float]) -> None:
        if self._is_sound(means):
            self._save()

    def _save(self) -> None:
        """Write the state first: it is what a crash between two files must not cost."""
        self.roll_backs = 0
        state = self._state_dict()
        if self.directory:
            self.directory.save_state(state)
            self._show()
        self._clock, self._clock_step = time.perf_counter(), self.step

    def _show(self) -> None:
        assert self.directory
        self.directory.snapshot(self.step, self._averaged_networks())
        self.directory.grid("fakes", self._preview(), self.step)

    def _roll_back(self, progress: "tqdm[Any]") -> None:
        """Return to the last save, and on from there with other pictures and other noise.

        Raises:
            UserError: it has not helped so far.
        """
        step, position, roll_backs = self.step, self.position, self.roll_backs + 1
        if roll_backs > _MOST_ROLL_BACKS:
            raise UserError(
                f"losses were no longer finite before step {step}, {roll_backs} times since the last save: "
                f"a lower --lr may help (it is {self.options.lr:g})"
            )
        self._load_state_dict(load_state(self.path))
        self.position, self.roll_backs = position, roll_backs
        seed_everything(hash((self.options.seed, self.step, roll_backs)) % 2**63)
        if self.directory:
            logger.warning("losses were no longer finite before step %d: back to step %d", step, self.step)
            self.directory.forget_after(self.step)
        progress.n = self.step
        self._clock, self._clock_step = time.perf_counter(), self.step

    @torch.no_grad()
    def _preview(self) -> Tensor:
        networks = self._averaged_networks()
        with torch.random.fork_rng(), self.accelerator.autocast():
            torch.manual_seed(self.options.seed)
            return self.recipe.preview(networks, self._samples)

    # ---- state -------------------------------------------------------------------------------------------------------

    def _state_dict(self) -> dict[str, Any]:
        # Every process has noise and, with some recipes, memories of its own.
        own = {"random": get_random_state(), "recipe": self.recipe.state_dict()}
        return {
            "recipe": self.recipe.name,
            "version": artkernels.__version__,
            "pictures": {source: len(pictures) for source, pictures in self.pictures.items()},
            "step": self.step,
            "position": self.position,
            "sums": dict(self._sums),
            "networks": {name: network.state_dict() for name, network in self.recipe.networks.items()},
            "networks_ema": {name: average.module.state_dict() for name, average in self.averages.items()},
            "optimizers": {name: optimizer.state_dict() for name, optimizer in self.optimizers.items()},
            "scaler": self.accelerator.scaler.state_dict() if self.accelerator.scaler else {},
            "processes": gather_object([own]),
        }

    def _continue(self, run: Path) -> None:
        state = load_state(run)
        try:
            self._load_state_dict(state)
        except (KeyError, RuntimeError, ValueError) as error:
            raise UserError(
                f"{run}: its state does not fit these options: continue it with its own, or begin a run with --init"
            ) from error
        if self.options.steps < self.step:
            raise UserError(f"{run}: is at step {self.step} already, --steps must be more, got {self.options.steps}")

    def _load_state_dict(self, state: dict[str, Any]) -> None:
        for source, pictures in self.pictures.items():
            if len(pictures) != (before := state["pictures"][source]):
                self._report_picture(f"{source}: {len(pictures)} pictures now, {before} when the state was saved")
        self.step, self.position = state["step"], state["position"]
        self._sums = {name: sums.to(self.recipe.device) for name, sums in state["sums"].items()}
        for name, network in self.recipe.networks.items():
            network.load_state_dict(state["networks"][name])
        for name, average in self.averages.items():
            average.module.load_state_dict(state["networks_ema"][name])
            average.n_averaged.fill_(self.step)
        for name, optimizer in self.optimizers.items():
            optimizer.load_state_dict(state["optimizers"][name])
        if self.accelerator.scaler and state["scaler"]:
            self.accelerator.scaler.load_state_dict(state["scaler"])
        own = state["processes"][self.recipe.rank % len(state["processes"])]
        self.recipe.load_state_dict(own["recipe"])
        set_random_state(own["random"])

    # ---- before the first step ---------------------------------------------------------------------------------------

    def _check_batch(self) -> None:
        accumulate, processes, batch = self.options.accumulate, self.recipe.world_size, self.options.batch
        if batch % (accumulate * processes):
            raise UserError(f"batch must be a multiple of {accumulate} parts x {processes} processes, got {batch}")

    def _prepare_networks(self) -> None:
        recipe, options = self.recipe, self.options
        networks = [*recipe.networks.values(), *recipe.frozen]
        for network in networks:
            network.to(recipe.device)
        if recipe.world_size > 1:
            broadcast_networks(recipe.networks.values())
            synchronise_batch_norms(recipe.networks.values(), recipe.device, options.kernels)
        if options.kernels == "fused":
            for network in networks:
                artkernels.fuse(network, inplace=True)
        self.optimizers = {phase.name: self.accelerator.prepare_optimizer(phase.optimizer) for phase in recipe.phases}
        self._rates = {phase.name: [g["lr"] for g in phase.optimizer.param_groups] for phase in recipe.phases}

        def average(averaged: Any, current: Any, count: Any) -> None:
            # The first weights are soon forgotten, also in a run shorter than the decay is made for.
            decay = min(options.ema, (1 + self.step) / (10 + self.step))
            get_ema_multi_avg_fn(decay)(averaged, current, count)  # type: ignore[no-untyped-call]

        self.averages = {
            name: AveragedModel(recipe.networks[name], multi_avg_fn=average, use_buffers=True)
            for name in recipe.averaged
        }
        seed_everything(options.seed)  # again: networks of another shape draw more or less

    def _averaged_networks(self) -> dict[str, nn.Module]:
        return {name: average.module.eval() for name, average in self.averages.items()}

    def _batches(self) -> Generator[Batch]:
        """The pictures of this process from here on, one part of a step after the other."""
        options, recipe = self.options, self.recipe
        on_gpu = recipe.device.type == "cuda"
        # A CPU that trains has no core to spare, and pictures are decoded once and kept.
        workers = options.workers if options.workers is not None else 4 if on_gpu else 0
        loaders = {}
        for index, (source, pictures) in enumerate(self.pictures.items()):
            batches = Batches(
                pictures,
                options.batch // options.accumulate,
                seed=options.seed + index,  # or equally many pictures of two sources would always come in pairs
                position=self.position,
                rank=recipe.rank,
                world_size=recipe.world_size,
            )
            loaders[source] = loader(pictures, batches, workers, pin_memory=on_gpu)
        for parts in zip(*loaders.values(), strict=True):
            self.position += 1
            yield {
                source: to_unit(part.to(recipe.device, non_blocking=True))
                for source, part in zip(loaders, parts, strict=True)
            }

    def _open_directory(self, run: Path | None) -> None:
        recipe = self.recipe
        made_with: dict[str, Any] = {
            "recipe": recipe.name,
            "version": artkernels.__version__,
            "options": to_plain(recipe.options),
        }
        if recipe.rank == 0:
            if run is None:
                self.directory = RunDirectory.create(recipe.options.outdir, recipe.name, recipe.options.data, made_with)
            else:
                made_with["options"]["init"] = read_options(run)["options"]["init"]  # what it began with stays known
                self.directory = RunDirectory(run, made_with, self.step)
            logger.info("%s", self.directory.path)
            for report in self._early_reports:
                logger.warning("%s", report)
            self._samples = sample_batch(recipe, self.pictures)
            if run is None:
                self.directory.grid("reals", torch.cat(list(self._samples.values())))
        paths = [self.directory.path if self.directory else None]
        self.path: Path = broadcast_object_list(paths)[0]
