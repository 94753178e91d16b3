"""What is left after hundreds of kills, two writers, full disks and flipped bits: ``python -m tests.kills``.

Each case ends with an outcome: "right" (the result is that of an undisturbed run, to the bit), "refused" (an error
names the file or folder), or "silent" (another result, without a word). The last must not occur. Not part of the
suite: it takes some ten minutes. Run it from the root of the checkout, as root where full disks are to be tried.
"""

from __future__ import annotations

import argparse
import logging
import multiprocessing
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from ibvit.analysis.recorder import RecordOptions, write_records
from ibvit.analysis.records import Records, RecordsError, open_runs
from ibvit.config import TrainConfig, as_dict, words
from ibvit.data.cache import making, pack
from ibvit.data.files.tree import scan_tree
from ibvit.errors import UserError
from ibvit.figures.report import write_report
from ibvit.models import load
from ibvit.models.storage import fingerprint_of
from ibvit.training import train
from tests.training.test_identity import tree

FORK = multiprocessing.get_context("fork")
outcomes: Counter[tuple[str, str]] = Counter()


def options(out: Path, data: Path, **changes) -> TrainConfig:
    return TrainConfig(
        data=str(data), recipe="digits", image_size=16, epochs=4, batch_size=6, attention="ib", latent_dim=4,
        hidden_dim=8, device="cpu", cache="off", workers=0, loader="torchvision", checkpoint_every=0.25, out=out,
        **changes,
    )  # fmt: skip


def child(work: Callable[[], object], log: Path) -> None:
    """Run work in a forked process whose words go to a file; exit code 3 is an error for people, 4 another."""
    with log.open("ab", buffering=0) as file:
        os.dup2(file.fileno(), 2)
        try:
            work()
        except Exception as error:
            os.write(2, f"{type(error).__name__}: {error}\n".encode())
            os._exit(3 if isinstance(error, ValueError | TypeError | OSError | UserError) else 4)
    os._exit(0)


def run(work: Callable[[], object], log: Path, kill_after: float | None = None) -> int:
    """The exit code of work in a process of its own, killed after some seconds if it still runs."""
    process = FORK.Process(target=child, args=(work, log))
    process.start()
    process.join(kill_after)
    if kill_after is not None and process.is_alive():
        os.kill(process.pid, signal.SIGKILL)
    process.join()
    return process.exitcode


def note(part: str, outcome: str, count: int = 1) -> None:
    outcomes[part, outcome] += count


def training(folder: Path, data: Path, kills: int, rng: random.Random) -> None:
    whole = train(options(folder / "whole", data))
    struck = rounds = 0
    while struck < kills:
        broken, log = folder / f"broken{rounds}", folder / "log"
        for _ in range(8):
            struck += run(lambda out=broken: train(options(out, data)), log, rng.uniform(0.05, 0.6)) == -signal.SIGKILL
        code = run(lambda out=broken: train(options(out, data)), log)
        same = code == 0 and fingerprint_of(broken / "model.safetensors") == fingerprint_of(whole / "model.safetensors")
        left = [path.name for path in broken.rglob("*.partial*")]
        if not same or left:
            print(f"training: exit code {code}, the same weights: {same}, left: {left}")
        note("training", "right" if same and not left else "refused" if code == 3 else "silent")
        shutil.rmtree(broken)
        rounds += 1
    print(f"training: {struck} kills in {rounds} runs")


def recording(folder: Path, data: Path, kills: int, rng: random.Random) -> None:
    out = train(options(folder / "recorded", data))
    choice = RecordOptions(heads="all", attention=True, passes=3)
    records = write_records(out, choice)
    whole = {name: np.array(records.array(name)) for name in records.meta["arrays"]}
    struck = rounds = 0
    while struck < kills:
        shutil.rmtree(out / "records")
        for _ in range(8):
            struck += run(lambda: write_records(out, choice), folder / "log", rng.uniform(0.02, 0.4)) == -signal.SIGKILL
        code = run(lambda: write_records(out, choice), folder / "log")
        records = Records.open(out) if code == 0 else None
        same = records is not None and all(np.array_equal(records.array(name), whole[name]) for name in whole)
        note("recording", "right" if same else "refused" if code == 3 else "silent")
        rounds += 1
    print(f"recording: {struck} kills in {rounds} recordings")


def packing(folder: Path, kills: int, rng: random.Random) -> None:
    data, struck, rounds = tree(folder / "to pack", train=200), 0, 0
    split, _ = scan_tree(data)
    while struck < kills:
        target = making.disk_pack(split)
        shutil.rmtree(target, ignore_errors=True)
        for _ in range(8):
            work = lambda: making.pack_tree(data, workers=1)  # noqa: E731
            struck += run(work, folder / "log", rng.uniform(0.005, 0.15)) == -signal.SIGKILL
        code = run(work, folder / "log")
        same = code == 0 and all(
            np.array_equal(pack.Pack(target, split).pixels(k), split.pixels(k)) for k in range(0, len(split), 7)
        )
        note("packing", "right" if same else "refused" if code == 3 else "silent")
        rounds += 1
    print(f"packing: {struck} kills in {rounds} packs")


def reporting(folder: Path, kills: int, rng: random.Random) -> None:
    runs, out = open_runs([folder / "recorded"]), folder / "report.html"
    write_report(runs, out, images=2, samples=64)
    whole, struck = out.read_bytes(), 0
    for _ in range(kills):
        work = lambda: write_report(runs, out, images=2, samples=64)  # noqa: E731
        struck += run(work, folder / "log", rng.uniform(0.05, 0.6)) == -signal.SIGKILL
        note("report", "right" if out.read_bytes() == whole else "silent")
    print(f"report: {struck} kills of {kills} writings")


def is_running(out: Path) -> bool:
    """Whether a training into a folder below ``out`` is alive."""
    return f"--out {out}" in subprocess.run(["ps", "-eo", "args"], capture_output=True, text=True).stdout


def sweeping(folder: Path, data: Path, kills: int, rng: random.Random) -> None:
    common = words(as_dict(replace(options(Path(), data), out=None, attention="ib")), "--train.")
    place = common.index("--train.data")
    del common[place : place + 2]
    command = [sys.executable, "-m", "ibvit", "sweep", "--betas", "1", "2", "--data", str(data)]
    command += ["--out", str(folder / "sweep"), *common]
    struck = 0
    for _ in range(kills):
        process = subprocess.Popen(
            command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
        )
        with suppress(subprocess.TimeoutExpired):
            process.wait(rng.uniform(2, 12))
        struck += process.poll() is None
        process.kill()
        process.wait()
        until = time.monotonic() + 20  # they save before they stop
        while (alive := is_running(folder / "sweep")) and time.monotonic() < until:
            time.sleep(0.2)
        note("sweep: children end", "silent" if alive else "right")
    done = subprocess.run(command, capture_output=True, text=True)
    for beta in (1.0, 2.0):
        config = replace(options(folder / f"alone{beta}", data), beta=beta)
        found = folder / "sweep" / f"{data.name}-ib-beta{beta:g}-seed0" / "model.safetensors"
        same = fingerprint_of(train(config) / "model.safetensors") == fingerprint_of(found)
        note("sweep", "right" if same and done.returncode == 0 else "silent")
    print(f"sweep: {struck} kills")


def two_writers(folder: Path, data: Path, rounds: int) -> None:
    whole = fingerprint_of(train(options(folder / "first", data, max_steps=6)) / "model.safetensors")
    for number in range(rounds):
        out = folder / f"both{number}"
        work = lambda out=out: train(options(out, data, max_steps=6))  # noqa: E731
        writers = [FORK.Process(target=child, args=(work, folder / f"log{k}")) for k in range(2)]
        for writer in writers:
            writer.start()
        for writer in writers:
            writer.join()
        codes = sorted(writer.exitcode for writer in writers)
        same = fingerprint_of(out / "model.safetensors") == whole
        note("two writers", "right" if same and codes in ([0, 3], [0, 0]) else "silent")
        shutil.rmtree(out)


@contextmanager
def small_disk(kilobytes: int) -> Iterator[Path]:
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={kilobytes}k", "tmpfs", folder], check=True)
        try:
            yield Path(folder)
        finally:
            subprocess.run(["umount", "-l", folder], check=True)


def full_disks(folder: Path, data: Path) -> None:
    if os.geteuid():
        print("full disks: not tried, mounting needs root")
        return
    complete = folder / "recorded"
    spared = shutil.ignore_patterns("records", "checkpoints", "figures")
    for kilobytes in (40, 100, 200, 400, 800, 1600, 3200, 6400):
        log = folder / f"full{kilobytes}"
        with small_disk(kilobytes) as disk:
            code = run(lambda disk=disk: train(options(disk / "run", data)), log)
            note("full disk: training", {0: "right", 3: "refused"}.get(code, "silent"))
        with small_disk(kilobytes + size(complete, spared)) as disk:
            shutil.copytree(complete, disk / "run", ignore=spared)
            choice = RecordOptions(heads="all", attention=True)
            code = run(lambda disk=disk, choice=choice: write_records(disk / "run", choice), log)
            note("full disk: recording", {0: "right", 3: "refused"}.get(code, "silent"))
        with small_disk(kilobytes + size(data, None)) as disk:
            shutil.copytree(data, disk / "data")
            code = run(lambda disk=disk: making.pack_tree(disk / "data", workers=1), log)
            note("full disk: packing", {0: "right", 3: "refused"}.get(code, "silent"))
        print(f"{kilobytes} kB: {log.read_text().splitlines()[-1] if log.read_text() else 'fits'}")


def size(folder: Path, spared: Callable[[str, list[str]], set[str]] | None) -> int:
    """Kilobytes that a copy of a folder takes, in pages of four."""
    with tempfile.TemporaryDirectory() as copy:
        shutil.copytree(folder, Path(copy) / "copy", ignore=spared)
        return sum(4 + path.stat().st_size // 1024 for path in Path(copy).rglob("*")) + 16


def flipped(path: Path, rng: random.Random) -> None:
    content = bytearray(path.read_bytes())
    content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
    path.write_bytes(content)


def flipped_bits(folder: Path, data: Path, flips: int, rng: random.Random) -> None:
    whole = folder / "whole"
    part = train(options(folder / "part", data, max_steps=20))
    for _ in range(flips):
        broken = folder / "flipped"
        shutil.copytree(part, broken)
        flipped(broken / "checkpoints" / "last.pt", rng)
        code = run(lambda out=broken: train(options(out, data)), folder / "log")
        same = code == 0 and fingerprint_of(broken / "model.safetensors") == fingerprint_of(whole / "model.safetensors")
        note("flipped bit: checkpoint", "right" if same else "refused" if code == 3 else "silent")
        shutil.rmtree(broken)
    weights = load(whole).state_dict()
    for _ in range(flips):
        shutil.copytree(whole, folder / "flipped", ignore=shutil.ignore_patterns("checkpoints"))
        flipped(folder / "flipped" / "model.safetensors", rng)
        try:
            state = load(folder / "flipped").state_dict()
        except (ValueError, FileNotFoundError):
            note("flipped bit: weights", "refused")
        else:
            same = all(torch.equal(state[name], weights[name]) for name in weights)
            note("flipped bit: weights", "right" if same else "silent")
        shutil.rmtree(folder / "flipped")
    records = {
        name: np.array(Records.open(folder / "recorded").array(name)) for name in ("kl", "mu", "logits", "labels")
    }
    for _ in range(flips):
        shutil.copytree(folder / "recorded", folder / "flipped", ignore=shutil.ignore_patterns("checkpoints"))
        name = rng.choice(sorted(records))
        flipped(folder / "flipped" / "records" / f"{name}.npy", rng)
        try:
            same = np.array_equal(Records.open(folder / "flipped").array(name), records[name])
            note("flipped bit: records", "right" if same else "silent")
        except RecordsError:
            note("flipped bit: records", "refused")
        shutil.rmtree(folder / "flipped")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=200, help="kills in all, shared by the parts")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", nargs="*", default=[], help="parts; flipped bits needs training and recording")
    args = parser.parse_args()
    torch.set_num_threads(1)
    logging.getLogger("ibvit").setLevel(logging.WARNING)
    rng = random.Random(args.seed)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        data = tree(folder / "shapes", train=10)
        parts = {
            "training": lambda: training(folder, data, args.kills // 2, rng),
            "recording": lambda: recording(folder, data, args.kills // 4, rng),
            "packing": lambda: packing(folder, args.kills // 8, rng),
            "reporting": lambda: reporting(folder, args.kills // 8, rng),
            "sweeping": lambda: sweeping(folder, data, max(4, args.kills // 25), rng),
            "two writers": lambda: two_writers(folder, data, 20),
            "full disks": lambda: full_disks(folder, data),
            "flipped bits": lambda: flipped_bits(folder, data, max(20, args.kills // 4), rng),
        }
        for name, part in parts.items():
            if args.only and name not in args.only:
                continue
            print(f"{name} …", flush=True)
            part()
    for (part, outcome), count in sorted(outcomes.items()):
        print(f"{part:28} {outcome:8} {count}")
    silent = sum(count for (_, outcome), count in outcomes.items() if outcome == "silent")
    sys.exit(f"{silent} silent outcomes" if silent else 0)


if __name__ == "__main__":
    main()
