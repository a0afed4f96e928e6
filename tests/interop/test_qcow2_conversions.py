"""Conversions from and to qcow2 images, encrypted in each way there is, beside QEMU."""

from __future__ import annotations

import json
import random
import subprocess
from typing import TYPE_CHECKING, Any

import pytest

import blobstore as library
from formats.errors import UnsupportedError
from formats.qcow2.files import BackingFiles
from tests.luks.programs import key_file
from tests.qcow2.support import assert_clean, qemu_io
from tests.support.cli import QUICK, blobstore, fails, succeeds
from tests.support.foreign import run
from tests.support.qcow2_images import KDF, OTHER, SECRET, WAYS, qemu_sees

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.interop


def test_what_qemu_writes_to_its_own_luks_is_read_and_back(tmp_path: Path) -> None:
    path, key = tmp_path / "image", key_file(tmp_path, SECRET)
    secret = f"secret,id=s0,file={key}"
    for _attempt in range(20):  # QEMU cannot always measure its key derivation
        done = subprocess.run(
            ["qemu-img", "create", "-q", "-f", "qcow2", "--object", secret, "-o",
             "encrypt.format=luks,encrypt.key-secret=s0,encrypt.iter-time=20", path, "8M"],
            capture_output=True, check=False,
        )  # fmt: skip
        if done.returncode == 0:
            break
        assert b"CPU usage" in done.stderr, done
        path.unlink(missing_ok=True)
    else:
        pytest.fail("qemu-img failed every time")
    described = qemu_sees(path, "own", key)
    run("qemu-io", *described, "-c", "write -P 0x5a 1M 700k", "-c", "write -P 0xa5 5M 1000")
    library.convert(path, tmp_path / "raw", SECRET, to="raw")
    run("qemu-img", "compare", *described, f"driver=raw,file.filename={tmp_path / 'raw'}")
    library.convert(path, tmp_path / "back", SECRET, OTHER, to="qcow2-luks", kdf=KDF)
    back = qemu_sees(tmp_path / "back", "own", key_file(tmp_path, OTHER))
    run("qemu-img", "compare", *back, f"driver=raw,file.filename={tmp_path / 'raw'}")
    run("qemu-io", *back, "-c", "read -P 0x5a 1M 700k", "-c", "write -P 0x11 0 64k")
    run("qemu-img", "check", *back)


@pytest.mark.parametrize("after", ["raw", "luks2", *(name for _, name in WAYS.values())])
def test_every_kind_of_image_becomes_a_kind_of_qcow2_and_back(tmp_path: Path, after: str) -> None:
    size = (5 << 20) + 512
    data = bytearray(random.Random(5).randbytes(size))
    data[2 << 20 : 3 << 20] = bytes(1 << 20)
    source, back = tmp_path / "raw", tmp_path / "back"
    source.write_bytes(data)
    new_secret = None if after in ("raw", "qcow2") else SECRET
    options: dict[str, Any] = {"kdf": KDF} if new_secret else {}
    images = [tmp_path / name for name in ("first", "second")]
    library.convert(source, images[0], None, new_secret, to=after, jobs=3, **options)
    library.convert(images[0], images[1], new_secret, new_secret, jobs=2, **options)
    library.convert(images[1], back, new_secret, to="raw", jobs=2)
    assert back.read_bytes().rstrip(b"\0") == bytes(data).rstrip(b"\0")
    if after == "qcow2":
        assert_clean(images[1])
        run("qemu-img", "compare", "-f", "raw", "-F", "qcow2", source, images[1])
        assert images[1].stat().st_size < size - (500 << 10)


@pytest.mark.parametrize(
    "options",
    [
        ("--key-size", "256"),
        ("--cipher", "aes-cbc-essiv:sha256"),
        ("--cipher", "serpent-xts-plain64"),
        ("--cipher", "twofish-cbc-plain64", "--key-size", "128"),
    ],
)
def test_qcow2_own_luks_with_every_cipher_is_what_qemu_reads(
    tmp_path: Path, options: tuple[str, ...]
) -> None:
    raw, path, key = tmp_path / "raw", tmp_path / "image", key_file(tmp_path, SECRET)
    raw.write_bytes(random.Random(6).randbytes(300_000 - 300_000 % 512))
    to = ("--to", "qcow2-luks", "--new-key-file", key)
    succeeds("convert", raw, path, *to, *options, *QUICK)
    seen = qemu_sees(path, "own", key)
    run("qemu-img", "compare", *seen, f"driver=raw,file.filename={raw}")
    run("qemu-io", *seen, "-c", "write -P 0x5a 100k 64k")
    succeeds("convert", path, tmp_path / "back", "--to", "raw", "--key-file", key)
    assert (tmp_path / "back").read_bytes()[100 << 10 : 164 << 10] == b"\x5a" * (64 << 10)


def test_wrong_conversions_are_refused_without_a_trace(tmp_path: Path) -> None:
    raw, path, key = tmp_path / "raw", tmp_path / "image", key_file(tmp_path, SECRET)
    raw.write_bytes(bytes(4096))
    (tmp_path / "empty").touch()
    before = set(tmp_path.iterdir())
    new_key = ("--new-key-file", key, *QUICK)
    assert fails("convert", raw, path, "--to", "raw", "--snapshot", "x") == 41
    assert fails("convert", tmp_path / "empty", path, "--to", "luks2", *new_key) == 31
    assert fails("convert", tmp_path / "empty", path, "--to", "qcow2-luks", *new_key) == 31
    for to, *options in (
        ("luks1", "--sector-size", 4096),
        ("qcow2-luks", "--sector-size", 4096),
        ("qcow2-luks", "--pbkdf", "argon2id"),
        ("qcow2-luks", "--new-header", tmp_path / "header"),
    ):
        arguments = ("convert", raw, path, "--to", to, "--new-key-file", key, *options)
        assert fails(*arguments) == 2, arguments
    assert set(tmp_path.iterdir()) == before


def test_the_old_aes_of_qemu_is_read_with_a_warning(tmp_path: Path) -> None:
    path = tmp_path / "image"
    key = key_file(tmp_path, b"0123456789abcdef")
    secret = f"secret,id=s0,file={key}"
    run("qemu-img", "create", "-q", "-f", "qcow2", "--object", secret, "-o",
        "encrypt.format=aes,encrypt.key-secret=s0", path, "2M")  # fmt: skip
    run("qemu-io", "--object", secret, "--image-opts", "-c", "write -P 0x77 64k 100k",
        f"driver=qcow2,encrypt.format=aes,encrypt.key-secret=s0,file.filename={path}")  # fmt: skip
    done_ours = blobstore("convert", path, tmp_path / "raw", "--to", "raw", "--key-file", key)
    assert done_ours.returncode == 0, done_ours
    assert b"weak" in done_ours.stderr
    for arguments in (("key", "list", path), ("header", "dump", path), ("token", "list", path)):
        assert fails(*arguments) == 40
    data = (tmp_path / "raw").read_bytes()
    assert data == bytes(64 << 10) + b"\x77" * (100 << 10) + bytes((2 << 20) - (164 << 10))
    with pytest.raises(UnsupportedError, match="can be read only"):
        library.convert(tmp_path / "raw", path, None, b"0123456789abcdef", create=False)


def test_backing_files_are_followed_only_when_asked(tmp_path: Path) -> None:
    base, top = tmp_path / "base", tmp_path / "top"
    base.write_bytes(b"b" * (1 << 20))
    run("qemu-img", "create", "-q", "-f", "qcow2", "-b", "base", "-F", "raw", top)
    qemu_io(top, "write -P 0x61 64k 64k")
    with pytest.raises(UnsupportedError, match="backing file"):
        library.convert(top, tmp_path / "out", to="raw")
    assert fails("convert", top, tmp_path / "out", "--to", "raw") == 40
    succeeds("convert", top, tmp_path / "out", "--to", "raw", "--backing-files", "beside")
    run("qemu-img", "compare", "-F", "raw", top, tmp_path / "out")
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    run("qemu-img", "create", "-q", "-f", "qcow2", "-b", base, "-F", "raw", elsewhere / "top")
    with pytest.raises(UnsupportedError, match="not beside"):
        library.convert(elsewhere / "top", tmp_path / "two", to="raw", open_backing=BackingFiles())
    library.convert(
        elsewhere / "top", tmp_path / "two", to="raw", open_backing=BackingFiles(anywhere=True)
    )
    assert (tmp_path / "two").read_bytes() == base.read_bytes()


def test_q6_the_format_of_a_backing_file_is_guessed_when_permitted(tmp_path: Path) -> None:
    raw, base, top = (tmp_path / name for name in ("raw", "base", "top"))
    raw.write_bytes(b"b" * (1 << 20))
    for path, below in ((base, raw), (top, base)):
        kind = "raw" if below == raw else "qcow2"
        run("qemu-img", "create", "-q", "-f", "qcow2", "-b", below.name, "-F", kind, path)
        # As old images are; an extension of type 0 ends the list.
        path.write_bytes(path.read_bytes().replace(b"\xe2\x79\x2a\xca", bytes(4), 1))
    qemu_io(top, "write -P 0x61 64k 64k")
    convert = ("convert", top, tmp_path / "out", "--to", "raw")
    assert fails(*convert, "--backing-files", "beside") == 40
    assert fails(*convert, "--probe-backing") == 2
    succeeds(*convert, "--backing-files", "beside", "--probe-backing")
    run("qemu-img", "compare", "-F", "raw", top, tmp_path / "out")
    assert fails("measure", top, "--backing") == 40
    assert fails("measure", top, "--probe-backing") == 2
    found = json.loads(succeeds("measure", top, "--backing", "--probe-backing", "--json"))
    theirs = json.loads(run("qemu-img", "measure", "-O", "qcow2", "--output=json", top))
    assert found == {name: theirs[name] for name in found}


def test_a_raw_disk_that_looks_like_qcow2_is_taken_as_it_is_when_told(tmp_path: Path) -> None:
    guest = tmp_path / "guest"
    run("qemu-img", "create", "-q", "-f", "qcow2", "-b", "/etc/passwd", "-F", "raw", "-u", guest,
        "1M")  # fmt: skip
    succeeds("convert", guest, tmp_path / "copy", "--from", "raw", "--to", "raw")
    assert (tmp_path / "copy").read_bytes() == guest.read_bytes()
    assert fails("convert", guest, tmp_path / "other", "--to", "raw") == 40
