"""The mount itself: how it begins and ends, and for whom it is (M51 to M56)."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

import blobstore
from blobstore.mount import mounting
from blobstore.mount.settings import MountSettings
from formats.errors import DeviceBusyError, DeviceError
from tests.support.mounts import ROOT, MountProcess, end_mounts, refused, wait_for
from tests.support.qcow2_images import make

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.interop


def test_m54_umount_ends_it_with_success(mounted: MountProcess) -> None:
    subprocess.run(["umount", mounted.directory], check=True)
    code, said = mounted.ended()
    assert (code, said) == (0, f"blobstore: {mounted.directory} was unmounted\n".encode())


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_m19_m54_a_signal_ends_it_and_drops_what_was_not_committed(
    mounted: MountProcess, number: signal.Signals
) -> None:
    descriptor = os.open(mounted.directory / "a", os.O_WRONLY | os.O_TRUNC)
    os.write(descriptor, b"half")
    code, said = mounted.end(number)
    assert code == 0
    assert b"'a': what was not committed is dropped\n" in said
    with refused(errno.ENOTCONN):
        os.write(descriptor, b"of it")
    with refused(errno.ENOTCONN):
        os.close(descriptor)
    assert not os.path.ismount(mounted.directory)
    with blobstore.open(mounted.image, direct=True) as store:
        assert store.get("a") == b"old a"


def test_m52_what_is_there_is_not_hidden(
    mounted: MountProcess, image: Path, tmp_path: Path
) -> None:
    settings = MountSettings()
    with pytest.raises(DeviceBusyError, match=r"is mounted at .* already"):
        mounting.mount(mounted.directory, str(image), settings)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").touch()
    with pytest.raises(DeviceError, match="is not empty"):
        mounting.mount(tmp_path / "full", str(image), settings)
    with pytest.raises(DeviceError, match="No such file"):
        mounting.mount(tmp_path / "missing", str(image), settings)
    with pytest.raises(DeviceError, match="cannot mount at"):
        mounting.mount(image, str(image), settings)


def test_m52_an_image_has_one_owner(mounted: MountProcess, tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    done = subprocess.run(
        [sys.executable, "-m", "blobstore", "mount", mounted.image, tmp_path / "other"],
        env=mounted.environment,
        capture_output=True,
        check=False,
    )
    assert done.returncode == DeviceBusyError.exit_code
    assert not os.path.ismount(tmp_path / "other")
    assert (mounted.directory / "a").read_bytes() == b"old a"


def test_m53_what_a_killed_process_left_is_taken_away(mounted: MountProcess) -> None:
    mounted.end(signal.SIGKILL)
    with refused(errno.ENOTCONN):
        mounted.directory.stat()
    again = MountProcess(mounted.image, mounted.directory)
    assert b"left it mounted; it is taken away" in again.said
    assert (again.directory / "a").read_bytes() == b"old a"
    assert again.end()[0] == 0
    assert not os.path.ismount(mounted.directory)


def test_m53_what_another_program_left_is_named(
    mounted: MountProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    mounted.end(signal.SIGKILL)
    monkeypatch.setattr(mounting, "TYPE", "fuse.another")
    with pytest.raises(DeviceBusyError, match="program that has ended") as caught:
        mounting.mount(mounted.directory, str(mounted.image), MountSettings())
    assert caught.value.hint == f"take it away with: fusermount3 -u -z {mounted.directory}"


def test_m54_only_what_was_mounted_here_is_unmounted(mounted: MountProcess) -> None:
    subprocess.run(["mount", "-t", "tmpfs", "none", mounted.directory], check=True)
    try:
        assert mounted.end()[0] == 0
        assert os.path.ismount(mounted.directory)
    finally:
        subprocess.run(["umount", "-l", mounted.directory], check=True)


def test_m55_read_only(image: Path, tmp_path: Path) -> None:
    first = MountProcess(image, tmp_path / "mnt", "--read-only")
    second = MountProcess(image, tmp_path / "other", "--read-only")
    for mounted in (first, second):
        assert (mounted.directory / "a").read_bytes() == b"old a"
        with refused(errno.EROFS):
            os.open(mounted.directory / "a", os.O_WRONLY)
        with refused(errno.EROFS):
            os.unlink(mounted.directory / "a")
    subprocess.run(["umount", first.directory], check=True)
    assert first.ended()[0] == 0
    assert second.end()[0] == 0


def test_m55_a_snapshot(tmp_path: Path) -> None:
    image = tmp_path / "image.qcow2"
    with make(image, "clear") as store:
        store.put("a", b"before")
        store.create_snapshot("then")
        store.put("a", b"after")
    mounted = MountProcess(image, tmp_path / "mnt", "--snapshot", "then")
    assert (mounted.directory / "a").read_bytes() == b"before"
    with refused(errno.EROFS):
        os.open(mounted.directory / "b", os.O_WRONLY | os.O_CREAT)


# As another user. The tests run as root, where they can mount directly.

_AS_NOBODY = ("setpriv", "--reuid=65534", "--regid=65534", "--clear-groups")


def reads(path: Path) -> bytes:
    return subprocess.run([*_AS_NOBODY, "cat", path], capture_output=True, check=False).stdout


@pytest.fixture
def shared() -> Iterator[Path]:
    """A directory that other users reach, as they do not reach those of tests."""
    with tempfile.TemporaryDirectory(prefix="mount-") as directory:
        Path(directory).chmod(0o755)
        yield Path(directory)
        end_mounts()


def test_m56_other_users_are_let_in_when_that_is_asked_for(image: Path, shared: Path) -> None:
    mounted = MountProcess(image, shared / "mnt", "--allow-other")
    (mounted.directory / "a").chmod(0o644)
    assert reads(mounted.directory / "a") == b"old a"
    assert reads(mounted.directory / "b") == b""  # its mode is 0600
    (mounted.directory / "b").write_bytes(b"secret")
    assert reads(mounted.directory / "b") == b""
    mounted.end()
    mounted = MountProcess(image, shared / "mnt")
    (mounted.directory / "a").chmod(0o644)
    assert reads(mounted.directory / "a") == b""


def test_m51_a_user_mounts_with_the_helper(image: Path, shared: Path) -> None:
    directory, runtime = shared / "a, b", shared / "run"
    image = image.rename(shared / "image")
    for made in (directory, runtime):
        made.mkdir(mode=0o700)
    for owned in (directory, runtime, image):
        os.chown(owned, 65534, 65534)
    process = subprocess.Popen(
        [*_AS_NOBODY, sys.executable, "-m", "blobstore", "mount", image, directory],
        env={
            **os.environ,
            "PYTHONPATH": str(ROOT),
            "BLOBSTORE_RUNTIME_DIR": str(runtime),
            "PYTHONDONTWRITEBYTECODE": "1",
        },
        stderr=subprocess.PIPE,
    )
    assert process.stderr is not None
    try:
        said = process.stderr.readline()
        assert b"mounted at" in said, said + process.stderr.read()
        assert reads(directory / "a") == b"old a"
        found = mounting._entry(directory)
        assert found is not None
        assert (found.type, found.source) == ("fuse.blobstore", str(image))
        process.terminate()
        assert process.wait(60) == 0
        wait_for(lambda: not os.path.ismount(directory))
    finally:
        process.kill()
        process.communicate()


def test_m51_what_is_missing_is_named(
    tmp_path: Path, image: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "mnt").mkdir()
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(DeviceError, match="fusermount3 is needed") as caught:
        mounting.mount(tmp_path / "mnt", str(image), MountSettings())
    assert caught.value.hint == "install the package fuse3"
    monkeypatch.undo()
    monkeypatch.setattr(mounting, "_DEVICE", str(tmp_path / "fuse"))
    with pytest.raises(DeviceError, match=r"cannot open .*fuse: No such file") as caught:
        mounting.mount(tmp_path / "mnt", str(image), MountSettings())
    assert caught.value.hint == "load the module with: modprobe fuse"


def test_a_mount_that_does_not_answer_holds_up_no_message_about_an_image(
    mounted: MountProcess, tmp_path: Path
) -> None:
    # The message names who uses the image, for which all open files are compared with it.
    other = tmp_path / "other"
    blobstore.create(other, {"a": 10}, encrypted=False).close()
    code = "import sys, time; file = open(sys.argv[1]); print(flush=True); time.sleep(600)"
    reader = subprocess.Popen(
        [sys.executable, "-c", code, mounted.directory / "a"], stdout=subprocess.PIPE
    )
    assert reader.stdout is not None
    try:
        reader.stdout.readline()
        with blobstore.open(other, direct=True):
            mounted.process.send_signal(signal.SIGSTOP)
            done = subprocess.run(
                [sys.executable, "-m", "blobstore", "get", other, "a", "--direct"],
                env=mounted.environment,
                capture_output=True,
                timeout=600,  # it would never end
                check=False,
            )
        assert done.returncode == 23, done.stderr
        assert f"process {os.getpid()}".encode() in done.stderr
    finally:
        mounted.process.send_signal(signal.SIGCONT)
        reader.kill()
        reader.communicate()
