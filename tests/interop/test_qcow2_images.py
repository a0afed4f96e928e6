"""Stores and payloads in qcow2 images, encrypted in each way there is, beside QEMU."""

from __future__ import annotations

import itertools
import json
import os
import random
import subprocess
import sys
import time
from typing import TYPE_CHECKING

import pytest

import blobstore as library
import luks
from blobstore.image.layers import LayersLock, image_format, open_layers
from blobstore.image.luks_header import luks_place
from formats.devices.file import FileDevice
from formats.errors import AmbiguousSnapshotError
from formats.qcow2.creation import Qcow2Options
from formats.qcow2.header import read_header
from formats.qcow2.snapshots import SnapshotKey, create_snapshot
from tests.luks.programs import key_file
from tests.qcow2.support import assert_clean
from tests.support.cli import QUICK, blobstore, fails, succeeds
from tests.support.foreign import run
from tests.support.qcow2_images import OTHER, SECRET, WAYS, check, make, qemu_sees, secret_of
from tests.support.stores import contents

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.interop


@pytest.fixture(params=WAYS)
def way(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


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
    with library.open(path, secret_of(way), direct=True) as store:
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
    with library.open(
        raw, secret, read_only=True, allow_unprotected=unprotected, direct=True
    ) as store:
        assert contents(store) == truth


def test_snapshots_are_read_with_the_store_in_them(tmp_path: Path, way: str) -> None:
    path, key = tmp_path / "image", key_file(tmp_path, SECRET)
    with make(path, way) as store:
        store.put("a", b"before")
    if way == "own":
        with FileDevice(path, read_only=False) as file:
            create_snapshot(file, "first")
    else:
        run("qemu-img", "snapshot", "-c", "first", path)
    with library.open(path, secret_of(way), direct=True) as store:
        store.put("a", b"after")
    secret = () if way == "clear" else ("--key-file", key)
    assert succeeds("get", path, "a", *secret) == b"after"
    assert succeeds("get", path, "a", "--snapshot", "first", *secret) == b"before"
    with library.open(path, secret_of(way), read_only=True, snapshot="first", direct=True) as store:
        assert store.get("a") == b"before"
        assert store.verify().ok
    assert fails("get", path, "a", "--snapshot", "second", *secret) == 41
    assert fails("put", path, "a", key, "--snapshot", "first", *secret) == 2
    check(path, way, key)


@pytest.mark.parametrize("in_place", [False, True])
def test_windows_are_written_through(tmp_path: Path, way: str, in_place: bool) -> None:
    path = tmp_path / "image"
    numbers, model = random.Random(7), bytearray(200_000)
    with make(path, way, free=0) as store:
        store.register("disk", len(model), "window")
        with store.window("disk", in_place=in_place) as window:
            for number in range(100):
                offset = numbers.randrange(len(model) - 2000)
                data = numbers.randbytes(numbers.randrange(1, 2000))
                window.write(offset, data)
                model[offset : offset + len(data)] = data
                if number % 20 == 0:
                    window.flush()
    with library.open(path, secret_of(way), direct=True) as store:
        assert store.get("disk") == bytes(model)
        assert store.verify().ok
    check(path, way, key_file(tmp_path, SECRET))


def test_a_store_is_taken_over_with_all_that_happened_meanwhile(tmp_path: Path, way: str) -> None:
    path = tmp_path / "image"
    make(path, way, free=0).close()
    store = library.open(path, secret_of(way), direct=True)
    store.put("a", b"1")
    store.release()
    with library.open(path, secret_of(way), direct=True) as other:
        other.put("a", b"2")
        other.register("more", 3 << 20)
        other.put("more", b"m" * (3 << 20))
    store.take_over()
    assert store.get("a") == b"2"
    assert store.get("more") == b"m" * (3 << 20)
    store.put("a", b"3")
    store.close()
    with library.open(path, secret_of(way), direct=True) as store:
        assert store.get("a") == b"3"
    check(path, way, key_file(tmp_path, SECRET))


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
    with library.open(path, direct=True) as store:
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
store = blobstore.open(sys.argv[1], b"first passphrase", direct=True)
number = 0
while True:
    number += 1
    with store.transaction() as changes:
        changes.put("a", number.to_bytes(4, "big") * (20_000 + number % 100))
        changes.put("b", number.to_bytes(4, "big") * (10_000 + number % 100))
    if number % 50 == 0:
        store.register("grown", number * 100)
    if number == 1:
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
    seen: set[int] = set()
    tries = itertools.count()
    give_up = time.monotonic() + 120  # the writer never rests, and any number may be busy
    try:
        assert writer.stdout.readline() == "1\n"
        while len(seen) < 2 and time.monotonic() < give_up:
            copy = tmp_path / f"copy {next(tries)}"
            try:
                library.backup(path, copy, SECRET)
            except library.StoreBusyError:
                assert not copy.exists()
                continue
            check(copy, way, key)
            with library.open(copy, SECRET, direct=True) as store:
                assert store.verify().ok
                state = int.from_bytes(store.get("a")[:4], "big")
                assert store.get("a") == state.to_bytes(4, "big") * (20_000 + state % 100)
                assert store.get("b") == state.to_bytes(4, "big") * (10_000 + state % 100)
                seen.add(state)
    finally:
        writer.kill()
        writer.stdout.close()
        writer.wait()
    assert len(seen) == 2, f"after {next(tries)} tries"
    check(path, way, key)


def test_a_backup_of_a_clear_image_is_equal(tmp_path: Path) -> None:
    path, copy = tmp_path / "image", tmp_path / "copy"
    with make(
        path, "clear", qcow2_options=Qcow2Options(cluster_size=4096, refcount_bits=8)
    ) as store:
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
    with make(path, way, qcow2_options=Qcow2Options(cluster_size=4096)) as store:
        store.put("a", b"kept")
    secrets = ("--key-file", key, "--new-key-file", other, *QUICK)
    succeeds("clone", path, copy, *(("--no-encryption",) if way == "clear" else secrets))
    with library.open(copy, None if way == "clear" else OTHER, direct=True) as store:
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
    with library.open(path, secret_of(way), direct=True) as store:
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


def test_which_snapshot_is_meant_can_be_said_wherever_one_is_read(tmp_path: Path) -> None:
    """Q18: QEMU names one as another is numbered."""
    path, out = tmp_path / "image", tmp_path / "out"
    with make(path, "clear") as store:
        store.put("a", b"first")
    run("qemu-img", "snapshot", "-c", "first", path)
    with library.open(path, direct=True) as store:
        store.put("a", b"second")
    run("qemu-img", "snapshot", "-c", "1", path)
    assert fails("get", path, "a", "--snapshot", "1") == 43
    assert fails("get", path, "a", "--snapshot", "1", "--snapshot-id", "1") == 2
    assert fails("put", path, "a", path, "--snapshot-id", "1") == 2
    assert succeeds("get", path, "a", "--snapshot", "first") == b"first"
    assert fails("snapshot", "diff", path, "1") == 43
    assert succeeds("snapshot", "diff", path, "--name", "1", "--exit-code") == b""
    assert b"changed" in succeeds("snapshot", "diff", path, "--id", "1")
    assert b"changed" in succeeds("snapshot", "diff", path, "--id", "1", "--other-name", "1")
    assert fails("convert", path, out, "--to", "raw", "--snapshot", "1") == 43
    for option, key, blob in (
        ("--snapshot-id", SnapshotKey(id="1"), b"first"),
        ("--snapshot-name", SnapshotKey(name="1"), b"second"),
    ):
        assert succeeds("get", path, "a", option, "1") == blob
        with library.open(path, read_only=True, snapshot=key, direct=True) as store:
            assert store.get("a") == blob
        succeeds("convert", path, out, "--to", "raw", option, "1", "--force")
        assert succeeds("get", out, "a") == blob
    with pytest.raises(AmbiguousSnapshotError):
        library.open(path, read_only=True, snapshot="1", direct=True)


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
