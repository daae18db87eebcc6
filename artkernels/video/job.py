"""A clip painted frame by frame. What is painted is kept: a job that was stopped, or killed, goes on where it was."""

import json
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from datetime import datetime
from fractions import Fraction
from itertools import chain, islice
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from artkernels import files
from artkernels.errors import UserError
from artkernels.images import resize
from artkernels.video.clip import Clip
from artkernels.video.encoding import Encoder, join
from artkernels.video.flow import Motion, motion, require_cv2, warping_error
from artkernels.video.painters import Before, FramePainter
from artkernels.video.threads import ahead, worker

__all__ = ["Flicker", "Job", "Section"]

_JOB, _STATE = "job.json", "state.pt"


@dataclass(frozen=True, kw_only=True)
class Section:
    """What is taken of a clip.

    Attributes:
        size: the longer side of the frames that are painted, in pixels.
        start: seconds from the clip's beginning, >= 0.
        end: likewise, above ``start``; None: the clip's.
        fps: frames a second, > 0; None: the clip's own frames at their own times.

    Raises:
        UserError: a value out of its range.
    """

    size: int
    start: Fraction = Fraction(0)
    end: Fraction | None = None
    fps: Fraction | None = None

    def __post_init__(self) -> None:
        if self.start < 0:
            raise UserError(f"start must be from 0 seconds up, got {float(self.start):g}")
        if self.end is not None and self.end <= self.start:
            raise UserError(f"end must be after {float(self.start):g} seconds, the start, got {float(self.end):g}")
        if self.fps is not None and not 0 < self.fps <= 1000:
            raise UserError(f"fps must be above 0 and at most 1000 frames a second, got {float(self.fps):g}")


class Flicker(NamedTuple):
    """How much frames differ from those before them, moved along, where what they show was to be seen there.

    The root of the mean square of :func:`~artkernels.video.flow.warping_error`, RGB from 0 to 1.

    Attributes:
        painted: of the paintings.
        clip: of the clip's own frames: light that changes, noise, and errors of the flow. What is beyond is flicker.
    """

    painted: float
    clip: float


class _Seen(NamedTuple):
    """A frame, and what it has to do with the one before; ``error`` is the clip's own warping error."""

    time: Fraction
    picture: Tensor
    motion: Motion | None
    error: float


@dataclass
class _State:
    """How far a job has come, and what it needs of the last frame to go on."""

    frames: int = 0
    time: str = ""
    picture: Tensor | None = None
    memory: Tensor | None = None
    compared: int = 0
    error: float = 0.0
    clip_error: float = 0.0


class Job:
    """The painting of one clip.

    Work that is not finished is in a folder beside the output, ``OUTPUT.part``: the parts that are painted, and a
    state. A job with the same clip, settings and output goes on with it; the video is then that of a job that was never
    stopped. The folder goes when the video is written.

    Args:
        clip: to paint.
        painter: its settings are in ``made_with``.
        output: must end in .mp4, in a folder that exists.
        section: of the clip.
        made_with: kept in the video.
        inputs: files beside the clip that the job depends on.

    Raises:
        UserError: what was begun under that name is another job, or nothing can be written there.
    """

    def __init__(
        self,
        clip: Clip,
        painter: FramePainter,
        output: Path,
        section: Section,
        made_with: dict[str, Any],
        inputs: Sequence[Path] = (),
    ) -> None:
        self._clip, self._painter, self._output, self._section = clip, painter, output, section
        self._made_with = made_with
        require_cv2()
        clip.frames(section.start, section.end, section.fps)  # an error if it ends before
        self.folder = output.with_name(f"{output.name}.part")
        files = {str(path): _mark(path) for path in (clip.path, *inputs)}
        self._state = _open(self.folder, {**made_with, **files})

    @property
    def frames(self) -> int:
        """Those that are painted."""
        return self._state.frames

    def run(self, on_frame: Callable[[], object]) -> Flicker | None:
        """Paint what is not yet painted, and write the video whole or not at all.

        Args:
            on_frame: called after every frame.

        Returns:
            None if no two frames could be compared.

        Raises:
            UserError: the clip has no frames in that section, or something cannot be written.
        """
        try:
            with closing(ahead(self._seen())) as frames:
                while self._paint_part(frames, on_frame):
                    pass
        finally:
            if not (self.folder / _STATE).exists():  # nothing is kept yet
                shutil.rmtree(self.folder)
        state, section = self._state, self._section
        if not state.frames:
            raise UserError(f"{self._clip.path}: has no frames in that section")
        parts = [self._part(index) for index in range(-(-state.frames // self._painter.save_every))]
        join(parts, self._output, self._clip, section.start, section.end, self._made_with)
        shutil.rmtree(self.folder)
        if not state.compared:
            return None
        return Flicker(*((error / state.compared) ** 0.5 for error in (state.error, state.clip_error)))

    def _part(self, index: int) -> Path:
        return self.folder / f"{index:05d}.mp4"

    def _paint_part(self, frames: Iterator[_Seen], on_frame: Callable[[], object]) -> bool:
        """Paint the next frames and keep them; False if there are none."""
        some = islice(frames, self._painter.save_every)
        first = next(some, None)
        if first is None:
            return False
        path = self._part(self._state.frames // self._painter.save_every)
        with Encoder(path, self._section.fps or self._clip.rate) as encoder, worker() as thread:
            added = []
            for seen in chain([first], some):
                added.append(thread.submit(encoder.add, seen.time, self._paint(seen)))
                on_frame()
            for result in added:
                result.result()
        with files.whole_or_not_at_all(self.folder / _STATE) as temporary:
            torch.save(vars(self._state), temporary)
        return True

    def _paint(self, seen: _Seen) -> Tensor:
        state = self._state
        before = None
        if state.memory is not None and seen.motion is not None:
            before = Before(state.memory, seen.motion)
        picture, memory = self._painter.paint(seen.picture, before)
        if state.picture is not None and seen.motion is not None:
            state.compared += 1
            state.error += warping_error(state.picture, picture, seen.motion)
            state.clip_error += seen.error
        state.frames, state.time, state.picture, state.memory = state.frames + 1, str(seen.time), picture, memory
        return picture[0]

    def _seen(self) -> Iterator[_Seen]:
        """The frames that are not painted yet."""
        section, state = self._section, self._state
        last = Fraction(state.time) if state.frames else None
        before: Tensor | None = None
        for frame in self._clip.frames(section.start, section.end, section.fps, first=last):
            picture = resize(frame.picture.unsqueeze(0).float().div_(255), section.size)
            move = None if before is None else motion(before, picture)
            if frame.time != last:
                error = 0.0 if before is None or move is None else warping_error(before, picture, move)
                yield _Seen(frame.time, picture, move, error)
            before = picture


def _mark(path: Path) -> str:
    """What tells a file from another that took its place."""
    status = path.stat()
    return f"{status.st_size} bytes of {datetime.fromtimestamp(status.st_mtime).isoformat()}"


def _open(folder: Path, job: dict[str, Any]) -> _State:
    """Begin in ``folder``, or go on with what was begun there."""
    job = json.loads(json.dumps(job))
    try:
        begun = json.loads((folder / _JOB).read_text()) if (folder / _JOB).exists() else None
        if begun is None:
            folder.mkdir(exist_ok=True)
            with files.whole_or_not_at_all(folder / _JOB) as temporary:
                temporary.write_text(json.dumps(job))
    except (OSError, ValueError) as error:
        raise UserError(f"{folder}: cannot be used for what is painted ({error})") from error
    if begun not in (None, job):
        name = next(name for name in {**job, **begun} if begun.get(name) != job.get(name))
        raise UserError(
            f"{folder}: was begun with another {name} ({begun.get(name)}, now {job.get(name)}): give the same, or "
            "delete that folder to begin anew"
        )
    if not (folder / _STATE).exists():
        return _State()
    return _State(**torch.load(folder / _STATE, weights_only=True))
