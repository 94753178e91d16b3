"""Room is taken before it is used; what does not fit is one line, and leaves nothing behind."""

from __future__ import annotations

import errno
import os

import pytest

from ibvit.data.files.room import NoRoomError, free_bytes, reserve, writing
from ibvit.errors import UserError


@pytest.fixture(params=[errno.EOPNOTSUPP, errno.EINVAL, None], ids=["EOPNOTSUPP", "EINVAL", "macOS"])
def without_reservation(request, monkeypatch):
    """A file system that cannot reserve room."""

    def refuse(file, start, size):
        raise OSError(request.param, os.strerror(request.param))

    if request.param is None:
        monkeypatch.delattr(os, "posix_fallocate")
    else:
        monkeypatch.setattr(os, "posix_fallocate", refuse)


def made(path, content=b"", length=None):
    path.write_bytes(content)
    if length is not None:
        os.truncate(path, length)
    return path


def taken(path):
    return 512 * os.stat(path).st_blocks


def test_room_is_taken(tmp_path):
    path = made(tmp_path / "file", b"abc", 100_000)
    assert taken(path) < 100_000
    reserve(path, 300_000)
    assert taken(path) >= 300_000
    assert path.read_bytes() == b"abc" + bytes(299_997)
    reserve(path, 0)
    assert path.stat().st_size == 300_000


@pytest.mark.usefixtures("without_reservation")
def test_without_reservation_zeros_are_written(tmp_path):
    path = made(tmp_path / "file", b"abc")
    reserve(path, 3_000_000)
    assert taken(path) >= 2_999_000
    assert path.read_bytes() == b"abc" + bytes(2_999_997)


def test_a_full_disk_is_one_line(small_disk):
    path = made(small_disk / "file", b"abc")
    free = free_bytes(path)
    with pytest.raises(
        NoRoomError, match=r"small/file: expected 1\.996 MB of room, got 1\.0\d\d MB \(No space"
    ) as error:
        reserve(path, 2_000_000)
    assert isinstance(error.value, UserError)
    assert "\n" not in str(error.value)
    assert (path.read_bytes(), free_bytes(path)) == (b"abc", free)


@pytest.mark.usefixtures("without_reservation")
def test_a_full_disk_is_one_line_without_reservation(small_disk):
    path = made(small_disk / "file", b"abc")
    free = free_bytes(path)
    with pytest.raises(NoRoomError, match=r"small/file: expected 1\.996 MB of room"):
        reserve(path, 2_000_000)
    assert (path.read_bytes(), free_bytes(path)) == (b"abc", free)


def test_holes_of_a_file_count(small_disk):
    """Two files of a megabyte each exist on a disk of one: written to, the second would kill this process."""
    first, second = (made(small_disk / name, b"", 700_000) for name in "ab")
    reserve(first, 700_000)
    with pytest.raises(NoRoomError, match=r"small/b: expected 0\.700 MB of room, got 0\.3"):
        reserve(second, 700_000)


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.ENOMEM])
def test_every_way_to_be_full(tmp_path, monkeypatch, number):
    def full(file, start, size):
        os.truncate(file, size // 2)
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "posix_fallocate", full)
    path = made(tmp_path / "file", b"abc")
    with pytest.raises(NoRoomError, match=r"file: expected .* of room, got .* \(" + os.strerror(number)):
        reserve(path, 1_000_000)
    assert path.read_bytes() == b"abc"


def test_other_errors_stay_what_they_are(tmp_path, monkeypatch):
    with pytest.raises(OSError, match="Input/output error") as error, writing(tmp_path / "file", 3):
        raise OSError(errno.EIO, os.strerror(errno.EIO))
    assert not isinstance(error.value, NoRoomError)
    with pytest.raises(FileNotFoundError):
        reserve(tmp_path / "absent", 3)
