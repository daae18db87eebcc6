"""Trained networks are found, told apart, and paint photographs at exactly the photographs' size."""

import json

import pytest
import torch
from safetensors.torch import save_file

import artkernels
from artkernels import feed_forward
from artkernels.errors import UserError
from artkernels.feed_forward import load_trained, paint
from artkernels.models import AdaINDecoder, DCGANGenerator, ResnetGenerator, TransformerNet
from artkernels.tiling import Tiling
from artkernels.training.runs import METADATA_KEY

pytestmark = pytest.mark.cpu_only  # the networks' operations have tests of their own

CPU = torch.device("cpu")


@pytest.fixture
def generator() -> ResnetGenerator:
    return ResnetGenerator(ngf=4, n_blocks=1).eval()


def run_of(folder, *names: str):
    """A run directory whose snapshots, an older and a last one of each name, differ in a bias."""
    folder.mkdir()
    for step, name in ((step, name) for step in (100, 200) for name in names):
        network = ResnetGenerator(ngf=4, n_blocks=1)
        torch.nn.init.constant_(network.model[1].bias, step + names.index(name))
        metadata = {METADATA_KEY: json.dumps({"recipe": "cyclegan", "options": {"ngf": 4}, "step": step})}
        save_file(
            network.state_dict(), folder / f"network-snapshot-{step:06d}{name and '-' + name}.safetensors", metadata
        )
    return folder


@pytest.mark.parametrize("shape", [(32, 32), (33, 41), (18, 47), (16, 19)])
def test_a_picture_has_the_size_of_its_photograph_and_values_from_0_to_1(generator, shape):
    photo = torch.rand(1, 3, *shape)
    for network in (generator, TransformerNet().eval()):
        painted = paint(artkernels.fuse(network), photo)
        assert painted.shape == photo.shape
        assert painted.dtype == torch.float32
        assert 0 <= painted.min() <= painted.max() <= 1


def test_each_network_gets_the_range_that_it_was_trained_on(generator):
    photo = torch.rand(1, 3, 16, 20)
    with torch.no_grad():
        torch.testing.assert_close(paint(generator, photo), (generator(photo * 2 - 1) + 1) / 2)
        network = TransformerNet().eval()
        torch.testing.assert_close(paint(network, photo), (network(photo * 255) / 255).clamp(0, 1))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_a_network_of_another_type_paints_as_it_does_in_bands(dtype):
    network = ResnetGenerator(ngf=4, n_blocks=1).eval().to(dtype)
    photo = torch.rand(1, 3, 30, 26)
    at_once, in_bands = paint(network, photo), paint(network, photo, Tiling(7))
    assert at_once.dtype == torch.float32
    assert at_once.std() > 0.01
    torch.testing.assert_close(at_once, in_bands, rtol=0, atol=5e-2 if dtype == torch.bfloat16 else 1e-6)


def test_what_is_beyond_the_border_is_the_photograph_s_reflection(generator):
    photo = torch.rand(1, 3, 16, 20)
    cut = photo[..., :15, :18]
    reflected = torch.cat([cut, cut[..., 13:14, :]], -2)
    reflected = torch.cat([reflected, reflected[..., 16:17], reflected[..., 15:16]], -1)
    torch.testing.assert_close(paint(generator, cut), paint(generator, reflected)[..., :15, :18])


@pytest.mark.parametrize(
    ("method", "network"),
    [("fast-style", TransformerNet()), ("adain", AdaINDecoder()), ("cyclegan", ResnetGenerator(ngf=4, n_blocks=1))],
)
def test_the_method_is_told_from_the_network(tmp_path, method, network):
    torch.save(network.state_dict(), tmp_path / "network.pth")
    trained = load_trained(tmp_path / "network.pth")
    assert trained.method == method
    assert type(trained.network) is type(network)
    assert trained.options == {}
    assert not trained.network.training


@pytest.mark.parametrize(
    "network", [DCGANGenerator(3, 1, 3, size=32), ResnetGenerator(1, 3, 4, 1), ResnetGenerator(3, 1, 4, 1)]
)
def test_a_network_that_paints_no_photographs_is_refused(tmp_path, network):
    torch.save(network.state_dict(), tmp_path / "network.pth")
    with pytest.raises(UserError, match=f"this {type(network).__name__} paints no photographs"):
        load_trained(tmp_path / "network.pth")


def test_of_a_run_the_last_snapshot_is_taken_with_the_options_that_made_it(tmp_path):
    trained = load_trained(run_of(tmp_path / "run", ""))
    assert trained.network.model[1].bias[0] == 200
    assert trained.file.name == "network-snapshot-000200.safetensors"
    assert trained.options == {"ngf": 4}


def test_of_a_run_of_cyclegan_either_generator_is_taken_and_a_to_b_by_default(tmp_path):
    run = run_of(tmp_path / "run", "netG_A2B", "netG_B2A")
    assert [load_trained(run, entry).network.model[1].bias[0] for entry in (None, "netG_A2B", "netG_B2A")] == [
        200,
        200,
        201,
    ]
    with pytest.raises(UserError, match="has no network 'netD', only 'netG_A2B', 'netG_B2A'"):
        load_trained(run, "netD")


def test_a_file_that_says_nothing_of_its_training_has_no_options(tmp_path, generator):
    for name, metadata in (("none", None), ("foreign", {METADATA_KEY: "[]"}), ("text", {METADATA_KEY: "{"})):
        save_file(generator.state_dict(), tmp_path / f"{name}.safetensors", metadata)
        assert load_trained(tmp_path / f"{name}.safetensors").options == {}


def test_a_picture_too_thin_or_beyond_the_memory_is_refused():
    photo = torch.zeros(1, 3, 10, 40)
    feed_forward.check(photo, 64, CPU)
    with pytest.raises(UserError, match="photograph would be 60x15 pixels, and its shorter side must be at least 16"):
        feed_forward.check(photo, 60, CPU)
    with pytest.raises(UserError, match=r"would need about .* choose a smaller size"):
        feed_forward.check(photo, 10**6, CPU)
