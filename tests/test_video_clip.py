"""A clip is read as a player shows it: its frames, their times and colours; and what is broken is told."""

import itertools
import os
import sys
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from PIL import Image

sys.path.insert(0, str(Path(__file__).parent))
from video_clips import (
    BT601,
    BT709,
    COLOURS,
    FILM,
    FULL,
    LIMITED,
    SAMPLES,
    UNEVEN,
    UNMARKED,
    grey,
    numbered,
    tone,
    write_clip,
    written,
    yuv,
)

from artkernels.errors import UserError
from artkernels.video.clip import Clip
from artkernels.video.encoding import Encoder, check_video

LOSSLESS = {"codec": "ffv1", "pix_fmt": "bgr0"}
KINDS = {
    "b_frames.mp4": {"options": {"bf": "3", "g": "12"}},
    "open_gop.mp4": {"options": {"bf": "3", "g": "12", "x264-params": "open-gop=1:b-pyramid=2"}},
    "uneven.mp4": {"options": {"bf": "3", "g": "12"}, "times": UNEVEN},
    "uneven.mkv": {"options": {"bf": "3", "g": "12"}, "times": UNEVEN},
    "film.mkv": {"options": {"g": "12"}, "rate": FILM},
    "film.ts": {"options": {"bf": "2", "g": "12"}, "rate": FILM},
    "intra_refresh.mp4": {"options": {"g": "12", "x264-params": "intra-refresh=1"}},
    "hevc.mp4": {"codec": "libx265", "options": {"x265-params": "keyint=12:bframes=3:open-gop=1:log-level=none"}},
    "mpeg4.avi": {"codec": "mpeg4", "options": {"bf": "2", "g": "12"}, "tick": Fraction(1, 25)},
    "h264.avi": {"options": {"bf": "2", "g": "12"}, "tick": Fraction(1, 25)},
    "mpeg2.mpg": {"codec": "mpeg2video", "options": {"bf": "2", "g": "12"}, "tick": Fraction(1, 25), "format": "mpeg"},
    "vp9.webm": {"codec": "libvpx-vp9", "options": {"g": "12", "deadline": "realtime", "cpu-used": "8"}},
    "raw.h264": {"options": {"bf": "2", "g": "12"}, "format": "h264"},
    "flash.flv": {"options": {"bf": "2", "g": "12"}},
}


@pytest.fixture(scope="module")
def clips(tmp_path_factory):
    """A function that gives the clip of a name in KINDS, 60 frames, written once."""
    folder = tmp_path_factory.mktemp("clips")

    def clip(name):
        if not (folder / name).exists():
            write_clip(folder / name, numbered(60), **KINDS[name])
        return Clip(folder / name)

    return clip


def times(frames):
    return [frame.time for frame in frames]


def indices(frames, count=60):
    """Which of numbered() they are, from the grey in a corner."""
    return [round((int(frame.picture[0, -2, -2]) - 20) * count / 200) for frame in frames]


# ---- frames and their times ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", KINDS)
def test_every_frame_comes_once_in_order_with_its_own_time(clips, name):
    clip = clips(name)
    frames = list(clip.frames())
    expected = KINDS[name].get("times") or [index / KINDS[name].get("rate", Fraction(25)) for index in range(60)]
    assert times(frames) == expected
    assert indices(frames) == list(range(60))
    assert all(frame.picture.shape == (3, clip.height, clip.width) for frame in frames)
    assert clip.damage == []


@pytest.mark.parametrize("fps", [None, Fraction(10), Fraction(30000, 1001)])
@pytest.mark.parametrize("name", KINDS)
def test_reading_from_later_on_gives_the_same_frames_to_the_bit(clips, name, fps):
    clip = clips(name)
    start = Fraction(1, 3)
    whole = list(clip.frames(start, None, fps))
    for first in (Fraction(0), Fraction(1), Fraction(38, 25), Fraction(235, 100)):
        expected = [frame for frame in whole if frame.time >= first]
        rest = list(clip.frames(start, None, fps, first=first))
        assert times(rest) == times(expected)
        assert all(torch.equal(frame.picture, same.picture) for frame, same in zip(rest, expected, strict=True))


@pytest.mark.parametrize("name", ["b_frames.mp4", "uneven.mkv", "hevc.mp4", "vp9.webm"])
def test_reading_from_later_on_does_not_decode_all_that_is_before(clips, name, monkeypatch):
    clip = clips(name)
    decoded = []
    timed = Clip._timed
    monkeypatch.setattr(Clip, "_timed", lambda self, *args: decoded.append(args) or timed(self, *args))
    assert len(list(clip.frames(first=Fraction(2)))) == 10
    assert len(decoded) <= 10 + 13  # and back to the key frame


def test_frames_are_those_from_start_up_to_end(clips):
    frames = list(clips("uneven.mkv").frames(UNEVEN[10], UNEVEN[20]))
    assert times(frames) == UNEVEN[10:20]
    assert times(clips("uneven.mkv").frames(UNEVEN[10] - Fraction(1, 1000), UNEVEN[12])) == UNEVEN[10:12]


@pytest.mark.parametrize("fps", [Fraction(10), Fraction(25), Fraction(60), FILM])
@pytest.mark.parametrize("name", ["b_frames.mp4", "uneven.mkv"])
def test_at_a_rate_of_ones_own_each_frame_is_what_a_player_shows_then(clips, name, fps):
    start, end = Fraction(1, 7), Fraction(2)
    begins = KINDS[name].get("times") or [Fraction(index, 25) for index in range(60)]
    expected = []
    while (time := start + len(expected) / fps) < end:
        expected.append((time, max(index for index, begin in enumerate(begins) if begin <= time)))
    frames = list(clips(name).frames(start, end, fps))
    assert list(zip(times(frames), indices(frames), strict=True)) == expected


def test_at_a_higher_rate_the_last_frame_is_shown_until_it_ends(tmp_path):
    clip = Clip(write_clip(tmp_path / "clip.mp4", numbered(10), rate=Fraction(10)))
    frames = list(clip.frames(fps=Fraction(25)))
    assert len(frames) == clip.count(fps=Fraction(25)) == 25
    assert indices(frames, 10)[-2:] == [9, 9]


@pytest.mark.parametrize("fps", [None, Fraction(10), FILM])
@pytest.mark.parametrize(("start", "end"), [(0, None), (Fraction(1, 2), None), (Fraction(1, 3), Fraction(2))])
def test_the_number_of_frames_is_told_before_they_are_read(clips, start, end, fps):
    for name in ("b_frames.mp4", "film.mkv"):
        assert clips(name).count(start, end, fps) == len(list(clips(name).frames(start, end, fps)))


def test_what_the_header_says_is_told(clips):
    clip = clips("film.mkv")
    assert (clip.height, clip.width, clip.rate, clip.has_audio) == (48, 64, FILM, False)
    assert clip.duration == pytest.approx(60 / FILM, abs=2e-3)
    assert clips("raw.h264").duration is None
    assert clips("raw.h264").count() is None


def test_a_clock_is_not_taken_for_a_rate(tmp_path):
    times = [Fraction(index * index, 500) for index in range(20)]
    clip = Clip(write_clip(tmp_path / "uneven.ts", numbered(20), times=times, format="mpegts"))
    assert clip.rate <= 1000
    assert clip.count() < 100


def test_time_is_counted_from_where_the_sound_begins_if_the_picture_begins_later(tmp_path):
    begins = [Fraction(1, 2) + Fraction(index, 25) for index in range(20)]
    path = write_clip(tmp_path / "late.mkv", numbered(20), times=begins, sound=("flac", tone(1)))
    clip = Clip(path)
    assert times(clip.frames()) == begins
    assert times(clip.frames(fps=Fraction(10)))[:2] == [Fraction(1, 2), Fraction(6, 10)]
    assert clip.duration == pytest.approx(1.3)


def test_what_an_encoder_puts_ahead_of_the_sound_does_not_move_the_picture(tmp_path):
    path = write_clip(tmp_path / "clip.mkv", numbered(5), sound=("libopus", tone(0.2)))
    assert times(Clip(path).frames()) == [Fraction(index, 25) for index in range(5)]


# ---- colours, sizes, orientation -------------------------------------------------------------------------------------


def assert_colours(path, tolerance=2.0):
    for frame, colour in zip(Clip(path).frames(), COLOURS, strict=True):
        error = frame.picture.float() - 255 * torch.tensor(colour)[:, None, None]
        assert error.abs().max() <= tolerance


@pytest.mark.parametrize("full", [False, True])
@pytest.mark.parametrize(
    ("matrix", "mark", "height"),
    [("bt601", BT601, 48), ("bt709", BT709, 48), ("bt601", UNMARKED, 48), ("bt709", UNMARKED, 720)],
)
def test_colours_are_read_with_the_matrix_and_the_range_of_the_file(tmp_path, matrix, mark, height, full):
    frames = [yuv(colour, matrix, full, height, 32) for colour in COLOURS]
    for frame in frames:
        frame.colorspace, frame.color_range = mark, FULL if full else LIMITED
    assert_colours(write_clip(tmp_path / "clip.mkv", frames, options={"qp": "0"}))


def test_colours_of_ten_bits_are_read(tmp_path):
    frames = [yuv(colour, "bt601", False, depth=10) for colour in COLOURS]
    assert_colours(write_clip(tmp_path / "clip.mkv", frames, codec="ffv1"))


@pytest.mark.parametrize(
    ("name", "codec", "pix_fmt"),
    [
        ("clip.mkv", "ffv1", "bgr0"),
        ("clip.mkv", "ffv1", "gbrp10le"),
        ("clip.mp4", "libx264rgb", "rgb24"),
        ("clip.mov", "png", "rgb24"),
        ("clip.mov", "png", "rgb48be"),
        ("clip.mov", "qtrle", "rgb24"),
        ("clip.avi", "rawvideo", "bgr24"),
    ],
)
def test_colours_of_rgb_videos_are_read(tmp_path, name, codec, pix_fmt):
    pictures = [np.broadcast_to(np.round(255 * np.array(colour)).astype(np.uint8), (48, 64, 3)) for colour in COLOURS]
    options = {"qp": "0"} if codec == "libx264rgb" else {}
    tick = Fraction(1, 25)
    assert_colours(write_clip(tmp_path / name, pictures, codec=codec, pix_fmt=pix_fmt, options=options, tick=tick), 1)


@pytest.mark.parametrize(
    ("name", "codec", "pix_fmt"),
    [("clip.mkv", "ffv1", "gray"), ("clip.mkv", "ffv1", "gray10le"), ("clip.mov", "png", "gray")],
)
def test_grey_videos_are_read(tmp_path, name, codec, pix_fmt):
    ramp = np.broadcast_to(np.arange(0, 256, 4, dtype=np.uint8)[None, :, None], (48, 64, 3))
    path = write_clip(tmp_path / name, [ramp], codec=codec, pix_fmt=pix_fmt)
    (frame,) = Clip(path).frames()
    assert (frame.picture.float() - torch.arange(0, 256, 4.0)).abs().max() <= 1


@pytest.mark.parametrize(
    ("name", "codec", "pix_fmt"),
    [
        ("clip.mov", "qtrle", "argb"),
        ("clip.mov", "png", "rgba"),
        ("clip.mkv", "ffv1", "bgra"),
        ("clip.mkv", "ffv1", "yuva444p"),
        ("clip.webm", "libvpx", "yuva420p"),
        ("clip.webm", "libvpx-vp9", "yuva420p"),
    ],
)
def test_what_is_transparent_is_seen_over_white(tmp_path, name, codec, pix_fmt):
    picture = np.zeros((48, 64, 4), np.uint8)
    picture[..., 0] = 255
    picture[..., 3] = np.repeat([0, 128, 255, 255], 16)
    lossy = codec.startswith("libvpx")
    options = {"auto-alt-ref": "0"} if lossy else {}  # libvpx has those only without alpha
    path = write_clip(tmp_path / name, [picture], codec=codec, pix_fmt=pix_fmt, options=options)
    (frame,) = Clip(path).frames()
    for column, colour in ((8, (255, 255, 255)), (24, (255, 127, 127)), (40, (255, 0, 0))):
        assert (frame.picture[:, 24, column].int() - torch.tensor(colour)).abs().max() <= (8 if lossy else 2)


@pytest.mark.parametrize("durations", [[0], [0, 0, 0], [40, 40, 2000]])
def test_an_animation_has_all_its_frames_and_shows_the_last_as_long_as_it_says(tmp_path, durations):
    pictures = [Image.new("RGB", (32, 32), (80 * index, 0, 0)) for index in range(len(durations))]
    pictures[0].save(tmp_path / "clip.gif", save_all=True, append_images=pictures[1:], duration=durations)
    frames = list(Clip(tmp_path / "clip.gif").frames())
    assert len(frames) == len(durations)
    if durations[-1]:
        assert times(frames) == [0, Fraction(1, 25), Fraction(2, 25)]
        assert frames[-1].duration == 2


@pytest.mark.parametrize("flips", [(False, False), (True, False), (False, True)])
@pytest.mark.parametrize("degrees", [0, 90, 180, 270])
def test_pictures_are_turned_as_a_player_turns_them(tmp_path, degrees, flips):
    picture = numbered(1)[0]
    path = write_clip(tmp_path / "clip.mov", [picture], codec="png", pix_fmt="rgb24", turn=(degrees, *flips))
    turned = np.rot90(picture, degrees // 90)
    turned = np.flip(turned, [axis for axis, flip in ((1, flips[0]), (0, flips[1])) if flip])
    clip = Clip(path)
    (frame,) = clip.frames()
    assert (clip.height, clip.width) == turned.shape[:2]
    assert np.array_equal(frame.picture.permute(1, 2, 0).numpy(), turned)


@pytest.mark.parametrize(("aspect", "size"), [(Fraction(4, 3), (48, 85)), (Fraction(1, 2), (96, 64)), (None, (48, 64))])
def test_pixels_are_square_and_no_side_is_made_smaller(tmp_path, aspect, size):
    clip = Clip(write_clip(tmp_path / "clip.mp4", numbered(2), aspect=aspect))
    assert (clip.height, clip.width) == size
    assert next(clip.frames()).picture.shape[1:] == size


@pytest.mark.parametrize("size", [(48, 1), (1, 64), (1, 1), (7, 5)])
def test_a_video_may_be_a_pixel_wide(tmp_path, size):
    pictures = np.random.default_rng(0).integers(0, 256, (3, *size, 3), np.uint8)
    path = write_clip(tmp_path / "thin.mov", pictures, codec="png", pix_fmt="rgb24")
    frames = [frame.picture.permute(1, 2, 0).numpy() for frame in Clip(path).frames()]
    assert np.array_equal(frames, pictures)


def test_frames_of_another_size_in_mid_stream_are_scaled_to_that_of_the_first(tmp_path):
    small = write_clip(tmp_path / "small.h264", numbered(5), format="h264").read_bytes()
    large = write_clip(tmp_path / "large.h264", numbered(5, 96, 128), format="h264").read_bytes()
    (tmp_path / "clip.h264").write_bytes(small + large)
    frames = list(Clip(tmp_path / "clip.h264").frames())
    assert [frame.picture.shape for frame in frames] == [(3, 48, 64)] * 10
    assert indices(frames[5:], 5) == [0, 1, 2, 3, 4]


# ---- what is not a video, or a broken one ----------------------------------------------------------------------------


def refusal(path):
    with pytest.raises(UserError) as error:
        list(Clip(path).frames())
    sentence = str(error.value)
    assert sentence.startswith(f"{path}: ")
    assert "\n" not in sentence
    return sentence.removeprefix(f"{path}: ")


def test_what_is_not_a_video_is_refused_in_a_sentence(tmp_path):
    Image.new("RGB", (32, 32)).save(tmp_path / "picture.png")
    Image.new("RGB", (32, 32)).save(tmp_path / "picture.jpg")
    Image.new("RGB", (32, 32)).save(tmp_path / "picture.mp4", format="JPEG")
    (tmp_path / "text.mp4").write_text("no video\n" * 100)
    (tmp_path / "text.txt").write_text("no video\n" * 100)
    (tmp_path / "empty.mp4").touch()
    assert refusal(tmp_path / "absent.mp4") == "no such file"
    assert refusal(tmp_path) == "a folder, a video is needed"
    for name in ("picture.png", "picture.jpg", "picture.mp4", "text.txt", "text.mp4", "empty.mp4"):
        assert refusal(tmp_path / name).startswith("not a video")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_video_that_may_not_be_read_is_refused(tmp_path):
    write_clip(tmp_path / "clip.mp4", numbered(2)).chmod(0)
    assert refusal(tmp_path / "clip.mp4") == "no permission to read it"


def test_sound_alone_is_refused_with_a_cover_too(tmp_path):
    for name in ("sound.mp3", "cover.mp3"):
        with av.open(str(tmp_path / name), "w") as container:
            stream = container.add_stream("libmp3lame", rate=SAMPLES)
            if name == "cover.mp3":
                cover = container.add_stream("png", width=32, height=32, pix_fmt="rgb24")
                cover.disposition = av.stream.Disposition.attached_pic
                container.mux(cover.encode(av.VideoFrame.from_ndarray(numbered(1, 32, 32)[0])))
                container.mux(cover.encode())
            frame = av.AudioFrame.from_ndarray(tone(0.5), "fltp", "stereo")
            frame.sample_rate = SAMPLES
            container.mux(stream.encode(frame))
            container.mux(stream.encode())
        assert refusal(tmp_path / name) == "not a video, only sound"


def test_a_header_without_frames_is_refused(tmp_path):
    path = written(tmp_path / "clip.mp4", [(Fraction(index), grey(0.5)) for index in range(5)])  # its table is in front
    data = path.read_bytes()
    path.write_bytes(data[: data.index(b"mdat") + 4])
    assert refusal(path) == "none of its frames can be read, damaged or incomplete"


def test_an_mp4_that_ends_before_its_table_is_refused(tmp_path):
    path = write_clip(tmp_path / "clip.mp4", numbered(30))
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    assert refusal(path) == "not a video, or damaged or incomplete"


def test_a_colon_in_the_name_is_a_letter_like_others(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_clip(tmp_path / "clip.mkv", numbered(2)).rename("concat:clip.mkv")
    assert Clip(type(tmp_path)("concat:clip.mkv")).count() == 2


def test_a_video_that_ends_early_gives_the_frames_that_it_has_and_says_so(tmp_path):
    path = write_clip(tmp_path / "clip.mkv", numbered(100), **LOSSLESS)
    path.write_bytes(path.read_bytes()[: path.stat().st_size * 6 // 10])
    clip = Clip(path)
    frames = list(clip.frames())
    assert indices(frames, 100) == list(range(len(frames)))
    assert 40 < len(frames) < 80
    assert clip.damage == [f"{path}: ends after {len(frames) / 25:.1f} of 4.0 seconds, damaged or incomplete"]
    assert list(clip.frames(end=Fraction(1)))
    assert len(clip.damage) == 1


@pytest.mark.parametrize("name", ["clip.mkv", "clip.flv", "clip.mp4"])
def test_a_picture_that_ends_before_the_sound_is_not_damaged(tmp_path, name):
    path = write_clip(tmp_path / name, numbered(10), sound=("aac", tone(2)))
    clip = Clip(path)
    assert len(list(clip.frames())) == 10
    assert clip.damage == []


@pytest.mark.parametrize(("codec", "options"), [("mpeg4", {"g": "6"}), ("png", {}), ("libx264", {"g": "6", "bf": "2"})])
def test_a_video_that_is_damaged_in_the_middle_gives_the_frames_around_it_and_says_so(tmp_path, codec, options):
    noise = np.random.default_rng(0).integers(0, 256, (60, 48, 64, 3), np.uint8)
    pix_fmt = "rgb24" if codec == "png" else "yuv420p"
    tick = Fraction(1, 25)
    path = write_clip(tmp_path / "clip.mov", noise, codec=codec, options=options, pix_fmt=pix_fmt, tick=tick)
    data = bytearray(path.read_bytes())
    middle = len(data) // 2
    data[middle : middle + len(data) // 20] = bytes(len(data) // 20)
    path.write_bytes(data)
    clip = Clip(path)
    frames = list(clip.frames())
    assert 50 <= len(frames) < 60
    assert frames[-1].time == Fraction(59, 25)
    assert clip.damage == [f"{path}: damaged, not all of its frames can be read"]


def test_time_stamps_that_go_back_lose_no_frame(tmp_path):
    parts = [write_clip(tmp_path / f"{name}.ts", numbered(10), options={"bf": "0"}) for name in "ab"]
    path = tmp_path / "clip.ts"
    path.write_bytes(b"".join(part.read_bytes() for part in parts))
    clip = Clip(path)
    frames = list(clip.frames())
    assert indices(frames, 10) == 2 * list(range(10))
    assert times(frames) == [Fraction(index, 25) for index in range(20)]
    assert clip.damage == [f"{path}: some of its frames have no time of their own, put after the one before"]
    for first in (5, 10, 14):
        rest = list(clip.frames(first=Fraction(first, 25)))
        assert times(rest) == times(frames)[first:]
        assert all(torch.equal(one.picture, other.picture) for one, other in zip(rest, frames[first:], strict=True))
    assert times(list(clip.frames(Fraction(15, 25)))) == times(frames)[15:]  # where the header has the end of one part


def test_a_leap_of_hours_in_the_times_is_an_error_of_the_file(tmp_path):
    leap = [Fraction(index, 25) + (40_000 if index > 4 else 0) for index in range(10)]
    path = write_clip(tmp_path / "clip.mkv", numbered(10), times=leap, options={"bf": "0"})
    clip = Clip(path)
    assert times(list(clip.frames())) == [Fraction(index, 25) for index in range(10)]
    assert clip.damage[0] == f"{path}: some of its frames have no time of their own, put after the one before"


def test_frames_too_close_for_any_clock_are_shown_one_after_the_other(tmp_path):
    near = [Fraction(0), Fraction(1, 25), Fraction(1, 25) + Fraction(4, 10**6), Fraction(3, 25)]
    tick = Fraction(1, 10**6)
    path = write_clip(tmp_path / "clip.mov", numbered(4), times=near, options={"bf": "0"}, tick=tick)
    clip = Clip(path)
    frames = list(clip.frames())
    assert indices(frames, 4) == [0, 1, 2, 3]
    assert min(later - earlier for earlier, later in itertools.pairwise(times(frames))) >= Fraction(1, 10_000)
    assert clip.damage == [f"{path}: some of its frames have no time of their own, put after the one before"]
    written(tmp_path / "again.mp4", [(frame.time, frame.picture / 255) for frame in frames])
    assert indices(list(Clip(tmp_path / "again.mp4").frames()), 4) == [0, 1, 2, 3]


@pytest.mark.parametrize("name", ["b_frames.mp4", "raw.h264", "mpeg4.avi"])
def test_a_start_beyond_the_end_is_refused_with_the_length(clips, name):
    with pytest.raises(UserError, match=r"2\.4 seconds long, no frame begins at 7 seconds or later"):
        list(clips(name).frames(Fraction(7)))
    with pytest.raises(UserError, match="no frame begins"):
        list(clips(name).frames(Fraction(7), fps=Fraction(10)))


def test_without_the_package_for_videos_its_name_is_told(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "av", None)
    sentence = r"videos need one more package \(pip install av\)"
    with pytest.raises(UserError, match=sentence):
        Clip(tmp_path / "clip.mp4")
    with pytest.raises(UserError, match=sentence):
        check_video(tmp_path / "out.mp4")
    with pytest.raises(UserError, match=sentence):
        Encoder(tmp_path / "out.mp4", Fraction(25))
