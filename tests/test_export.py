"""What artkernels.export_onnx writes computes, in ONNX Runtime, what the model does; otherwise nothing is written."""

import sys
from pathlib import Path

import onnx
import onnxruntime
import pytest
import torch
from torch import Tensor, nn

import artkernels
from artkernels import models
from artkernels.errors import UserError
from artkernels.export import TOLERANCE, example_for, export_onnx
from artkernels.fusion.model import fused_modules

NETWORKS = {
    "DCGAN generator": models.DCGANGenerator(5, 2, 3, size=32),
    "DCGAN discriminator": models.DCGANDiscriminator(2, 3, size=128),
    "Keras DCGAN generator": models.KerasDCGANGenerator(9, 3),
    "convolutional VAE": models.ConvVAE(5, 2, 1, size=32),
    "fast neural style": models.TransformerNet(),
    "AdaIN encoder": models.AdaINEncoder(),
    "AdaIN decoder": models.AdaINDecoder(),
    "CycleGAN generator": models.ResnetGenerator(4, 2, 2, 1),
    "PatchGAN": models.NLayerDiscriminator(6, 2, 5),
}
NOISE, PICTURES = {0: "batch"}, {0: "batch", 2: "height", 3: "width"}


def layers() -> nn.Sequential:
    return nn.Sequential(nn.ConvTranspose2d(3, 4, 4, 2, 1), nn.BatchNorm2d(4), nn.ReLU())


def run(file: Path, input: Tensor) -> list[Tensor]:
    session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    return [torch.from_numpy(output) for output in session.run(None, {"input": input.numpy()})]


def shapes(file: Path) -> dict[str, list[int | str]]:
    graph = onnx.load(file).graph
    dimensions = {value.name: value.type.tensor_type.shape.dim for value in (*graph.input, *graph.output)}
    return {name: [size.dim_param or size.dim_value for size in sizes] for name, sizes in dimensions.items()}


@pytest.mark.parametrize("model", NETWORKS.values(), ids=NETWORKS)
@torch.no_grad()
def test_every_network_of_models_takes_its_example(model):
    model.eval()
    network, input, axes = example_for(model, batch=2)
    assert network(input).shape[0] == 2
    assert input.dtype == torch.float32
    assert 0 not in axes
    sized_by_the_network = isinstance(
        model, models.DCGANGenerator | models.DCGANDiscriminator | models.KerasDCGANGenerator | models.ConvVAE
    )
    assert example_for(model).axes == (NOISE if sized_by_the_network else PICTURES)


def test_a_size_can_be_chosen_where_the_network_allows_it():
    _, input, axes = example_for(NETWORKS["CycleGAN generator"], size=(40, 56))
    assert input.shape == (1, 4, 40, 56)
    assert axes == NOISE
    with pytest.raises(UserError, match=r"DCGANDiscriminator: it takes \[N, 3, 128, 128\] only"):
        example_for(NETWORKS["DCGAN discriminator"], size=(40, 56))
    with pytest.raises(UserError, match=r"at least 1, an input of \[0, 4, 128, 128\]"):
        example_for(NETWORKS["CycleGAN generator"], batch=0)
    with pytest.raises(UserError, match="not a network of artkernels"):
        example_for(layers())


@pytest.mark.parametrize("name", ["DCGAN generator", "convolutional VAE", "CycleGAN generator"])
@torch.no_grad()
def test_a_file_of_a_network_computes_what_it_does_at_sizes_that_were_not_tried(name, tmp_path):
    network, input, axes = example_for(NETWORKS[name].eval())
    file = tmp_path / "network.onnx"
    assert export_onnx(artkernels.fuse(network), file, input, axes=axes) <= TOLERANCE
    assert list(tmp_path.iterdir()) == [file]
    assert shapes(file)["input"] == [axes.get(axis, size) for axis, size in enumerate(input.shape)]
    for count in (1, 4):
        pixels = (24 + count, 30) if 2 in axes else input.shape[2:]
        x = torch.randn(count, input.shape[1], *pixels)
        torch.testing.assert_close(run(file, x), [network(x)], rtol=1e-3, atol=1e-4)


@torch.no_grad()
def test_a_fused_model_in_training_is_written_as_its_stock_layers_in_evaluation_and_left_as_it_is(tmp_path):
    stock = layers()
    stock[1].running_mean.normal_()
    model = artkernels.fuse(stock)
    file, x = tmp_path / "layers.onnx", torch.randn(1, 3, 6, 5)
    export_onnx(model, file, x, axes={})
    assert {node.domain for node in onnx.load(file).graph.node} == {""}
    assert shapes(file) == {"input": [1, 3, 6, 5], "output": [1, 4, 12, 10]}
    assert all(module.training for module in model.modules())
    assert fused_modules(model).keys() == {""}
    assert all(torch.equal(value, stock.state_dict()[name]) for name, value in model.state_dict().items())
    torch.testing.assert_close(run(file, x), [stock.eval()(x)])


def test_outputs_are_numbered_in_the_order_of_the_model(tmp_path):
    class Halves(nn.Module):
        def forward(self, x: Tensor) -> dict[str, Tensor]:
            return {"upper": x.clamp(min=0), "lower": x.clamp(max=0)}

    x = torch.randn(2, 3)
    export_onnx(Halves(), tmp_path / "halves.onnx", x)
    assert list(shapes(tmp_path / "halves.onnx")) == ["input", "output_0", "output_1"]
    torch.testing.assert_close(run(tmp_path / "halves.onnx", x), [x.clamp(min=0), x.clamp(max=0)])


class Noisy(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x + torch.randn_like(x)


@pytest.mark.parametrize(
    ("model", "value"), [(Noisy(), 1.0), (nn.ReLU(), float("nan"))], ids=["random numbers", "a NaN"]
)
def test_without_parity_nothing_is_written_and_an_older_file_stays(model, value, tmp_path):
    file = tmp_path / "model.onnx"
    file.write_text("older")
    with pytest.raises(UserError, match=r"model.onnx: not written, because ONNX Runtime's outputs are off"):
        export_onnx(model, file, torch.full((1, 3), value))
    assert file.read_text() == "older"
    assert list(tmp_path.iterdir()) == [file]


def test_what_onnx_has_no_words_for_is_told_in_one_sentence(tmp_path):
    layer = artkernels.nn.InstanceNormAct2d(3, activation="relu")
    with pytest.raises(RuntimeError, match=r"cannot express InstanceNormAct2d: .*artkernels") as caught:
        export_onnx(layer, tmp_path / "layer.onnx", torch.randn(1, 3, 8, 8))
    assert "\n" not in str(caught.value)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("path", "input", "words"),
    [
        ("model.pth", torch.ones(1, 3, 8, 8), "must end in .onnx"),
        ("absent/model.onnx", torch.ones(1, 3, 8, 8), "the folder .*absent does not exist"),
        ("folder.onnx", torch.ones(1, 3, 8, 8), "a folder of that name"),
        ("model.onnx", torch.ones(1, 3, 8, 8).double(), "must be float32 and not empty, got torch.float64"),
        ("model.onnx", torch.ones(0, 3, 8, 8), "must be float32 and not empty"),
        ("model.onnx", torch.ones(1, 2, 8, 8), r"Sequential refuses an input of \[1, 2, 8, 8\]"),
    ],
    ids=["suffix", "folder absent", "folder in the way", "float64", "empty", "channels"],
)
def test_what_cannot_be_exported_is_refused_at_once(path, input, words, tmp_path):
    (tmp_path / "folder.onnx").mkdir()
    with pytest.raises(ValueError, match=words):
        export_onnx(layers(), tmp_path / path, input)
    assert [entry.name for entry in tmp_path.iterdir()] == ["folder.onnx"]


@pytest.mark.parametrize("package", ["onnx", "onnxscript", "onnxruntime"])
def test_a_missing_package_is_named(package, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(UserError, match=rf'needs {package}: pip install "artkernels\[onnx\]"'):
        export_onnx(layers(), tmp_path / "model.onnx", torch.ones(1, 3, 8, 8))
