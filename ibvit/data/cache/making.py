"""Creates packs: whole or not at all, with all their disk space reserved, and as private as the images."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from pathlib import Path

import numpy as np

from ibvit.data.cache.lock import alone
from ibvit.data.cache.pack import FILES, FOLDER, PIXELS, SIZES, STATE, Pack, PackError, decoded_bytes, measure
from ibvit.data.files.fingerprint import Contents, contents
from ibvit.data.files.room import NoRoomError, free_bytes, no_room, reserve, writing
from ibvit.data.files.tree import ImageFolder, scan_tree
from ibvit.data.plans.augment import Ints

_PRIVATE = 0o700
_SHARE_OF_DISK = 0.95  # of what is free, that a pack may take


def create_pack(path: Path, folder: ImageFolder, made_from: Contents, sizes: Ints, mode: int = _PRIVATE) -> Pack:
    """An empty pack for pictures of these sizes; there must be none yet.

    Args:
        made_from: the fingerprint of the files, taken before their sizes were.
        mode: of its folder; its files have the same bits but those to execute.

    Raises:
        NoRoomError: there is no room.
    """
    size = max(1, decoded_bytes(sizes))
    partial = Path(tempfile.mkdtemp(prefix=f".{path.name}-", dir=path.parent))
    try:
        partial.chmod(_PRIVATE)
        with writing(partial, size):
            for name in FILES:
                os.close(os.open(partial / name, os.O_CREAT | os.O_EXCL, 0o600))
                (partial / name).chmod(mode & 0o666)
            np.save(partial / SIZES, sizes.astype(np.int32))
            np.save(partial / STATE, np.zeros(len(folder), dtype=np.uint8))
            about = {"root": str(folder.root), "classes": folder.classes, "made_from": made_from._asdict()}
            (partial / FOLDER).write_text(json.dumps(about))
        reserve(partial / PIXELS, size)
        partial.chmod(mode)
        partial.rename(path)
    except BaseException as error:
        shutil.rmtree(partial, ignore_errors=True)
        if isinstance(error, NoRoomError):
            raise no_room(path, size) from error  # by the name that it would have had
        raise
    return Pack(path, folder, made_from)


def disk_pack(folder: ImageFolder) -> Path:
    """Where ``ibvit data pack`` puts a split's pack: DIR/train.pack beside DIR/train.

    Example:
        >>> disk_pack(ImageFolder(Path("data/train"), (), (), ())).as_posix()
        'data/train.pack'
    """
    return folder.root.with_name(f"{folder.root.name}.pack")


def open_disk_pack(folder: ImageFolder, made_from: Contents) -> Pack:
    """The pack of a split on disk.

    Raises:
        PackError: it is absent, damaged, made from other files, or another user can change it.
    """
    path = disk_pack(folder)
    if path.exists():
        status, owners = path.stat(), {os.geteuid(), 0, folder.root.stat().st_uid}
        if status.st_uid not in owners or status.st_mode & 0o002:
            raise PackError(f"{path}: expected a pack that only this user or the owner of {folder.root} can change")
    return Pack(path, folder, made_from)


def pack_tree(root: Path, workers: int | None = None) -> tuple[Pack, Pack]:
    """Decode DIR/train and DIR/val into DIR/train.pack and DIR/val.pack.

    An interrupted call resumes where it stopped. A pack whose images have changed is made again.

    Raises:
        ValueError: the tree is not one of images, none of them is readable, or another process is packing it.
        NoRoomError: the disk has no room.
    """
    folders = scan_tree(root)
    try:
        with alone(root / ".pack.lock", wait=False):
            train, val = (_packed(folder, workers) for folder in folders)
    except BlockingIOError as error:
        raise ValueError(f"pack: expected {root} for this process alone, another one is packing it") from error
    return train, val


def _packed(folder: ImageFolder, workers: int | None) -> Pack:
    path = disk_pack(folder)
    for leftover in path.parent.glob(f".{path.name}-*"):  # by a call that was killed; this one has the lock
        if _is_pack(leftover):
            shutil.rmtree(leftover)
    made_from = contents(folder)
    try:
        pack = open_disk_pack(folder, made_from)
        if mended := pack.mended():  # times of files do not show permissions, nor a server that was down
            raise PackError(f"{path}: {mended} images were broken when they were packed and are not now")
    except PackError as error:
        if os.path.lexists(path):
            if not _is_pack(path):
                raise ValueError(f"pack: expected a pack or nothing at {path}, got something else: {error}") from error
            print(f"{error}; it is made again")
            shutil.rmtree(path)
        pack = _new_pack(path, folder, made_from)
    broken = pack.fill(workers)
    for bad in broken:
        print(bad)
    if len(broken) == len(folder):
        raise ValueError(f"data: expected readable images in {folder.root}, all {len(broken)} are broken")
    if broken:
        print(f"{path}: {len(broken)} broken, neighbours replace them; if you mend them, pack again")
    return pack


def _new_pack(path: Path, folder: ImageFolder, made_from: Contents) -> Pack:
    sizes = measure(folder)
    needed, free = decoded_bytes(sizes), free_bytes(path)
    print(f"{path}: {len(folder)} images, {needed / 1e9:.2f} GB decoded, {free / 1e9:.1f} GB free on the disk")
    if needed > _SHARE_OF_DISK * free:
        raise no_room(path, needed, f"of which at most {_SHARE_OF_DISK:.0%} are taken")
    return create_pack(path, folder, made_from, sizes, _as_private_as(folder, path.parent))


def _is_pack(path: Path) -> bool:
    """A folder with nothing but what belongs to a pack: it may be removed."""
    return path.is_dir() and not path.is_symlink() and set(os.listdir(path)) <= set(FILES)


def _as_private_as(folder: ImageFolder, parent: Path) -> int:
    """The mode of a folder in ``parent`` that its group and others may read if they can read every image."""
    group = parent.stat().st_gid if parent.stat().st_mode & 0o2000 else os.getegid()
    real: dict[str, str] = {str(folder.root): os.path.realpath(folder.root)}  # folders, as listed and as they lie
    files: list[str] = []
    for index in range(len(folder)):
        above, name = os.path.split(folder.path(index))
        real.setdefault(above, os.path.realpath(above))
        files.append(os.path.join(real[above], name))
        if os.path.islink(files[-1]):
            files[-1] = os.path.realpath(files[-1])
            real.setdefault(os.path.dirname(files[-1]), os.path.dirname(files[-1]))
    way = {above for inner in real.values() for above in (Path(inner), *Path(inner).parents)}
    way -= {parent.resolve(), *parent.resolve().parents}  # every reader of the pack passes these folders too
    groups, others = True, True
    for paths, needed in ((files, 0o4), (way, 0o1)):
        for path in paths:
            try:
                status = os.stat(path)
            except OSError:
                continue  # broken: there is nothing to show
            others &= bool(status.st_mode & needed)
            groups &= bool((status.st_mode >> 3 if status.st_gid == group else status.st_mode) & needed)
    return _PRIVATE | (0o050 if groups else 0) | (0o005 if others else 0)
