"""Recording a run: what is kept, agreement with the model and with evaluation, interruption."""

import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from ibvit import ops
from ibvit.analysis import recorder
from ibvit.analysis.images import open_data
from ibvit.analysis.recorder import RecordOptions, write_records
from ibvit.analysis.records import Records, RecordsError
from ibvit.analysis.writer import RecordsWriter
from ibvit.config import TrainConfig
from ibvit.data.build import DataSpec
from ibvit.files import InUseError
from ibvit.models import load
from ibvit.training import evaluation, train
from ibvit.training.distributed import Processes
from ibvit.training.run import stored_config


def test_records_agree_with_the_model(digits_run: Path) -> None:
    records = write_records(digits_run, RecordOptions(attention=True, passes=2))
    model, data = load(digits_run), open_data(DataSpec.of(stored_config(digits_run)))
    batch = next(iter(data.val.epoch(0)))
    with torch.no_grad():
        logits, kl = model(batch.images, return_kl=True, key=ops.evaluation_key(0))
    rows = slice(0, len(batch.images))
    np.testing.assert_allclose(records.logits[0, rows], logits, atol=1e-4)
    np.testing.assert_allclose(records.kl[rows], kl, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(records.patch_logits.mean(axis=1), records.logits[0], atol=1e-4)
    assert records.labels[rows].tolist() == batch.labels.tolist()
    assert not np.array_equal(records.logits[0], records.logits[1])
    np.testing.assert_allclose(records.attention("3.1").sum(axis=2), 1.0, atol=1e-4)


def test_latents_give_the_recorded_kl(digits_run: Path) -> None:
    records = write_records(digits_run, RecordOptions(attention=True, passes=2))
    for head in records.heads:
        mu, logvar = records.latent(head)
        nats = 0.5 * (np.exp(logvar) + mu**2 - 1 - logvar).sum(axis=2)
        block, position = records.block_and_head(head)
        np.testing.assert_allclose(nats, records.kl[:, block, position], rtol=1e-3, atol=1e-3)


def test_pass_k_is_repeat_k_of_evaluation(digits_run: Path) -> None:
    records = write_records(digits_run, RecordOptions(attention=True, passes=2))
    accuracy = 100 * (records.logits.argmax(axis=2) == records.labels).mean()
    with Processes.from_environment("cpu") as processes:
        measured = evaluation.evaluate(
            load(digits_run),
            open_data(DataSpec.of(stored_config(digits_run))).val,
            processes,
            repeats=2,
        )
    assert accuracy == pytest.approx(measured.top1)


def test_only_active_heads_by_default(digits_run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recorder.kl_accounting, "active_heads", lambda kl: torch.eye(4, 2, dtype=torch.bool))
    records = write_records(digits_run, RecordOptions(passes=1, dtype="float16"))
    assert records.heads == ["0.0", "1.1"]
    assert records.latent("1.1")[0].dtype == np.float16
    assert write_records(digits_run, RecordOptions(passes=1, heads="all")).heads[-1] == "3.1"


def test_an_interrupted_recording_goes_on(digits_run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    options = RecordOptions(passes=3, attention=True)
    (digits_run / "records" / "records.json").unlink(missing_ok=True)
    whole = write_records(digits_run, options)
    expected = {name: np.array(whole.array(name)) for name in whole.meta["arrays"]}

    (digits_run / "records" / "records.json").unlink()
    commits = []
    commit = RecordsWriter.commit

    def stop_in_the_middle(writer: RecordsWriter, stage: str, steps: int) -> None:
        commit(writer, stage, steps)
        commits.append(stage)
        if stage == "pass 1":
            raise KeyboardInterrupt

    monkeypatch.setattr(RecordsWriter, "commit", stop_in_the_middle)
    with pytest.raises(KeyboardInterrupt):
        write_records(digits_run, options)
    with pytest.raises(RecordsError, match="unfinished"):
        Records.open(digits_run)
    monkeypatch.setattr(RecordsWriter, "commit", commit)
    resumed = write_records(digits_run, options)
    assert {"survey", "latents", "pass 1"} == set(commits)
    for name, array in expected.items():
        np.testing.assert_array_equal(resumed.array(name), array, err_msg=name)


def test_a_folder_without_a_finished_run(tmp_path: Path) -> None:
    with pytest.raises(RecordsError, match=r"not a run with weights: it has no config\.json"):
        write_records(tmp_path)


def test_passes_out_of_range() -> None:
    with pytest.raises(ValueError, match="passes: expected at least 1, got 0"):
        RecordOptions(passes=0)


@pytest.fixture
def folder_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A run on 24 images for training and 20 for validation, which are seen in batches of eight."""
    monkeypatch.setattr("ibvit.data.build._FOLDER_EVAL_BATCH", 8)
    for split, count in (("train", 12), ("val", 10)):
        for label, name in enumerate(("cat", "dog")):
            (tmp_path / "data" / split / name).mkdir(parents=True)
            for at in range(count):
                pixels = np.random.default_rng([label, at, count]).integers(0, 256, (16, 16, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(tmp_path / "data" / split / name / f"{at:02}.png")
    options = {"recipe": "digits", "image_size": 16, "batch_size": 12, "max_steps": 2, "latent_dim": 4, "hidden_dim": 8}
    where = {"data": str(tmp_path / "data"), "out": tmp_path / "run", "device": "cpu", "loader": "torchvision"}
    return train(TrainConfig(**options, **where, cache="off", workers=0))


def val_file(run: Path, position: int) -> Path:
    return sorted((run.parent / "data" / "val").rglob("*.png"))[position]


@pytest.mark.parametrize("broken", [[0], [8], [11], [15], [19]], ids=lambda broken: f"image {broken[0]}")
def test_row_i_is_image_i_whatever_was_shown(folder_run: Path, broken: list[int]) -> None:
    options = RecordOptions(passes=2, heads="all")
    whole = write_records(folder_run, options)
    names = [name for name in whole.meta["arrays"] if name not in ("index", "labels")]
    expected = {name: np.array(whole.array(name)) for name in names}
    axes = {name: spec["axes"].split().index("image") for name, spec in whole.meta["arrays"].items()}
    for position in broken:
        val_file(folder_run, position).write_bytes(b"")
    (folder_run / "records" / "records.json").unlink()
    records = write_records(folder_run, options, accept_changed_data=True)
    shown = np.arange(20)
    shown[broken] = (shown[broken] + 1) % 20
    assert records.index.tolist() == shown.tolist()
    assert records.labels.tolist() == (shown >= 10).tolist()
    intact = np.setdiff1d(np.arange(20), broken)
    for name in names:
        ours, theirs = (array.take(intact, axis=axes[name]) for array in (records.array(name), expected[name]))
        np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-5, err_msg=name)
    with Processes.from_environment("cpu") as processes:
        val = open_data(DataSpec.of(stored_config(folder_run))).val
        measured = evaluation.evaluate(load(folder_run), val, processes, repeats=2)
    labels = torch.as_tensor(np.array(records.labels))
    ce = [torch.nn.functional.cross_entropy(torch.as_tensor(np.array(logits)), labels) for logits in records.logits]
    assert measured.ce == pytest.approx(float(torch.stack(ce).mean()), rel=1e-5)


def test_records_that_hold_more_than_is_asked_for_are_kept(folder_run: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    full = RecordOptions(passes=2, heads="all", attention=True)
    times = {path: path.stat().st_mtime_ns for path in write_records(folder_run, full).run.glob("records/*.npy")}
    again = write_records(folder_run, RecordOptions(passes=2))
    assert again.meta["options"]["attention"]
    assert {path: path.stat().st_mtime_ns for path in times} == times
    assert "holds more than is asked for, and is kept" in caplog.text
    write_records(folder_run, RecordOptions(passes=2, seed=1))
    assert re.search(r"records is recorded anew \(what differs: options\)", caplog.text)


def test_a_flipped_bit_in_records_is_noticed(folder_run: Path) -> None:
    path = write_records(folder_run, RecordOptions(passes=2)).run / "records" / "kl.npy"
    content = bytearray(path.read_bytes())
    content[-5] ^= 4
    path.write_bytes(content)
    with pytest.raises(RecordsError, match=r"kl\.npy is damaged: its checksum differs"):
        Records.open(folder_run)


def test_one_process_records_at_a_time(folder_run: Path) -> None:
    (folder_run / "records").mkdir()
    script = "import sys, time; from pathlib import Path; from ibvit.files import lock\n"
    script += "with lock(Path(sys.argv[1]), '.lock', 'run'): print('held', flush=True); time.sleep(60)"
    command = [sys.executable, "-c", script, str(folder_run / "records")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(InUseError, match=f"run: .*records is in use by process {holder.pid} on "):
            write_records(folder_run, RecordOptions(passes=2))
        holder.kill()


def test_images_that_change_while_they_are_recorded(folder_run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    commit = RecordsWriter.commit

    def break_a_file(writer: RecordsWriter, stage: str, steps: int) -> None:
        commit(writer, stage, steps)
        if (stage, steps) == ("survey", 3):
            val_file(folder_run, 9).write_bytes(b"")

    monkeypatch.setattr(RecordsWriter, "commit", break_a_file)
    with pytest.raises(RecordsError, match=r"that the survey saw in rows 8 to 15, got others: a file broke"):
        write_records(folder_run, RecordOptions(passes=2))
    with pytest.raises(RecordsError, match="unfinished"):
        Records.open(folder_run)
