"""Reading records: what is there, and one clear error for each thing that is not."""

import json
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save

from ibvit.analysis.records import Records, RecordsError, open_runs, sha256
from ibvit.analysis.writer import RecordsWriter
from ibvit.data.files.room import NoRoomError, free_bytes
from ibvit.models.storage import save_weights
from tests.analysis.constructed import IMAGES, PATCHES
from tests.data import small_disk as disk

MakeRun = Callable[..., Path]
small_disk = disk.small_disk


def test_reader_gives_back_what_was_written(make_run: MakeRun) -> None:
    records = Records.open(make_run("run", "ib", beta=4.0, active={"1.0": 0.5}))
    mu, logvar = records.latent("1.0")
    assert records.kl[2, 1, 0, 5] == np.float32(0.5)
    assert mu.shape == logvar.shape == (IMAGES, PATCHES, 3)
    assert mu[0, 5, 1] == np.float32(1.0)
    assert records.attention("1.0").shape == (IMAGES, PATCHES, PATCHES)
    assert records.active.tolist() == [[False, False], [True, False]]
    assert (records.label, records.beta, records.grid) == ("β = 4", 4.0, (4, 4))


def test_arrays_are_mapped_and_the_file_is_never_changed(make_run: MakeRun) -> None:
    folder = make_run("run", "ib", active={"1.0": 0.5})
    records = Records.open(folder)
    assert isinstance(records.kl, np.memmap)
    records.kl[:] = 7.0
    assert Records.open(folder).kl.max() == np.float32(0.5)


def test_runs_are_sorted_along_the_spectrum(spectrum_runs: list[Records]) -> None:
    assert [run.run.name for run in spectrum_runs] == ["none", "beta10", "beta10-seed1", "beta1", "full"]


def test_not_a_run_folder(tmp_path: Path) -> None:
    with pytest.raises(RecordsError, match=r"not a run folder: it has no config\.json"):
        Records.open(tmp_path)


def test_run_without_records_names_the_command(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"architecture": {}}')
    with pytest.raises(RecordsError, match=r"has no records: run `ibvit record --run"):
        Records.open(tmp_path)


def test_unfinished_records(make_run: MakeRun) -> None:
    folder = make_run("run", "none", complete=False)
    with pytest.raises(RecordsError, match="unfinished"):
        Records.open(folder)


@pytest.mark.parametrize("name", ["kl", "labels", "mu"])
def test_missing_file(make_run: MakeRun, name: str) -> None:
    folder = make_run("run", "ib", active={"1.0": 0.5})
    (folder / "records" / f"{name}.npy").unlink()
    with pytest.raises(RecordsError, match=rf"{name}\.npy is missing"):
        Records.open(folder)


def test_truncated_file(make_run: MakeRun) -> None:
    folder = make_run("run", "none")
    path = folder / "records" / "patch_logits.npy"
    path.write_bytes(path.read_bytes()[:500])
    with pytest.raises(RecordsError, match=r"patch_logits\.npy is damaged"):
        Records.open(folder)


def test_array_of_another_shape(make_run: MakeRun) -> None:
    folder = make_run("run", "none")
    np.save(folder / "records" / "labels.npy", np.arange(3))
    with pytest.raises(RecordsError, match=r"holds int64 \[3\], expected int64 \[24\]"):
        Records.open(folder)


def test_runs_that_differ_in_more_than_their_seed_have_labels_of_their_own(make_run: MakeRun) -> None:
    folders = [make_run(name, "ib", beta=2.0, seed=seed) for seed, name in enumerate(("a", "b", "c"))]
    for folder, options in zip(folders, ({"latent_dim": 32}, {"latent_dim": 8}, {"latent_dim": 32}), strict=True):
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps(config | options))
    runs = open_runs(folders)
    assert [run.label for run in runs] == ["β = 2, latent dim 32", "β = 2, latent dim 32", "β = 2, latent dim 8"]
    assert [run.run.name for run in runs] == ["a", "c", "b"]
    assert [run.label for run in open_runs(folders[::2])] == ["β = 2", "β = 2"]


def test_records_of_other_weights(make_run: MakeRun) -> None:
    folder = make_run("run", "none")
    save_weights(folder / "model.safetensors", {"w": torch.ones(1)}, {"step": 7})  # trained further
    with pytest.raises(RecordsError, match=r"other weights than model\.safetensors"):
        Records.open(folder)
    (folder / "model.safetensors").write_bytes(b"cut")
    with pytest.raises(ValueError, match=r"model\.safetensors is damaged or not a file of tensors"):
        Records.open(folder)


def test_records_of_the_first_edition_know_the_file_of_their_weights(make_run: MakeRun) -> None:
    folder = make_run("run", "none")
    (folder / "model.safetensors").write_bytes(save({"w": torch.ones(1)}))
    meta = json.loads((folder / "records" / "records.json").read_text())
    meta["weights_sha256"] = sha256((folder / "model.safetensors").read_bytes())
    (folder / "records" / "records.json").write_text(json.dumps(meta))
    assert Records.open(folder).labels.size


@pytest.mark.parametrize("text", ['{"schema": ', "[]", "null", "[" * 100_000])
def test_damaged_json(make_run: MakeRun, text: str) -> None:
    folder = make_run("run", "none")
    (folder / "records" / "records.json").write_text(text)
    with pytest.raises(RecordsError, match=r"records\.json is damaged"):
        Records.open(folder)
    writer = RecordsWriter(folder, {"options": {}})  # recording again needs nothing of it
    assert not writer.meta["complete"]


PARTS = ("arrays", "progress", "complete", "weights_sha256", "data_sha256", "classes", "heads", "model")


@pytest.mark.parametrize("part", PARTS)
def test_parts_of_another_type(make_run: MakeRun, part: str) -> None:
    folder = make_run("run", "none")
    path = folder / "records" / "records.json"
    whole = json.loads(path.read_text())
    for meta in (whole | {part: None}, whole | {part: 3}, {name: whole[name] for name in whole if name != part}):
        path.write_text(json.dumps(meta))
        with pytest.raises(RecordsError, match=rf"records\.json is damaged \(its part {part} is missing or not what"):
            Records.open(folder)
        RecordsWriter(folder, {"options": {}})


@pytest.mark.parametrize("option", ["attention", "beta", "seed", "data"])
def test_a_configuration_of_another_type(make_run: MakeRun, option: str) -> None:
    folder = make_run("run", "none")
    path = folder / "config.json"
    whole = json.loads(path.read_text())
    for config in (whole | {option: None}, {name: whole[name] for name in whole if name != option}):
        path.write_text(json.dumps(config))
        with pytest.raises(RecordsError, match=rf"config\.json: {option}: expected "):
            Records.open(folder)


def test_unknown_schema(make_run: MakeRun) -> None:
    folder = make_run("run", "none")
    (folder / "records" / "records.json").write_text(json.dumps({"schema": "other/9"}))
    with pytest.raises(RecordsError, match="schema 'other/9'"):
        Records.open(folder)


def test_head_that_was_not_saved(make_run: MakeRun) -> None:
    records = Records.open(make_run("run", "ib", active={"1.0": 0.5}))
    with pytest.raises(RecordsError, match=r"'0\.0' is not in .*saved: 1\.0.*--heads all"):
        records.latent("0.0")


def test_attention_that_was_not_asked_for(make_run: MakeRun) -> None:
    records = Records.open(make_run("run", "none"))
    with pytest.raises(RecordsError, match=r"holds no attention: run `ibvit record .*--attention`"):
        records.attention("1.0")


def test_runs_of_different_data_sets_are_not_mixed(make_run: MakeRun) -> None:
    folders = [make_run("a", "none", data="digits"), make_run("b", "full", data="repetition")]
    with pytest.raises(RecordsError, match=r"different data sets .* digits .* repetition"):
        open_runs(folders)


def test_a_run_given_twice_and_no_run(make_run: MakeRun) -> None:
    folder = make_run("a", "none")
    with pytest.raises(RecordsError, match="more than once"):
        open_runs([folder, folder])
    with pytest.raises(RecordsError, match="at least one run"):
        open_runs([])


def test_writer_goes_on_where_it_was_committed(tmp_path: Path) -> None:
    meta = {"weights_sha256": "a"}
    writer = RecordsWriter(tmp_path, meta)
    writer.add("labels", (4,), "int64")[:2] = [5, 6]
    writer.commit("survey", 2)
    again = RecordsWriter(tmp_path, meta)
    assert again.progress("survey") == 2
    assert again.add("labels", (4,), "int64").tolist() == [5, 6, 0, 0]


def test_writer_starts_over_where_a_file_is_gone(tmp_path: Path) -> None:
    meta = {"weights_sha256": "a", "data_sha256": "b", "classes": [], "heads": [], "model": {}}
    writer = RecordsWriter(tmp_path, meta)
    writer.add("labels", (4,), "int64")[:] = 1
    writer.commit("survey", 4)
    writer.finish()
    assert RecordsWriter(tmp_path, meta).meta["complete"]
    (tmp_path / "records" / "labels.npy").unlink()
    again = RecordsWriter(tmp_path, meta)
    assert not again.meta["complete"]
    assert again.progress("survey") == 0


def test_writer_starts_over_for_other_weights(tmp_path: Path) -> None:
    writer = RecordsWriter(tmp_path, {"weights_sha256": "a"})
    writer.add("labels", (4,), "int64")[:] = 1
    writer.commit("survey", 4)
    again = RecordsWriter(tmp_path, {"weights_sha256": "b"})
    assert again.progress("survey") == 0
    assert again.add("labels", (4,), "int64").tolist() == [0, 0, 0, 0]


def test_an_array_takes_its_room_when_it_is_made(tmp_path: Path) -> None:
    array = RecordsWriter(tmp_path, {}).add("kl", (50, 4, 2, 100), "float32")
    status = (tmp_path / "records" / "kl.npy").stat()
    assert 512 * status.st_blocks >= status.st_size > array.nbytes
    assert not array.any()


def test_a_full_disk_is_one_line(small_disk: Path) -> None:
    writer = RecordsWriter(small_disk, {})
    writer.add("labels", (1000,), "int64")[:] = 7
    writer.commit("survey", 1)
    with pytest.raises(NoRoomError, match=r"records/kl\.npy: expected 3\.19\d MB of room, got 1\.0"):
        writer.add("kl", (1000, 4, 2, 100), "float32")
    assert sorted(path.name for path in writer.folder.iterdir()) == ["labels.npy", "records.json"]
    again = RecordsWriter(small_disk, {})
    assert again.progress("survey") == 1
    assert (again.add("labels", (1000,), "int64") == 7).all()
    (small_disk / "filler").write_bytes(bytes(free_bytes(small_disk)))
    with pytest.raises(NoRoomError, match=r"records\.json\.tmp: expected .* MB of room, got 0\.000 MB"):
        again.describe(text="x" * 10_000)
    assert RecordsWriter(small_disk, {}).progress("survey") == 1


def test_a_full_disk_is_one_line_for_holes_of_an_earlier_version(small_disk: Path) -> None:
    writer = RecordsWriter(small_disk, {})
    writer.add("kl", (100, 4, 2, 100), "float32")
    writer.commit("survey", 1)
    path = writer.folder / "kl.npy"
    header, size = path.read_bytes()[:128], path.stat().st_size
    path.write_bytes(header)
    os.truncate(path, size)
    (small_disk / "filler").write_bytes(bytes(free_bytes(small_disk) - 8192))
    with pytest.raises(NoRoomError, match=r"kl\.npy: expected 0\.31\d MB of room, got 0\.00"):
        RecordsWriter(small_disk, {}).add("kl", (100, 4, 2, 100), "float32")


def test_recording_anew_leaves_readers_their_arrays_and_is_unfinished_at_once(make_run: MakeRun) -> None:
    folder = make_run("run", "ib", active={"1.0": 0.5})
    records = Records.open(folder)
    shape = records.kl.shape
    expected = np.array(records.kl)
    RecordsWriter(folder, {"options": {"seed": 1}}).add("kl", shape, "float32")
    np.testing.assert_array_equal(records.kl, expected)  # the file was not cut under the reader
    with pytest.raises(RecordsError, match="unfinished"):
        Records.open(folder)


def test_writer_starts_over_where_a_file_is_cut_short(tmp_path: Path) -> None:
    writer = RecordsWriter(tmp_path, {})
    writer.add("labels", (4,), "int64")[:] = 1
    writer.commit("survey", 4)
    path = tmp_path / "records" / "labels.npy"
    os.truncate(path, path.stat().st_size - 1)
    assert RecordsWriter(tmp_path, {}).progress("survey") == 0


def test_an_empty_file(make_run: MakeRun) -> None:
    folder = make_run("run", "none")
    (folder / "records" / "labels.npy").write_bytes(b"")
    with pytest.raises(RecordsError, match=r"labels\.npy is damaged \(No data left in file\)"):
        Records.open(folder).labels  # noqa: B018
