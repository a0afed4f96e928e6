"""Programs that know nothing of sections, unchanged, on a mounted directory."""

from __future__ import annotations

import errno
import fcntl
import json
import mmap
import os
import shutil
import signal
import sqlite3
import subprocess
from typing import TYPE_CHECKING

import pytest

import blobstore
from formats.state.uefi_vars import decode_variables
from tests.support.cli import succeeds
from tests.support.foreign import run, swtpm, system_file, virt_fw_vars
from tests.support.mounts import MountProcess, refused, wait_for

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.interop

CONTENT = os.urandom(100_000)


def stored(image: Path) -> dict[str, bytes]:
    """Return all that was committed, once nobody has the image."""
    with blobstore.open(image, direct=True) as store:
        assert store.verify().ok
        return {name: store.get(name) for name in store if store.section(name).size is not None}


def committed(mounted: MountProcess, name: str) -> bytes:
    with mounted.store() as owner:
        return owner.get(name)


def shell(command: str, directory: Path, **variables: object) -> None:
    """Run a line of the shell in a directory."""
    done = subprocess.run(
        ["/bin/sh", "-ec", command],
        cwd=directory,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        env={**os.environ, **{name: str(value) for name, value in variables.items()}},
    )
    assert done.returncode == 0, done.stderr


# ------------------------------------------------------- what shells do


def test_cp_mv_and_dd(mounted: MountProcess, tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.write_bytes(CONTENT)
    directory = mounted.directory
    shell('cp "$S" copied; cp -a "$S" "with attributes"', directory, S=source)
    assert (directory / "with attributes").stat().st_mtime_ns == source.stat().st_mtime_ns
    line = 'mv copied b; dd if="$S" of=a bs=7000 conv=fsync,notrunc; mv "with attributes" "$T"'
    shell(f'{line}; cmp "$S" a; rm a', directory, S=source, T=tmp_path / "back")
    assert (tmp_path / "back").read_bytes() == CONTENT
    assert sorted(os.listdir(directory)) == ["b"]
    mounted.end()
    assert stored(mounted.image) == {"b": CONTENT}


def test_m13_what_shells_redirect_is_committed_once(mounted: MountProcess) -> None:
    def generation() -> int:
        with mounted.store() as owner:
            return owner.info().generation

    before = generation()
    shell("cat >a </etc/passwd; (printf one; env printf two; printf three) >b", mounted.directory)
    wait_for(lambda: generation() >= before + 2)
    assert generation() == before + 2
    shell("printf more >>b; : >a", mounted.directory)
    wait_for(lambda: generation() == before + 4)
    mounted.end()
    assert stored(mounted.image) == {"a": b"", "b": b"onetwothreemore"}


def test_m22_mv_without_clobbering(mounted: MountProcess) -> None:
    shell("printf b >b; mv -n a b", mounted.directory)
    assert (mounted.directory / "b").read_bytes() == b"b"
    assert (mounted.directory / "a").read_bytes() == b"old a"


def test_rsync(mounted: MountProcess, tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    for number in range(5):
        (source / f"file {number}").write_bytes(CONTENT[: number * 1000])
    (source / "a").write_bytes(b"another length")
    run("rsync", "-a", f"{source}/", mounted.directory)
    again = run("rsync", "-a", "--itemize-changes", f"{source}/", mounted.directory)
    assert not [line for line in again.decode().splitlines() if line.startswith(">")]
    back = tmp_path / "back"
    run("rsync", "-a", f"{mounted.directory}/", back)
    assert {path.name for path in back.iterdir()} == {"b", *os.listdir(source)}
    mounted.end()
    expected = {path.name: path.read_bytes() for path in source.iterdir()}
    assert stored(mounted.image) == expected


@pytest.mark.parametrize("backup", ["yes", "no"])
def test_vim(mounted: MountProcess, tmp_path: Path, backup: str) -> None:
    copy = f"set nocompatible backupcopy={backup} directory={tmp_path} viminfo="
    for text in ("first", "second"):
        run(
            *("vim", "-N", "-u", "NONE", "-es", "-c", copy, "-c", f"normal ggdGi{text}"),
            *("-c", "wq", mounted.directory / "a"),
        )
    mounted.end()
    assert stored(mounted.image) == {"a": b"second\n"}


def test_m42_getfattr(mounted: MountProcess) -> None:
    found = run("getfattr", "--absolute-names", "-d", mounted.directory / "a").decode()
    assert 'user.blobstore.max-size="5000"' in found
    assert 'user.blobstore.kind="blob"' in found
    with refused(errno.EOPNOTSUPP):
        os.setxattr(mounted.directory / "a", "user.x", b"y")
    with refused(errno.ENODATA):
        os.getxattr(mounted.directory / "a", "user.blobstore.x")


# --------------------------------------------------- calls of the system


def test_m12_m44_mappings_and_locks(mounted: MountProcess) -> None:
    path = mounted.directory / "a"
    with path.open("r+b") as file:
        file.truncate(4000)
        with mmap.mmap(file.fileno(), 4000) as mapping:
            mapping[100:105] = b"mapped"[:5]
            mapping.flush()
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        with path.open("rb") as other, pytest.raises(BlockingIOError):
            fcntl.flock(other, fcntl.LOCK_SH | fcntl.LOCK_NB)
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, 7)
        assert subprocess.run(
            ["python3", "-c", f"import fcntl;fcntl.lockf(open({str(path)!r},'r+b'),6,1,7)"],
            capture_output=True,
            check=False,
        ).stderr.endswith(b"Resource temporarily unavailable\n")
        found = committed(mounted, "a")
    assert found == (b"old a" + bytes(95) + b"mappe").ljust(4000, b"\0")


def test_m24_a_file_that_was_removed_while_it_is_open(mounted: MountProcess) -> None:
    with (mounted.directory / "a").open("r+b") as file:
        os.unlink(mounted.directory / "a")
        file.write(b"NEW")
        file.seek(0)
        assert file.read() == b"NEW a"
        assert os.fstat(file.fileno()).st_nlink == 0
        os.fsync(file.fileno())
    assert not (mounted.directory / "a").exists()


def test_posix_cases(mounted: MountProcess) -> None:
    directory = mounted.directory
    with refused(errno.EEXIST):
        os.open(directory / "a", os.O_CREAT | os.O_EXCL | os.O_WRONLY)
    with refused(errno.ENOENT):
        os.open(directory / "missing", os.O_RDONLY)
    with refused(errno.ENOENT):
        os.rename(directory / "missing", directory / "a")
    with refused(errno.ENAMETOOLONG):
        os.open(directory / ("x" * 201), os.O_CREAT)
    with refused(errno.EPERM):
        os.mkdir(directory / "d")
    with refused(errno.EPERM):
        os.symlink("a", directory / "l")
    with refused(errno.EPERM):
        os.link(directory / "a", directory / "l")
    with refused(errno.EPERM):
        os.mkfifo(directory / "f")
    with refused(errno.ENOTDIR):
        os.open(directory / "a" / "b", os.O_RDONLY)
    os.chmod(directory / "a", 0o400)
    os.utime(directory / "a", ns=(10**9, 2 * 10**9 + 5))
    found = os.stat(directory / "a")
    assert (found.st_mode & 0o777, found.st_atime_ns, found.st_mtime_ns) == (
        0o400,
        10**9,
        2 * 10**9 + 5,
    )
    descriptor = os.open(directory / "appended", os.O_CREAT | os.O_WRONLY | os.O_APPEND, 0o600)
    os.write(descriptor, b"one")
    os.lseek(descriptor, 0, os.SEEK_SET)
    os.write(descriptor, b"two")
    os.close(descriptor)
    assert (directory / "appended").read_bytes() == b"onetwo"
    descriptor = os.open(directory / "sparse", os.O_CREAT | os.O_RDWR)
    assert os.pwrite(descriptor, b"x", 9999) == 1
    assert os.pread(descriptor, 5, 0) == bytes(5)
    assert os.fstat(descriptor).st_size == 10_000
    os.posix_fallocate(descriptor, 0, 20_000)
    assert os.fstat(descriptor).st_size == 20_000
    os.truncate(directory / "sparse", 3)
    assert os.pread(descriptor, 9, 0) == bytes(3)
    os.fsync(descriptor)
    os.close(descriptor)
    space = os.statvfs(directory)
    assert space.f_namemax == 200
    assert space.f_bavail * space.f_frsize < 8 << 20
    descriptor = os.open(directory, os.O_RDONLY)
    os.fsync(descriptor)
    os.close(descriptor)


def test_m31_what_is_too_large_is_told_when_it_is_written(tmp_path: Path, image: Path) -> None:
    mounted = MountProcess(image, tmp_path / "mnt", "--largest-file", "20000")
    with pytest.raises(subprocess.CalledProcessError):
        subprocess.run(
            ["cp", "/bin/sh", mounted.directory / "sh"], check=True, stderr=subprocess.DEVNULL
        )
    with (mounted.directory / "b").open("wb", buffering=0) as file:
        file.write(bytes(20_000))
        with refused(errno.EFBIG):
            file.write(b"x")
    assert len(committed(mounted, "b")) == 20_000


# ------------------------------------------------------- virtual machines


@pytest.mark.slow
@pytest.mark.parametrize(
    ("layout", "backend"), [("swtpm", "dir"), ("sections", "dir"), ("sections", "file")]
)
def test_swtpm_keeps_its_state(tmp_path: Path, image: Path, layout: str, backend: str) -> None:
    mounted = MountProcess(image, tmp_path / "mnt", "--layout", layout)
    place = (
        f"dir={mounted.directory}"
        if backend == "dir"
        else f"backend-uri=file://{mounted.directory / 'tpm.nv'}"
    )
    secret = tmp_path / "secret"
    secret.write_bytes(b"32 bytes that the TPM remembers.")
    with swtpm(place) as environment:
        run("tpm2", "startup", "-c", environment=environment)
        run("tpm2", "nvdefine", "0x1500001", "-s", "32", "-C", "o", environment=environment)
        run("tpm2", "nvwrite", "0x1500001", "-C", "o", "-i", secret, environment=environment)
    if backend == "dir":
        with mounted.store() as owner:
            assert not [name for name in owner if "TMP" in name]
    mounted.end(signal.SIGKILL)
    mounted = MountProcess(image, tmp_path / "mnt", "--layout", layout)
    with swtpm(place) as environment:
        found = run("tpm2", "nvread", "0x1500001", "-C", "o", environment=environment)
    assert found == secret.read_bytes()
    mounted.end()
    if layout == "swtpm":  # it is the state that `blobstore vtpm` has, too
        with blobstore.open(image, direct=True) as store:
            assert store.section("tpm-permanent-state").type == "tpm2-permall"
        assert b'"permall"' in succeeds("vtpm", image, "--print-states")


def test_virt_fw_vars(mounted: MountProcess, tmp_path: Path) -> None:
    template = system_file("/usr/share/OVMF/OVMF_VARS_4M.fd")
    shutil.copyfile(template, mounted.directory / "vars")
    virt_fw_vars("--inplace", mounted.directory / "vars", "--set-false", "SecureBootEnable")
    virt_fw_vars("--input", mounted.directory / "vars", "--output-json", mounted.directory / "j")
    mounted.end()
    found = stored(mounted.image)
    (tmp_path / "vars").write_bytes(found["vars"])
    assert len(found["vars"]) == template.stat().st_size
    assert found["vars"] != template.read_bytes()
    assert "SecureBootEnable" in virt_fw_vars("--input", tmp_path / "vars", "--print")
    assert json.loads(found["j"])["variables"]


def test_the_trace_of_uefi_vars_is_atomic(mounted: MountProcess) -> None:
    descriptor = os.open(mounted.directory / "uefi.json", os.O_RDWR | os.O_CREAT, 0o666)
    documents = [
        json.dumps({"version": 2, "variables": [variable(n) for n in range(count)]}).encode()
        for count in (3, 1, 2)
    ]
    os.fsync(descriptor)
    before = b""
    for document in documents:
        # What QEMU's device does with its file when a variable changes.
        os.lseek(descriptor, 0, os.SEEK_SET)
        assert committed(mounted, "uefi.json") == before
        os.ftruncate(descriptor, 0)
        assert committed(mounted, "uefi.json") == before
        os.write(descriptor, document)
        assert committed(mounted, "uefi.json") == before
        os.fsync(descriptor)
        assert committed(mounted, "uefi.json") == document
        before = document
        assert len(decode_variables(document)) == len(json.loads(document)["variables"])
    os.close(descriptor)


def variable(number: int) -> dict[str, object]:
    return {
        "name": f"Boot{number:04}",
        "guid": "8be4df61-93ca-11d2-aa0d-00e098032b8c",
        "attr": 7,
        "data": "00" * number,
    }


# ---------------------------------------------------------------- SQLite


@pytest.mark.parametrize("journal", ["delete", "truncate", "persist", "wal"])
def test_sqlite_is_right(mounted: MountProcess, tmp_path: Path, journal: str) -> None:
    path = mounted.directory / "x.db"
    database = sqlite3.connect(path)
    assert database.execute(f"pragma journal_mode={journal}").fetchone() == (journal,)
    database.execute("pragma synchronous=full")
    database.execute("create table t (n, data)")
    for number in range(20):
        with database:
            database.execute("insert into t values (?, ?)", (number, bytes(3000)))
    mounted.end(signal.SIGKILL)
    mounted = MountProcess(mounted.image, tmp_path / "again")
    again = sqlite3.connect(tmp_path / "again" / "x.db")
    assert again.execute("pragma integrity_check").fetchone() == ("ok",)
    assert again.execute("select count(*) from t").fetchone() == (20,)
    again.close()
