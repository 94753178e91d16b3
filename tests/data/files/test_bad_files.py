"""Broken files give way to others, and each is named once."""

from __future__ import annotations

import multiprocessing

import pytest

from ibvit.data.files.bad_files import BadFile, BadFiles, NoImageError, nearest_readable
from ibvit.data.files.images import BadImageError
from ibvit.data.sets.folder import folder_loaders


def test_a_broken_file_gives_way_to_the_next_readable_one_cyclically():
    def load(index: int) -> str:
        if index in (0, 3, 4):
            raise BadImageError("broken")
        return f"image {index}"

    shown, content, bad = nearest_readable(load, str, 3, 5)
    assert (shown, content) == (1, "image 1")
    assert bad == [BadFile("3", "broken"), BadFile("4", "broken"), BadFile("0", "broken")]
    assert nearest_readable(load, str, 2, 5) == (2, "image 2", [])


def test_no_readable_image_at_all_is_an_error():
    def load(index: int) -> str:
        raise BadImageError("empty file")

    with pytest.raises(NoImageError, match=r"all of 2 are broken .* the first: 1: empty file"):
        nearest_readable(load, str, 1, 2)


def test_each_bad_file_is_named_once(caplog):
    bad = BadFiles()
    bad.replace([BadFile("a.JPEG", "empty file"), BadFile("b.JPEG", "not an image")])
    bad.replace([BadFile("a.JPEG", "empty file")])
    assert bad.replaced == 3
    assert [record.getMessage().split(";")[0] for record in caplog.records] == [
        "a.JPEG: empty file",
        "b.JPEG: not an image",
    ]


def test_a_file_is_named_once_by_all_processes_of_a_run(tmp_path, caplog):
    ranks = [BadFiles(tmp_path / "run" / "bad_images.txt") for _ in range(2)]
    for rank in ranks:
        rank.replace([BadFile("a.JPEG", "empty file")])
    ranks[1].replace([BadFile("a.JPEG.JPEG", "empty file")])  # another file, whatever its name begins with
    ranks[0].name("b.JPEG", "converted from JPEG, CMYK")
    ranks[1].name("b.JPEG", "converted from JPEG, CMYK")
    assert [rank.replaced for rank in ranks] == [1, 2]
    named = [record.getMessage() for record in caplog.records]
    assert [message.split(";")[0] for message in named] == [
        "a.JPEG: empty file",
        "a.JPEG.JPEG: empty file",
        "b.JPEG: converted from JPEG, CMYK",
    ]
    assert (tmp_path / "run" / "bad_images.txt").read_text().splitlines() == named


def _write_names(record):
    bad = BadFiles(record)
    for at in range(50):
        bad.name(f"{at}.JPEG", "empty file")


def test_processes_that_name_at_the_same_time_agree(tmp_path):
    record = tmp_path / "bad_images.txt"
    context = multiprocessing.get_context("fork")
    workers = [context.Process(target=_write_names, args=(record,)) for _ in range(3)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert sorted(record.read_text().splitlines()) == sorted(f"{at}.JPEG: empty file" for at in range(50))


@pytest.mark.usefixtures("forbidden")
@pytest.mark.parametrize("kind", ["dali", "torchvision"])
@pytest.mark.parametrize("cache", ["off", "ram"])
def test_two_ranks_name_each_of_the_twelve_files_once(make_tree, plant, tmp_path, caplog, kind, cache):
    if kind == "dali":
        pytest.importorskip("nvidia.dali", reason="DALI is not installed")
    root = make_tree()
    fates = plant(root / "train" / "dog")
    ranks = [
        folder_loaders(
            root,
            image_size=32,
            global_batch=8,
            eval_batch=8,
            rank=rank,
            world_size=2,
            workers=0,
            loader=kind,
            cache=cache,
            record=tmp_path / "bad_images.txt",
        )
        for rank in range(2)
    ]
    for epoch in range(4):
        for rank in ranks:
            list(rank.train.epoch(epoch))
    for rank in ranks:
        rank.train.close()
        rank.val.close()
    named = [
        record.getMessage().split(": ")[0].rsplit("/", 1)[1]
        for record in caplog.records
        if record.levelname == "WARNING"
    ]
    unremarkable = {"b04_grey.JPEG", "b08_one_pixel.JPEG"}  # used as they are
    assert sorted(named) == sorted(fates.keys() - unremarkable)
    replaced = sum(rank.bad.replaced for rank in ranks)
    assert replaced >= sum(not gives_picture for gives_picture in fates.values())
