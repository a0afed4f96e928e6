"""Files: locks, errors, and new files that appear whole or not at all."""

from __future__ import annotations

import ctypes
import errno
import os
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from formats.devices import holes, locks
from formats.devices.device import MemoryDevice, SliceDevice, is_blank
from formats.devices.file import FileDevice
from formats.devices.new_file import new_file
from formats.errors import (
    DeviceBusyError,
    DeviceError,
    DeviceFullError,
    ImageReplacedError,
    ReadOnlyError,
    UnsupportedError,
)
from tests.support.cli import without_override
from tests.support.foreign import ForeignProgramError, program, run

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "image"
    path.write_bytes(bytes(1 << 20))
    return path


def test_a_missing_file_is_a_device_error(tmp_path: Path) -> None:
    with pytest.raises(DeviceError, match="cannot open"):
        FileDevice(tmp_path / "nothing")


def test_a_directory_is_no_image(tmp_path: Path) -> None:
    with pytest.raises(DeviceError, match="neither"):
        FileDevice(tmp_path)


def test_a_file_open_for_reading_is_not_written(path: Path) -> None:
    with FileDevice(path) as device:
        with pytest.raises(ReadOnlyError):
            device.write(0, b"x")
        with pytest.raises(ReadOnlyError):
            device.resize(0)
        with pytest.raises(ReadOnlyError):
            device.discard(0, 512)


def test_a_file_that_must_not_be_written_is_named_so(path: Path) -> None:
    path.chmod(0o444)
    code = (
        "import sys\n"
        "from formats.errors import ReadOnlyError\n"
        "from formats.devices.file import FileDevice\n"
        "try: FileDevice(sys.argv[1], read_only=False)\n"
        "except ReadOnlyError: sys.exit(7)\n"
    )
    command = [*without_override(), sys.executable, "-c", code, str(path)]
    assert subprocess.run(command, check=False).returncode == 7


def test_a_shrinking_file_is_not_read_short(path: Path) -> None:
    with FileDevice(path) as device:
        os.truncate(path, 1000)
        with pytest.raises(DeviceError, match="shrank"):
            device.read(0, 2000)


def test_a_full_disk_is_named(path: Path) -> None:
    """/dev/full answers every write with ENOSPC."""
    with FileDevice(path, read_only=False) as device:
        os.dup2(os.open("/dev/full", os.O_RDWR), device._fd)
        with pytest.raises(DeviceFullError):
            device.write(0, b"x")


def test_discarding_gives_space_back(path: Path) -> None:
    path.write_bytes(os.urandom(1 << 20))
    before = path.stat()
    with FileDevice(path, read_only=False) as device:
        device.discard(4096, 512 << 10)
        device.flush()
    after = path.stat()
    assert after.st_size == before.st_size
    assert after.st_blocks < before.st_blocks


@pytest.fixture
def sparse(path: Path) -> Path:
    """A file of 1 MiB with some data in its middle, and holes around it."""
    with path.open("wb") as file:
        file.truncate(1 << 20)
        file.seek(512 << 10)
        file.write(b"x" * 4096)
    return path


def test_reserving_fills_holes_and_changes_nothing(sparse: Path) -> None:
    before, content = sparse.stat(), sparse.read_bytes()
    with FileDevice(sparse, read_only=False) as device:
        device.reserve(4096, (1 << 20) - 4096)
    after = sparse.stat()
    assert after.st_size == before.st_size
    assert after.st_blocks * 512 >= (1 << 20) - 4096
    assert sparse.read_bytes() == content
    with FileDevice(sparse) as device, pytest.raises(ReadOnlyError):
        device.reserve(0, 1)


def test_what_a_file_system_lacks_is_not_reserved(sparse: Path) -> None:
    """It is compared first: to fill the disk in order to find out would fail others."""
    found = os.statvfs(sparse)
    os.truncate(sparse, found.f_bavail * found.f_frsize + (64 << 20))
    before = sparse.stat()
    with (
        FileDevice(sparse, read_only=False) as device,
        pytest.raises(DeviceFullError, match="its file system has"),
    ):
        device.reserve(0, device.size)
    assert sparse.stat().st_blocks == before.st_blocks


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT, errno.EOPNOTSUPP, errno.EIO])
def test_a_reservation_that_fails_is_given_back(
    sparse: Path, code: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of the two holes, the second cannot be filled any more."""
    before, content = sparse.stat(), sparse.read_bytes()
    calls = []

    def fill(fd: int, offset: int, size: int) -> None:
        calls.append(offset)
        if len(calls) > 1 or code == errno.EOPNOTSUPP:
            raise OSError(code, os.strerror(code))
        os.posix_fallocate(fd, offset, size)

    monkeypatch.setattr(holes, "fill_holes", fill)
    with FileDevice(sparse, read_only=False) as device:
        if code == errno.EOPNOTSUPP:
            device.reserve(0, 1 << 20)
        else:
            with pytest.raises(DeviceError) as caught:
                device.reserve(0, 1 << 20)
            assert isinstance(caught.value, DeviceFullError) == (code != errno.EIO)
    assert sparse.stat().st_blocks == before.st_blocks
    assert sparse.read_bytes() == content


@pytest.mark.parametrize("code", [errno.EOPNOTSUPP, errno.ENOSYS, errno.EIO])
def test_where_there_are_no_holes_it_is_said(
    path: Path, code: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fallocate(*_: int) -> int:
        ctypes.set_errno(code)
        return -1

    monkeypatch.setattr(holes, "_fallocate", lambda: fallocate)
    with FileDevice(path, read_only=False) as device:
        with pytest.raises(DeviceError if code == errno.EIO else UnsupportedError):
            device.discard(0, 512)
        monkeypatch.setattr(holes, "_fallocate", lambda: None)  # as on macOS
        with pytest.raises(UnsupportedError) as caught:
            device.discard(0, 512)
        assert caught.value.feature == "discard"
        device.discard(0, 0)


def test_one_writer_or_many_readers(path: Path) -> None:
    with FileDevice(path), FileDevice(path), pytest.raises(DeviceBusyError):
        FileDevice(path, read_only=False)
    with FileDevice(path, read_only=False):
        for read_only in (True, False):
            with pytest.raises(DeviceBusyError):
                FileDevice(path, read_only=read_only)
        FileDevice(path, lock=False).close()
    FileDevice(path, read_only=False).close()


def test_the_lock_ends_with_its_holder(path: Path) -> None:
    code = (
        "import sys\n"
        "from formats.devices.file import FileDevice\n"
        "device = FileDevice(sys.argv[1], read_only=False)\n"
        "print('locked', flush=True)\n"
        "sys.stdin.read()\n"
    )
    holder = subprocess.Popen(
        [sys.executable, "-c", code, path], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert holder.stdout
    assert holder.stdin
    assert holder.stdout.readline() == b"locked\n"
    with pytest.raises(DeviceBusyError):
        FileDevice(path)
    holder.kill()
    holder.wait()
    holder.stdin.close()
    holder.stdout.close()
    FileDevice(path, read_only=False).close()


def test_the_message_names_a_holder_that_opens_and_closes_other_files(path: Path) -> None:
    code = (
        "import os, sys\n"
        "from formats.devices.file import FileDevice\n"
        "device = FileDevice(sys.argv[1], read_only=False)\n"
        "print('locked', flush=True)\n"
        "while True:\n"
        "    several = [os.open('/dev/null', os.O_RDONLY) for _ in range(50)]\n"
        "    for one in several:\n"
        "        os.close(one)\n"
    )
    with subprocess.Popen([sys.executable, "-c", code, path], stdout=subprocess.PIPE) as holder:
        assert holder.stdout
        assert holder.stdout.readline() == b"locked\n"
        try:
            for _ in range(30):
                with pytest.raises(DeviceBusyError, match=f"process {holder.pid}"):
                    FileDevice(path)
        finally:
            holder.kill()


@pytest.mark.interop
def test_qemu_refuses_an_image_that_we_write(path: Path) -> None:
    command = ("-f", "raw", "-c", "write 0 512", path)
    run("qemu-io", *command)
    with (
        FileDevice(path, read_only=False),
        pytest.raises(ForeignProgramError, match="lock"),
    ):
        run("qemu-io", *command)
    with FileDevice(path):
        run("qemu-io", "-r", "-f", "raw", "-c", "read 0 512", path)
        with pytest.raises(ForeignProgramError, match="lock"):
            run("qemu-io", *command)


@pytest.mark.interop
def test_we_refuse_an_image_that_qemu_writes(path: Path) -> None:
    qemu = subprocess.Popen(
        [program("qemu-io"), "-f", "raw", str(path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    assert qemu.stdin
    assert qemu.stdout
    qemu.stdin.write(b"write -P 1 0 512\n")
    qemu.stdin.flush()
    while b"wrote" not in qemu.stdout.readline():
        pass
    for read_only in (True, False):
        with pytest.raises(DeviceBusyError):
            FileDevice(path, read_only=read_only)
    qemu.communicate(b"quit\n", timeout=30)
    FileDevice(path, read_only=False).close()


# ------------------------------------------------------------ path and descriptor


def replaced_before(monkeypatch: pytest.MonkeyPatch, path: Path, times: int) -> None:
    """Let another file take the name in the moment before the lock is taken."""
    real = locks.lock_image
    left = iter(range(times))

    def lock(fd: int, name: str, *, exclusive: bool) -> None:
        if next(left, None) is not None:
            new = path.with_name("another")
            new.write_bytes(b"new" * 1000)
            new.replace(path)
        real(fd, name, exclusive=exclusive)

    monkeypatch.setattr("formats.devices.file.lock_image", lock)


@pytest.mark.parametrize("read_only", [False, True])
def test_c65_who_opens_a_file_that_is_being_replaced_gets_the_new_one(
    path: Path, read_only: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    replaced_before(monkeypatch, path, 3)
    with FileDevice(path, read_only=read_only) as device:
        assert device.read(0, 3) == b"new"
        assert device.size == 3000
        assert device.has_name()
        if not read_only:
            device.write(0, b"put")
            assert path.read_bytes()[:3] == b"put"
    assert len(os.listdir("/proc/self/fd")) < 100  # noqa: PTH208


def test_c65_a_file_that_is_replaced_without_end_is_not_opened(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    replaced_before(monkeypatch, path, 1000)
    with pytest.raises(ImageReplacedError, match="C65"):
        FileDevice(path, read_only=False)


def test_c65_a_file_that_is_gone_when_it_is_locked_is_missing(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = locks.lock_image

    def lock(fd: int, name: str, *, exclusive: bool) -> None:
        path.unlink()
        real(fd, name, exclusive=exclusive)

    monkeypatch.setattr("formats.devices.file.lock_image", lock)
    with pytest.raises(DeviceError, match="No such file"):
        FileDevice(path, read_only=False)


@pytest.mark.parametrize("how", ["replaced", "removed", "moved"])
def test_c65_a_lock_taken_later_is_on_the_file_that_has_the_name(path: Path, how: str) -> None:
    with FileDevice(path, read_only=False, lock=False) as device:
        device.lock()
        device.unlock()
        other = path.with_name("other")
        if how == "replaced":
            other.write_bytes(b"other")
            other.replace(path)
        elif how == "removed":
            path.unlink()
        else:
            path.rename(other)
        with pytest.raises(ImageReplacedError, match="C65") as caught:
            device.lock()
        assert caught.value.hint
        if how == "moved":  # the lock was given back
            FileDevice(other, read_only=False).close()
        if how == "replaced":
            FileDevice(path, read_only=False).close()


def test_c65_a_name_stays_the_same_whatever_leads_there(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    link = path.with_name("link")
    link.symlink_to(path)
    monkeypatch.chdir(path.parent)
    with FileDevice("link", read_only=False, lock=False) as device:
        monkeypatch.chdir("/")
        device.lock()
        device.unlock()
        link.unlink()
        link.symlink_to("/dev/null")
        with pytest.raises(ImageReplacedError):
            device.lock()


def test_a_lock_that_keeps_readers_out_needs_no_right_to_write(path: Path) -> None:
    with FileDevice(path, alone=True) as device:
        with pytest.raises(DeviceBusyError):
            FileDevice(path)
        with pytest.raises(ReadOnlyError):
            device.write(0, b"x")
    with FileDevice(path), pytest.raises(DeviceBusyError):
        FileDevice(path, alone=True)


# ------------------------------------------------------------------ new files


@pytest.mark.parametrize("read_only", [False, True])
def test_c65_a_file_that_is_in_use_is_not_replaced(path: Path, read_only: bool) -> None:
    before = path.read_bytes()
    with (
        FileDevice(path, read_only=read_only),
        pytest.raises(DeviceBusyError),
        new_file(path, 10, overwrite=True),
    ):
        pass
    assert path.read_bytes() == before
    assert list(path.parent.iterdir()) == [path]


def test_c65_a_file_is_not_replaced_that_came_into_use_meanwhile(path: Path) -> None:
    path.unlink()
    with pytest.raises(DeviceBusyError), new_file(path, 10, overwrite=True):
        path.write_bytes(b"somebody's")
        other = FileDevice(path, read_only=False)
    assert path.read_bytes() == b"somebody's"
    other.close()


def test_c65_a_file_is_not_replaced_that_is_another_one_meanwhile(path: Path) -> None:
    other = path.with_name("other")
    with pytest.raises(ImageReplacedError), new_file(path, 10, overwrite=True):
        other.write_bytes(b"other")
        other.replace(path)
    assert path.read_bytes() == b"other"


def test_c65_nobody_opens_a_file_while_it_is_being_replaced(path: Path) -> None:
    with new_file(path, 10, overwrite=True) as device, pytest.raises(DeviceBusyError):
        FileDevice(path)
    device.close()
    assert path.stat().st_size == 10


def test_a_new_file_appears_at_the_end(tmp_path: Path) -> None:
    path = tmp_path / "new"
    with new_file(path, 5000) as device:
        assert not path.exists()
        device.write(4990, b"0123456789")
    assert path.stat().st_size == 5000
    assert path.stat().st_mode & 0o777 == 0o600
    assert device.path == path
    device.write(0, b"still open")
    with pytest.raises(DeviceBusyError):
        FileDevice(path)
    device.close()
    assert list(tmp_path.iterdir()) == [path]


def test_a_failed_new_file_leaves_nothing(tmp_path: Path) -> None:
    def fail() -> None:
        with new_file(tmp_path / "new", 5000) as device:
            device.write(0, b"half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fail()
    assert not list(tmp_path.iterdir())


def test_an_existing_file_is_not_replaced_unless_asked(path: Path) -> None:
    before = path.read_bytes()
    with pytest.raises(FileExistsError), new_file(path, 10):
        pass
    assert path.read_bytes() == before
    with new_file(path, 10, overwrite=True) as device:
        assert path.read_bytes() == before
    device.close()
    assert path.read_bytes() == bytes(10)


def test_a_file_that_appears_meanwhile_is_not_replaced(tmp_path: Path) -> None:
    path = tmp_path / "new"

    def race() -> None:
        with new_file(path, 10):
            path.write_text("mine")

    with pytest.raises(FileExistsError):
        race()
    assert path.read_text() == "mine"
    assert list(tmp_path.iterdir()) == [path]


def test_a_symbolic_link_is_followed(tmp_path: Path) -> None:
    (tmp_path / "directory").mkdir()
    link = tmp_path / "link"
    link.symlink_to("directory/file")
    with new_file(link, 10, overwrite=True) as device:
        pass
    device.close()
    assert link.is_symlink()
    assert (tmp_path / "directory" / "file").stat().st_size == 10


def test_a_directory_that_is_not_there_is_a_device_error(tmp_path: Path) -> None:
    with pytest.raises(DeviceError), new_file(tmp_path / "no" / "new", 10):
        pass


# --------------------------------------------------------------------- memory


@pytest.mark.parametrize("position", [0, 1 << 20, (5 << 20) - 1])
def test_one_byte_in_the_ends_is_not_blank(position: int) -> None:
    device = MemoryDevice(5 << 20)
    assert is_blank(device)
    device.content[position] = 1
    assert not is_blank(device)


def test_a_device_of_no_bytes_is_blank() -> None:
    assert is_blank(MemoryDevice(0))


def test_a_slice_stays_inside() -> None:
    device = MemoryDevice(100)
    for offset, size in ((-1, 5), (0, 101), (50, 51), (0, -1)):
        with pytest.raises(ValueError, match="outside"):
            SliceDevice(device, offset, size)
    SliceDevice(device, 10, 20).write(0, b"x" * 20)
    assert device.content == bytes(10) + b"x" * 20 + bytes(70)


def test_only_files_are_replaced_by_new_ones(tmp_path: Path) -> None:
    pipe, directory = tmp_path / "pipe", tmp_path / "directory"
    os.mkfifo(pipe)
    directory.mkdir()
    (tmp_path / "link").symlink_to(pipe)
    for path in (pipe, directory, tmp_path / "link"):
        with (
            pytest.raises(DeviceError, match="not a regular file"),
            new_file(path, 0, overwrite=True),
        ):
            pass
    assert pipe.is_fifo()
    assert directory.is_dir()
