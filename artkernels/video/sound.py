"""The sound of a clip for an MP4 file: its packets as they are where MP4 has their codec, otherwise as AAC."""

from __future__ import annotations

import io
from collections.abc import Iterator
from fractions import Fraction
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from artkernels.video.clip import Clip

if TYPE_CHECKING:
    from av.audio.frame import AudioFrame
    from av.audio.stream import AudioStream
    from av.container import InputContainer, OutputContainer
    from av.packet import Packet

    _Packets = Iterator[Packet[AudioStream]]
    _Samples = NDArray[np.float32]  # [channels, samples]

__all__ = ["add_sound"]

_COPIED = {"aac", "ac3", "alac", "eac3", "flac", "mp3", "opus"}  # what players know in MP4
_AAC_RATES = {8000, 11025, 12000, 16000, 22050, 24000, 32000, 44100, 48000, 64000, 88200, 96000}
_AAC_BITS = 96_000  # a second and channel
_ANEW, _LEAP = Fraction(1, 2), Fraction(3600)  # seconds back, and ahead, from which on they are not believed
_PAUSE = 8  # times as long as the packet before: Opus, which varies most, has 2.5 to 60 milliseconds, rarely mixed
_SLACK = Fraction(1, 50)  # seconds that time stamps may be wrong by before samples are left out or silence is put in


def add_sound(
    output: OutputContainer, clip: Clip, container: InputContainer, start: Fraction, end: Fraction | None
) -> _Packets:
    """Add a stream for a clip's first sound to a video.

    Args:
        output: the video.
        clip: whose ``damage`` tells what cannot be read.
        container: the clip's file, opened.
        start: seconds in the clip; becomes time 0.
        end: seconds in the clip; None for its end.

    Returns:
        The packets for that stream, in order.
    """
    stream = container.streams.audio[0]
    packets = clip.packets(container, stream)
    if stream.codec_context is None:
        clip.note("its sound is of a kind that cannot be read, left out")
        return iter(())
    if stream.codec_context.codec.canonical_name in _COPIED and _fits(stream):
        return _copied(packets, output.add_stream_from_template(stream, opaque=True), clip, start, end)
    encoded = output.add_stream("aac", rate=stream.rate if stream.rate in _AAC_RATES else 48_000)
    encoded.layout = "mono" if stream.channels == 1 else "5.1" if stream.channels == 6 else "stereo"
    encoded.bit_rate = _AAC_BITS * encoded.channels
    return _encoded(_samples(packets, encoded, clip), encoded, start, end)


def _fits(stream: AudioStream) -> bool:
    """Whether an MP4 file takes the stream, which its codec alone does not tell: MP3 only from 16 kHz up."""
    import av

    try:
        with av.open(io.BytesIO(), "w", format="mp4") as trial:
            trial.add_stream_from_template(stream, opaque=True)
            trial.start_encoding()
    except (av.FFmpegError, ValueError):
        return False
    return True


class _Clock:
    """Goes on where times begin anew, as in transport streams that were joined, or leap ahead."""

    def __init__(self, clip: Clip) -> None:
        self._clip = clip
        self._begun = False
        self._ahead = Fraction(0)  # of the stamps
        self._time = self._usual = Fraction(0)  # of the latest; how long such last
        self.after = Fraction(0)  # where the next one begins

    def __call__(self, stamp: Fraction | None, told: Fraction) -> Fraction:
        """The time of what is stamped with ``stamp``, seconds as the file counts them, and said to last for ``told``.

        Some files say 0, and some, before a pause, the time to what comes after it: then it lasts as long as usual.
        """
        time = self.after if stamp is None else stamp - self._clip.origin + self._ahead
        if self._begun and not -_ANEW < time - self.after < _LEAP:
            self._clip.note("some of its sound has no time of its own, put after what came before")
            self._ahead, time = self._ahead + self.after - time, self.after
        lasts = told or (time - self._time if self._begun else told)
        if not self._usual or lasts < _PAUSE * self._usual:
            self._usual = lasts
        self._begun, self._time, self.after = True, time, time + self._usual
        return time


def _copied(packets: _Packets, copy: AudioStream, clip: Clip, start: Fraction, end: Fraction | None) -> _Packets:
    """Those that sound between ``start`` and ``end``; what the first has before ``start`` is at a negative time."""
    rate = copy.rate
    clock = _Clock(clip)
    latest: int | None = None
    for packet in packets:
        stamp = packet.pts if packet.pts is not None else packet.dts
        seconds = None if stamp is None else stamp * packet.time_base
        time = clock(seconds, (packet.duration or 0) * packet.time_base)
        if end is not None and time >= end:
            return
        pts = round((time - start) * rate)
        if not packet.size or (start and clock.after < start) or (latest is not None and pts <= latest):
            continue
        packet.time_base = Fraction(1, rate)
        packet.pts = packet.dts = latest = pts
        packet.duration = round((clock.after - time) * rate)
        packet.stream = copy
        yield packet


def _encoded(
    samples: Iterator[tuple[Fraction, _Samples]], encoded: AudioStream, start: Fraction, end: Fraction | None
) -> _Packets:
    from av import AudioFrame

    layout: str = encoded.layout.name
    rate = encoded.rate
    left = None if end is None else round((end - start) * rate)
    written = 0
    for block in _without_gaps(samples, start, rate):
        block = np.ascontiguousarray(block[:, :left])
        if not block.size:
            break
        frame = AudioFrame.from_ndarray(block, "fltp", layout)
        frame.sample_rate, frame.time_base, frame.pts = rate, Fraction(1, rate), written
        written += frame.samples
        left = None if left is None else left - frame.samples
        yield from encoded.encode(frame)
    if written:
        yield from encoded.encode(None)


def _without_gaps(samples: Iterator[tuple[Fraction, _Samples]], start: Fraction, rate: int) -> Iterator[_Samples]:
    """Blocks from ``start`` on: silence where there are no samples, and none twice."""
    written = 0
    slack = 0  # the beginning is exact
    for time, block in samples:
        late = round((time - start) * rate) - written
        if abs(late) <= slack:
            late = 0
        for first in range(0, late, rate):  # a second at once: it may be an hour
            silence = np.zeros((len(block), min(rate, late - first)), np.float32)
            written += silence.shape[1]
            yield silence
        block = block[:, max(0, -late) :]
        if block.size:
            slack = round(_SLACK * rate)
            written += block.shape[1]
            yield block


def _samples(packets: _Packets, encoded: AudioStream, clip: Clip) -> Iterator[tuple[Fraction, _Samples]]:
    """What is decoded, at the rate and in the layout of ``encoded``, block by block with the time of each."""
    import av
    from av.audio.resampler import AudioResampler

    clock = _Clock(clip)
    resampler: AudioResampler | None = None
    kind: tuple[str, str, int] | None = None
    for packet in packets:
        resampled: list[AudioFrame] = []
        try:
            for frame in packet.decode():
                if resampler is None or kind != (frame.format.name, frame.layout.name, frame.sample_rate):
                    kind = frame.format.name, frame.layout.name, frame.sample_rate
                    resampler = AudioResampler("fltp", encoded.layout.name, encoded.rate)
                resampled += resampler.resample(frame)
        except (av.FFmpegError, ValueError):  # the latter of formats that are none
            clip.note("its sound is damaged, silent where it cannot be read")
            resampler = None
        yield from _timed(resampled, clock)
    if resampler is not None:
        yield from _timed(resampler.resample(None), clock)


def _timed(frames: list[AudioFrame], clock: _Clock) -> Iterator[tuple[Fraction, _Samples]]:
    for frame in frames:
        if frame.pts is not None and frame.time_base is not None:
            time = clock(frame.pts * frame.time_base, Fraction(frame.samples, frame.sample_rate))
            yield time, frame.to_ndarray().astype(np.float32, copy=False)
