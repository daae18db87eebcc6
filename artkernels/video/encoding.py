"""Pictures as a video that any player shows: encoded in parts, which are then joined to one file, with the sound."""

from __future__ import annotations

import heapq
import json
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor

from artkernels import files
from artkernels.errors import UserError
from artkernels.video.clip import Clip, opened, require_av
from artkernels.video.pixels import ToYUV
from artkernels.video.sound import add_sound

if TYPE_CHECKING:
    from types import TracebackType

    from av.container import OutputContainer
    from av.packet import Packet
    from av.video.frame import VideoFrame
    from av.video.stream import VideoStream

__all__ = ["Encoder", "check_video", "join"]

_X264 = {
    "crf": "16",  # the constant rate factor at which losses are no longer seen
    "preset": "veryfast",  # a quarter of the work of "medium" for 5 % more bytes: the processor is for the painting
    "bf": "0",  # no frame waits for a later one, so that parts can be strung together as they are
    "x264-params": "stitchable=1",  # headers that do not depend on the pictures: one for all parts
}
_THREADS = 4  # what x264 writes depends on their number
_TICKS = 90_000  # a second, at least: MPEG's clock
_MOST_TICKS = 1_000_000


def check_video(path: Path) -> None:
    """Raise the UserError that :func:`join` would raise for ``path``, before the work is done, leaving no trace."""
    if path.suffix.lower() != ".mp4":
        raise UserError(f"{path}: videos are saved as MP4, the name must end in .mp4")
    require_av()
    files.check_writable(path)


class Encoder:
    """Writes an MP4 file (H.264, yuv420p, BT.709) frame by frame, whole or not at all; a context manager.

    The file is a video, or a part for :func:`join`.

    Args:
        path: of the file, in a folder that exists.
        rate: frames a second, where it varies on average. Times of a constant rate are exact, others to 1/90000 s.

    Raises:
        UserError: the package av is missing, or the file cannot be written.
    """

    def __init__(self, path: Path, rate: Fraction) -> None:
        require_av()
        self._path = path
        self._rate = Fraction(rate)
        self._to_yuv = ToYUV()
        self._tick = _tick(self._rate)
        self._stream: VideoStream | None = None
        self._held: Packet[VideoStream] | None = None  # the latest, whose duration the next one tells
        self._last_duration = 0
        self._latest: int | None = None

    def __enter__(self) -> Encoder:
        with ExitStack() as stack:
            self._container = stack.enter_context(_written(self._path, self._tick))
            stack.push(self._end)
            self._stack = stack.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.__exit__(kind, error, trace)

    def add(self, time: Fraction, picture: Tensor, duration: Fraction | None = None) -> None:
        """Append a frame.

        Args:
            time: seconds, later than that of the frame before.
            picture: [3, H, W], RGB in [0, 1], on any device; all of one size. An odd side gets its last row or column
                once more, since yuv420p has one colour for two by two pixels.
            duration: seconds that it is shown if it is the last; None: as the rate has it.
        """
        frame = self._to_yuv(picture)
        if self._stream is None:
            self._stream = self._begun(frame)
        stream = self._stream
        if (frame.height, frame.width) != (stream.height, stream.width):
            raise ValueError(
                f"a frame of {frame.height} x {frame.width} after frames of {stream.height} x {stream.width}, all must "
                "have one size"
            )
        frame.pts, frame.time_base = round(time / self._tick), self._tick
        if self._latest is not None and frame.pts <= self._latest:
            raise ValueError(f"a frame for {float(time):g} seconds, a time after that of the frame before is needed")
        self._latest = frame.pts
        self._last_duration = max(1, round((duration or 1 / self._rate) / self._tick))
        self._mux(stream.encode(frame))

    def _begun(self, frame: VideoFrame) -> VideoStream:
        stream = self._container.add_stream(
            "libx264", rate=self._rate, options=_X264, time_base=self._tick, width=frame.width, height=frame.height
        )
        stream.thread_type, stream.thread_count = "FRAME", _THREADS
        stream.color_range, stream.colorspace = frame.color_range, frame.colorspace
        stream.color_primaries, stream.color_trc = frame.color_primaries, frame.color_trc
        return stream

    def _mux(self, packets: list[Packet[VideoStream]]) -> None:
        for packet in packets:
            if self._held is not None:
                self._held.duration = _stamp(packet) - _stamp(self._held)
                self._container.mux_one(self._held)
            self._held = packet

    def _end(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is not None:
            return
        if self._stream is None:
            raise ValueError("a video needs at least one frame")
        self._mux(self._stream.encode())
        if self._held is not None:
            self._held.duration = self._last_duration
            self._container.mux_one(self._held)


def join(
    parts: Sequence[Path],
    output: Path,
    clip: Clip | None = None,
    start: Fraction = Fraction(0),
    end: Fraction | None = None,
    settings: dict[str, Any] | None = None,
) -> None:
    """String files of :class:`Encoder` together, without a loss, to one MP4 file, whole or not at all.

    Args:
        parts: at least one, in order: no frame of one may be before the last of the one before.
        output: the file, must end in .mp4.
        clip: whose sound to add, where it has any: the first stream, as it is where MP4 has its codec (AAC, AC-3, ALAC,
            E-AC-3, FLAC, MP3, Opus), otherwise as AAC. What cannot be read is told in its ``damage``.
        start: the time in the parts and in the clip that becomes 0, in seconds.
        end: of the sound, in seconds.
        settings: kept in the file as JSON, as its comment.

    Raises:
        UserError: the file cannot be written.
        ValueError: the parts have different sizes or overlap.
    """
    import av

    start = Fraction(start)
    try:
        _join(parts, output, clip, start, end, settings)
    except av.FFmpegError:
        if clip is None or not clip.has_audio:
            raise
        clip.note("its sound cannot be kept, damaged")
        _join(parts, output, None, start, end, settings)


def _join(
    parts: Sequence[Path],
    output: Path,
    clip: Clip | None,
    start: Fraction,
    end: Fraction | None,
    settings: dict[str, Any] | None,
) -> None:
    import av

    with ExitStack() as stack:
        first = stack.enter_context(av.open(f"file:{parts[0]}")).streams.video[0]
        tick = first.time_base or Fraction(1, _TICKS)
        container = stack.enter_context(_written(output, tick))
        if settings is not None:
            container.metadata["comment"] = json.dumps(settings)
        video = container.add_stream_from_template(first, opaque=True)
        tracks: list[Iterator[Packet[Any]]] = [_strung(parts, video, start, tick)]
        if clip is not None and clip.has_audio:
            source = stack.enter_context(opened(clip.path))
            tracks.append(add_sound(container, clip, source, start, end))
        for packet in heapq.merge(*tracks, key=lambda packet: _stamp(packet) * packet.time_base):
            try:
                container.mux_one(packet)
            except av.FFmpegError as error:
                if clip is None or packet.stream is video or isinstance(error, OSError):
                    raise
                clip.note("a part of its sound cannot be copied, damaged or incomplete")


def _strung(
    parts: Sequence[Path], video: VideoStream, start: Fraction, tick: Fraction
) -> Iterator[Packet[VideoStream]]:
    import av

    held: Packet[VideoStream] | None = None
    for part in parts:
        with av.open(f"file:{part}") as container:
            stream = container.streams.video[0]
            if (stream.codec_context.extradata, stream.time_base) != (video.codec_context.extradata, tick):
                raise ValueError(f"{part}: encoded otherwise than the part before, one size and rate are needed")
            for packet in container.demux(stream):
                if packet.pts is None:
                    continue
                packet.pts = packet.dts = packet.pts - round(start / tick)
                packet.stream = video
                if held is not None:
                    held.duration = packet.pts - _stamp(held)
                    if held.duration <= 0:
                        raise ValueError(f"{part}: begins before the end of the part before")
                    yield held
                held = packet
    if held is not None:
        yield held


@contextmanager
def _written(path: Path, tick: Fraction) -> Iterator[OutputContainer]:
    import av

    options = {
        "movflags": "+faststart",
        "movie_timescale": str(tick.denominator),  # otherwise where a stream begins is rounded to milliseconds
    }
    with (
        files.whole_or_not_at_all(path) as temporary,
        av.open(f"file:{temporary}", "w", format="mp4", container_options=options) as container,
    ):
        yield container


def _tick(rate: Fraction) -> Fraction:
    """A unit of time no coarser than 1/90000 s, of which a frame of a usual ``rate`` lasts a whole number."""
    ticks = rate.numerator * -(-_TICKS // rate.numerator)
    return Fraction(1, ticks if ticks <= _MOST_TICKS else _TICKS)


def _stamp(packet: Packet[Any]) -> int:
    if packet.pts is None:
        raise RuntimeError("a packet without a time stamp")
    return packet.pts
