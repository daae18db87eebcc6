"""Videos painted by a fast style network, from one file to another, as artkernels stylize does it.

Decoding, scaling, the motion between frames, painting, encoding and writing. The peer is the same with the network's
two halves in stock PyTorch.
"""

import tempfile
from contextlib import ExitStack
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

import artkernels
from artkernels import images
from artkernels.benchmarks.case import Candidate, Setting, SystemCase
from artkernels.benchmarks.results import EAGER, OURS, Pass
from artkernels.drawing import draw_set
from artkernels.models import TransformerNet
from artkernels.video import CONSISTENCY, Clip, Encoder, Job, NetworkFrames, Section

__all__ = ["VideoCase", "cases"]

_FRAMES, _RATE = 12, Fraction(25)


@dataclass(frozen=True)
class VideoCase(SystemCase):
    """A clip of some size; see Case."""

    side: int
    op = "video"
    passes: tuple[Pass, ...] = ("inference",)

    @property
    def name(self) -> str:
        return f"fast-style-{self.side}"

    @property
    def title(self) -> str:
        return f"fast-style, {_FRAMES} frames"

    @property
    def shape(self) -> tuple[int, ...]:
        return _FRAMES, 3, self.side, self.side

    def tolerance(self, dtype: str) -> tuple[float, float]:
        """Of what is decoded from what was encoded: eight bits a pixel, and x264's decisions."""
        return 2e-2, 0.0

    def peers(self, setting: Setting) -> list[str]:
        return [EAGER]

    def candidate(self, name: str, setting: Setting, resources: ExitStack) -> Candidate:
        folder = Path(resources.enter_context(tempfile.TemporaryDirectory()))
        clip = self._clip(folder / "clip.mp4")
        network = _network().to(setting.device)
        painter = NetworkFrames({OURS: artkernels.fuse, EAGER: lambda network: network}[name](network), CONSISTENCY)
        output = folder / "painted.mp4"

        def paint() -> None:
            Job(clip, painter, output, Section(size=self.side), {}).run(lambda: None)

        def results() -> tuple[list[Tensor], list[Tensor]]:
            paint()
            return [frame.picture.float() for frame in Clip(output).frames()], []

        return Candidate(paint, results)

    def least(self, setting: Setting) -> tuple[int, int]:
        """The FLOPs of the network's convolutions; of memory the frames alone, which is not what bounds it."""
        with torch.device("meta"), FlopCounterMode(display=False) as counter:
            _network()(torch.empty(self.shape))
        return 2 * _FRAMES * 3 * self.side**2, counter.get_total_flops()

    def _clip(self, path: Path) -> Clip:
        """A camera's way over a drawing, two pixels a frame in both directions."""
        draw_set("suns", path.parent, 1, size=self.side + 2 * _FRAMES)
        drawing = images.load(next(path.parent.glob("*.png")))[0]
        with Encoder(path, _RATE) as encoder:
            for k in range(_FRAMES):
                window = slice(2 * k, 2 * k + self.side)
                encoder.add(k / _RATE, drawing[:, window, window])
        return Clip(path)


def _network() -> TransformerNet:
    torch.manual_seed(0)
    return TransformerNet().eval()


def cases() -> list[VideoCase]:
    """Two sizes of a video call."""
    return [VideoCase(256), VideoCase(512)]
