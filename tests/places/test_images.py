"""P10 to P17: images of all kinds on all kinds of places, as on files."""

from __future__ import annotations

import os
import random
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

import blobstore
import luks
from formats.errors import (
    ArgumentError,
    DeviceBusyError,
    DeviceError,
    DeviceFullError,
    ForeignImageError,
    ReadOnlyError,
    SnapshotNotFoundError,
    UnsupportedError,
)
from formats.qcow2.device import Qcow2Device

if TYPE_CHECKING:
    from tests.ceph.cluster import Cluster
    from tests.places.support import Places

SECRET = b"a secret"
QUICK = luks.Pbkdf2("sha256", 1000)

KINDS: dict[str, dict[str, Any]] = {
    "raw": {"encrypted": False},
    "luks2": {"secret": SECRET, "kdf": QUICK},
    "luks1": {"secret": SECRET, "kdf": QUICK, "luks_version": 1},
    "qcow2": {"encrypted": False, "image_format": "qcow2"},
    "luks2 in qcow2": {"secret": SECRET, "kdf": QUICK, "image_format": "qcow2"},
    "qcow2's own luks": {
        "secret": SECRET,
        "kdf": QUICK,
        "image_format": "qcow2",
        "own_luks": True,
    },
}


def make(place: str | Path, **options: Any) -> blobstore.Store:
    return blobstore.create(place, {"a": 5000, "b": 3000}, **options)


@pytest.mark.parametrize("kind", KINDS)
def test_p10_an_image_lies_on_a_place_as_on_a_file(places: Places, kind: str) -> None:
    place, secret = places.new(), KINDS[kind].get("secret")
    with make(place, **KINDS[kind]) as store:
        store.put("a", b"first")
        assert str(store.image and store.image.path) == place
    content = random.Random(kind).randbytes(5000)
    with blobstore.open(place, secret) as store:
        assert store.get("a") == b"first"
        store.put("a", content)
        store.put("b", b"b")
    with blobstore.open(place, secret, read_only=True) as store:
        assert (store.get("a"), store.get("b")) == (content, b"b")
        assert store.verify().ok
    assert blobstore.is_encrypted(place) == (secret is not None)
    if secret is not None:
        with blobstore.luks_place(place, write=True) as header:
            luks.add_keyslot(header, secret, b"another", kdf=QUICK)
        with blobstore.open(place, b"another", read_only=True) as store:
            assert store.get("b") == b"b"
    with pytest.raises(blobstore.ImageExistsError, match=r"holds a store"):
        make(place, encrypted=False)
    make(place, encrypted=False, overwrite=True).close()
    with blobstore.open(place, read_only=True) as store:
        assert store.section("a").size is None


def test_p10_headers_lie_in_other_places_than_data(places: Places, tmp_path: Path) -> None:
    data, header = places.new(), places.new(4 << 20)
    for image, detached in ((tmp_path / "data", header), (data, tmp_path / "header")):
        with make(image, secret=SECRET, header=detached, kdf=QUICK) as store:
            store.put("a", b"apart")
            with store.luks_place(write=True) as place:
                luks.add_keyslot(place, SECRET, b"another", kdf=QUICK)
        with blobstore.open(image, b"another", header=detached) as store:
            assert store.get("a") == b"apart"
            assert store.verify().ok
    with pytest.raises(ArgumentError, match="both the image and its LUKS header"):
        blobstore.open(data, SECRET, header=data)


def test_p10_a_header_moves_from_a_place_to_a_file_and_back(places: Places, tmp_path: Path) -> None:
    place, header = places.new(), tmp_path / "header"
    make(place, secret=SECRET, kdf=QUICK).close()
    blobstore.detach_header(place, header)
    with pytest.raises(blobstore.StorageError):
        blobstore.open(place, SECRET)
    blobstore.open(place, SECRET, header=header).close()
    blobstore.attach_header(place, header)
    blobstore.open(place, SECRET).close()


def test_p11_a_reader_sees_what_was_there_at_one_moment(places: Places) -> None:
    place = places.new()
    with make(place, encrypted=False) as store:
        for number in range(5):
            store.put("a", bytes([number]) * 5000)
            with blobstore.open(place, read_only=True, direct=True) as reader:
                assert reader.get("a") == bytes([number]) * 5000
        with blobstore.open(place, read_only=True, direct=True) as reader:
            store.put("a", b"newer")
            assert reader.get("a") in (b"newer", bytes([4]) * 5000)
    with pytest.raises(UnsupportedError, match="with the lock"), reader_of(place) as reader:
        blobstore.backup(reader, "none")


def reader_of(place: str) -> blobstore.Store:
    return blobstore.open(place, read_only=True, direct=True)


def test_p5_p17_a_second_writer_of_this_machine_is_kept_out(places: Places) -> None:
    place = places.new()
    with (
        make(place, encrypted=False),
        pytest.raises(DeviceBusyError, match=r"P17|holds its lock"),
    ):
        blobstore.open(place)
    blobstore.open(place).close()


def test_p15_what_is_there_is_not_overwritten(places: Places) -> None:
    place = places.new()
    make(place, encrypted=False).close()
    with blobstore.open_remote(place, read_only=False) as disk:
        disk.write(0, b"something else" * 1000)
        disk.write(4096, bytes(8192))
        disk.flush()
    with pytest.raises(ForeignImageError, match="holds something else"):
        make(place, encrypted=False)


def test_p15_a_place_that_is_too_small_is_refused(places: Places) -> None:
    place = places.new(1 << 20)
    if places.kind == "rbd":
        with pytest.raises(DeviceFullError):
            make(place, secret=SECRET, kdf=QUICK, size=1 << 20)
        with pytest.raises(blobstore.StorageError, match="cannot open"):
            blobstore.open_remote(place)  # it was removed again
        return
    with pytest.raises(DeviceFullError):
        make(place, secret=SECRET, kdf=QUICK)
    with pytest.raises(DeviceFullError, match="has 1048576 bytes, not 2097152"):
        make(place, encrypted=False, size=2 << 20)


def test_p15_what_fails_leaves_no_store(places: Places) -> None:
    def fill(store: blobstore.Store) -> None:
        store.put("a", b"half")
        raise RuntimeError

    place = places.new()
    with pytest.raises(RuntimeError):
        make(place, encrypted=False, fill=fill)
    make(place, encrypted=False, overwrite=places.kind != "rbd").close()


def test_p16_no_file_is_made_on_a_device(places: Places, tmp_path: Path) -> None:
    image, place = tmp_path / "image", places.new()
    store = make(image, secret=SECRET, kdf=QUICK)
    with store:
        for write in (
            lambda: blobstore.backup(store, place),
            lambda: blobstore.detach_header(image, place),
            lambda: blobstore.write_file(place, b"x"),
        ):
            with pytest.raises(UnsupportedError, match="P16"):
                write()
    with pytest.raises(UnsupportedError, match="P16"):
        blobstore.backup(image, place, SECRET)


def test_c57_a_store_grows_where_its_place_does(places: Places) -> None:
    place = places.new()
    with make(place, encrypted=False) as store:
        if places.kind == "rbd":
            store.grow(64 << 20)
            store.register("c", 40 << 20)
        else:
            with pytest.raises(blobstore.StorageError):
                store.grow(64 << 20)
            store.register("c", 4 << 20)
    with blobstore.open(place) as store:
        assert "c" in store


def sockets() -> int:
    """Return how many sockets this process has."""
    found = 0
    for name in Path("/proc/self/fd").iterdir():
        with suppress(FileNotFoundError):
            found += str(name.readlink()).startswith("socket:")
    return found


def test_p19_a_child_uses_no_place_of_its_parent(places: Places) -> None:
    with make(places.new(), encrypted=False) as store:
        before = sockets()
        child = os.fork()
        if not child:
            code = 1
            with suppress(blobstore.ForkedProcessError):
                store.get("a")
                code = 2
            # Those of librbd are its own, and end with the child.
            closed = sockets() < before or places.kind == "rbd"
            os._exit(0 if code == 1 and closed else code + 2)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        store.put("a", b"the parent goes on")
        assert store.get("a") == b"the parent goes on"


@pytest.mark.interop
@pytest.mark.slow
def test_p3_a_snapshot_of_rbd_is_read_and_not_written(cluster: Cluster) -> None:
    place = f"rbd:rbd/with-snapshot:conf={cluster.conf}"
    with make(place, encrypted=False) as store:
        store.put("a", b"then")
    cluster.run("rbd", "snap", "create", "rbd/with-snapshot@then")
    with blobstore.open(place) as store:
        store.put("a", b"now")
    snapshot = place.replace(":conf", "@then:conf")
    with blobstore.open(snapshot, read_only=True) as store:
        assert store.get("a") == b"then"
    with pytest.raises(ReadOnlyError, match="is a snapshot"):
        blobstore.open(snapshot)


@pytest.mark.interop
@pytest.mark.slow
def test_p15_an_image_of_rbd_that_is_whole_stays(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = f"rbd:rbd/stays:conf={cluster.conf}"
    store = make(place, encrypted=False, image_format="qcow2")
    store.put("a", b"whole")

    def fail(_: object) -> None:
        raise DeviceError("injected")

    with monkeypatch.context() as patch:
        patch.setattr(Qcow2Device, "close", fail)
        with pytest.raises(DeviceError, match="injected"):
            store.close()
    with blobstore.open(place, read_only=True) as again:
        assert again.get("a") == b"whole"


@pytest.mark.interop
@pytest.mark.slow
def test_p20_raw_images_on_rbd_have_the_snapshots_of_rbd(cluster: Cluster, tmp_path: Path) -> None:
    place = f"rbd:rbd/kept:conf={cluster.conf}"
    with make(place, secret=SECRET, kdf=QUICK) as store:
        store.put("a", b"then")
        made = store.create_snapshot("then")
        assert (made.name, made.disk_size) == ("then", store.image and store.image.size)
        store.put("a", b"now")
        assert store.snapshots() == [made]
        with pytest.raises(blobstore.StorageError, match="has a snapshot"):
            store.create_snapshot("then")
        with pytest.raises(UnsupportedError, match="P21"):
            store.apply_snapshot("then")
    assert b"then" in cluster.run("rbd", "snap", "ls", "rbd/kept")
    blobstore.create_snapshot(place, "second")
    assert [one.name for one in blobstore.list_snapshots(place)] == ["then", "second"]
    for snapshot in ("then", made.id):
        with blobstore.open(place, SECRET, read_only=True, snapshot=snapshot) as store:
            assert store.get("a") == b"then"
    blobstore.convert(place, tmp_path / "image", SECRET, to="raw", snapshot="then")
    with blobstore.open(tmp_path / "image") as store:
        assert store.get("a") == b"then"
    with pytest.raises(ArgumentError, match="P20"):
        blobstore.create_snapshot(place, "a@b")
    with pytest.raises(SnapshotNotFoundError):
        blobstore.open(place, SECRET, read_only=True, snapshot="none")
    with pytest.raises(UnsupportedError, match="P21"):
        blobstore.apply_snapshot(place, "then")
    assert blobstore.delete_snapshot(place, "then").name == "then"
    with blobstore.open(place, SECRET) as store:
        assert store.delete_snapshot("second").name == "second"
        assert store.snapshots() == []
        assert store.get("a") == b"now"


@pytest.mark.interop
@pytest.mark.slow
def test_p15_what_a_crash_leaves_of_an_image_of_rbd_is_taken(cluster: Cluster) -> None:
    place = f"rbd:rbd/left:conf={cluster.conf}"
    cluster.create("left", 0)
    with make(place, encrypted=False) as store:
        store.put("a", b"made after all")
    with blobstore.open(place, read_only=True) as store:
        assert store.get("a") == b"made after all"
