"""The public networks written a second time: the entries of their checkpoints, and what is computed from them.

Names and shapes are those of the projects that published them, arithmetic is torch.nn.functional's: nothing here knows
artkernels.models, so that a name, a shape or an order of layers that drifts there is noticed.
"""

from collections.abc import Iterable

import torch
import torch.nn.functional as F
from torch import Tensor

State = dict[str, Tensor]


def layer(name: str, *shape: int, bias: bool, transposed: bool = False) -> State:
    """A convolution's entries, scaled to keep the size of what goes through."""
    inputs, outputs = shape[:2] if transposed else shape[1::-1]
    state = {f"{name}.weight": torch.randn(shape) * (2 / (inputs * shape[2] * shape[3])) ** 0.5}
    return state | ({f"{name}.bias": torch.randn(outputs) * 0.1} if bias else {})


def affine(name: str, channels: int) -> State:
    return {f"{name}.weight": 1 + 0.2 * torch.randn(channels), f"{name}.bias": 0.1 * torch.randn(channels)}


def statistics(name: str, channels: int) -> State:
    return {
        f"{name}.running_mean": 0.1 * torch.randn(channels),
        f"{name}.running_var": 0.5 + torch.rand(channels),
        f"{name}.num_batches_tracked": torch.tensor(7),
    }


def batch_norm(name: str, channels: int) -> State:
    return affine(name, channels) | statistics(name, channels)


def merge(states: Iterable[State]) -> State:
    return {name: value for state in states for name, value in state.items()}


def normalise(s: State, name: str, x: Tensor) -> Tensor:
    """Batch norm by its statistics if the entries are a batch norm's, otherwise instance norm."""
    weight, bias = s.get(f"{name}.weight"), s.get(f"{name}.bias")
    if weight is not None and f"{name}.running_mean" in s:
        return F.batch_norm(x, s[f"{name}.running_mean"], s[f"{name}.running_var"], weight, bias)
    return F.instance_norm(x, weight=weight, bias=bias)


def conv(s: State, name: str, x: Tensor, *, stride: int = 1, padding: int = 0, reflect: int = 0) -> Tensor:
    if reflect:
        x = F.pad(x, (reflect,) * 4, mode="reflect")
    return F.conv2d(x, s[f"{name}.weight"], s.get(f"{name}.bias"), stride, padding)


def double(s: State, name: str, x: Tensor) -> Tensor:
    """The 3 x 3 transposed convolution that doubles height and width."""
    return F.conv_transpose2d(x, s[f"{name}.weight"], s.get(f"{name}.bias"), 2, 1, 1)


# pytorch/examples, dcgan: 64 x 64.


def dcgan_generator(nz: int, ngf: int, nc: int) -> State:
    return (
        layer("main.0", nz, ngf * 8, 4, 4, bias=False, transposed=True)
        | batch_norm("main.1", ngf * 8)
        | layer("main.3", ngf * 8, ngf * 4, 4, 4, bias=False, transposed=True)
        | batch_norm("main.4", ngf * 4)
        | layer("main.6", ngf * 4, ngf * 2, 4, 4, bias=False, transposed=True)
        | batch_norm("main.7", ngf * 2)
        | layer("main.9", ngf * 2, ngf, 4, 4, bias=False, transposed=True)
        | batch_norm("main.10", ngf)
        | layer("main.12", ngf, nc, 4, 4, bias=False, transposed=True)
    )


def run_dcgan_generator(s: State, x: Tensor) -> Tensor:
    x = F.relu(normalise(s, "main.1", F.conv_transpose2d(x, s["main.0.weight"])))
    for index in (3, 6, 9):
        x = F.conv_transpose2d(x, s[f"main.{index}.weight"], stride=2, padding=1)
        x = F.relu(normalise(s, f"main.{index + 1}", x))
    return F.conv_transpose2d(x, s["main.12.weight"], stride=2, padding=1).tanh()


def dcgan_discriminator(ndf: int, nc: int) -> State:
    return (
        layer("main.0", ndf, nc, 4, 4, bias=False)
        | layer("main.2", ndf * 2, ndf, 4, 4, bias=False)
        | batch_norm("main.3", ndf * 2)
        | layer("main.5", ndf * 4, ndf * 2, 4, 4, bias=False)
        | batch_norm("main.6", ndf * 4)
        | layer("main.8", ndf * 8, ndf * 4, 4, 4, bias=False)
        | batch_norm("main.9", ndf * 8)
        | layer("main.11", 1, ndf * 8, 4, 4, bias=False)
    )


def run_dcgan_discriminator(s: State, x: Tensor) -> Tensor:
    x = F.leaky_relu(conv(s, "main.0", x, stride=2, padding=1), 0.2)
    for index in (2, 5, 8):
        x = F.leaky_relu(normalise(s, f"main.{index + 1}", conv(s, f"main.{index}", x, stride=2, padding=1)), 0.2)
    return conv(s, "main.11", x).sigmoid().view(-1, 1).squeeze(1)


# pytorch/examples, fast_neural_style.


def transformer_net(*, upsampled: bool, old: bool) -> State:
    """``old``: with the running statistics that PyTorch before 0.4 saved for every instance norm."""

    def block(name: str, norm: str, *shape: int, transposed: bool = False) -> State:
        outputs = shape[1] if transposed else shape[0]
        state = layer(name if transposed else f"{name}.conv2d", *shape, bias=True, transposed=transposed)
        return state | affine(norm, outputs) | (statistics(norm, outputs) if old else {})

    state = block("conv1", "in1", 32, 3, 9, 9) | block("conv2", "in2", 64, 32, 3, 3)
    state |= block("conv3", "in3", 128, 64, 3, 3)
    for i in range(1, 6):
        for j in (1, 2):
            state |= block(f"res{i}.conv{j}", f"res{i}.in{j}", 128, 128, 3, 3)
    if upsampled:
        state |= block("deconv1", "in4", 64, 128, 3, 3) | block("deconv2", "in5", 32, 64, 3, 3)
    else:
        state |= block("deconv1", "in4", 128, 64, 3, 3, transposed=True)
        state |= block("deconv2", "in5", 64, 32, 3, 3, transposed=True)
    return state | layer("deconv3.conv2d", 3, 32, 9, 9, bias=True)


def run_transformer_net(s: State, x: Tensor) -> Tensor:
    def norm(name: str, y: Tensor) -> Tensor:
        return F.instance_norm(y, weight=s[f"{name}.weight"], bias=s[f"{name}.bias"])

    x = F.relu(norm("in1", conv(s, "conv1.conv2d", x, reflect=4)))
    x = F.relu(norm("in2", conv(s, "conv2.conv2d", x, stride=2, reflect=1)))
    x = F.relu(norm("in3", conv(s, "conv3.conv2d", x, stride=2, reflect=1)))
    for i in range(1, 6):
        y = F.relu(norm(f"res{i}.in1", conv(s, f"res{i}.conv1.conv2d", x, reflect=1)))
        x = norm(f"res{i}.in2", conv(s, f"res{i}.conv2.conv2d", y, reflect=1)) + x
    for i in (1, 2):
        if f"deconv{i}.weight" in s:
            x = double(s, f"deconv{i}", x)
        else:
            x = conv(s, f"deconv{i}.conv2d", F.interpolate(x, scale_factor=2, mode="nearest"), reflect=1)
        x = F.relu(norm(f"in{i + 3}", x))
    return conv(s, "deconv3.conv2d", x, reflect=4)


# junyanz/pytorch-CycleGAN-and-pix2pix.


def resnet_generator(
    ngf: int, blocks: int, *, dropout: bool = False, norm: str = "instance", old: bool = False
) -> State:
    """``old``: with the running statistics that PyTorch before 0.4 saved for every instance norm."""

    def block(prefix: str, index: int, *shape: int, transposed: bool = False) -> State:
        outputs = shape[1] if transposed else shape[0]
        state = layer(f"{prefix}.{index}", *shape, bias=norm == "instance", transposed=transposed)
        if norm == "batch":
            return state | batch_norm(f"{prefix}.{index + 1}", outputs)
        return state | (statistics(f"{prefix}.{index + 1}", outputs) if old else {})

    state = block("model", 1, ngf, 3, 7, 7)
    state |= block("model", 4, 2 * ngf, ngf, 3, 3)
    state |= block("model", 7, 4 * ngf, 2 * ngf, 3, 3)
    for i in range(10, 10 + blocks):
        for j in (1, 6 if dropout else 5):
            state |= block(f"model.{i}.conv_block", j, 4 * ngf, 4 * ngf, 3, 3)
    state |= block("model", 10 + blocks, 4 * ngf, 2 * ngf, 3, 3, transposed=True)
    state |= block("model", 13 + blocks, 2 * ngf, ngf, 3, 3, transposed=True)
    return state | layer(f"model.{17 + blocks}", 3, ngf, 7, 7, bias=True)


def run_resnet_generator(s: State, x: Tensor) -> Tensor:
    x = F.relu(normalise(s, "model.2", conv(s, "model.1", x, reflect=3)))
    x = F.relu(normalise(s, "model.5", conv(s, "model.4", x, stride=2, padding=1)))
    x = F.relu(normalise(s, "model.8", conv(s, "model.7", x, stride=2, padding=1)))
    index = 10
    while f"model.{index}.conv_block.1.weight" in s:
        block = f"model.{index}.conv_block"
        second = 6 if f"{block}.5.weight" not in s else 5
        y = F.relu(normalise(s, f"{block}.2", conv(s, f"{block}.1", x, reflect=1)))
        x = x + normalise(s, f"{block}.{second + 1}", conv(s, f"{block}.{second}", y, reflect=1))
        index += 1
    for up in (index, index + 3):
        x = F.relu(normalise(s, f"model.{up + 1}", double(s, f"model.{up}", x)))
    return conv(s, f"model.{index + 7}", x, reflect=3).tanh()


def patch_discriminator(input_nc: int, ndf: int, n_layers: int, *, norm: str = "instance") -> State:
    widths = [ndf * min(2**doublings, 8) for doublings in range(n_layers + 1)]
    state = layer("model.0", ndf, input_nc, 4, 4, bias=True)
    for i in range(1, n_layers + 1):
        state |= layer(f"model.{3 * i - 1}", widths[i], widths[i - 1], 4, 4, bias=norm == "instance")
        state |= batch_norm(f"model.{3 * i}", widths[i]) if norm == "batch" else {}
    return state | layer(f"model.{3 * n_layers + 2}", 1, widths[-1], 4, 4, bias=True)


def run_patch_discriminator(s: State, x: Tensor) -> Tensor:
    last = max(int(name.split(".")[1]) for name in s)
    x = F.leaky_relu(conv(s, "model.0", x, stride=2, padding=1), 0.2)
    for name in range(2, last, 3):
        stride = 1 if name + 3 == last else 2
        x = conv(s, f"model.{name}", x, stride=stride, padding=1)
        x = F.leaky_relu(normalise(s, f"model.{name + 1}", x), 0.2)
    return conv(s, f"model.{last}", x, padding=1)


# naoto0804/pytorch-AdaIN.

# Channels out and in of the 3 x 3 convolutions, by their place in the Sequential.
ENCODER = {
    2: (64, 3), 5: (64, 64), 9: (128, 64), 12: (128, 128), 16: (256, 128), 19: (256, 256), 22: (256, 256),
    25: (256, 256), 29: (512, 256),
}  # fmt: skip
BEYOND_RELU4_1 = {index: (512, 512) for index in (32, 35, 38, 42, 45, 48, 51)}
DECODER = {
    1: (256, 512), 5: (256, 256), 8: (256, 256), 11: (256, 256), 14: (128, 256), 18: (128, 128), 21: (64, 128),
    25: (64, 64), 28: (3, 64),
}  # fmt: skip


def vgg_normalised() -> State:
    """The whole of VGG-19; what lies beyond relu4_1 takes one number a layer in the file."""
    used = merge(layer(str(index), *shape, 3, 3, bias=True) for index, shape in ENCODER.items())
    unused = merge(
        {f"{index}.weight": torch.zeros(1).expand(*shape, 3, 3), f"{index}.bias": torch.zeros(1).expand(shape[0])}
        for index, shape in BEYOND_RELU4_1.items()
    )
    return layer("0", 3, 3, 1, 1, bias=True) | used | unused


def run_vgg_normalised(s: State, x: Tensor) -> Tensor:
    x = conv(s, "0", x)
    for index in ENCODER:
        if index in (9, 16, 29):
            x = F.max_pool2d(x, 2, ceil_mode=True)
        x = F.relu(conv(s, str(index), x, reflect=1))
    return x


def adain_decoder() -> State:
    return merge(layer(str(index), *shape, 3, 3, bias=True) for index, shape in DECODER.items())


def run_adain_decoder(s: State, x: Tensor) -> Tensor:
    for index in DECODER:
        if index in (5, 18, 25):
            x = F.interpolate(x, scale_factor=2, mode="nearest")
        x = conv(s, str(index), x, reflect=1)
        x = x if index == 28 else F.relu(x)
    return x
