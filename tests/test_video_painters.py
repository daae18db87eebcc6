"""Each way to paint frames: by itself as a photograph, after another frame bound to that one's painting."""

import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor

import artkernels
from artkernels import feed_forward
from artkernels.recipes.adain import adain_stylize
from artkernels.recipes.style_transfer import Settings, stylize
from artkernels.video import AdaINFrames, Before, Motion, NetworkFrames, OptimisedFrames, motion, warping_error

sys.path.insert(0, str(Path(__file__).parent))

from painting_networks import adain_networks, resnet_generator, transformer_net
from random_vgg import random_vgg
from video_frames import moving_noise

pytestmark = pytest.mark.cpu_only

NETWORKS = {
    "TransformerNet": transformer_net,
    "TransformerNet, transposed": lambda: transformer_net(transposed=True),
    "ResnetGenerator": lambda: resnet_generator(ngf=8, n_blocks=2),
}


def still(frame: Tensor, seen: float = 1.0) -> Motion:
    """Nothing moves, and all (or nothing) of it was seen before."""
    height, width = frame.shape[-2:]
    return Motion(torch.zeros(1, 2, height, width), torch.full((1, 1, height, width), seen))


def adain(consistency: float, *, preserve_color: bool = False) -> AdaINFrames:
    return AdaINFrames(*adain_networks(), styles(), [1, 2], 0.8, preserve_color, consistency)


def styles() -> list[Tensor]:
    generator = torch.Generator().manual_seed(9)
    return [torch.rand(1, 3, 40, 32, generator=generator), torch.rand(1, 3, 36, 48, generator=generator)]


def differ(one: Tensor, other: Tensor) -> bool:
    """In much more than rounding."""
    return (one - other).abs().mean().item() > 0.01


def test_the_paintings_of_these_tests_have_contrast_and_depend_on_what_they_are_made_of():
    frames, networks = torch.rand(2, 1, 3, 32, 40), adain_networks()
    for painter in painters(0.7):
        one, other = (painter.paint(frame, None).picture for frame in frames)
        assert one.std((-2, -1)).min() > 0.01
        assert differ(one, other)
    one, *others = (
        adain_stylize(*networks, frames[0], [style], alpha=alpha)
        for style, alpha in ((styles()[0], 1.0), (styles()[1], 1.0), (styles()[0], 0.5))
    )
    assert all(differ(one, other) for other in others)


@pytest.mark.parametrize("name", NETWORKS)
def test_a_network_s_halves_are_the_network(name):
    network = NETWORKS[name]()
    pictures = torch.rand(2, 3, 24, 36)
    with torch.inference_mode():
        torch.testing.assert_close(network.decode(network.encode(pictures)), network(pictures), rtol=0, atol=0)
        assert network.encode(pictures).shape[-2:] == (6, 9)


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("shape", [(32, 48), (31, 45)])
def test_the_first_frame_is_painted_as_a_photograph(name, shape):
    network = NETWORKS[name]()
    frame = torch.rand(1, 3, *shape)
    painted = NetworkFrames(network, 0.7).paint(frame, None)
    torch.testing.assert_close(painted.picture, feed_forward.paint(artkernels.fuse(network), frame))
    assert painted.picture.shape == frame.shape


@pytest.mark.parametrize("preserve_color", [False, True])
def test_adain_paints_the_first_frame_as_a_photograph(preserve_color):
    painter, frame = adain(0.7, preserve_color=preserve_color), torch.rand(1, 3, 37, 50)
    wanted = adain_stylize(
        painter._encoder, painter._decoder, frame, styles(), [1, 2], 0.8, preserve_color=preserve_color
    )
    torch.testing.assert_close(painter.paint(frame, None).picture, wanted)


def painters(consistency: float) -> list:
    return [*(NetworkFrames(make(), consistency) for make in NETWORKS.values()), adain(consistency)]


def test_what_was_not_seen_before_is_painted_as_if_there_had_been_nothing():
    frames = torch.rand(2, 1, 3, 32, 40)
    for painter in painters(0.9):
        memory = painter.paint(frames[0], None).memory
        alone = painter.paint(frames[1], None)
        after = painter.paint(frames[1], Before(memory, still(frames[1], seen=0.0)))
        torch.testing.assert_close(after.picture, alone.picture)


def test_at_a_consistency_of_one_what_was_seen_before_stays_as_it_was():
    frames = torch.rand(2, 1, 3, 32, 40)
    for painter in painters(1.0):
        first = painter.paint(frames[0], None)
        second = painter.paint(frames[1], Before(first.memory, still(frames[1])))
        torch.testing.assert_close(second.picture, first.picture, atol=1e-4, rtol=0)


def test_features_are_blended_where_they_moved_to():
    painter = NetworkFrames(transformer_net(), 0.5)
    frame = torch.rand(1, 3, 32, 40)
    memory, alone = (painter.paint(torch.rand(1, 3, 32, 40) if k else frame, None).memory for k in (1, 0))
    move = still(frame)
    move.flow[:, 0] = 8  # by two features
    moved = torch.cat([memory[..., 2:], memory[..., -1:].expand(-1, -1, -1, 2)], dim=-1)
    after = painter.paint(frame, Before(memory, move))
    torch.testing.assert_close(after.memory, (alone + moved) / 2, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("name", [*NETWORKS, "AdaIN"])
def test_the_more_consistency_the_less_flicker(name):
    frames = moving_noise(4, 64, 96, step=8)  # whole features: what a network paints depends on its grid
    flicker = []
    for consistency in (0.0, 0.5, 0.9):
        painter = adain(consistency) if name == "AdaIN" else NetworkFrames(NETWORKS[name](), consistency)
        before, total = None, 0.0
        for index, frame in enumerate(frames):
            move = motion(frames[index - 1], frame) if index else None
            painted = painter.paint(frame, None if before is None else Before(before.memory, move))
            if before is not None:
                total += warping_error(before.picture, painted.picture, move)
            before = painted
        flicker.append(total)
    assert flicker[2] < 0.7 * flicker[0]
    assert flicker[2] < flicker[1] < flicker[0]


class TestOptimised:
    """Optimisation, on a network that is random and slim."""

    settings = Settings(size=48, steps=6)

    def frames(self, consistency: float) -> OptimisedFrames:
        return OptimisedFrames(random_vgg(slim=True), styles(), self.settings, None, consistency)

    def test_the_first_frame_and_every_one_without_consistency_are_painted_as_photographs(self):
        frames = moving_noise(2, 36, 48)
        wanted = [stylize(frame, styles(), random_vgg(slim=True), self.settings) for frame in frames]
        torch.testing.assert_close(self.frames(0.7).paint(frames[0], None).picture, wanted[0])
        first, move = wanted[0], motion(*frames)
        after = self.frames(0.0).paint(frames[1], Before(first, move))
        torch.testing.assert_close(after.picture, wanted[1])

    def test_consistency_holds_a_painting_to_the_one_before(self):
        frames = moving_noise(2, 36, 48)
        first, move = self.frames(0.7).paint(frames[0], None), motion(*frames)
        errors = []
        for consistency in (0.0, 0.5, 0.99):
            after = self.frames(consistency).paint(frames[1], Before(first.memory, move))
            errors.append(warping_error(first.picture, after.picture, move))
        assert errors[2] < errors[1] < errors[0]
        assert errors[2] < 0.3 * errors[0]
