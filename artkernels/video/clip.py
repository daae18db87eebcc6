"""A video file to read: what is in it, and its frames as a player shows them, from anywhere on."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from fractions import Fraction
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, TypeVar, cast

from torch import Tensor

from artkernels import files
from artkernels.errors import UserError
from artkernels.video.pixels import ToRGB

if TYPE_CHECKING:
    from av import VideoFrame
    from av.audio.stream import AudioStream
    from av.container import InputContainer
    from av.packet import Packet
    from av.stream import Stream
    from av.video.codeccontext import VideoCodecContext
    from av.video.stream import VideoStream

    _Stream = TypeVar("_Stream", VideoStream, AudioStream)

__all__ = ["Clip", "Frame", "opened", "require_av"]

_STILLS = {"ico", "image2", "tty"}  # beside "..._pipe": FFmpeg calls a picture, and a text, a video of one frame
_GUESSED = {"avi", "mpeg"}  # containers that do not tell when each frame is shown: FFmpeg guesses from the beginning on
_MARGINS = 0, 2, 20  # seconds before a frame to look for the key frame: where it is is not written in every file
_ROUNDING = Fraction(3, 5)  # of a tick, a little more than half: some files were rounded more than once
_CLOSEST = Fraction(1, 10_000)  # seconds from a frame to the next: less is an error, and more than MP4's clock can tell
_LONGEST = Fraction(3600)  # likewise: more is an error, and 2**31 ticks are too many for MP4
_UNNOTICED = Fraction(1, 4)  # seconds that may be missing at the end: headers are not that exact
_USUAL_RATE = Fraction(25)  # of streams that have no container and tell none
_HIGHEST_RATE = 1000  # frames a second; transport streams of a variable rate tell that of their clock, 90000


class Frame(NamedTuple):
    """A frame of a video as a player shows it."""

    time: Fraction
    """Seconds since the clip's beginning."""
    duration: Fraction
    """Seconds that it is shown: as the file has it and no longer than was asked for, or at the rate asked for."""
    picture: Tensor
    """[3, H, W], uint8, RGB, upright, with square pixels."""


class _Shot(NamedTuple):
    """A frame that is decoded, and not yet a picture."""

    time: Fraction
    duration: Fraction
    frame: VideoFrame


class Clip:
    """A video file: what is in it, and its frames.

    Time 0 is the beginning of what comes first, picture or sound. (Sound that begins less than a frame before the
    picture does not count: encoders put that much ahead of it.)

    Args:
        path: of a file in any container and codec that FFmpeg reads.

    Attributes:
        path: of the file.
        height, width: of the pictures, upright and with square pixels.
        rate: frames a second, where that varies on average; a :class:`~fractions.Fraction`.
        duration: seconds from time 0 to the end of the last frame, as the header has it; None where it has not.
        has_audio: whether there is sound.
        origin: the time stamp in the file, in seconds, that is time 0.
        damage: what was found broken while reading, a sentence each; grows as frames are read.

    Raises:
        UserError: no such file, not a video, none of its frames can be read, or the package av is missing.
    """

    def __init__(self, path: Path) -> None:
        require_av()
        from av.format import Flags

        self.path = path
        self.damage: list[str] = []
        self.origin = self._first = self._delay = Fraction(0)
        self._promised: Fraction | None = None
        with opened(path) as container:
            stream = _video_stream(container, path)
            sound = next(iter(container.streams.audio), None)
            told = (rate for rate in (stream.average_rate, stream.guessed_rate) if rate and rate <= _HIGHEST_RATE)
            self.rate: Fraction = next(told, _USUAL_RATE)
            self.has_audio = sound is not None
            self._guessed = container.format.name in _GUESSED
            # Of transport streams, joined or cut from a broadcast, the times may begin anew: no seeking by them.
            self._jumps = self._guessed or Flags.ts_discont in Flags(container.format.flags)
            self._tick: Fraction = stream.time_base or Fraction(1, 1_000_000)
            self._frame_count = stream.frames
            begins, sound_begins = _start(stream), None if sound is None else _start(sound)
            end, end_of_all = _end(stream), _end_of_all(container)
            aspect = stream.sample_aspect_ratio
            first = next(self._decoded(container, stream), None)
        if first is None:
            raise UserError(f"{path}: none of its frames can be read, damaged or incomplete")
        self.damage.clear()  # reading reports it again
        began = self._stamp(first.frame) or Fraction(0)
        if self._guessed and begins is not None:
            self._delay, began = began - begins, begins
        self.origin = began
        if sound_begins is not None and sound_begins <= began - 1 / self.rate:
            self.origin = sound_begins
        self._first = began - self.origin
        # Without a length of its own the picture may well end before the sound.
        self._promised = self._since_origin(end_of_all if end is None and sound is None else end)
        self._end = self._since_origin(end_of_all if end is None else end)
        self.duration = None if self._end is None else float(self._end)
        self._to_rgb = ToRGB(first.frame, aspect)
        self.height, self.width = self._to_rgb.height, self._to_rgb.width

    def count(
        self, start: Fraction = Fraction(0), end: Fraction | None = None, fps: Fraction | None = None
    ) -> int | None:
        """How many frames :meth:`frames` will yield, as the header has it; None where it has not."""
        if self._end is None:
            return None
        if self._frame_count and start <= self._first and end is None and fps is None:
            return self._frame_count
        rate, anchor = (self.rate, self._first) if fps is None else (fps, start)
        known = self._end - Fraction(1, 1000)  # headers round, and often up
        end = known if end is None else min(end, known)
        before_start, before_end = (math.ceil((time - anchor) * rate) for time in (max(start, self._first), end))
        return max(0, before_end - before_start)

    def frames(
        self,
        start: Fraction = Fraction(0),
        end: Fraction | None = None,
        fps: Fraction | None = None,
        *,
        first: Fraction | None = None,
    ) -> Iterator[Frame]:
        """The frames with ``start <= time < end``, in the order in which they are shown.

        Args:
            start: seconds.
            end: seconds; None for the clip's end.
            fps: frames a second. Frame k then has the time ``start + k / fps`` and is what a player shows at that time:
                frames of the file are left out or repeated. With None each is yielded once, with its own time.
            first: seconds. Leaves out the frames before that; the others are the same as without it, to the bit.

        Raises:
            UserError: the clip ends before ``start``.
        """
        if self._end is not None and start >= self._end and not self._jumps:
            raise self._too_late(start, self._end)
        if first is None:
            return self._frames(Fraction(start), end, fps, some=True)
        begin = max(start, first)
        if fps is not None:
            begin = start + math.ceil((begin - start) * fps) / Fraction(fps)
        return self._frames(Fraction(begin), end, fps)

    def note(self, damage: str) -> None:
        """Add what was found broken to :attr:`damage`, once."""
        sentence = f"{self.path}: {damage}"
        if sentence not in self.damage:
            self.damage.append(sentence)

    def _too_late(self, start: Fraction, end: Fraction) -> UserError:
        return UserError(
            f"{self.path}: {float(end):g} seconds long, no frame begins at {float(start):g} seconds or later"
        )

    def _frames(
        self, begin: Fraction, end: Fraction | None, fps: Fraction | None, *, some: bool = False
    ) -> Iterator[Frame]:
        """Those from ``begin`` on; if there must be ``some``, none is an error."""
        shots = self._shots(begin)
        if fps is not None:
            shots = _resampled(shots, begin, Fraction(fps))
        source: VideoFrame | None = None
        until = self._first
        for shot in shots:
            until = shot.time + shot.duration
            if shot.time < begin:
                continue
            some = False
            if end is not None and shot.time >= end:
                return
            if shot.frame is not source:
                source, picture = shot.frame, self._to_rgb(shot.frame)
            duration = shot.duration
            if end is not None and fps is None:
                duration = min(duration, end - shot.time)
            yield Frame(shot.time, duration, picture)
        if some:
            raise self._too_late(begin, until)

    def _shots(self, begin: Fraction) -> Iterator[_Shot]:
        """All that is shown from ``begin`` on, and something before that."""
        for margin in () if self._jumps else _MARGINS:
            if begin - margin <= self._first:
                break
            with opened(self.path) as container:
                shots = self._sought(container, _video_stream(container, self.path), begin, begin - margin)
                if shots is not None:
                    yield from shots
                    return
        with opened(self.path) as container:
            yield from self._decoded(container, _video_stream(container, self.path))

    def _sought(
        self, container: InputContainer, stream: VideoStream, begin: Fraction, near: Fraction
    ) -> Iterator[_Shot] | None:
        """From a key frame before ``begin``, looked for at ``near``; None if the first that is found comes later."""
        import av

        try:
            container.seek(math.floor((near + self.origin) / self._tick), stream=stream)
        except av.FFmpegError:
            return None
        shots = self._decoded(container, stream)
        # What is shown before the key frame may need others to be decoded, that were not read.
        key = next((shot for shot in shots if shot.frame.key_frame), None)
        if key is None or key.frame.pts is None or key.time > begin:
            return None
        return chain([key], shots)

    def _decoded(self, container: InputContainer, stream: VideoStream) -> Iterator[_Shot]:
        import av

        decoder = _decoder(stream)
        decoder.thread_type = "AUTO"
        latest: _Shot | None = None
        for packet in self.packets(container, stream):
            try:
                # A corrupt packet lacks its end. Its decoder would make something up for that, or fail and take frames
                # along that other threads are decoding.
                frames = [] if packet.is_corrupt else decoder.decode(packet)
                broken = packet.is_corrupt or any(frame.is_corrupt for frame in frames)
            except av.FFmpegError:
                frames, broken = [], True
            if broken:
                self.note("damaged, not all of its frames can be read")
            for frame in frames:
                latest = self._timed(frame, latest)
                yield latest
        if latest is None or self._promised is None:
            return
        end = latest.time + latest.duration
        if end < self._promised - _UNNOTICED:
            self.note(f"ends after {float(end):.1f} of {float(self._promised):.1f} seconds, damaged or incomplete")

    def packets(self, container: InputContainer, stream: _Stream) -> Iterator[Packet[_Stream]]:
        """What the file has of one stream, as far as it can be read; :attr:`damage` tells if that is not all."""
        import av
        from av.stream import Discard

        for other in container.streams:
            if other.index != stream.index:
                other.discard = Discard.all
        try:
            yield from container.demux(stream)
        except av.FFmpegError:
            self.note("cannot be read to its end, damaged or incomplete")

    def _since_origin(self, time: Fraction | None) -> Fraction | None:
        return None if time is None else time - self.origin

    def _stamp(self, frame: VideoFrame) -> Fraction | None:
        """Seconds, as the file counts them."""
        stamp = frame.dts if self._guessed or frame.pts is None else frame.pts
        return None if stamp is None else stamp * self._tick - self._delay

    def _timed(self, frame: VideoFrame, latest: _Shot | None) -> _Shot:
        stamp = self._stamp(frame)
        follows = self._first if latest is None else latest.time + max(latest.duration, _CLOSEST)
        time = follows if stamp is None else stamp - self.origin
        # Files round times to their tick; where the rate is constant the exact time is known.
        exact = self._first + round((time - self._first) * self.rate) / self.rate
        if abs(exact - time) < self._tick * _ROUNDING:
            time = exact
        if latest is not None and not _CLOSEST <= time - latest.time <= _LONGEST:
            self.note("some of its frames have no time of their own, put after the one before")
            time = follows
        return _Shot(time, min(frame.duration * self._tick, _LONGEST) or 1 / self.rate, frame)


def _resampled(shots: Iterator[_Shot], time: Fraction, fps: Fraction) -> Iterator[_Shot]:
    """At ``time`` and every ``1 / fps`` from then on the latest of ``shots``."""
    held: _Shot | None = None
    for shot in shots:
        while held is not None and time < shot.time:
            yield held._replace(time=time, duration=1 / fps)
            time += 1 / fps
        if time < shot.time:  # nothing is shown yet
            time += math.ceil((shot.time - time) * fps) / fps
        held = shot
    while held is not None and time < held.time + held.duration:
        yield held._replace(time=time, duration=1 / fps)
        time += 1 / fps


def require_av() -> None:
    """Raise the UserError that names the package for videos if it is missing."""
    try:
        import av  # noqa: F401
    except ModuleNotFoundError as error:
        raise UserError("videos need one more package (pip install av)") from error


def opened(path: Path) -> InputContainer:
    """A file with sound or pictures, its header read.

    Raises:
        UserError: no such file, or not one of that kind.
    """
    import av

    with files.readable(path, "a video"):
        path.open("rb").close()
    try:
        # "file:", so that a name with a colon is not taken for a protocol
        container = av.open(f"file:{path}", metadata_errors="replace")
    except (av.FFmpegError, OSError) as error:
        raise UserError(f"{path}: not a video, or damaged or incomplete") from error
    if container.format.name in _STILLS or container.format.name.endswith("_pipe"):
        container.close()
        raise UserError(f"{path}: not a video")
    return container


def _video_stream(container: InputContainer, path: Path) -> VideoStream:
    from av.stream import Disposition

    for stream in container.streams.video:
        if stream.disposition & Disposition.attached_pic:  # the cover of a record
            continue
        if stream.codec_context is None:
            raise UserError(f"{path}: a video of a kind that cannot be read")
        return stream
    raise UserError(f"{path}: not a video" + (", only sound" if container.streams.audio else ""))


def _decoder(stream: VideoStream) -> VideoCodecContext:
    """What decodes the stream: FFmpeg's own decoder, but for VP8 and VP9 with alpha, which that leaves out."""
    from av import CodecContext

    name = {"vp8": "libvpx", "vp9": "libvpx-vp9"}.get(stream.codec_context.codec.canonical_name)
    if name is None or stream.metadata.get("alpha_mode") != "1":
        return stream.codec_context
    return cast("VideoCodecContext", CodecContext.create(name, "r"))


def _start(stream: Stream) -> Fraction | None:
    return None if stream.start_time is None or stream.time_base is None else stream.start_time * stream.time_base


def _end(stream: VideoStream) -> Fraction | None:
    """Where the pictures end, in seconds as the file counts them, if the header is true."""
    if stream.duration and stream.time_base is not None:
        return (_start(stream) or 0) + stream.duration * stream.time_base
    # Matroska has the end and not the length, as 00:00:10.040000000
    tag = re.match(r"(\d+):(\d+):(\d+(?:\.\d+)?)", stream.metadata.get("DURATION", ""))
    return None if tag is None else 3600 * int(tag[1]) + 60 * int(tag[2]) + Fraction(tag[3])


def _end_of_all(container: InputContainer) -> Fraction | None:
    if container.duration is None:
        return None
    return Fraction((container.start_time or 0) + container.duration, 1_000_000)
