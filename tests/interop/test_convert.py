"""Conversions against the programs whose formats they are, and the command as people use it."""

from __future__ import annotations

import os
import pty
import re
import signal
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from dissect.fve import luks as dissect_luks

import blobstore as library
import luks
from tests.luks.programs import CHEAP, cryptsetup, key_file, luks1_options, qemu_read, qemu_write
from tests.support.cli import QUICK, blobstore, fails, succeeds, with_signals
from tests.support.foreign import run

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.interop

SECRET, OTHER = b"first", b"second"
SIZE = 5 << 20


@pytest.fixture
def raw(tmp_path: Path) -> Path:
    path = tmp_path / "raw"
    path.write_bytes(os.urandom(SIZE - (1 << 20)) + bytes(1 << 20))
    return path


@pytest.mark.parametrize("detached", [False, True])
def test_what_becomes_luks1_is_what_qemu_reads(tmp_path: Path, raw: Path, detached: bool) -> None:
    key, image = key_file(tmp_path, SECRET), tmp_path / "image"
    header = tmp_path / "header" if detached else None
    options = ["--new-header", header] if header else []
    succeeds("convert", raw, image, "--to", "luks1", "--new-key-file", key, *QUICK, *options)
    assert qemu_read(image, key, tmp_path / "back", header=header) == raw.read_bytes()
    secret, described = f"secret,id=s0,file={key}", luks1_options(image, header)
    run("qemu-img", "compare", "--object", secret, "--image-opts", described,
        f"driver=raw,file.driver=file,file.filename={raw}")  # fmt: skip
    cryptsetup("isLuks", "--type", "luks1", header or image)


def test_what_qemu_wrote_is_what_comes_out(tmp_path: Path, raw: Path) -> None:
    key, image = key_file(tmp_path, SECRET), tmp_path / "image"
    image.write_bytes(bytes(SIZE + (2 << 20)))
    cryptsetup("luksFormat", "--type=luks1", *CHEAP["pbkdf2"], "--key-file", key, image)
    qemu_write(image, key, raw)
    out = tmp_path / "out"
    succeeds("convert", image, out, "--to", "raw", "--key-file", key, "--sparse")
    assert out.read_bytes() == raw.read_bytes()
    assert out.stat().st_blocks * 512 == SIZE - (1 << 20)


@pytest.mark.parametrize("sector_size", [512, 4096])
def test_into_a_volume_of_cryptsetups_that_another_reader_reads(
    tmp_path: Path, raw: Path, sector_size: int
) -> None:
    key, image = key_file(tmp_path, SECRET), tmp_path / "image"
    image.write_bytes(bytes(SIZE + (16 << 20)))
    cryptsetup(
        *("luksFormat", "--type=luks2", f"--sector-size={sector_size}", *CHEAP["argon2id"]),
        *("--key-file", key, image),
    )
    succeeds("convert", raw, image, "--no-create", "--new-key-file", key, "-j", 2)
    with image.open("rb") as file:
        volume = dissect_luks.LUKS(file)
        volume.unlock_with_passphrase(SECRET.decode())
        assert volume.open().read(1 << 20) == raw.read_bytes()[: 1 << 20]


def test_a_store_through_every_kind_and_back(tmp_path: Path) -> None:
    key, other = key_file(tmp_path, SECRET), key_file(tmp_path, OTHER)
    paths = [tmp_path / name for name in ("clear", "two", "one", "again")]
    with library.create(paths[0], {"state": 5000}, encrypted=False) as store:
        store.put("state", b"kept" * 1000)
    succeeds("convert", paths[0], paths[1], "--to", "luks2", "--new-key-file", key, *QUICK)
    succeeds("convert", paths[1], paths[2], "--to", "luks1", "--key-file", key,
             "--new-key-file", other, *QUICK)  # fmt: skip
    succeeds("convert", paths[2], paths[3], "--to", "raw", "--key-file", other)
    assert succeeds("get", paths[3], "state") == b"kept" * 1000
    for path, secret in ((paths[1], key), (paths[2], other)):
        assert b"no problems" in succeeds("verify", path, "--key-file", secret)
    listed = run("openssl", "asn1parse", "-inform", "DER", "-in", paths[3])
    assert b":state" in listed


def test_wrong_uses(tmp_path: Path, raw: Path) -> None:
    key, image = key_file(tmp_path, SECRET), tmp_path / "image"
    assert fails("convert", raw, image, "--to", "raw", "--new-key-file", key) == 2
    assert fails("convert", raw, image, "--to", "raw", "--cipher", "aes-xts-plain64") == 2
    assert fails("convert", raw, image, "--key-file", key) == 53
    assert fails("convert", raw, raw, "--force") == 2
    assert fails("convert", raw, image, "--no-create", "--to", "luks2") == 2
    assert fails("convert", tmp_path / "absent", image) == 20
    assert fails("convert", raw, image, "--from", "luks", "--to", "raw", "--key-file", key) == 32
    assert not image.exists()
    succeeds("convert", raw, image)
    assert fails("convert", raw, image) == 32
    assert image.read_bytes() == raw.read_bytes()
    succeeds("convert", raw, image, "--to", "luks2", "--new-key-file", key, *QUICK, "--force")
    assert fails("convert", image, tmp_path / "out", "--to", "raw", "--key-file", raw) == 51
    succeeds("convert", image, tmp_path / "copy", "--from", "raw")
    assert (tmp_path / "copy").read_bytes() == image.read_bytes()


@pytest.mark.parametrize(
    ("number", "code", "said"),
    [(signal.SIGINT, 130, b"blobstore: interrupted"), (signal.SIGTERM, 143, b"")],
)
def test_an_interruption_leaves_nothing(
    tmp_path: Path, number: signal.Signals, code: int, said: bytes
) -> None:
    source = tmp_path / "source"
    with source.open("wb") as file:
        file.truncate(20 << 30)
    arguments = ["convert", source, tmp_path / "target", "--to", "luks2", *QUICK]
    prefix = with_signals(default=["INT", "TERM"])
    with _converting(prefix, arguments, tmp_path) as child:
        child.send_signal(number)
        assert child.stderr
        assert child.stderr.read().strip() == said
        assert child.wait(30) == code
    assert list(tmp_path.iterdir()) == [source]


def test_signals_that_were_ignored_at_the_start_stay_ignored(tmp_path: Path) -> None:
    """As in the background of a script, or under `nohup`."""
    source, target = tmp_path / "source", tmp_path / "target"
    with source.open("wb") as file:
        file.truncate(256 << 20)
    prefix = with_signals(ignored=["INT", "HUP", "TERM"])
    arguments = ["convert", source, target, "--to", "luks2", *QUICK]
    with _converting(prefix, arguments, tmp_path) as child:
        for number in (signal.SIGINT, signal.SIGHUP, signal.SIGTERM):
            child.send_signal(number)
        assert not target.exists(), "it was over before it could be interrupted"
        assert child.stderr
        assert child.stderr.read() == b""
        assert child.wait(120) == 0
    with luks.open(target, SECRET) as volume:
        assert volume.size == 256 << 20


@contextmanager
def _converting(
    prefix: list[str], arguments: list[object], directory: Path
) -> Iterator[subprocess.Popen[bytes]]:
    """Run ``blobstore``, which writes ``target`` there; at first it has written 10 MB."""
    child = subprocess.Popen(
        [*prefix, sys.executable, "-m", "blobstore", *map(str, arguments), "--new-key-fd", "0"],
        stdin=subprocess.PIPE,
        stderr=subprocess.PIPE,
        cwd=Path(__file__).resolve().parents[2],
    )
    with child:
        try:
            assert child.stdin
            child.stdin.write(SECRET)
            child.stdin.close()
            deadline = time.monotonic() + 60
            while not any(path.stat().st_blocks > 20000 for path in directory.glob(".target.*")):
                assert child.poll() is None, child.stderr and child.stderr.read()
                assert time.monotonic() < deadline
                time.sleep(0.01)
            yield child
        finally:
            child.kill()


def test_on_a_terminal_it_shows_rate_and_time_left(tmp_path: Path) -> None:
    source = tmp_path / "source"
    with source.open("wb") as file:
        file.truncate(3 << 30)
    controller, terminal = pty.openpty()
    child = subprocess.Popen(
        [*with_signals(default=["INT"]), sys.executable, "-m", "blobstore",
         "convert", str(source), str(tmp_path / "target"),
         "--to", "luks1", "--new-key-fd", "0", "-j", "1", *QUICK],
        stdin=subprocess.PIPE,
        stderr=terminal,
        cwd=Path(__file__).resolve().parents[2],
    )  # fmt: skip
    os.close(terminal)
    assert child.stdin
    child.stdin.write(SECRET)
    child.stdin.close()
    shown = b""
    while not re.search(rb"\d+%  \d\d:\d\d:\d\d  [\d.]+ MiB/s", shown):
        shown += os.read(controller, 4096)  # raises when there is no more
    child.send_signal(signal.SIGINT)
    assert child.wait(30) == 130
    os.close(controller)


def test_memory_does_not_grow_with_the_image(tmp_path: Path) -> None:
    peaks = []
    for size in (64 << 20, 1 << 30):
        source, target = tmp_path / "source", tmp_path / "target"
        with source.open("wb") as file:
            file.truncate(size)
        code = (
            "import resource, sys, blobstore\n"
            "blobstore.convert(sys.argv[1], sys.argv[2], jobs=2, overwrite=True)\n"
            "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)"
        )
        done = subprocess.run(
            [sys.executable, "-c", code, source, target],
            capture_output=True,
            check=True,
            cwd=Path(__file__).resolve().parents[2],
        )
        peaks.append(int(done.stdout))
        target.unlink()
    assert peaks[1] < peaks[0] + 8 * 1024


def test_what_it_does_not_understand_stays_a_disk(tmp_path: Path) -> None:
    """A volume in a volume is converted as bytes: only the outer layer counts."""
    inner, outer = tmp_path / "inner", tmp_path / "outer"
    kdf = luks.Pbkdf2("sha256", 1000)
    luks.format(inner, SECRET, size=1 << 20, kdf=kdf).close()
    library.convert(inner, outer, None, OTHER, to="luks2", encrypted=False, kdf=kdf)
    with luks.open(outer, OTHER) as volume:
        assert luks.is_luks(volume)
        with luks.open(volume, SECRET) as again:
            assert again.size == 1 << 20
    assert blobstore("convert", outer, inner, "--to", "raw").returncode == 52
