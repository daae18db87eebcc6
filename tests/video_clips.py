"""Small videos for tests, of any codec and container, and what a player makes of a video."""

from fractions import Fraction

import av
import numpy as np
import torch

from artkernels.video.encoding import Encoder

FILM = Fraction(24000, 1001)
UNEVEN = [Fraction(index, 25) + Fraction(index * index % 7, 1000) for index in range(60)]  # seconds, whole milliseconds
COLOURS = [(1.0, 0.0, 0.0), (0.0, 0.8, 0.1), (0.1, 0.2, 0.9), (1.0, 1.0, 1.0), (0.0, 0.0, 0.0), (0.5, 0.5, 0.5)]
BT709, BT601, UNMARKED = 1, 6, 2
LIMITED, FULL = 1, 2
RATE = Fraction(25)
SAMPLES = 48_000  # a second


def numbered(count, height=48, width=64):
    """Pictures that differ: a level of grey for each, and a bright square that moves. [count, H, W, 3], uint8."""
    pictures = np.empty((count, height, width, 3), np.uint8)
    for index, picture in enumerate(pictures):
        picture[:] = round(20 + 200 * index / count)
        left = index * 7 % max(1, width - 8)
        picture[8:16, left : left + 8] = 255, 128, 0
    return pictures


def write_clip(
    path,
    pictures,
    *,
    times=None,
    rate=RATE,
    codec="libx264",
    pix_fmt="yuv420p",
    options=None,
    format=None,
    tick=None,
    aspect=None,
    turn=None,
    sound=None,
):
    """A video of ``pictures`` ([H, W, 3], uint8, or frames as they are) at ``times`` (k / rate by default), in seconds.

    ``turn``: degrees, horizontal flip, vertical flip. ``sound``: codec, samples [channels, n] in [-1, 1], their time,
    and their rate.
    """
    times = [index / rate for index in range(len(pictures))] if times is None else times
    tick = tick or Fraction(1, 90_000)
    with av.open(str(path), "w", format=format) as container:
        frames = [picture if isinstance(picture, av.VideoFrame) else _frame(picture, pix_fmt) for picture in pictures]
        video = container.add_stream(codec, rate=rate, options=options or {}, time_base=tick, bit_rate=4_000_000)
        video.height, video.width, video.pix_fmt = frames[0].height, frames[0].width, frames[0].format.name
        video.colorspace, video.color_range = frames[0].colorspace, frames[0].color_range
        if aspect:
            video.codec_context.sample_aspect_ratio = aspect
        if turn:
            video.set_display_rotation(*turn)
        audio = None if sound is None else _sound_stream(container, *sound)
        for frame, time in zip(frames, times, strict=True):
            frame.pts, frame.time_base = round(time / tick), tick
            container.mux(video.encode(frame))
        container.mux(video.encode())
        if sound is not None:
            _write_sound(container, audio, *sound)
    return path


def written(path, frames, rate=Fraction(25)):
    with Encoder(path, rate) as encoder:
        for time, picture in frames:
            encoder.add(time, picture)
    return path


def grey(level, height=48, width=64):
    return torch.full((3, height, width), level)


def shown(path):
    """What a player decodes: pairs of time (seconds, exact) and picture ([H, W, 3])."""
    with av.open(str(path)) as container:
        return [(frame.pts * frame.time_base, frame.to_ndarray(format="rgb24")) for frame in container.decode(video=0)]


def packets(path, kind):
    """(time, bytes) of every packet of the first stream of ``kind``."""
    with av.open(str(path)) as container:
        stream = getattr(container.streams, kind)[0]
        return [(packet.pts * packet.time_base, bytes(packet)) for packet in container.demux(stream) if packet.size]


def samples(path):
    """The sound, mono, at 48 kHz, from time 0 on."""
    with av.open(str(path)) as container:
        resampler = av.AudioResampler("fltp", "mono", SAMPLES)
        blocks = [
            (b.pts * b.time_base, b.to_ndarray()[0]) for f in container.decode(audio=0) for b in resampler.resample(f)
        ]
    ends = [round(time * SAMPLES) + len(block) for time, block in blocks]
    whole = np.zeros(max(ends, default=0), np.float32)
    for (_, block), end in zip(blocks, ends, strict=True):
        whole[max(0, end - len(block)) : max(0, end)] = block[-end if end < len(block) else None :] if end > 0 else []
    return whole


def tone(seconds, rate=SAMPLES, channels=2, hertz=440):
    """[channels, samples] in [-1, 1]."""
    wave = 0.5 * np.sin(2 * np.pi * hertz * np.arange(round(seconds * rate)) / rate)
    return np.stack([wave.astype(np.float32)] * channels)


def yuv(colour, matrix, full, height=48, width=64, depth=8):
    """A frame of one RGB colour, in [0, 1], by the formulas of ITU-R BT.601 and BT.709; marked with neither."""
    red, blue = {"bt601": (0.299, 0.114), "bt709": (0.2126, 0.0722)}[matrix]
    r, g, b = colour
    y = red * r + (1 - red - blue) * g + blue * b
    cb, cr = (b - y) / (2 - 2 * blue), (r - y) / (2 - 2 * red)
    levels = [255 * y, 128 + 255 * cb, 128 + 255 * cr] if full else [16 + 219 * y, 128 + 224 * cb, 128 + 224 * cr]
    frame = av.VideoFrame(width, height, "yuv444p" if depth == 8 else "yuv444p10le")
    for plane, level in zip(frame.planes, levels, strict=True):
        kind = np.uint8 if depth == 8 else np.uint16
        value = min(255, round(level)) if depth == 8 else round(4 * level)
        plane.update(np.full(plane.buffer_size // np.dtype(kind).itemsize, value, kind).tobytes())
    return frame


def _frame(picture, pix_fmt):
    form = {3: "rgb24", 4: "rgba"}[picture.shape[2]]
    return av.VideoFrame.from_ndarray(np.ascontiguousarray(picture), format=form).reformat(format=pix_fmt)


def _sound_stream(container, codec, samples, time=0, rate=SAMPLES):
    stream = container.add_stream(codec, rate=rate)
    stream.layout = {1: "mono", 2: "stereo", 6: "5.1"}[len(samples)]
    return stream


def _write_sound(container, stream, codec, samples, time=0, rate=SAMPLES):
    frame = av.AudioFrame.from_ndarray(np.ascontiguousarray(samples), format="fltp", layout=stream.layout.name)
    frame.sample_rate, frame.time_base, frame.pts = rate, Fraction(1, rate), round(time * rate)
    container.mux(stream.encode(frame))
    container.mux(stream.encode())
