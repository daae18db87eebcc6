"""Videos: their frames, what moves in them, and their painting."""

from artkernels.video.clip import Clip, Frame
from artkernels.video.encoding import Encoder, check_video, join
from artkernels.video.flow import Motion, motion, warp, warping_error
from artkernels.video.job import Flicker, Job, Section
from artkernels.video.painters import (
    CONSISTENCY,
    AdaINFrames,
    Before,
    FramePainter,
    NetworkFrames,
    OptimisedFrames,
    Painted,
)

__all__ = [
    "CONSISTENCY",
    "AdaINFrames",
    "Before",
    "Clip",
    "Encoder",
    "Flicker",
    "Frame",
    "FramePainter",
    "Job",
    "Motion",
    "NetworkFrames",
    "OptimisedFrames",
    "Painted",
    "Section",
    "check_video",
    "join",
    "motion",
    "warp",
    "warping_error",
]
