"""Row i is image i, whatever is shown in its place."""

from __future__ import annotations

import pytest
import torch

from ibvit.data.sets.folder import folder_loaders

COUNT, BATCH = 10, 4
PLACES = {
    "first": [0],
    "first of a later batch": [4],
    "middle": [5],
    "last of a batch": [7],
    "last": [9],
    "two": [3, 4],
}


@pytest.fixture(params=["dali", "torchvision"])
def epochs(request, make_tree):
    """(broken positions) → the batches of validation and of a training epoch."""
    if request.param == "dali":
        pytest.importorskip("nvidia.dali", reason="DALI is not installed")
    root = make_tree(train=6, val=COUNT // 2)

    def load(broken=()):
        for split in ("train", "val"):
            files = sorted((root / split).rglob("*.JPEG"))
            for position in broken:
                files[position].write_bytes(b"")
        made = folder_loaders(
            root, image_size=32, global_batch=4, eval_batch=BATCH, workers=0, loader=request.param, cache="off"
        )
        found = list(made.val.epoch(0)), list(made.train.epoch(0))
        made.train.close()
        made.val.close()
        return found

    return load


@pytest.mark.parametrize("broken", PLACES.values(), ids=PLACES)
def test_a_broken_file_moves_nothing(epochs, broken):
    whole, whole_train = epochs()
    val, train = epochs(broken)
    assert [batch.first for batch in val] == [0, 4, 8]
    rows = torch.cat([batch.rows for batch in val])
    assert rows.tolist() == list(range(COUNT))
    shown = list(range(COUNT))
    for position in reversed(broken):
        shown[position] = shown[(position + 1) % COUNT]
    assert torch.cat([batch.index for batch in val]).tolist() == shown
    images, before = (torch.cat([batch.images for batch in batches]) for batches in (val, whole))
    assert torch.equal(images, before[shown])
    for ours, theirs in zip(train, whole_train, strict=True):
        assert torch.equal(ours.rows, theirs.rows)
        kept = ours.index == theirs.index
        assert torch.equal(ours.images[kept], theirs.images[kept])
        assert torch.equal(theirs.rows, theirs.index)
        assert set(ours.rows[~kept].tolist()) <= set(broken)


def test_a_batch_may_be_written_to(epochs):
    """Its rows are its own, not the schedule's."""
    once, _ = epochs()
    for batch in once:
        batch.rows.zero_()
        batch.index.zero_()
    again, train = epochs()
    assert torch.cat([batch.rows for batch in again]).tolist() == list(range(COUNT))
    orders = []
    for batch in train:
        orders.append(batch.rows.clone())
        batch.rows.zero_()
    assert all(torch.equal(ours.rows, order) for ours, order in zip(epochs()[1], orders, strict=True))
