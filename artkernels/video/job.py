"""A clip painted frame by frame. What is painted is kept: a job that was stopped, or killed, goes on where it was."""

import fcntl
import io
import json
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, field
from fractions import Fraction
from functools import partial
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
from artkernels.video.threads import ahead, behind

__all__ = ["Flicker", "Job", "Section"]

_SLOWEST, _FASTEST = Fraction(1, 1000), 1000  # frames a second
_STATE, _LOCK, _WHOLE = "state.pt", "lock", "whole.mp4"


@dataclass(frozen=True, kw_only=True)
class Section:
    """What is taken of a clip.

    Attributes:
        size: the longer side of the frames that are painted, in pixels, at least 1.
        start: seconds from the clip's beginning, >= 0.
        end: likewise, above ``start``; None: the clip's.
        fps: frames a second, from 0.001 to 1000; None: the clip's own frames at their own times.

    Raises:
        UserError: a value out of its range.
    """

    size: int
    start: Fraction = Fraction(0)
    end: Fraction | None = None
    fps: Fraction | None = None

    def __post_init__(self) -> None:
        if self.size < 1:
            raise UserError(f"size must be at least 1 pixel, got {self.size}")
        if self.start < 0:
            raise UserError(f"start must be from 0 seconds up, got {float(self.start):g}")
        if self.end is not None and self.end <= self.start:
            raise UserError(f"end must be after {float(self.start):g} seconds, the start, got {float(self.end):g}")
        if self.fps is not None and not _SLOWEST <= self.fps <= _FASTEST:
            raise UserError(f"fps must be from {float(_SLOWEST):g} to {_FASTEST}, got {float(self.fps):g}")


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
    duration: Fraction
    picture: Tensor
    motion: Motion | None
    error: float


@dataclass
class _State:
    """How far a job has come, and what it needs of the last frame to go on."""

    parts: list[int] = field(default_factory=list)  # the bytes of each
    frames: int = 0
    time: str = ""
    picture: Tensor | None = None
    memory: Tensor | None = None
    compared: int = 0
    error: float = 0.0
    clip_error: float = 0.0
    damage: list[str] = field(default_factory=list)  # of the clip, as far as it was read


class Job:
    """The painting of one clip.

    Work that is not finished is in a folder beside the output, ``OUTPUT.part``: the parts that are painted, and a
    state, which says of which job. A job with the same clip, settings and output goes on with it; where the painter
    computes alike, with as many threads say, its paintings are, bit for bit, those of a job that was never stopped.
    (Not always the file: x264 has been seen to write different bytes of the same pixels.) The folder goes when the
    video is written.

    Args:
        clip: to paint.
        painter: its settings are in ``made_with``.
        output: must end in .mp4, in a folder that exists.
        section: of the clip.
        made_with: kept in the video.
        inputs: files beside the clip that the job depends on.

    Attributes:
        clip, output, section: as given.
        folder: of what is painted, as long as the job is not finished.

    Raises:
        UserError: what was begun under that name is another job, or damaged; or the clip ends before the section.
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
        self.clip, self.output, self.section = clip, output, section
        self._painter, self._made_with = painter, made_with
        require_cv2()
        clip.frames(section.start, section.end, section.fps)  # an error if it ends before
        self.folder = output.with_name(f"{output.name}.part")
        marks = {str(path.resolve()): _mark(path) for path in (clip.path, *inputs)}
        self._job: dict[str, Any] = json.loads(json.dumps({**made_with, **marks}))
        self._state = self._kept()

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
            UserError: the clip has no frames in that section, another process is at work on the job, or something
                cannot be written.
        """
        with _alone_in(self.folder):
            self._state = self._kept()  # another run may have gone on with it, or have stopped half way
            self.clip.damage += [told for told in self._state.damage if told not in self.clip.damage]
            try:
                with closing(ahead(self._seen())) as frames:
                    while self._paint_part(frames, on_frame):
                        pass
            finally:
                if not self._state_file.exists():  # nothing is kept yet
                    shutil.rmtree(self.folder)
            self._finish()
        state = self._state
        if not state.compared:
            return None
        return Flicker(*((error / state.compared) ** 0.5 for error in (state.error, state.clip_error)))

    @property
    def _state_file(self) -> Path:
        return self.folder / _STATE

    def _kept(self) -> _State:
        """How far the job has come."""
        state = _read_state(self._state_file, self._job)
        parts = map(self._part, range(len(state.parts)))
        if not all(
            part.exists() and part.stat().st_size == size for part, size in zip(parts, state.parts, strict=True)
        ):
            raise _damaged(self.folder)
        return state

    def _part(self, index: int) -> Path:
        """The file of some of what is painted."""
        return self.folder / f"{index:05d}.mp4"

    def _paint_part(self, frames: Iterator[_Seen], on_frame: Callable[[], object]) -> bool:
        """Paint the next frames and keep them; False if there are none."""
        some = islice(frames, self._painter.save_every)
        first = next(some, None)
        if first is None:
            return False
        part, rate = self._part(len(self._state.parts)), self.section.fps or self.clip.rate
        with Encoder(part, rate) as encoder, behind() as later:
            for seen in chain([first], some):
                later(partial(encoder.add, seen.time, self._paint(seen), seen.duration))
                on_frame()
        self._state.parts.append(part.stat().st_size)
        self._state.damage = list(self.clip.damage)
        state = io.BytesIO()  # since PyTorch, writing to a full disk, hides that in an error of its own
        torch.save({"job": self._job, **vars(self._state)}, state)
        with files.whole_or_not_at_all(self._state_file) as temporary:
            temporary.write_bytes(state.getbuffer())
        return True

    def _finish(self) -> None:
        """Write the video of all that is painted."""
        if not self.frames:
            raise UserError(f"{self.clip.path}: has no frames in that section")
        # Joined in the folder, whose content a later run overwrites: killed here, nothing stays beside the output.
        whole, section = self.folder / _WHOLE, self.section
        parts = [self._part(index) for index in range(len(self._state.parts))]
        join(parts, whole, self.clip, section.start, section.end, self._made_with)
        try:
            whole.replace(self.output)
        except OSError as error:
            raise UserError(f"{self.output}: cannot be written ({error.strerror})") from error
        self._state_file.unlink()  # first, since without parts it would be a damaged job
        shutil.rmtree(self.folder)

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
        section, state = self.section, self._state
        last = Fraction(state.time) if state.frames else None
        before: Tensor | None = None
        for frame in self.clip.frames(section.start, section.end, section.fps, first=last):
            picture = resize(frame.picture.unsqueeze(0).float().div_(255), section.size)
            move = None if before is None else motion(before, picture)
            if frame.time != last:
                error = 0.0 if before is None or move is None else warping_error(before, picture, move)
                yield _Seen(frame.time, frame.duration, picture, move, error)
            before = picture


def _mark(path: Path) -> str:
    """What tells a file from another that took its place."""
    status = path.stat()
    return f"{status.st_size} bytes, changed at {status.st_mtime_ns} ns"


@contextmanager
def _alone_in(folder: Path) -> Iterator[None]:
    """Keep ``folder``, made if need be, from other processes. The lock of one that is killed goes with it."""
    with ExitStack() as stack:
        try:
            foreign = folder.is_dir() and not (folder / _LOCK).exists() and any(folder.iterdir())
            if foreign or folder.is_symlink():
                raise UserError(f"{folder}: a folder of that name, and not of a video that is painted, is in the way")
            folder.mkdir(exist_ok=True)
            lock = stack.enter_context((folder / _LOCK).open("w"))
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if not os.fstat(lock.fileno()).st_nlink:  # who had it until now has just finished, and deleted it
                raise BlockingIOError
        except BlockingIOError as error:
            raise UserError(f"{folder}: another process is painting this video, wait until it has ended") from error
        except OSError as error:
            raise UserError(f"{folder}: cannot be used for what is painted ({error.strerror})") from error
        yield


def _read_state(path: Path, job: dict[str, Any]) -> _State:
    """How far ``job`` has come; at its beginning if there is no such file."""
    if not path.exists():
        return _State()
    try:
        content = torch.load(path, weights_only=True)
        begun, state = content.pop("job"), _State(**content)
    except Exception as error:  # PyTorch raises many kinds on damaged files
        raise _damaged(path.parent) from error
    if begun != job:
        name = next(name for name in {**job, **begun} if begun.get(name) != job.get(name))
        raise UserError(
            f"{path.parent}: was begun with another {name} ({begun.get(name)}, now {job.get(name)}): give the same, or "
            "delete that folder to begin anew"
        )
    return state


def _damaged(folder: Path) -> UserError:
    return UserError(f"{folder}: what was painted cannot be read: delete that folder to begin anew")
