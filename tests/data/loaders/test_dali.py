"""The DALI loader: torchvision's batches, from any step, whatever the files are like."""

from __future__ import annotations

import logging

import numpy as np
import pytest
import torch

from ibvit.data.files.tree import scan
from ibvit.data.loaders.torchvision import TorchvisionLoader
from ibvit.data.plans.augment import Augmentation
from ibvit.data.plans.schedule import Training
from ibvit.data.sets.folder import choose_loader, folder_loaders

pytest.importorskip("nvidia.dali", reason="DALI is not installed")
from ibvit.data.loaders.dali import DaliLoader, readable

CPU = torch.device("cpu")
AUGMENTATION = Augmentation(48)


@pytest.fixture
def loaders(make_tree):
    folder = scan(make_tree() / "train")
    opened = []

    def make(kind: str = "dali", rank: int = 0, world_size: int = 1):
        schedule = Training(AUGMENTATION, len(folder), 0, 6, rank, world_size)
        opened.append(
            DaliLoader(folder, schedule, 2, CPU) if kind == "dali" else TorchvisionLoader(folder, schedule, 0, CPU)
        )
        return opened[-1]

    yield make
    for loader in opened:
        loader.close()


def equal(ours, theirs) -> bool:
    return all(
        torch.equal(left, right)
        for one, other in zip(ours, theirs, strict=True)
        for left, right in zip(one, other, strict=True)
    )


def test_batches_are_torchvisions_bit_for_bit(loaders):
    for epoch in range(2):
        assert equal(list(loaders().epoch(epoch)), list(loaders("torchvision").epoch(epoch)))


def test_resuming_and_ranks_change_nothing(loaders):
    whole = list(loaders().epoch(4))
    loader = loaders()
    stream = loader.epoch(0)
    next(stream)
    stream.close()
    assert equal(list(loader.epoch(4, start=2)), whole[2:])
    ranks = [list(loaders(rank=rank, world_size=3).epoch(4)) for rank in range(3)]
    for step, batch in enumerate(whole):
        assert torch.equal(batch.images, torch.cat([rank[step].images for rank in ranks]))


@pytest.mark.parametrize("kind", ["dali", "torchvision"])
@pytest.mark.parametrize("cache", ["off", "ram"])
@pytest.mark.usefixtures("forbidden")
def test_an_epoch_survives_twelve_kinds_of_trouble(make_tree, plant, caplog, kind, cache):
    root = make_tree()
    fates = plant(root / "train" / "dog")
    made = folder_loaders(
        root,
        image_size=32,
        global_batch=8,
        eval_batch=8,
        workers=0 if kind == "torchvision" else 2,
        loader=kind,
        cache=cache,
    )
    batches = [batch for epoch in range(3) for batch in made.train.epoch(epoch)]
    made.train.close()
    made.val.close()
    assert len(batches) == 3 * (32 // 8)
    assert all(torch.isfinite(batch.images).all() for batch in batches)
    broken = sorted(name for name, picture in fates.items() if not picture)
    named = [record.getMessage() for record in caplog.records if "replaces it" in record.getMessage()]
    assert sorted(message.split(":")[0].rsplit("/", 1)[1] for message in named) == broken
    assert made.bad.replaced >= len(broken)
    shown = torch.cat([batch.index for batch in batches])
    names = [scan(root / "train").paths[index] for index in shown]
    assert not any(name in path for name in broken for path in names)


@pytest.mark.usefixtures("forbidden")
def test_both_loaders_put_the_same_image_in_a_broken_ones_place(make_tree, plant):
    root = make_tree()
    plant(root / "train" / "dog")
    epochs = []
    for kind in ("dali", "torchvision"):
        made = folder_loaders(root, image_size=32, global_batch=8, eval_batch=8, workers=0, loader=kind, cache="off")
        epochs.append(list(made.train.epoch(0)))
        made.train.close()
        made.val.close()
    assert equal(*epochs)


def test_a_batch_that_dali_cannot_decode_is_decoded_by_pil(loaders, monkeypatch, caplog):
    expected = list(loaders("torchvision").epoch(0))
    loader = loaders()
    graph, calls = loader._graph, []

    def failing(**inputs):
        calls.append([bytes(file[:2]) for file in inputs["images"]])
        if len(calls) == 2:
            raise RuntimeError("Error in CPU operator\nnvimgcodec: broken stream")
        return graph(**inputs)

    failing.drop = graph.drop  # type: ignore[attr-defined]
    monkeypatch.setattr(loader, "_graph", failing)
    assert equal(list(loader.epoch(0)), expected)
    assert calls[2] == [b"P6"] * 6
    assert "broken stream" in caplog.text


def test_a_failed_graph_is_built_again(loaders):
    loader = loaders()
    with pytest.raises(RuntimeError):
        loader._graph(
            images=[np.zeros(4, dtype=np.uint8)], start=np.zeros((1, 2), np.int32), shape=np.ones((1, 2), np.int32)
        )
    assert len(list(loader.epoch(0))) == 3


def test_odd_files_reach_dali_as_pil_reads_them(make_tree, plant):
    root = make_tree() / "train"
    plant(root / "cat")
    folder = scan(root)
    data, size = readable(folder, folder.paths.index("cat/b03_cmyk.JPEG"))
    assert bytes(data).startswith(b"P6 120 90 255\n")
    assert size == (90, 120)


def test_validation_is_the_same_under_both_loaders(make_tree):
    root = make_tree(val=5)
    shown = []
    for kind in ("dali", "torchvision"):
        made = folder_loaders(root, image_size=32, global_batch=4, eval_batch=4, workers=0, loader=kind, cache="off")
        shown.append(list(made.val.epoch(0)))
        made.train.close()
        made.val.close()
    assert equal(*shown)
    assert torch.equal(torch.cat([batch.index for batch in shown[0]]), torch.arange(10))


def test_auto_takes_dali_where_it_is_installed(caplog):
    caplog.set_level(logging.INFO)
    assert choose_loader("auto") == "dali"
    assert "DALI is installed" in caplog.text


def test_unknown_loader_is_refused():
    with pytest.raises(ValueError, match="loader: expected one of auto, dali, torchvision, got 'ffcv'"):
        choose_loader("ffcv")


@pytest.mark.gpu
@pytest.mark.parametrize("cache", ["off", "ram", "gpu"])
def test_the_gpu_shows_what_the_cpu_shows(make_tree, cache):
    root = make_tree()
    options = {"image_size": 64, "global_batch": 8, "eval_batch": 8, "workers": 2}
    gpu = folder_loaders(root, loader="dali", cache=cache, device="cuda", **options)
    cpu = folder_loaders(root, loader="torchvision", cache="off", **options)
    for ours, theirs in ((gpu.train, cpu.train), (gpu.val, cpu.val)):
        for left, right in zip(ours.epoch(1), theirs.epoch(1), strict=True):
            assert torch.equal(left.index.cpu(), right.index)
            assert (left.images.cpu() - right.images).abs().mean() < 3 / 255 / 0.225
        ours.close()
        theirs.close()
