"""Any folder of pictures becomes batches that depend on the seed and the position alone, whoever loads them."""

import itertools
import shutil
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps

from artkernels.errors import UserError
from artkernels.training.batches import Batches, loader
from artkernels.training.pictures import Draw, Pictures, to_unit

pytestmark = pytest.mark.cpu_only

ORIENTATION = 0x0112


def noise(width: int, height: int, seed: int = 0) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))


def fails(message: str) -> None:
    pytest.fail(f"nothing was to be reported: {message}")


def batches_of(pictures: Pictures, count: int, *, workers: int = 0, **settings) -> list[torch.Tensor]:
    batches = Batches(pictures, **{"batch_size": 4, "seed": 0, **settings})
    return list(itertools.islice(loader(pictures, batches, workers), count))


def cut(path: Path, part: float = 0.5) -> None:
    path.write_bytes(path.read_bytes()[: int(part * path.stat().st_size)])


@pytest.fixture
def folder(tmp_path) -> Path:
    """Eleven pictures of different shapes, in and below a folder."""
    root = tmp_path / "pictures"
    (root / "cats" / "small").mkdir(parents=True)
    for index in range(11):
        place = root / ("", "cats", "cats/small")[index % 3]
        noise(20 + 5 * index, 60 - 4 * index, index).save(place / f"{index}.png")
    return root


@pytest.fixture
def archive(folder) -> Path:
    return Path(shutil.make_archive(str(folder), "zip", folder))


# ---- sources ---------------------------------------------------------------------------------------------------------


def test_pictures_are_found_at_any_depth_in_the_order_of_their_names(folder):
    (folder / ".hidden").mkdir()
    noise(9, 9).save(folder / ".hidden" / "a.png")
    noise(9, 9).save(folder / "._0.png")
    (folder / "labels.json").write_text("{}")
    (folder / "folder.png").mkdir()
    noise(9, 9).save(folder / "Upper.JPG")
    pictures = Pictures(folder, 16, report=fails)
    assert pictures.names == [
        *("0.png", "3.png", "6.png", "9.png", "Upper.JPG"),
        *("cats/1.png", "cats/10.png", "cats/4.png", "cats/7.png"),
        *("cats/small/2.png", "cats/small/5.png", "cats/small/8.png"),
    ]


def test_a_zip_is_the_same_as_its_folder(folder, archive):
    loose, packed = Pictures(folder, 16, report=fails), Pictures(archive, 16, report=fails)
    assert loose.names == packed.names
    for index in range(len(loose)):
        assert torch.equal(loose.plain(index), packed.plain(index))


def test_sources_without_pictures_are_refused_in_one_sentence(tmp_path):
    empty, text, fake = tmp_path / "empty", tmp_path / "a.txt", tmp_path / "fake.zip"
    empty.mkdir()
    text.write_text("hello")
    fake.write_text("hello")
    for source, words in [
        (tmp_path / "absent", "no such folder or .zip"),
        (text, "neither a folder nor a readable .zip"),
        (fake, "neither a folder nor a readable .zip"),
        (empty, "no readable picture"),
    ]:
        with pytest.raises(UserError, match=words) as caught:
            Pictures(source, 16, report=fails)
        assert str(source) in str(caught.value)
        assert "\n" not in str(caught.value)


def test_files_that_are_no_pictures_are_reported_by_name_and_left_out(folder):
    (folder / "text.png").write_text("hello")
    (folder / "cats" / "empty.jpg").write_bytes(b"")
    reports: list[str] = []
    pictures = Pictures(folder, 16, report=reports.append)
    assert len(pictures) == 11
    reason = "not a picture, or of a kind that cannot be read"
    assert sorted(reports) == [f"{folder}/cats/empty.jpg: {reason}", f"{folder}/text.png: {reason}"]


# ---- one picture -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("mode", "colour", "expected"),
    [
        ("P", 0, (0, 0, 0)),
        ("1", 1, (255, 255, 255)),
        ("L", 51, (51, 51, 51)),
        ("LA", (0, 51), (204, 204, 204)),
        ("RGBA", (255, 0, 0, 0), (255, 255, 255)),
        ("I;16", 13107, (51, 51, 51)),
        ("CMYK", (0, 255, 255, 0), (255, 0, 0)),
    ],
)
def test_every_mode_becomes_rgb_over_white(tmp_path, mode, colour, expected):
    Image.new(mode, (30, 20), colour).save(tmp_path / ("a.tif" if mode == "CMYK" else "a.png"))
    picture = Pictures(tmp_path, 8, report=fails).plain(0)
    assert picture.dtype == torch.uint8
    assert picture.shape == (3, 8, 8)
    assert (picture == torch.tensor(expected)[:, None, None]).all()


@pytest.mark.parametrize("kind", ["jpg", "png", "webp", "tif"])
def test_a_photograph_is_turned_before_it_is_measured(tmp_path, kind):
    picture = Image.new("RGB", (80, 40), "black")
    picture.paste("white", (40, 0, 80, 40))
    exif = picture.getexif()
    exif[ORIENTATION] = 6
    picture.save(tmp_path / f"a.{kind}", exif=exif)
    turned = Pictures(tmp_path, 64, fit="bucket", report=fails).plain(0)
    assert turned.shape == (3, 88, 48)
    assert turned[:, :40].max() < 20
    assert turned[:, 48:].min() > 235


def test_crop_keeps_the_centre_and_pad_keeps_all(tmp_path):
    picture = Image.new("RGB", (60, 20), "red")
    picture.paste("blue", (20, 0, 40, 20))
    picture.save(tmp_path / "a.png")
    blue, red = torch.tensor([0, 0, 255]), torch.tensor([255, 0, 0])
    assert (Pictures(tmp_path, 20, fit="crop").plain(0).permute(1, 2, 0) == blue).all()
    padded = Pictures(tmp_path, 60, fit="pad").plain(0).permute(1, 2, 0)
    assert (padded[:20] == 255).all()
    assert (padded[40:] == 255).all()
    assert (padded[20:40, :20] == red).all()
    assert (padded[20:40, 20:40] == blue).all()


def test_random_crop_shows_every_window_of_a_slightly_larger_picture(tmp_path):
    noise(100, 50).save(tmp_path / "a.png")
    pictures = Pictures(tmp_path, 16, fit="random-crop")
    with Image.open(tmp_path / "a.png") as picture:
        larger = torch.from_numpy(np.array(picture.resize((36, 18), Image.Resampling.LANCZOS))).permute(2, 0, 1)
    windows = larger.unfold(1, 16, 1).unfold(2, 16, 1).permute(1, 2, 0, 3, 4).reshape(-1, 3, 16, 16)
    seen = set()
    for epoch in range(600):
        (place,) = (windows == pictures[Draw(epoch, 0)]).flatten(1).all(1).nonzero()
        seen.add(int(place))
    assert seen == set(range(3 * 21))


def test_a_large_jpeg_that_is_decoded_coarsely_looks_the_same(tmp_path):
    y, x = np.mgrid[0:600, 0:900]
    waves = 127 + 60 * np.sin(x / 40)[..., None] + 60 * np.cos(y / 30)[..., None] * [1, 0.5, -1]
    picture = Image.fromarray(waves.astype(np.uint8))
    picture.save(tmp_path / "a.jpg", quality=95)
    picture = ImageOps.fit(picture, (64, 64), Image.Resampling.LANCZOS)
    difference = Pictures(tmp_path, 64).plain(0).permute(1, 2, 0).int() - torch.from_numpy(np.array(picture)).int()
    assert difference.abs().max() <= 4


def test_about_half_of_the_pictures_are_mirrored_and_others_in_the_next_epoch(folder):
    pictures = Pictures(folder, 16, mirror=True, seed=3)
    mirrored = torch.zeros(40, len(pictures), dtype=torch.bool)
    for epoch, index in itertools.product(range(40), range(len(pictures))):
        shown, plain = pictures[Draw(epoch, index)], pictures.plain(index)
        mirrored[epoch, index] = torch.equal(shown, plain.flip(-1))
        assert mirrored[epoch, index] or torch.equal(shown, plain)
    assert 0.4 < mirrored.float().mean() < 0.6
    assert not (mirrored[0] == mirrored[1]).all()
    assert not mirrored.all(0).any()
    assert mirrored.any(0).all()


def test_what_is_done_to_a_picture_afterwards_stays_out_of_the_cache(folder):
    pictures = Pictures(folder, 16)
    before = pictures.plain(0).clone()
    pictures.plain(0).zero_()
    pictures[Draw(0, 0)].zero_()
    assert torch.equal(pictures.plain(0), before)


def test_to_unit_maps_bytes_to_the_unit_interval():
    assert torch.equal(to_unit(torch.tensor([0, 51, 255], dtype=torch.uint8)), torch.tensor([0, 0.2, 1]))


# ---- the order of pictures -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("batch_size", [1, 4, 11, 30])
def test_every_picture_is_shown_once_an_epoch(folder, batch_size):
    batches = Batches(Pictures(folder, 16), batch_size, seed=0)
    draws = list(itertools.islice(itertools.chain.from_iterable(batches), 0, 66))
    orders = [[draw.picture for draw in draws[start : start + 11]] for start in range(0, 66, 11)]
    assert all(sorted(order) == list(range(11)) for order in orders)
    assert len(set(map(tuple, orders))) == 6
    assert [draw.epoch for draw in draws] == [place // 11 for place in range(66)]


@pytest.mark.parametrize("fit", ["crop", "bucket"])
def test_starting_at_a_position_is_having_run_to_it(folder, fit):
    pictures = Pictures(folder, 16, fit=fit)
    run = list(itertools.islice(Batches(pictures, 3, seed=5), 60))
    for position in (1, 2, 7, 31, 58):
        assert next(iter(Batches(pictures, 3, seed=5, position=position))) == run[position]
    assert run != list(itertools.islice(Batches(pictures, 3, seed=6), 60))


@pytest.mark.parametrize("fit", ["crop", "bucket"])
def test_the_rows_of_all_processes_are_the_batch_of_one(folder, fit):
    pictures = Pictures(folder, 16, fit=fit)
    alone = Batches(pictures, 4, seed=0)
    for world_size in (2, 4):
        ranks = [Batches(pictures, 4, seed=0, rank=rank, world_size=world_size) for rank in range(world_size)]
        for position in range(20):
            assert [draw for rank in ranks for draw in rank.at(position)] == alone.at(position)


def test_a_batch_that_processes_cannot_share_equally_is_refused(folder):
    with pytest.raises(UserError, match="multiple of the 3 processes, got 4"):
        Batches(Pictures(folder, 16), 4, seed=0, world_size=3)


def test_a_batch_of_buckets_has_one_shape(folder):
    pictures = Pictures(folder, 32, fit="bucket", report=fails)
    assert len(pictures.buckets) > 2
    batches = batches_of(pictures, 30)
    assert len({batch.shape for batch in batches}) == len(pictures.buckets)
    assert all(side % 8 == 0 for batch in batches for side in batch.shape[2:])
    assert all(abs(batch[0, 0].numel() / 32**2 - 1) < 0.3 for batch in batches)


def test_square_pictures_are_in_a_bucket_of_the_resolution_itself(tmp_path):
    noise(50, 52).save(tmp_path / "a.png")
    assert Pictures(tmp_path, 64, fit="bucket").plain(0).shape == (3, 64, 64)


def test_buckets_show_every_picture_equally_often(folder):
    pictures = Pictures(folder, 32, fit="bucket")
    batches = Batches(pictures, 2, seed=0)
    shown: Counter[int] = Counter()
    epochs = 40
    for position in range(epochs * len(pictures) // 2):
        shown.update(draw.picture for draw in batches.at(position))
    for bucket in pictures.buckets:
        counts = [shown[picture] for picture in bucket]
        assert max(counts) - min(counts) <= 1
        assert all(abs(count - epochs) <= 2 for count in counts)


def test_a_far_position_is_found_at_once(folder):
    pictures = Pictures(folder, 32, fit="bucket")
    draws = Batches(pictures, 8, seed=0).at(10**12)
    assert abs(draws[0].epoch / (10**12 * 8 / 11) - 1) < 1e-6


# ---- loading ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("fit", ["random-crop", "bucket"])
def test_batches_are_the_same_bytes_with_any_workers_and_cache_from_folder_and_zip(folder, archive, fit):
    def load(source: Path, **settings) -> list[torch.Tensor]:
        pictures = Pictures(source, 16, fit=fit, mirror=True, seed=1, cache_bytes=settings.pop("cache_bytes", 2**20))
        return batches_of(pictures, 9, **settings)

    expected = load(folder)
    others = [load(folder, cache_bytes=0), load(folder, workers=2), load(archive, workers=2, cache_bytes=0)]
    for other in others:
        assert all(torch.equal(a, b) for a, b in zip(expected, other, strict=True))
    resumed = load(folder, workers=2, position=4)
    assert all(torch.equal(a, b) for a, b in zip(expected[4:], resumed, strict=False))


def test_workers_leave_what_they_read_to_all_processes(folder):
    pictures, again = Pictures(folder, 16, report=fails), Pictures(folder, 16)
    expected = [again.plain(index) for index in range(len(again))]
    batches_of(pictures, 3, workers=2)
    shutil.rmtree(folder)
    for index in range(len(pictures)):
        assert torch.equal(pictures.plain(index), expected[index])


def test_pictures_beyond_the_budget_are_not_kept(folder):
    pictures = Pictures(folder, 16, cache_bytes=11 * 3 * 16 * 16 - 1, report=lambda message: None)
    pictures.plain(0)
    shutil.rmtree(folder)
    with pytest.raises(UserError, match="no readable picture is left"):
        pictures.plain(0)


@pytest.mark.parametrize("workers", [0, 1])
def test_loading_draws_none_of_the_training_random_numbers(folder, workers):
    before = torch.get_rng_state()
    batches_of(Pictures(folder, 16, mirror=True), 2, workers=workers)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("cache_bytes", [0, 2**20])
@pytest.mark.parametrize("workers", [0, 2])
def test_damaged_pictures_are_reported_once_and_replaced_by_the_next_readable_one(folder, workers, cache_bytes):
    for name in ("3.png", "6.png", "cats/small/8.png"):
        cut(folder / name)
    reports: list[str] = []
    pictures = Pictures(folder, 16, report=reports.append, cache_bytes=cache_bytes)
    batches = batches_of(pictures, 12, workers=workers)
    assert sorted(report.partition(":")[0] for report in reports) == [
        f"{folder}/3.png",
        f"{folder}/6.png",
        f"{folder}/cats/small/8.png",
    ]
    order = itertools.chain.from_iterable(Batches(pictures, 4, seed=0))
    intact = Pictures(folder, 16, report=lambda message: None)
    replaced = {"3.png": "9.png", "6.png": "9.png", "cats/small/8.png": "0.png"}
    for shown, draw in zip(torch.cat(batches), order, strict=False):
        name = pictures.names[draw.picture]
        assert torch.equal(shown, intact.plain(pictures.names.index(replaced.get(name, name))))


def test_a_damaged_picture_of_a_bucket_is_replaced_by_one_of_its_shape(tmp_path):
    for index, size in enumerate([(40, 40), (80, 40), (40, 42), (40, 80)]):
        noise(*size, index).save(tmp_path / f"{index}.png")
    cut(tmp_path / "0.png")
    pictures = Pictures(tmp_path, 32, fit="bucket", report=lambda message: None)
    assert torch.equal(pictures.plain(0), pictures.plain(2))
    cut(tmp_path / "3.png", 0.6)
    assert Pictures(tmp_path, 32, fit="bucket", report=lambda message: None).plain(3).shape == (3, 48, 24)


def test_a_source_with_nothing_left_to_show_is_an_error(tmp_path):
    noise(40, 40).save(tmp_path / "a.png")
    cut(tmp_path / "a.png")
    with pytest.warns(UserWarning, match=r"a\.png: damaged"), pytest.raises(UserError, match="no readable picture"):
        Pictures(tmp_path, 16).plain(0)
