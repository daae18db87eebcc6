"""Published architectures in stock ``torch.nn`` layers, one file each."""

from .adain import AdaINDecoder, AdaINEncoder
from .cyclegan import NLayerDiscriminator, ResnetGenerator
from .dcgan import DCGANDiscriminator, DCGANGenerator
from .keras_dcgan import KerasDCGANGenerator
from .transformer_net import TransformerNet
from .vae import ConvVAE
from .vgg import VGG19

__all__ = [
    "VGG19",
    "AdaINDecoder",
    "AdaINEncoder",
    "ConvVAE",
    "DCGANDiscriminator",
    "DCGANGenerator",
    "KerasDCGANGenerator",
    "NLayerDiscriminator",
    "ResnetGenerator",
    "TransformerNet",
]
