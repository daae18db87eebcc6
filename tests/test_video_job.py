"""A clip is painted once: what is done is kept, whatever stops the job, and the video is that of an unstopped one."""

import errno
import json
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from fractions import Fraction
from functools import partial
from pathlib import Path

import av
import pytest
import torch
from torch import Tensor

from artkernels.errors import UserError
from artkernels.video import Before, Clip, Encoder, Job, Painted, Section
from artkernels.video.threads import ahead, behind

sys.path.insert(0, str(Path(__file__).parent))

from video_frames import assert_same_video, moving_noise

pytestmark = pytest.mark.cpu_only

MADE_WITH = {"method": "a test", "strength": 3}


class Averages:
    """A painter whose every frame depends on all before it in the scene, and which counts and may be stopped."""

    save_every = 4

    def __init__(self, stop_at: int | None = None) -> None:
        self.pictures: list[Tensor] = []
        self.alone, self._stop_at = 0, stop_at

    @property
    def painted(self) -> int:
        return len(self.pictures)

    def paint(self, frame: Tensor, before: Before | None) -> Painted:
        if self.painted == self._stop_at:
            raise KeyboardInterrupt
        self.alone += before is None
        picture = frame if before is None else (frame + before.memory) / 2
        self.pictures.append(picture)
        return Painted(picture, picture)


class Flickers:
    """Paints every other frame darker."""

    save_every = 100

    def __init__(self, by: float) -> None:
        self._by, self._dark = by, False

    def paint(self, frame: Tensor, before: Before | None) -> Painted:
        self._dark = not self._dark
        picture = frame - self._by * self._dark
        return Painted(picture, picture)


@pytest.fixture
def clip(tmp_path) -> Clip:
    """18 frames of 64 x 48, two scenes of nine."""
    frames = moving_noise(9, 48, 64)
    scenes = [*frames, *(frame.flip(-1) for frame in frames)]
    with Encoder(tmp_path / "clip.mp4", Fraction(25)) as encoder:
        for index, frame in enumerate(scenes):
            encoder.add(Fraction(index, 25), frame[0])
    return Clip(tmp_path / "clip.mp4")


def job(clip: Clip, painter, name: str = "out.mp4", section: Section | None = None, **settings) -> Job:
    output = clip.path.with_name(name)
    return Job(clip, painter, output, section or Section(size=64), {**MADE_WITH, **settings})


def times(path: Path) -> list[float]:
    with av.open(path) as container:
        return [float(frame.time) for frame in container.decode(video=0)]


def test_every_frame_is_painted_in_order_and_scenes_begin_anew(clip):
    painter, seen = Averages(), []
    one = job(clip, painter)
    one.run(lambda: seen.append(one.frames))
    assert seen == list(range(1, 19))
    assert (painter.painted, painter.alone) == (18, 2)
    assert times(clip.path.with_name("out.mp4")) == pytest.approx([index / 25 for index in range(18)])
    assert {path.name for path in clip.path.parent.iterdir()} == {"clip.mp4", "out.mp4"}


@pytest.mark.parametrize("stop_at", [0, 3, 4, 7, 9, 10, 17])
def test_a_stopped_job_goes_on_to_the_same_paintings_and_paints_nothing_twice_that_was_kept(clip, stop_at):
    whole, stopped, resumed = Averages(), Averages(stop_at), Averages()
    job(clip, whole, "whole.mp4").run(lambda: None)
    with pytest.raises(KeyboardInterrupt):
        job(clip, stopped).run(lambda: None)
    assert not clip.path.with_name("out.mp4").exists()
    job(clip, resumed).run(lambda: None)
    kept = stop_at // 4 * 4
    assert resumed.painted == 18 - kept
    assert all(map(torch.equal, [*stopped.pictures[:kept], *resumed.pictures], whole.pictures))
    assert_same_video(clip.path.with_name("out.mp4"), clip.path.with_name("whole.mp4"))


def test_the_flicker_of_a_stopped_job_is_that_of_the_whole(clip):
    whole = job(clip, Averages(), "whole.mp4").run(lambda: None)
    with pytest.raises(KeyboardInterrupt):
        job(clip, Averages(13)).run(lambda: None)
    assert job(clip, Averages()).run(lambda: None) == pytest.approx(whole, rel=1e-6)


def test_a_job_that_lost_its_last_part_half_written_goes_on(clip):
    with pytest.raises(KeyboardInterrupt):
        job(clip, Averages(9)).run(lambda: None)
    folder = clip.path.with_name("out.mp4.part")
    (folder / "00002.mp4").write_bytes(b"half a part")  # killed between the part and the state
    job(clip, Averages()).run(lambda: None)
    assert len(times(clip.path.with_name("out.mp4"))) == 18


def test_a_job_that_was_killed_before_anything_was_kept_binds_nobody(clip):
    folder = clip.path.with_name("out.mp4.part")
    folder.mkdir()
    (folder / "lock").touch()
    (folder / ".00000.mp4.1.tmp").write_bytes(b"half a part")
    job(clip, Averages(), strength=4).run(lambda: None)
    assert {path.name for path in clip.path.parent.iterdir()} == {"clip.mp4", "out.mp4"}


def test_what_is_stopped_while_it_is_joined_leaves_nothing_beside_the_folder_and_goes_on(clip, monkeypatch):
    def killed(parts: list[Path], whole: Path, *_) -> None:
        whole.with_name("half.tmp").write_bytes(b"half a video")
        raise KeyboardInterrupt

    job(clip, Averages(), "whole.mp4").run(lambda: None)
    with monkeypatch.context() as patched:
        patched.setattr("artkernels.video.job.join", killed)
        with pytest.raises(KeyboardInterrupt):
            job(clip, Averages()).run(lambda: None)
    assert {path.name for path in clip.path.parent.iterdir()} == {"clip.mp4", "whole.mp4", "out.mp4.part"}
    painter = Averages()
    job(clip, painter).run(lambda: None)
    assert painter.painted == 0
    assert {path.name for path in clip.path.parent.iterdir()} == {"clip.mp4", "whole.mp4", "out.mp4"}
    assert_same_video(clip.path.with_name("out.mp4"), clip.path.with_name("whole.mp4"))


def test_a_job_is_refused_while_another_process_is_at_work_on_it(clip):
    def second() -> None:
        with pytest.raises(UserError, match=r"out\.mp4\.part: another process is painting this video"):
            job(clip, Averages()).run(lambda: None)

    job(clip, Averages()).run(second)
    assert len(times(clip.path.with_name("out.mp4"))) == 18


def test_a_job_goes_on_with_what_another_run_has_painted_since_it_was_made(clip):
    painter = Averages(9)
    first, second = job(clip, painter), job(clip, Averages())
    with pytest.raises(KeyboardInterrupt):
        first.run(lambda: None)
    painter._stop_at = None
    first.run(lambda: None)  # the same object, once more
    assert painter.painted == 8 + 1 + 10
    assert len(times(clip.path.with_name("out.mp4"))) == 18
    second.run(lambda: None)  # made when nothing was kept, as nothing is now
    assert len(times(clip.path.with_name("out.mp4"))) == 18
    assert {path.name for path in clip.path.parent.iterdir()} == {"clip.mp4", "out.mp4"}


def test_a_link_in_the_place_of_the_folder_is_not_followed(clip):
    elsewhere = clip.path.with_name("elsewhere")
    elsewhere.mkdir()
    clip.path.with_name("out.mp4.part").symlink_to(elsewhere)
    with pytest.raises(UserError, match=r"out\.mp4\.part: a folder of that name, and not of a video"):
        job(clip, Averages()).run(lambda: None)
    assert not list(elsewhere.iterdir())


def test_a_folder_of_somebody_else_is_left_alone(clip):
    folder = clip.path.with_name("out.mp4.part")
    folder.mkdir()
    (folder / "thesis.txt").write_text("years of work")
    with pytest.raises(UserError, match=r"out\.mp4\.part: a folder of that name, and not of a video"):
        job(clip, Averages()).run(lambda: None)
    assert [path.name for path in folder.iterdir()] == ["thesis.txt"]


def test_what_was_found_broken_before_a_stop_is_told_after_it(clip):
    clip.note("a part of it is broken")
    with pytest.raises(KeyboardInterrupt):
        job(clip, Averages(9)).run(lambda: None)
    again = Clip(clip.path)
    assert not again.damage
    job(again, Averages()).run(lambda: None)
    assert again.damage == [f"{clip.path}: a part of it is broken"]


@pytest.mark.parametrize(("damaged", "left"), [("state.pt", 100), ("00001.mp4", 1000), ("00001.mp4", None)])
def test_a_folder_whose_content_is_damaged_is_refused_in_a_sentence(clip, damaged, left):
    with pytest.raises(KeyboardInterrupt):
        job(clip, Averages(9)).run(lambda: None)
    file = clip.path.with_name("out.mp4.part") / damaged
    data = file.read_bytes()
    file.unlink()
    if left is not None:
        file.write_bytes(data[:left])
    with pytest.raises(UserError, match=r"out\.mp4\.part: what was painted cannot be read: delete that folder"):
        job(clip, Averages())


def test_a_full_disk_ends_the_job_before_much_more_is_painted(clip, monkeypatch):
    def add(*_) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Encoder, "add", add)
    painter = Averages()
    painter.save_every = 100
    with pytest.raises(UserError, match=r"00000\.mp4: cannot be written \(No space left on device\)"):
        job(clip, painter).run(lambda: None)
    assert painter.painted < 10
    assert {path.name for path in clip.path.parent.iterdir()} == {"clip.mp4"}


def test_a_full_disk_is_told_when_the_state_is_written_too(clip, monkeypatch):
    def write_bytes(*_) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", write_bytes)
    with pytest.raises(UserError, match=r"state\.pt: cannot be written \(No space left on device\)"):
        job(clip, Averages()).run(lambda: None)
    assert {path.name for path in clip.path.parent.iterdir()} == {"clip.mp4"}


def test_what_is_done_behind_is_done_in_order_and_never_lies_in_a_heap():
    done, go_on = [], threading.Event()

    def work(index: int) -> None:
        go_on.wait(10)
        done.append(index)

    submitted = 0
    with behind(2) as later:
        for index in range(6):
            if index == 2:
                threading.Timer(0.05, go_on.set).start()
            later(partial(work, index))
            submitted += 1
            assert submitted - len(done) <= 3  # one is being done
    assert done == list(range(6))


def test_what_waits_behind_a_failure_is_not_done():
    """FFmpeg crashes if it is to write on after a full disk."""
    done, go_on = [], threading.Event()

    def fail() -> None:
        go_on.wait(10)
        raise OSError(errno.ENOSPC, "No space left on device")

    def begin_both() -> None:
        with behind() as later:
            later(fail)
            later(partial(done.append, "more"))
            go_on.set()

    with pytest.raises(OSError, match="No space"):
        begin_both()
    assert not done


def test_flicker_is_the_root_mean_square_of_what_changes_beyond_the_motion(clip):
    quiet, loud = (job(clip, Flickers(by), f"{by}.mp4").run(lambda: None) for by in (0.0, 0.3))
    assert quiet.painted == pytest.approx(quiet.clip)
    assert loud.painted == pytest.approx((0.3**2 + quiet.clip**2) ** 0.5, rel=0.05)


def test_a_section_has_its_frames_at_its_rate_from_time_0(clip):
    section = Section(size=32, start=Fraction(1, 5), end=Fraction(3, 5), fps=Fraction(10))
    job(clip, Averages(), section=section).run(lambda: None)
    path = clip.path.with_name("out.mp4")
    assert times(path) == pytest.approx([0, 0.1, 0.2, 0.3])
    with av.open(path) as container:
        stream = container.streams.video[0]
        assert (stream.width, stream.height, stream.average_rate) == (32, 24, 10)


def test_a_job_begun_with_other_settings_or_another_clip_is_refused_until_it_is_deleted(clip):
    with pytest.raises(KeyboardInterrupt):
        job(clip, Averages(5)).run(lambda: None)
    with pytest.raises(UserError, match=r"begun with another strength \(3, now 4\)"):
        job(clip, Averages(), strength=4)
    data = clip.path.read_bytes()
    clip.path.unlink()
    clip.path.write_bytes(data + b" ")
    with pytest.raises(UserError, match=r"begun with another .*clip\.mp4 \("):
        job(clip, Averages())


def test_a_job_whose_other_inputs_have_changed_is_refused(clip):
    style, output = clip.path.with_name("style.png"), clip.path.with_name("out.mp4")
    style.write_bytes(b"one painting")
    with pytest.raises(KeyboardInterrupt):
        Job(clip, Averages(5), output, Section(size=64), MADE_WITH, [style]).run(lambda: None)
    Job(clip, Averages(), output, Section(size=64), MADE_WITH, [style])
    style.write_bytes(b"another painting")
    with pytest.raises(UserError, match=r"begun with another .*style\.png \("):
        Job(clip, Averages(), output, Section(size=64), MADE_WITH, [style])


def test_a_section_without_frames_is_refused_and_leaves_nothing(clip):
    cases = {100: "0.72 seconds long", Fraction(7001, 10000): "no frame begins", Fraction(49, 100): "has no frames"}
    for start, words in cases.items():
        section = Section(size=64, start=Fraction(start), end=start + Fraction(1, 1000))
        with pytest.raises(UserError, match=words):
            job(clip, Averages(), section=section).run(lambda: None)
    assert {path.name for path in clip.path.parent.iterdir()} == {"clip.mp4"}


def test_what_is_in_the_way_of_the_folder_is_told(clip):
    clip.path.with_name("out.mp4.part").write_text("a file")
    with pytest.raises(UserError, match=r"out\.mp4\.part: cannot be used"):
        job(clip, Averages()).run(lambda: None)


def test_the_settings_travel_in_the_video(clip):
    job(clip, Averages()).run(lambda: None)
    with av.open(clip.path.with_name("out.mp4")) as container:
        assert json.loads(container.metadata["comment"]) == MADE_WITH


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"size": 0}, "size must be at least 1 pixel, got 0"),
        ({"start": Fraction(-1)}, "start must be from 0"),
        ({"start": Fraction(2), "end": Fraction(2)}, "end must be after 2 seconds"),
        ({"fps": Fraction(0)}, "fps must be from 0.001 to 1000, got 0"),
        ({"fps": Fraction(2000)}, "to 1000, got 2000"),
    ],
)
def test_a_section_that_cannot_be_is_refused(values, words):
    with pytest.raises(UserError, match=words):
        Section(**{"size": 64, **values})


def test_painting_in_another_thread_s_company_changes_no_number_of_threads(clip):
    def of_new_thread() -> int:
        with ThreadPoolExecutor(1) as thread:
            return thread.submit(torch.get_num_threads).result()

    before = torch.get_num_threads(), of_new_thread()
    job(clip, Averages()).run(lambda: None)
    assert (torch.get_num_threads(), of_new_thread()) == before


def test_what_is_made_ahead_and_not_wanted_any_more_is_not_made():
    made: list[int] = []
    asked, go_on = threading.Event(), threading.Event()

    def items() -> Iterator[int]:
        for index in range(10):
            made.append(index)
            yield index
            asked.set()
            go_on.wait(10)

    one_by_one = ahead(items())
    assert next(one_by_one) == 0
    asked.wait(10)  # the second is being made
    threading.Timer(0.05, go_on.set).start()
    one_by_one.close()
    assert made == [0, 1]
