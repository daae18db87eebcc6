"""What artkernels stylize does with a video."""

import sys
from pathlib import Path

import torch
from torch import Tensor
from tqdm import tqdm

from artkernels.training.signals import on_signals
from artkernels.video import Clip, Job

__all__ = ["frame_of", "is_clip", "paint_clip"]

_SUFFIXES = {
    *(".3g2", ".3gp", ".asf", ".avi", ".dv", ".f4v", ".flv", ".m2ts", ".m2v", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg"),
    *(".mpg", ".mts", ".mxf", ".ogv", ".qt", ".ts", ".vob", ".webm", ".wmv", ".wtv", ".y4m"),
}


def is_clip(path: Path, output: Path | None) -> bool:
    """Whether ``path`` is to be painted as a video: its name is one's, or a video is asked for, of a GIF say."""
    return path.suffix.lower() in _SUFFIXES or (output is not None and output.suffix.lower() == ".mp4")


def frame_of(clip: Clip) -> Tensor:
    """Something of the shape of a frame, [1, 3, H, W], to check whether it can be painted."""
    return torch.zeros(1, 1, 1, 1).expand(1, 3, clip.height, clip.width)


def paint_clip(job: Job) -> None:
    """Paint a clip, or go on with it, and say how it went."""
    clip, section = job.clip, job.section
    total = clip.count(section.start, section.end, section.fps)
    told: list[int] = []

    def stop(signal: int) -> None:
        told.append(signal)
        raise KeyboardInterrupt

    def on_frame() -> None:
        bar.update()
        if told:  # what was raised then was lost, as it is in a callback of the garbage collector
            raise KeyboardInterrupt

    with tqdm(total=total, initial=job.frames, desc=clip.path.name, unit="frame", disable=None) as bar:
        try:
            with on_signals(stop):
                flicker = job.run(on_frame)
        except KeyboardInterrupt:
            if job.folder.exists():
                kept = f"what is painted is kept in {job.folder}, the same command goes on from there"
                bar.write(f"artkernels: {kept}", file=sys.stderr)
            raise
        finally:
            for sentence in clip.damage:
                bar.write(f"artkernels: {sentence}", file=sys.stderr)
    print(job.output)
    if flicker is not None:
        print(f"flicker {flicker.painted:.4f} (the clip itself {flicker.clip:.4f})")
