"""Motion between frames: found where there is some, and not claimed where nothing was seen before."""

import sys

import pytest
import torch
import torch.nn.functional as TF
from torch import Tensor

from artkernels.errors import UserError
from artkernels.video import Motion, flow, motion, warp, warping_error

pytestmark = pytest.mark.cpu_only


def texture(height: int, width: int, seed: int = 0) -> Tensor:
    """A picture with something to see at every place, [1, 3, height, width] in [0, 1]."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(1, 3, height // 4, width // 4, generator=generator)
    return TF.interpolate(coarse, (height, width), mode="bicubic").clamp(0, 1)


def test_a_picture_that_is_shifted_is_found_again():
    before = texture(96, 128)
    frame = before.roll((3, -5), (2, 3))  # down by 3, to the left by 5
    found = motion(before, frame)
    inside = slice(16, -16)
    assert (found.flow[0, 0, inside, inside] - 5).abs().max() < 0.25
    assert (found.flow[0, 1, inside, inside] + 3).abs().max() < 0.25
    assert found.seen[..., inside, inside].mean() > 0.99
    assert warping_error(before, frame, found) < 2e-4 < 0.02 < (before - frame).square().mean()


def test_what_an_object_uncovers_was_not_seen_before():
    ground, thing = texture(192, 256), texture(80, 80, seed=1)
    before, frame = ground.clone(), ground.clone()
    before[..., 56:136, 80:160] = thing
    frame[..., 56:136, 92:172] = thing  # to the right by 12
    seen = motion(before, frame).seen[0, 0]
    assert seen[60:132, 81:90].mean() < 0.2
    assert seen[66:126, 102:162].mean() > 0.9
    assert seen[:40].mean() > 0.95


def test_what_comes_in_at_the_edge_was_not_seen_before():
    wide = texture(96, 160)
    seen = motion(wide[..., :128], wide[..., 10:138]).seen[0, 0]  # the camera turns to the right
    assert seen[8:-8, -8:].mean() < 0.2
    assert seen[8:-8, 8:-24].mean() > 0.95


def test_another_scene_has_no_motion():
    assert motion(texture(96, 128), texture(96, 128, seed=5)) is None


@pytest.mark.parametrize("order", [1, -1], ids=["from black", "to black"])
def test_a_scene_and_a_picture_with_nothing_in_it_are_two_scenes(order):
    scene = texture(96, 128)
    for plain in (torch.zeros_like(scene), torch.ones_like(scene)):
        assert motion(*(plain, scene)[::order]) is None
    assert motion(*(torch.zeros_like(scene), torch.ones_like(scene))[::order]) is None


def test_slow_changes_of_light_are_no_other_scene():
    scene = texture(96, 128)
    assert motion(scene, 0.85 * scene).seen.mean() > 0.9
    assert motion(0 * scene, 0.1 + 0 * scene).seen.mean() == 1


def test_a_flash_in_a_part_of_the_picture_is_seen_for_the_first_time():
    before = texture(96, 128)
    frame = before.clone()
    frame[..., 32:64, 32:64] = 1
    seen = motion(before, frame).seen[0, 0]
    assert seen[36:60, 36:60].mean() < 0.3
    assert seen[:, 80:].mean() > 0.95


def test_warping_by_whole_pixels_takes_the_very_pixels_and_at_the_edge_the_last():
    before = torch.rand(2, 3, 6, 9)
    shift = torch.tensor([2.0, -1.0]).view(1, 2, 1, 1).expand(1, 2, 6, 9)
    moved = warp(before, shift)
    torch.testing.assert_close(moved[..., 1:, :-2], before[..., :-1, 2:])
    torch.testing.assert_close(moved[..., 0, 0], before[..., 0, 2])


def test_features_move_by_as_many_strides_less():
    whole = Motion(torch.full((1, 2, 10, 15), 6.0), torch.ones(1, 1, 10, 15))
    whole.seen[..., :4, :2] = 0
    shrunk = whole.shrunk(4)
    assert shrunk.flow.shape == (1, 2, 3, 4)  # rounded up, as networks do
    assert shrunk.seen.shape == (1, 1, 3, 4)
    torch.testing.assert_close(shrunk.flow, torch.full((1, 2, 3, 4), 1.5))
    assert shrunk.seen[0, 0, 0, 0] == 0.5
    assert shrunk.seen[..., 1:].min() == 1


def test_the_warping_error_counts_what_was_seen_and_nothing_else():
    before, frame = torch.zeros(1, 3, 4, 6), torch.zeros(1, 3, 4, 6)
    frame[..., :3] = 0.5
    frame[..., 3:] = 0.9
    move = Motion(torch.zeros(1, 2, 4, 6), torch.zeros(1, 1, 4, 6))
    move.seen[..., :3] = 1
    assert warping_error(before, frame, move) == pytest.approx(0.25)


@pytest.mark.parametrize("shape", [(16, 16), (16, 200), (200, 16), (33, 17)])
def test_small_and_thin_frames_have_a_motion(shape):
    frame = texture(200, 200)[..., : shape[0], : shape[1]]
    found = motion(frame, frame)
    assert found.flow.shape == (1, 2, *shape)
    assert found.flow.abs().max() < 0.1


def test_a_missing_package_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "cv2", None)
    with pytest.raises(UserError, match="pip install opencv-python-headless"):
        flow.require_cv2()
