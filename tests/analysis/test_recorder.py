"""Recording a run: what is kept, agreement with the model and with evaluation, interruption."""

from pathlib import Path

import numpy as np
import pytest
import torch

from ibvit import ops
from ibvit.analysis import recorder
from ibvit.analysis.images import open_data
from ibvit.analysis.recorder import RecordOptions, write_records
from ibvit.analysis.records import Records, RecordsError, RecordsWriter
from ibvit.data.build import DataSpec
from ibvit.models import load
from ibvit.training import evaluation
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
