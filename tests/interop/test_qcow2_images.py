"""Stores and payloads in qcow2 images, encrypted in each way there is, beside QEMU."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest

import blobstore as library
import luks
from blobstore.layers import LayersLock, image_format, open_layers
from blobstore.luks_places import luks_place
from formats.errors import DeviceBusyError, UnsupportedError
from formats.file import FileDevice
from formats.qcow2.creation import Options
from formats.qcow2.files import BackingFiles
from formats.qcow2.header import read_header
from formats.qcow2.snapshots import create_snapshot
from tests.luks.programs import key_file
from tests.qcow2.support import assert_clean, qemu_io
from tests.support.cli import QUICK, blobstore, fails, succeeds
from tests.support.foreign import run
from tests.support.stores import contents

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.interop

SECRET, OTHER = b"first passphrase", b"second passphrase"
KDF = luks.Pbkdf2("sha256", 1000)
#: How a qcow2 image is encrypted, and what `create` and `convert` call it.
WAYS: dict[str, tuple[dict[str, Any], str]] = {
    "clear": ({"encrypted": False}, "qcow2"),
    "own": ({"own_luks": True, "kdf": KDF}, "qcow2-luks"),
    "luks1": ({"luks_version": 1, "kdf": KDF}, "luks1-in-qcow2"),
    "luks2": ({"luks_version": 2, "kdf": KDF}, "luks2-in-qcow2"),
}


@pytest.fixture(params=WAYS)
def way(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


def secret_of(way: str) -> bytes | None:
    return None if way == "clear" else SECRET


def make(path: Path, way: str, **more: Any) -> library.Store:
    return library.create(
        path, {"a": 100_000}, secret_of(way), image_format="qcow2", **(WAYS[way][0] | more)
    )


def qemu_sees(path: Path, way: str, key: Path) -> list[str]:
    """Return how QEMU's tools name an image: with its key, if that is theirs to use."""
    if way != "own":
        return ["--image-opts", f"driver=qcow2,file.filename={path}"]
    secret = f"secret,id=s0,file={key}"
    return [
        *("--object", secret, "--image-opts"),
        f"driver=qcow2,encrypt.key-secret=s0,file.filename={path}",
    ]


def check(path: Path, way: str, key: Path) -> None:
    if way == "own":
        run("qemu-img", "check", *qemu_sees(path, way, key))
    else:
        assert_clean(path)


def test_a_store_lives_in_qcow2(tmp_path: Path, way: str) -> None:
    path, key = tmp_path / "image", key_file(tmp_path, SECRET)
    with make(path, way, free=0) as store:
        store.put("a", b"old" * 20_000)
        store.put("a", b"new" * 30_000)
        store.register("grown", 2 << 20)  # there is no room left: the image grows
        store.put("grown", os.urandom(1 << 20))
        truth = contents(store)
    check(path, way, key)
    with FileDevice(path) as file:
        assert image_format(file) == "qcow2"
    with library.open(path, secret_of(way)) as store:
        assert contents(store) == truth
        assert store.get("a", previous=True) == b"old" * 20_000
        assert store.verify().ok
        assert store.image
        assert store.image.format == "qcow2"
        assert (store.image.luks is None) == (way == "clear")
    # What QEMU converts to a raw image is the same store, or the same volume.
    raw = tmp_path / "raw"
    run("qemu-img", "convert", *qemu_sees(path, way, key), "-O", "raw", raw)
    unprotected = way == "own"  # made for an encrypted image, and now in the clear
    secret = None if way in ("clear", "own") else SECRET
    with library.open(raw, secret, read_only=True, allow_unprotected=unprotected) as store:
        assert contents(store) == truth


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


def test_keys_of_qcow2_images(tmp_path: Path, way: str) -> None:
    if way == "clear":
        return
    path, key, other = tmp_path / "image", key_file(tmp_path, SECRET), key_file(tmp_path, OTHER)
    with make(path, way) as store:
        store.put("a", b"kept")
    with_key, with_other = ("--key-file", key), ("--key-file", other)
    listed = succeeds("key", "list", path)
    assert len(listed.splitlines()) == 2
    succeeds("key", "add", path, *with_key, "--new-key-file", other, *QUICK)
    succeeds("key", "remove", path, *with_key)
    assert fails("get", path, "a", *with_key) == 51
    assert succeeds("get", path, "a", *with_other) == b"kept"
    succeeds("key", "change", path, *with_other, "--new-key-file", key, *QUICK)
    assert succeeds("get", path, "a", *with_key) == b"kept"
    check(path, way, key)
    volume_key = tmp_path / "volume-key"
    succeeds("key", "export", path, "-o", volume_key, "--force", *with_key)
    assert succeeds("get", path, "a", "--volume-key-file", volume_key) == b"kept"
    if way == "own":
        run("qemu-io", *qemu_sees(path, way, key), "-c", "read 0 4k")


@pytest.mark.parametrize("way", ["luks1", "luks2"])
def test_the_header_in_the_disk_of_a_qcow2_image_moves_out_and_back(
    tmp_path: Path, way: str
) -> None:
    path, key = tmp_path / "image", key_file(tmp_path, SECRET)
    header, with_key = tmp_path / "header", ("--key-file", key)
    with make(path, way) as store:
        store.put("a", b"kept")
        assert fails("header", "detach", path, header) == 23
    succeeds("header", "detach", path, header)
    assert fails("get", path, "a", *with_key) == 32
    assert succeeds("get", path, "a", "--header", header, *with_key) == b"kept"
    check(path, way, key)
    succeeds("header", "attach", path, header)
    assert succeeds("get", path, "a", *with_key) == b"kept"
    check(path, way, key)


def test_a_header_that_cannot_move_is_left_alone(tmp_path: Path) -> None:
    own, clear, header = tmp_path / "own", tmp_path / "clear", tmp_path / "header"
    make(own, "own").close()
    make(clear, "clear").close()
    make(tmp_path / "luks2", "luks2").close()
    succeeds("header", "backup", tmp_path / "luks2", header)
    before = own.read_bytes(), clear.read_bytes()
    assert fails("header", "detach", own, tmp_path / "out") == 40
    assert fails("header", "attach", own, header) == 40
    assert fails("header", "detach", clear, tmp_path / "out") == 32
    assert fails("header", "attach", clear, header) == 32
    assert not (tmp_path / "out").exists()
    assert (own.read_bytes(), clear.read_bytes()) == before


def test_keys_of_qcow2_own_luks_change_while_it_is_in_use(tmp_path: Path) -> None:
    path, key, other = tmp_path / "image", key_file(tmp_path, SECRET), key_file(tmp_path, OTHER)
    with make(path, "own") as store:
        store.put("a", b"1")
        succeeds("key", "change", path, "--key-file", key, "--new-key-file", other, *QUICK)
        store.put("a", b"2")
    assert succeeds("get", path, "a", "--key-file", other) == b"2"
    disk = tmp_path / "disk"
    # A header in the disk lies in clusters, which belong to who has the image.
    with (
        make(disk, "luks2"),
        pytest.raises(DeviceBusyError),
        luks_place(disk, None, write=True),
    ):
        pass


def test_snapshots_are_read_with_the_store_in_them(tmp_path: Path, way: str) -> None:
    path, key = tmp_path / "image", key_file(tmp_path, SECRET)
    with make(path, way) as store:
        store.put("a", b"before")
    if way == "own":
        with FileDevice(path, read_only=False) as file:
            create_snapshot(file, "first")
    else:
        run("qemu-img", "snapshot", "-c", "first", path)
    with library.open(path, secret_of(way)) as store:
        store.put("a", b"after")
    secret = () if way == "clear" else ("--key-file", key)
    assert succeeds("get", path, "a", *secret) == b"after"
    assert succeeds("get", path, "a", "--snapshot", "first", *secret) == b"before"
    with library.open(path, secret_of(way), read_only=True, snapshot="first") as store:
        assert store.get("a") == b"before"
        assert store.verify().ok
    assert fails("get", path, "a", "--snapshot", "second", *secret) == 41
    assert fails("put", path, "a", key, "--snapshot", "first", *secret) == 2
    check(path, way, key)


def test_a_store_is_taken_over_with_all_that_happened_meanwhile(tmp_path: Path, way: str) -> None:
    path = tmp_path / "image"
    make(path, way, free=0).close()
    store = library.open(path, secret_of(way))
    store.put("a", b"1")
    store.release()
    with library.open(path, secret_of(way)) as other:
        other.put("a", b"2")
        other.register("more", 3 << 20)
        other.put("more", b"m" * (3 << 20))
    store.take_over()
    assert store.get("a") == b"2"
    assert store.get("more") == b"m" * (3 << 20)
    store.put("a", b"3")
    store.close()
    with library.open(path, secret_of(way)) as store:
        assert store.get("a") == b"3"
    check(path, way, key_file(tmp_path, SECRET))


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
    with pytest.raises(UnsupportedError, match="not written"):
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


def test_a_raw_disk_that_looks_like_qcow2_is_taken_as_it_is_when_told(tmp_path: Path) -> None:
    guest = tmp_path / "guest"
    run("qemu-img", "create", "-q", "-f", "qcow2", "-b", "/etc/passwd", "-F", "raw", "-u", guest,
        "1M")  # fmt: skip
    succeeds("convert", guest, tmp_path / "copy", "--from", "raw", "--to", "raw")
    assert (tmp_path / "copy").read_bytes() == guest.read_bytes()
    assert fails("convert", guest, tmp_path / "other", "--to", "raw") == 40


def test_an_image_in_use_by_qemu_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "image"
    make(path, "clear").close()
    user = subprocess.Popen(
        ["qemu-io", "-f", "qcow2", path], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    with user:
        assert user.stdin
        assert user.stdout
        user.stdin.write(b"length\n")
        user.stdin.flush()
        while b"iB" not in user.stdout.readline():
            pass
        for arguments in (
            *(("put", path, "a", path), ("get", path, "a"), ("check", path)),
            *(("snapshot", "create", path, "x"), ("convert", path, tmp_path / "out")),
        ):
            assert fails(*arguments) == 23
        user.stdin.write(b"quit\n")
    with library.open(path) as store:
        store.put("a", b"free")


def test_wrong_uses(tmp_path: Path) -> None:
    path, key = tmp_path / "image", key_file(tmp_path, SECRET)
    assert fails("create", path, "--luks", "qcow2", "--key-file", key) == 2
    assert fails("create", path, "--cluster-size", "4096", "--no-encryption") == 2
    assert fails("create", path, "--format", "qcow2", "--luks", "qcow2", "--label", "x",
                 "--key-file", key) == 2  # fmt: skip
    succeeds("create", path, "--format", "qcow2", "--no-encryption", "--cluster-size", "4096")
    assert fails("create", path, "--format", "qcow2", "--no-encryption") == 69
    assert fails("get", path, "a", "--key-file", key) == 53
    own = ("create", tmp_path / "own", "--format", "qcow2", "--luks", "qcow2", "--key-file", key)
    succeeds(*own, "--key-size", "256", *QUICK)
    with luks_place(tmp_path / "own", None) as place:
        assert luks.load_header(place).keyslots[0].key_size == 32
    with pytest.raises(ValueError, match="own LUKS"):
        library.create(tmp_path / "x", secret=SECRET, own_luks=True)


def test_opened_layers_give_up_and_take_the_lock(tmp_path: Path) -> None:
    from contextlib import ExitStack

    path = tmp_path / "image"
    make(path, "luks2").close()
    with ExitStack() as stack:
        layers = open_layers(stack, path, SECRET, read_only=False)
        lock = LayersLock(layers)
        lock.release()
        code = "import blobstore, sys; blobstore.open(sys.argv[1], b'first passphrase').close()"
        subprocess.run([sys.executable, "-c", code, path], check=True)
        lock.acquire()
        assert subprocess.run([sys.executable, "-c", code, path], check=False).returncode


WRITER = """
import sys
import blobstore
store = blobstore.open(sys.argv[1], b"first passphrase")
number = 0
while True:
    number += 1
    with store.transaction() as changes:
        changes.put("a", number.to_bytes(4, "big") * (20_000 + number % 100))
        changes.put("b", number.to_bytes(4, "big") * (10_000 + number % 100))
    if number % 50 == 0:
        store.register("grown", number * 100)
    print(number, flush=True)
"""


@pytest.mark.parametrize("way", ["own", "luks2"])
def test_a_backup_while_another_process_writes_is_one_state(tmp_path: Path, way: str) -> None:
    path, key = tmp_path / "image", key_file(tmp_path, SECRET)
    with make(path, way) as store:
        store.register("b", 100_000)
    writer = subprocess.Popen(
        [sys.executable, "-c", WRITER, path], stdout=subprocess.PIPE, text=True
    )
    assert writer.stdout
    seen = set()
    try:
        assert writer.stdout.readline() == "1\n"
        for number in range(6):
            copy = tmp_path / f"copy {number}"
            try:
                library.backup(path, copy, SECRET)
            except library.StoreBusyError:
                assert not copy.exists()
                continue
            check(copy, way, key)
            with library.open(copy, SECRET) as store:
                assert store.verify().ok
                state = int.from_bytes(store.get("a")[:4], "big")
                assert store.get("a") == state.to_bytes(4, "big") * (20_000 + state % 100)
                assert store.get("b") == state.to_bytes(4, "big") * (10_000 + state % 100)
                seen.add(state)
    finally:
        writer.kill()
        writer.stdout.close()
        writer.wait()
    assert len(seen) > 1
    check(path, way, key)


def test_a_backup_of_a_clear_image_is_equal(tmp_path: Path) -> None:
    path, copy = tmp_path / "image", tmp_path / "copy"
    with make(path, "clear", qcow2_options=Options(cluster_size=4096, refcount_bits=8)) as store:
        store.put("a", b"kept")
    library.backup(path, copy)
    run("qemu-img", "compare", path, copy)
    with FileDevice(path) as old, FileDevice(copy) as new:
        assert read_header(old).cluster_size == read_header(new).cluster_size == 4096
        assert read_header(old).refcount_bits == read_header(new).refcount_bits == 8
    assert_clean(copy)


def test_a_clone_is_of_the_same_kind(tmp_path: Path, way: str) -> None:
    path, copy = tmp_path / "image", tmp_path / "copy"
    key, other = key_file(tmp_path, SECRET), key_file(tmp_path, OTHER)
    with make(path, way, qcow2_options=Options(cluster_size=4096)) as store:
        store.put("a", b"kept")
    secrets = ("--key-file", key, "--new-key-file", other, *QUICK)
    succeeds("clone", path, copy, *(("--no-encryption",) if way == "clear" else secrets))
    with library.open(copy, None if way == "clear" else OTHER) as store:
        assert store.get("a") == b"kept"
        assert store.image
        assert (store.image.format, store.image.cluster_size) == ("qcow2", 4096)
        assert store.image.luks_beside == (way == "own")
    check(copy, way, other)
    if way == "own":
        header = ("--new-header", tmp_path / "header")
        succeeds("clone", path, tmp_path / "detached", *secrets, *header)
        assert fails("clone", path, tmp_path / "x", *secrets[:4], "--pbkdf", "argon2id") == 2


def test_snapshots_are_compared_by_section(tmp_path: Path, way: str) -> None:
    path, key = tmp_path / "image", key_file(tmp_path, SECRET)
    secret = () if way == "clear" else ("--key-file", key)
    with make(path, way) as store:
        store.put("a", b"1")
    succeeds("snapshot", "create", path, "first")
    with library.open(path, secret_of(way)) as store:
        store.put("a", b"2")
        store.register("b", 100)
    succeeds("snapshot", "create", path, "second")
    assert [line["name"] for line in json.loads(succeeds("snapshot", "list", path, "--json"))] == [
        "first",
        "second",
    ]
    shown = succeeds("snapshot", "diff", path, "first", *secret).decode()
    assert "a  " in shown
    assert "changed" in shown
    assert "b  " in shown
    assert succeeds("snapshot", "diff", path, "second", "--exit-code", *secret) == b""
    changes = json.loads(succeeds("snapshot", "diff", path, "first", "second", "--json", *secret))
    assert {(one["name"], one["change"]) for one in changes} == {("a", "changed"), ("b", "added")}
    differs = blobstore("snapshot", "diff", path, "first", "second", "--exit-code", *secret)
    assert differs.returncode == 1
    succeeds("snapshot", "apply", path, "first")
    assert succeeds("get", path, "a", *secret) == b"1"
    succeeds("snapshot", "delete", path, "second")
    check(path, way, key)


MANIFEST = """
[image]
format = "qcow2"
{luks}
cluster-size = 4096

[[section]]
name = "a"
text = "content"
max-size = 5000
"""


@pytest.mark.parametrize("luks_line", ["luks = 2", "luks = 1", 'luks = "qcow2"', "luks = false"])
def test_manifests_make_qcow2_images_and_come_back(tmp_path: Path, luks_line: str) -> None:
    path, key = tmp_path / "image", key_file(tmp_path, SECRET)
    (tmp_path / "manifest.toml").write_text(MANIFEST.format(luks=luks_line))
    secret = () if "false" in luks_line else ("--key-file", key)
    quick = () if "false" in luks_line else QUICK
    succeeds("pack", tmp_path / "manifest.toml", "-o", path, *secret, *quick)
    assert succeeds("get", path, "a", *secret) == b"content"
    succeeds("unpack", path, "-o", tmp_path / "out", *secret)
    written = (tmp_path / "out" / "manifest.toml").read_text()
    for line in ('format = "qcow2"', luks_line, "cluster-size = 4096"):
        assert line in written
    succeeds("pack", tmp_path / "out" / "manifest.toml", "-o", tmp_path / "two", *secret, *quick)
    assert succeeds("get", tmp_path / "two", "a", *secret) == b"content"
    (tmp_path / "seed").write_bytes(b"seed")
    for name in ("x", "y"):
        done = blobstore("pack", tmp_path / "manifest.toml", "-o", tmp_path / name, "--seed",
                         tmp_path / "seed", *secret, *quick)  # fmt: skip
        assert done.returncode == 0, done.stderr
    assert (tmp_path / "x").read_bytes() == (tmp_path / "y").read_bytes()


@pytest.mark.parametrize(
    ("table", "place"),
    [
        ('format = "vmdk"', "image.format"),
        ('luks = "qcow2"', "image.luks"),
        ("cluster-size = 4096", "image.cluster-size"),
        ('format = "qcow2"\ncluster-size = 5000', "image.cluster-size"),
        ('format = "qcow2"\nluks = "qcow2"\nheader = "x"', "image.luks"),
        ('format = "qcow2"\nluks = 3', "image.luks"),
    ],
)
def test_manifests_that_make_no_image(tmp_path: Path, table: str, place: str) -> None:
    path = tmp_path / "manifest.toml"
    path.write_text(f"[image]\n{table}\n")
    with pytest.raises(library.ManifestError, match=place):
        library.load_manifest(path)
