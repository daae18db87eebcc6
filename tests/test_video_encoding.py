"""Videos that are written: encoded in parts, joined, and with the sound of the clip that they were made of."""

import json
import sys
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent))
from video_clips import (
    BT709,
    COLOURS,
    FILM,
    LIMITED,
    SAMPLES,
    UNEVEN,
    grey,
    numbered,
    packets,
    samples,
    shown,
    tone,
    write_clip,
    written,
)

from artkernels.errors import UserError
from artkernels.video.clip import Clip
from artkernels.video.encoding import Encoder, check_video, join

# ---- encoding --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "rate", [Fraction(25), Fraction(30), FILM, Fraction(60000, 1001), Fraction(1), Fraction(2997, 100)]
)
def test_a_constant_rate_is_written_exactly(tmp_path, rate):
    path = written(tmp_path / "out.mp4", [(index / rate, grey(index / 10)) for index in range(7)], rate)
    assert [time for time, _ in shown(path)] == [index / rate for index in range(7)]
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        assert stream.average_rate == rate
        assert stream.duration * stream.time_base == 7 / rate


@pytest.mark.parametrize(("told", "lasts"), [(None, 1 / 10), (Fraction(4, 3), 4 / 3)])
def test_uneven_times_are_kept_to_a_tick_and_the_last_frame_lasts_as_long_as_it_is_told(tmp_path, told, lasts):
    begins = [Fraction(1, 3), Fraction(2, 5), Fraction(1), Fraction(17, 7)]
    path = tmp_path / "out.mp4"
    with Encoder(path, Fraction(10)) as encoder:
        for time in begins:
            encoder.add(time, grey(0.5), told)
    assert max(abs(time - begin) for (time, _), begin in zip(shown(path), begins, strict=True)) <= Fraction(1, 180_000)
    with av.open(str(path)) as container:
        (*_, last) = (packet for packet in container.demux(video=0) if packet.size)
        assert last.duration * last.time_base == pytest.approx(lasts, abs=2e-5)


def test_no_frame_waits_for_a_later_one_and_the_first_stands_alone(tmp_path):
    path = written(tmp_path / "out.mp4", [(Fraction(index, 25), torch.rand(3, 48, 64)) for index in range(30)])
    with av.open(str(path)) as container:
        stream = [packet for packet in container.demux(video=0) if packet.size]
    assert all(packet.pts == packet.dts for packet in stream)
    assert stream[0].is_keyframe


def test_colours_survive_and_say_which_they_are(tmp_path):
    colours = [*COLOURS, (0.2, 0.7, 0.4), (1.7, -0.3, 0.5)]
    pictures = [torch.tensor(colour)[:, None, None].expand(3, 48, 64) for colour in colours]
    path = written(tmp_path / "out.mp4", [(Fraction(index, 25), picture) for index, picture in enumerate(pictures)])
    with av.open(str(path)) as container:
        stream = container.streams.video[0].codec_context
        marks = stream.colorspace, stream.color_primaries, stream.color_trc, stream.color_range
        assert marks == (BT709, 1, 1, LIMITED)
        assert stream.pix_fmt == "yuv420p"
    for frame, picture in zip(Clip(path).frames(), pictures, strict=True):
        assert (frame.picture - 255 * picture.clamp(0, 1)).abs().max() <= 3


@pytest.mark.parametrize(("size", "even"), [((47, 63), (48, 64)), ((1, 1), (2, 2)), ((48, 1), (48, 2))])
def test_an_odd_side_gets_its_last_row_or_column_twice(tmp_path, size, even):
    picture = torch.linspace(0, 1, size[1]).expand(3, *size)
    ((_, pixels),) = shown(written(tmp_path / "out.mp4", [(Fraction(0), picture)]))
    assert pixels.shape == (*even, 3)
    assert np.abs(pixels[:, -1].astype(int) - pixels[:, -2]).max() <= 8
    assert np.abs(pixels[: size[0], : size[1]] / 255 - picture.permute(1, 2, 0).numpy()).max() < 0.03


def test_frames_must_have_one_size_and_rising_times(tmp_path):
    with Encoder(tmp_path / "out.mp4", Fraction(25)) as encoder:
        encoder.add(Fraction(1), grey(0.5))
        with pytest.raises(ValueError, match="32 x 64 after frames of 48 x 64"):
            encoder.add(Fraction(2), grey(0.5, 32))
        with pytest.raises(ValueError, match="for 1 seconds"):
            encoder.add(Fraction(1), grey(0.5))
    with pytest.raises(ValueError, match="at least one frame"), Encoder(tmp_path / "none.mp4", Fraction(25)):
        pass
    assert [path.name for path in tmp_path.iterdir()] == ["out.mp4"]


def test_a_video_that_fails_half_way_leaves_what_was_there(tmp_path):
    (tmp_path / "out.mp4").write_text("before")

    def frames():
        yield Fraction(0), grey(0.5)
        raise RuntimeError("no more")

    with pytest.raises(RuntimeError, match="no more"):
        written(tmp_path / "out.mp4", frames())
    assert (tmp_path / "out.mp4").read_text() == "before"
    assert len(list(tmp_path.iterdir())) == 1


def test_where_no_video_can_be_written_is_told_beforehand(tmp_path):
    with pytest.raises(UserError, match=r"must end in \.mp4"):
        check_video(tmp_path / "out.avi")
    with pytest.raises(UserError, match="does not exist"):
        check_video(tmp_path / "absent" / "out.mp4")
    check_video(tmp_path / "out.mp4")
    assert not list(tmp_path.iterdir())


# ---- parts, sound and settings to one file ---------------------------------------------------------------------------


def in_parts(folder, frames, rate, size):
    return [
        written(folder / f"{first}.mp4", frames[first : first + size], rate) for first in range(0, len(frames), size)
    ]


@pytest.mark.parametrize("start", [Fraction(0), Fraction(1, 3)])
@pytest.mark.parametrize("begins", [[index / FILM for index in range(20)], UNEVEN[:20]])
def test_parts_are_joined_to_the_same_frames_and_times(tmp_path, begins, start):
    frames = [
        (start + time, torch.from_numpy(p).permute(2, 0, 1) / 255) for time, p in zip(begins, numbered(20), strict=True)
    ]
    parts = in_parts(tmp_path, frames, FILM, 7)
    join(parts, tmp_path / "out.mp4", None, start)
    pictures = [picture for part in parts for _, picture in shown(part)]
    joined = shown(tmp_path / "out.mp4")
    assert np.array_equal([picture for _, picture in joined], pictures)
    assert max(abs(time - begin) for (time, _), begin in zip(joined, begins, strict=True)) <= Fraction(1, 90_000)
    assert [data for part in parts for _, data in packets(part, "video")] == [
        data for _, data in packets(tmp_path / "out.mp4", "video")
    ]


def test_a_joined_video_has_the_rate_its_settings_and_its_table_in_front(tmp_path):
    frames = [(Fraction(1, 3) + index / FILM, grey(index / 20)) for index in range(20)]
    settings = {"style": "Wélle.jpg", "size": 512}
    out = tmp_path / "out.mp4"
    join(in_parts(tmp_path, frames, FILM, 6), out, None, Fraction(1, 3), settings=settings)
    with av.open(str(out)) as container:
        assert container.streams.video[0].average_rate == FILM
        assert json.loads(container.metadata["comment"]) == settings
    assert out.read_bytes().index(b"moov") < out.read_bytes().index(b"mdat")
    assert Clip(out).count() == 20


def test_parts_that_do_not_belong_together_are_refused(tmp_path):
    one = written(tmp_path / "one.mp4", [(Fraction(0), grey(0.5))])
    wide = written(tmp_path / "wide.mp4", [(Fraction(1), grey(0.5, 48, 80))])
    with pytest.raises(ValueError, match="encoded otherwise"):
        join([one, wide], tmp_path / "out.mp4")
    with pytest.raises(ValueError, match="begins before the end"):
        join([one, one], tmp_path / "out.mp4")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["one.mp4", "wide.mp4"]


FLASHES = [Fraction(4, 5), Fraction(2)]


def flashing(path, codec, rate, channels, **kind):
    """A dark clip of 2.4 seconds with two flashes, a beep at each."""
    pictures = np.full((60, 48, 64, 3), 30, np.uint8)
    sound = np.zeros((channels, round(2.4 * rate)), np.float32)
    for time in FLASHES:
        pictures[int(time * 25)] = 255
        sound[:, int(time * rate) : int(time * rate) + rate // 25] = tone(0.04, rate, channels, 1000)
    return write_clip(path, pictures, sound=(codec, sound, 0, rate), **kind)


def copied(path, out, start=Fraction(0), end=None):
    """The clip, decoded and encoded again, with its sound."""
    clip = Clip(path)
    part = written(out.with_name("part.mp4"), [(f.time, f.picture / 255) for f in clip.frames(start, end)], clip.rate)
    join([part], out, clip, start, end)
    return clip


def lit(path):
    return [float(time) for time, picture in shown(path) if picture.mean() > 200]


def beeps(path):
    loud = np.abs(samples(path)) > 0.1
    return [first / SAMPLES for first in np.flatnonzero(loud) if not loud[max(0, first - SAMPLES // 10) : first].any()]


def assert_in_time(path, start=Fraction(0)):
    """Of flashing(), the flashes and the beeps are where they are after ``start``."""
    wanted = [float(time - start) for time in FLASHES]
    assert lit(path) == pytest.approx(wanted)
    assert beeps(path) == pytest.approx(wanted, abs=2e-3)


@pytest.mark.parametrize(
    ("becomes", "name", "codec", "rate", "channels"),
    [
        ("copied", "clip.mp4", "aac", 48_000, 2),
        ("copied", "clip.mkv", "aac", 44_100, 1),
        ("copied", "clip.mkv", "libmp3lame", 44_100, 2),
        ("copied", "clip.mkv", "ac3", 48_000, 6),
        ("copied", "clip.mkv", "eac3", 48_000, 2),
        ("copied", "clip.mkv", "libopus", 48_000, 2),
        ("copied", "clip.mkv", "flac", 44_100, 2),
        ("copied", "clip.mov", "alac", 44_100, 2),
        ("copied", "clip.mkv", "alac", 44_100, 2),
        ("aac", "clip.mov", "pcm_s16le", 44_100, 2),
        ("aac", "clip.mkv", "pcm_s24le", 192_000, 2),
        ("aac", "clip.mkv", "pcm_s16le", 48_000, 6),
        ("aac", "clip.avi", "adpcm_ms", 22_050, 1),
        ("aac", "clip.mkv", "libmp3lame", 8_000, 1),
        ("aac", "clip.mkv", "mp2", 48_000, 2),
    ],
)
def test_sound_that_mp4_knows_is_copied_and_other_becomes_aac_and_both_stay_in_time(
    tmp_path, becomes, name, codec, rate, channels
):
    tick = Fraction(1, 25) if name.endswith("avi") else None
    path, out = flashing(tmp_path / name, codec, rate, channels, tick=tick), tmp_path / "out.mp4"
    for start, end in ((Fraction(0), None), (Fraction(1, 3), Fraction(11, 5))):
        copied(path, out, start, end)
        assert_in_time(out, start)
        length = float(end or Fraction(12, 5)) - float(start)
        assert len(samples(out)) / SAMPLES == pytest.approx(length, abs=0.1)
        with av.open(str(out)) as container:
            stream = container.streams.audio[0]
            assert stream.channels == channels
            assert becomes in ("copied", stream.codec_context.name)
        if becomes == "copied":
            given, kept = ([data for _, data in packets(file, "audio")] for file in (path, out))
            assert kept in [given[first : first + len(kept)] for first in range(len(given))]
            assert (kept == given) == (end is None)


def pausing(path, codec):
    """A clip of three seconds with sound from 1 to 1.5 and from 2.25 to 2.75 seconds, and no packets in between."""
    early, late = (
        write_clip(path.with_name(f"{name}.mkv"), numbered(75), sound=(codec, tone(0.5), time))
        for name, time in (("early", Fraction(1)), ("late", Fraction(9, 4)))
    )
    with av.open(str(early)) as first, av.open(str(late)) as second, av.open(str(path), "w") as container:
        streams = {stream.type: container.add_stream_from_template(stream) for stream in second.streams}
        for packet in (*first.demux(audio=0), *second.demux()):
            if packet.size:
                packet.stream = streams[packet.stream.type]
                container.mux(packet)
    return path


def assert_sounds(path, *blocks):
    """Whether there is sound from one time to another."""
    sound = np.abs(samples(path))
    for loud, begin, end in blocks:
        block = sound[int(begin * SAMPLES) : int(end * SAMPLES)]
        assert block.max() > 0.4 if loud else block.max() < 0.01


@pytest.mark.parametrize("codec", ["aac", "pcm_s16le"])  # copied, and encoded again
def test_sound_that_begins_late_and_pauses_is_silent_until_then_and_meanwhile(tmp_path, codec):
    out = tmp_path / "out.mp4"
    copied(pausing(tmp_path / "clip.mkv", codec), out)
    assert_sounds(out, (False, 0, 0.99), (True, 1.01, 1.49), (False, 1.55, 2.24), (True, 2.26, 2.74))


@pytest.mark.parametrize("codec", ["aac", "alac"])
@pytest.mark.parametrize("suffix", ["mkv", "mov"])
def test_from_within_a_pause_of_the_sound_on_it_is_still_in_time(tmp_path, codec, suffix):
    out = tmp_path / "out.mp4"
    copied(pausing(tmp_path / f"clip.{suffix}", codec), out, Fraction(7, 4))
    assert_sounds(out, (False, 0, 0.49), (True, 0.51, 0.99))


@pytest.mark.parametrize("codec", ["aac", "mp2"])  # copied, and encoded again
def test_where_the_times_of_a_transport_stream_begin_anew_its_sound_goes_on(tmp_path, codec):
    sound, options = (codec, tone(1)), {"bf": "0"}
    parts = [write_clip(tmp_path / f"{name}.ts", numbered(25), options=options, sound=sound) for name in "ab"]
    path, out = tmp_path / "clip.ts", tmp_path / "out.mp4"
    path.write_bytes(b"".join(part.read_bytes() for part in parts))
    clip = copied(path, out)
    assert len(shown(out)) >= 49  # where they were joined a packet is marked as corrupt
    assert len(samples(out)) / SAMPLES == pytest.approx(2, abs=0.1)
    assert_sounds(out, (True, 0.1, 0.9), (True, 1.2, 1.9))
    assert f"{path}: some of its sound has no time of its own, put after what came before" in clip.damage


def test_the_same_sound_is_written_to_the_bit_each_time(tmp_path):
    path = flashing(tmp_path / "clip.mov", "pcm_s16le", 44_100, 2)
    copied(path, tmp_path / "a.mp4")
    copied(path, tmp_path / "b.mp4")
    assert packets(tmp_path / "a.mp4", "audio") == packets(tmp_path / "b.mp4", "audio")


@pytest.mark.parametrize("codec", ["flac", "mp2"])
def test_damaged_sound_does_not_lose_the_picture(tmp_path, codec):
    path, out = tmp_path / "clip.mkv", tmp_path / "out.mp4"
    noise = np.random.default_rng(0).uniform(-1, 1, (2, 2 * SAMPLES)).astype(np.float32)
    write_clip(path, numbered(50), sound=(codec, noise))
    broken = bytearray(path.read_bytes())
    for _, data in packets(path, "audio")[3:10]:
        place = broken.index(data)
        broken[place : place + len(data)] = b"\x55" * len(data)
    path.write_bytes(broken)
    clip = copied(path, out)
    assert len(shown(out)) == 50
    if codec == "mp2":
        assert clip.damage == [f"{path}: its sound is damaged, silent where it cannot be read"]
        sound = np.abs(samples(out))
        assert len(sound) / SAMPLES == pytest.approx(2, abs=0.1)
        assert sound[SAMPLES // 10 : SAMPLES // 5].max() < 0.01 < sound[SAMPLES:].max()
