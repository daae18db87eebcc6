"""The trainer: what a step does, what a run directory holds, and that a run continued is a run never stopped."""

import json
import os
import random
import signal
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

sys.path.insert(0, str(Path(__file__).parent))
from tiny_recipe import pictures, trainer

from artkernels.errors import UserError
from artkernels.training.random_state import get_random_state, set_random_state
from artkernels.training.runs import METADATA_KEY, latest_snapshots, load_state, read_options


@pytest.fixture
def data(tmp_path) -> Path:
    return pictures(tmp_path / "colours")


def losses(run: Path) -> list[dict[str, float]]:
    """The log without how fast it went."""
    lines = [json.loads(line) for line in (run / "stats.jsonl").read_text().splitlines()]
    return [{name: value for name, value in line.items() if name != "images_per_second"} for line in lines]


def trained(data: Path, run: Path | None = None, **values: object):
    made = trainer(data, run, **values)
    made.train()
    return made


def after_phases(made, function) -> None:
    """Call ``function`` with each phase that has been trained."""
    train_phase = made._train_phase

    def then(phase, batches):
        train_phase(phase, batches)
        function(phase)

    made._train_phase = then


def stop_at(made, step: int, number: signal.Signals = signal.SIGTERM) -> None:
    """Send this process a signal in the middle of a step."""

    def stepped(phase) -> None:
        if made.step == step and phase.name == "painter":
            os.kill(os.getpid(), number)

    after_phases(made, stepped)


# ---- the run directory -----------------------------------------------------------------------------------------------


def test_a_run_directory_holds_options_log_losses_events_pictures_snapshots_and_state(data):
    run = trained(data).path
    assert run.name == "00000-tiny-colours"
    steps = ("000000", "000005", "000010", "000012")
    assert {path.name for path in run.iterdir() if not path.name.startswith("events.out.tfevents.")} == {
        "options.json", "log.txt", "stats.jsonl", "reals.png", "state.pt",
        *(f"fakes{step}.png" for step in steps),
        *(f"network-snapshot-{step}.safetensors" for step in steps),
    }  # fmt: skip
    assert [line["step"] for line in losses(run)] == list(range(1, 13))
    assert {"painter/loss", "painter/error", "judge/loss", "kimg"} < set(losses(run)[0])
    content = read_options(run)
    assert content["recipe"] == "tiny"
    assert content["options"]["steps"] == 12
    assert content["options"]["data"] == str(data)
    events = EventAccumulator(str(run)).Reload()
    recorded = {event.step: event.value for event in events.Scalars("painter/loss")}
    assert recorded == pytest.approx({line["step"]: line["painter/loss"] for line in losses(run)})
    assert "fakes" in events.Tags()["images"]
    assert "00000-tiny-colours" in (run / "log.txt").read_text()


def test_runs_are_numbered(data):
    assert [trained(data, steps=1).path.name for _ in range(3)] == [f"0000{n}-tiny-colours" for n in range(3)]
    (data.parent / "runs" / "00041-other").mkdir()
    assert trained(data, steps=1).path.name == "00042-tiny-colours"


def test_reals_shows_the_pictures(data):
    with Image.open(trained(data, steps=1).path / "reals.png") as sheet:
        colours = {sheet.getpixel((x, y)) for x in range(sheet.width) for y in range(sheet.height)}
    assert colours == {(20 * n, 255 - 20 * n, 7 * n) for n in range(12)} | {(255, 255, 255)}


def test_a_snapshot_has_the_averaged_weights_under_their_plain_names_and_says_how_it_was_made(data):
    made = trained(data)
    path = latest_snapshots(made.path)[""]
    assert path.name == "network-snapshot-000012.safetensors"
    state = load_file(path)
    assert list(state) == ["bias", "weight"]
    torch.testing.assert_close(state["weight"], made.averages["painter"].module.weight.detach(), rtol=0, atol=0)
    with safe_open(path, "pt") as file:
        made_with = json.loads(file.metadata()[METADATA_KEY])
    assert made_with["recipe"] == "tiny"
    assert made_with["options"]["lr"] == 0.01


def test_what_a_run_holds_has_the_permissions_that_files_usually_have(data):
    run = trained(data, steps=1).path
    (run / "usual").touch()
    assert {oct(path.stat().st_mode) for path in run.iterdir()} == {oct((run / "usual").stat().st_mode)}


# ---- a step ----------------------------------------------------------------------------------------------------------


def test_a_phase_trains_its_networks_and_freezes_the_others(data):
    recipe = trained(data, steps=2).recipe
    assert recipe.trace == 2 * [("painter", [False, False]), ("judge", [False, False])]
    assert all(p.requires_grad for network in recipe.networks.values() for p in network.parameters())


def test_a_lazy_phase_takes_place_at_every_so_many_steps(data):
    made = trained(data, steps=7, judge_every=3)
    assert [name for name, _ in made.recipe.trace].count("painter") == 7
    assert [index for index, line in enumerate(losses(made.path)) if "judge/loss" in line] == [0, 3, 6]


def test_a_batch_in_parts_has_the_gradient_of_the_whole(data):
    whole = trained(data, steps=5, kernels="stock")
    # The noise of a part is drawn with the part: the same numbers in the same order.
    parts = trained(data, steps=5, accumulate=2, kernels="stock")
    for name in ("painter/error", "judge/loss"):
        expected = [line[name] for line in losses(whole.path)]
        assert [line[name] for line in losses(parts.path)] == pytest.approx(expected, rel=1e-4, abs=1e-6)


def test_averaged_weights_follow_the_formula(data):
    made = trainer(data, steps=8, ema=0.6)
    expected, histories = None, []
    after_phases(made, lambda phase: histories.append(made.recipe.painter.weight.detach().clone()))
    made.train()
    for step, weight in enumerate(histories[::2]):
        decay = min(0.6, (1 + step) / (10 + step))
        expected = weight if expected is None else decay * expected + (1 - decay) * weight
    torch.testing.assert_close(made.averages["painter"].module.weight.detach(), expected)


def test_without_averaging_samples_are_made_with_the_last_weights(data):
    made = trained(data, ema=0)
    torch.testing.assert_close(made.averages["painter"].module.weight, made.recipe.painter.weight, rtol=0, atol=0)


def test_the_learning_rate_follows_the_schedule(data):
    made = trainer(data, steps=10)
    phase = made.recipe.phases[0]
    object.__setattr__(phase, "schedule", lambda progress: 1 - progress)
    seen = []
    after_phases(made, lambda phase: seen.append(phase.optimizer.param_groups[0]["lr"]))
    made.train()
    assert seen[::2] == pytest.approx([0.01 * (1 - step / 10) for step in range(10)])


def test_losses_of_a_line_are_the_means_since_the_last_one(data):
    every, third = trained(data), trained(data, tick=3)
    expected = [sum(line["painter/loss"] for line in losses(every.path)[i : i + 3]) / 3 for i in range(0, 12, 3)]
    assert [line["painter/loss"] for line in losses(third.path)] == pytest.approx(expected)


def test_the_same_seed_gives_the_same_run_and_another_another(data):
    first, second, other = (losses(trained(data, seed=seed).path) for seed in (3, 3, 4))
    assert first == second
    assert first != other


def test_kimg_counts_thousands_of_pictures(data):
    made = trained(data, kimg=0.02)
    assert made.options.steps == 5
    assert losses(made.path)[-1]["kimg"] == 0.02


# ---- stopping and continuing -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize(
    "values", [{}, {"accumulate": 2}, {"tick": 4}, {"judge_every": 3}, {"mirror": True, "fit": "random-crop"}]
)
def test_a_run_that_was_stopped_and_continued_has_bit_for_bit_the_losses_of_one_that_was_not(data, values, number):
    never = trained(data, **values)
    made = trainer(data, **values)
    stop_at(made, 7, number)
    made.train()
    assert made.stopped == number
    assert made.step == 8
    again = trained(data, made.path, **values)
    assert again.step == 12
    assert losses(again.path) == losses(never.path)
    for name, network in never.recipe.networks.items():
        for key, value in network.state_dict().items():
            assert torch.equal(value, again.recipe.networks[name].state_dict()[key]), key
    for key, value in never.averages["painter"].module.state_dict().items():
        assert torch.equal(value, again.averages["painter"].module.state_dict()[key])


def test_steps_after_the_last_save_are_made_again_with_the_same_losses(data):
    never = trained(data)
    made = trainer(data)

    def die(phase):
        if made.step == 8:
            raise RuntimeError("as if the machine had gone")

    after_phases(made, die)
    with pytest.raises(RuntimeError, match="gone"):
        made.train()
    assert [line["step"] for line in losses(made.path)] == list(range(1, 9))
    with (made.path / "stats.jsonl").open("a") as file:
        file.write('{"step": 9, "pain')  # cut short
    assert load_state(made.path)["step"] == 5
    assert losses(trained(data, made.path).path) == losses(never.path)


def test_a_signal_leaves_the_handlers_of_the_process_as_they_were(data):
    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    made = trainer(data)
    stop_at(made, 2)
    made.train()
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == before


def test_the_random_state_of_every_library_is_kept(tmp_path):
    state = get_random_state()
    torch.save(state, tmp_path / "state.pt")
    drawn = random.random(), np.random.normal(), torch.randn(3).tolist(), random.gauss(0, 1)
    set_random_state(torch.load(tmp_path / "state.pt", weights_only=True))
    assert (random.random(), np.random.normal(), torch.randn(3).tolist(), random.gauss(0, 1)) == drawn


def test_continuing_says_when_the_pictures_are_not_those_of_before(data, caplog):
    run = trained(data, steps=5).path
    (data / "00.png").unlink()
    trained(data, run, steps=6)
    assert "data: 11 pictures now, 12 when the state was saved" in caplog.text


def test_a_longer_run_continues_a_finished_one(data):
    run = trained(data, steps=5).path
    assert trained(data, run, steps=9).step == 9
    assert [line["step"] for line in losses(run)] == list(range(1, 10))
    assert read_options(run)["options"]["steps"] == 9


def test_a_run_that_was_killed_before_its_last_sheet_gets_it_when_it_is_continued(data):
    run = trained(data, steps=5).path
    files = {path.name for path in run.iterdir()}
    for name in ("fakes000005.png", "network-snapshot-000005.safetensors"):
        (run / name).unlink()
    trained(data, run, steps=5)
    assert files <= {path.name for path in run.iterdir()}


def test_a_run_is_not_continued_to_a_step_that_it_has_passed(data):
    run = trained(data, steps=5).path
    with pytest.raises(UserError, match="is at step 5 already, --steps must be more, got 4"):
        trainer(data, run, steps=4)
    assert read_options(run)["options"]["steps"] == 5


def test_lines_of_the_log_that_a_crash_has_damaged_are_written_again(data):
    run = trained(data, steps=5).path
    with (run / "stats.jsonl").open("ab") as file:
        file.write(bytes(20) + b"\n")
    trained(data, run, steps=7)
    assert [line["step"] for line in losses(run)] == list(range(1, 8))


def test_sheets_of_runs_are_not_learnt_from(data):
    runs = data / "runs"
    run = trained(data, steps=1, outdir=runs).path
    assert run.parent == runs
    assert len(trainer(data, outdir=runs).pictures["data"]) == 12


def test_an_empty_folder_is_no_run_to_continue(data, tmp_path):
    with pytest.raises(UserError, match=r"no run to continue: it has no state\.pt"):
        trainer(data, tmp_path)


# ---- losses that are no longer finite --------------------------------------------------------------------------------


def poison(made, steps: set[int], times: int) -> None:
    """Make the painter's loss NaN at some steps, the first so many times."""
    paint, left = made.recipe.paint, [times]
    phase = made.recipe.phases[0]

    def loss(batch):
        result = paint(batch)
        if made.step in steps and left[0]:
            left[0] -= 1
            result["loss"] = result["loss"] * float("nan")
        return result

    object.__setattr__(phase, "loss", loss)


def test_a_loss_that_is_not_finite_takes_the_run_back_to_the_last_save_and_on_with_other_pictures(data, caplog):
    made = trainer(data)
    poison(made, {7}, times=1)
    made.train()
    assert "losses were no longer finite before step 8: back to step 5" in caplog.text
    lines = losses(made.path)
    assert [line["step"] for line in lines] == list(range(1, 13))
    assert all(np.isfinite(line["painter/loss"]) for line in lines)
    assert made.position == 12 + 3
    never = losses(trained(data).path)
    assert lines[:5] == never[:5]
    assert lines[5] != never[5]


def test_a_run_whose_losses_stay_infinite_ends_with_a_sentence_and_a_sound_state(data):
    made = trainer(data)
    poison(made, {7}, times=100)
    with pytest.raises(UserError, match="no longer finite before step 8, 4 times since the last save: a lower --lr"):
        made.train()
    state = load_state(made.path)
    assert state["step"] == 5
    assert all(value.isfinite().all() for value in state["networks"]["painter"].values())


def test_weights_that_are_not_finite_are_never_saved(data):
    made = trainer(data, steps=5)
    calls = []

    def break_weights(phase):
        if made.step == 4 and not calls:  # the losses of this step were computed before
            calls.append(phase)
            made.recipe.painter.weight.data[0, 0] = float("inf")

    after_phases(made, break_weights)
    made.train()
    assert all(value.isfinite().all() for value in load_state(made.path)["networks"]["painter"].values())
    assert made.step == 5


# ---- what is refused -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        ({"steps": 0}, "steps must be at least 1, got 0"),
        ({"lr": 0.0}, "lr must be more than 0, got 0.0"),
        ({"ema": 1.0}, "ema must be below 1, got 1.0"),
        ({"batch": 6, "accumulate": 4}, "batch must be a multiple of accumulate, got 6 and 4"),
        ({"kernels": "magic"}, "kernels must be one of fused, stock, got 'magic'"),
        ({"amp": "fp16"}, "amp fp16 needs a GPU: use --amp bf16, or no"),
    ],
)
def test_options_that_cannot_be_are_refused_before_anything_is_made(data, values, sentence):
    with pytest.raises(UserError, match=sentence):
        trainer(data, **values)
    assert not (data.parent / "runs").exists()


def test_a_broken_picture_is_named_in_the_log(data):
    (data / "aa.png").write_text("no picture")
    assert "aa.png" in (trained(data, steps=1).path / "log.txt").read_text()
