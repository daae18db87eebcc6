"""The architectures of artkernels.models have the shapes, ranges and arguments of their papers.

That their layers compute what the published networks do is tested with the checkpoints: tests/test_checkpoints.py.
"""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from artkernels import models

SIZES = [32, 64, 128, 256, 512]

MODELS = {
    "DCGAN generator": models.DCGANGenerator(8, 4),
    "DCGAN discriminator": models.DCGANDiscriminator(4),
    "VAE": models.ConvVAE(8, 4, size=32),
    "TransformerNet": models.TransformerNet(),
    "TransformerNet, transposed": models.TransformerNet(transposed=True),
    "AdaIN encoder": models.AdaINEncoder(),
    "AdaIN decoder": models.AdaINDecoder(),
    "ResNet generator": models.ResnetGenerator(ngf=4, n_blocks=6),
    "ResNet generator, dropout": models.ResnetGenerator(ngf=4, use_dropout=True),
    "PatchGAN": models.NLayerDiscriminator(ndf=4),
    "Keras DCGAN generator": models.KerasDCGANGenerator(),
}


@pytest.mark.parametrize("model", MODELS.values(), ids=MODELS)
def test_the_layers_are_those_of_torch_nn(model):
    leaves = [module for module in model.modules() if not list(module.children())]
    assert len(leaves) > 10
    assert all(type(module).__module__.startswith("torch.nn.modules.") for module in leaves)


@pytest.mark.parametrize(("name", "shape"), [("VAE", (2, 3, 32, 32)), ("Keras DCGAN generator", (2, 100))])
def test_every_parameter_of_the_networks_without_public_checkpoints_takes_part(name, shape):
    outputs = MODELS[name](torch.randn(shape))
    parts = outputs if isinstance(outputs, tuple) else (outputs,)
    gradients = torch.autograd.grad(sum(part.square().sum() for part in parts), list(MODELS[name].parameters()))
    assert all(gradient.any() for gradient in gradients)


@pytest.mark.parametrize("size", SIZES)
@torch.no_grad()
def test_dcgan_makes_and_judges_pictures_of_every_size(size):
    generator = models.DCGANGenerator(5, 1, 2, size=size).eval()
    pictures = generator(torch.randn(2, 5, 1, 1))
    assert pictures.shape == (2, 2, size, size)
    assert pictures.abs().max() <= 1
    assert generator.main[0].out_channels == size // 8
    judged = models.DCGANDiscriminator(1, 2, size=size).eval()(pictures)
    assert judged.shape == (2,)
    assert ((judged >= 0) & (judged <= 1)).all()


@pytest.mark.parametrize("size", [0, 16, 48, 1024])
@pytest.mark.parametrize("network", [models.DCGANGenerator, models.DCGANDiscriminator, models.ConvVAE])
def test_a_size_that_is_not_one_of_the_powers_of_two_is_refused(network, size):
    with pytest.raises(ValueError, match=f"size must be one of 32, 64, 128, 256, 512, got {size}"):
        network(size=size)


@pytest.mark.parametrize("size", SIZES)
@torch.no_grad()
def test_the_vae_codes_and_decodes_pictures_of_every_size(size):
    vae = models.ConvVAE(5, 1, 2, size=size).eval()
    pictures = torch.rand(2, 2, size, size)
    mean, logvar = vae.encode(pictures)
    assert mean.shape == logvar.shape == (2, 5)
    decoded = vae.decode(mean)
    assert decoded.shape == pictures.shape
    assert ((decoded >= 0) & (decoded <= 1)).all()


@torch.no_grad()
def test_the_vae_draws_its_codes_from_the_encoded_distribution():
    torch.manual_seed(0)
    vae = models.ConvVAE(6, 2, 1, size=32).eval()
    vae.logvar.bias.copy_(torch.linspace(-4, 1, 6))
    vae.decoder = nn.Identity()
    codes, mean, logvar = vae(torch.rand(1, 1, 32, 32).expand(4000, 1, 32, 32))
    torch.testing.assert_close(codes.mean(0), mean[0], rtol=0, atol=0.1)
    torch.testing.assert_close(codes.var(0), logvar[0].exp(), rtol=0.1, atol=0)


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize(("height", "width"), [(5, 8), (21, 18), (24, 32)])
@torch.no_grad()
def test_a_stylised_picture_has_its_size_rounded_up_to_multiples_of_four(height, width, transposed):
    painted = models.TransformerNet(transposed=transposed)(torch.rand(1, 3, height, width) * 255)
    assert painted.shape == (1, 3, -(-height // 4) * 4, -(-width // 4) * 4)


@torch.no_grad()
def test_the_adain_encoder_gives_the_levels_of_a_style_and_the_decoder_takes_the_last():
    encoder = models.AdaINEncoder()
    picture = torch.rand(1, 3, 21, 40)
    levels = encoder.levels(picture)
    assert [tuple(level.shape[1:]) for level in levels] == [(64, 21, 40), (128, 11, 20), (256, 6, 10), (512, 3, 5)]
    assert all((level >= 0).all() for level in levels)
    assert torch.equal(levels[-1], encoder(picture))
    assert models.AdaINDecoder()(levels[-1]).shape == (1, 3, 24, 40)


@pytest.mark.parametrize("use_dropout", [False, True])
@torch.no_grad()
def test_the_resnet_generator_translates_pictures_to_other_channels(use_dropout):
    generator = models.ResnetGenerator(1, 2, 4, n_blocks=3, use_dropout=use_dropout)
    pictures = torch.rand(2, 1, 22, 24) * 2 - 1
    translated = generator(pictures)
    assert translated.shape == (2, 2, 24, 24)
    assert translated.abs().max() <= 1
    assert torch.equal(translated, generator(pictures)) != use_dropout


def test_a_norm_that_cyclegan_does_not_have_is_refused():
    for network in (models.ResnetGenerator, models.NLayerDiscriminator):
        with pytest.raises(ValueError, match='norm must be "instance" or "batch", got \'layer\''):
            network(norm="layer")


@pytest.mark.parametrize(("n_layers", "patch"), [(1, 16), (2, 34), (3, 70)])
def test_a_score_of_patchgan_sees_a_patch_of_the_size_the_paper_gives(n_layers, patch):
    # Batch norm in evaluation is local; an instance norm would look at all of the picture.
    discriminator = models.NLayerDiscriminator(1, 2, n_layers, norm="batch").eval()
    picture = torch.rand(1, 1, 128, 128, requires_grad=True)
    scores = discriminator(picture)
    assert scores.shape[2:] == (128 // 2**n_layers - 2,) * 2
    scores[0, 0, scores.shape[2] // 2, scores.shape[3] // 2].backward()
    rows, columns = picture.grad[0, 0].nonzero().unbind(1)
    assert (rows.max() - rows.min() + 1, columns.max() - columns.min() + 1) == (patch, patch)


@torch.no_grad()
def test_the_keras_generator_has_the_parameters_and_the_pictures_of_the_tutorial():
    generator = models.KerasDCGANGenerator().eval()
    assert sum(parameter.numel() for parameter in generator.parameters()) == 2_305_472
    pictures = generator(torch.randn(2, 100))
    assert pictures.shape == (2, 1, 28, 28)
    assert pictures.abs().max() <= 1
    sizes = []
    for module in generator.deconv:
        if isinstance(module, nn.ConvTranspose2d):
            module.register_forward_hook(lambda module, arguments, output: sizes.append(tuple(output.shape[2:])))
    generator(torch.randn(2, 100))
    assert sizes == [(7, 7), (14, 14), (28, 28)]


def test_a_strided_layer_of_the_keras_generator_is_tensorflows_moved_by_one_pixel():
    layer = models.KerasDCGANGenerator().deconv[6]
    x = torch.randn(1, 64, 14, 14)
    # TensorFlow's transposed convolution is the gradient of its "same" convolution, which pads 1 before and 2 after.
    pictures = torch.zeros(1, 1, 28, 28, requires_grad=True)
    (F.conv2d(F.pad(pictures, (1, 2, 1, 2)), layer.weight, stride=2) * x).sum().backward()
    torch.testing.assert_close(layer(x)[..., :-1, :-1], pictures.grad[..., 1:, 1:])
