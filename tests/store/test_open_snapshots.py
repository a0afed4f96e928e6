"""Snapshots of a qcow2 image whose store is open: O80 to O84."""

from __future__ import annotations

import contextlib
import gc
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast, get_args

import pytest

import blobstore
import luks
from blobstore.container.initialise import initialise
from blobstore.errors import DamagedHeadError, PinMismatchError, PoisonedStoreError
from blobstore.image.layers import Layers
from blobstore.image.qcow2 import Disk
from blobstore.store.store import Store
from formats.devices.device import MemoryDevice
from formats.devices.file import FileDevice
from formats.errors import (
    DeviceError,
    ReadOnlyError,
    SnapshotExistsError,
    SnapshotNotFoundError,
    UnsupportedError,
)
from formats.qcow2.check import check
from formats.qcow2.creation import Qcow2Options, create
from formats.qcow2.opening import open_image
from formats.qcow2.snapshots import create_snapshot, list_snapshots
from tests.qcow2.support import qemu_check
from tests.support.devices import FaultyDevice, Operation, RecordingDevice, crash_states
from tests.support.foreign import run
from tests.support.interrupts import InterruptPoints
from tests.support.stores import UNWRITTEN, Contents, contents, spec

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from formats.devices.device import BlockDevice
    from formats.qcow2.device import Qcow2Device

SECRET = b"passphrase"
QUICK = luks.Pbkdf2("sha256", 1000)
KINDS: dict[str, dict[str, Any]] = {
    "clear": {"encrypted": False},
    "luks in the disk": {"secret": SECRET, "kdf": QUICK},
    "own luks": {"secret": SECRET, "kdf": QUICK, "own_luks": True},
}
#: Points of each call at which CI interrupts.
SAMPLE = 40


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> dict[str, Any]:
    return KINDS[request.param]


@pytest.fixture
def image(tmp_path: Path, kind: dict[str, Any]) -> Path:
    path = tmp_path / "image"
    options = {"free": 1 << 20, **kind}
    blobstore.create(path, {"a": 5000, "b": 3000}, image_format="qcow2", **options).close()
    return path


@pytest.fixture
def store(image: Path, kind: dict[str, Any]) -> Iterator[Store]:
    with blobstore.open(image, kind.get("secret"), direct=True) as opened:
        yield opened


def require_sound(image: Path, kind: dict[str, Any]) -> None:
    assert blobstore.check(image).ok
    if "own_luks" not in kind:  # of which qemu-img asks the passphrase
        found = qemu_check(image)
        assert (found.get("corruptions", 0), found.get("leaks", 0)) == (0, 0), found


def seen(image: Path, kind: dict[str, Any], snapshot: str) -> tuple[Contents, bool]:
    """Return what a snapshot holds, and whether it opens as a store that was closed."""
    with blobstore.open(
        image, kind.get("secret"), read_only=True, lock=False, snapshot=snapshot, direct=True
    ) as found:
        assert found.verify().ok
        return contents(found), found.info().clean


def test_o81_a_snapshot_is_the_store_at_one_moment_as_if_closed(
    store: Store, image: Path, kind: dict[str, Any], tmp_path: Path
) -> None:
    store.put("a", b"one")
    store.register("flash", 4096, "window")
    window = store.window("flash")
    window.write(512, b"written and not flushed")
    made = store.create_snapshot("first")
    assert (made.name, made.id) == ("first", "1")
    then = contents(store)
    assert cast("bytes", then["flash"])[512:].startswith(b"written and not flushed")
    store.put("a", b"two")
    window.write(0, b"later")
    window.flush()
    assert seen(image, kind, "first") == (then, True)
    if "secret" not in kind:  # what QEMU reads of it is the same
        raw = tmp_path / "raw"
        run("qemu-img", "convert", "-U", "-l", "first", "-f", "qcow2", "-O", "raw", image, raw)
        with blobstore.open(raw, read_only=True, direct=True) as read_by_qemu:
            assert contents(read_by_qemu) == then
    assert store.get("a") == b"two"
    assert window.read(0, 5) == b"later"
    assert [one.name for one in store.snapshots()] == ["first"]
    store.create_snapshot("second")
    assert store.delete_snapshot("first") == made
    assert [one.id for one in store.snapshots()] == ["2"]
    assert seen(image, kind, "second") == (contents(store), True)
    window.close()
    store.close()
    require_sound(image, kind)
    assert [one.name for one in blobstore.list_snapshots(image)] == ["second"]


def test_o81_a_window_in_place_is_unverified_in_the_snapshot(
    tmp_path: Path,
) -> None:
    path = tmp_path / "image"
    blobstore.create(path, (), encrypted=False, image_format="qcow2").close()
    with blobstore.open(path, direct=True) as store:
        store.register("flash", 4096, "window")
        with store.window("flash", in_place=True) as window:
            window.write(0, b"in place")
            store.create_snapshot("one")
            window.write(0, b"after it")
        with blobstore.open(
            path, read_only=True, lock=False, snapshot="one", direct=True
        ) as before:
            with pytest.raises(blobstore.CorruptBlobError):
                before.get("flash")
            with before.window("flash", accept_unverified=True) as found:
                assert found.read(0, 8) == b"in place"


def test_o80_there_are_errors_and_nothing_changes(store: Store, tmp_path: Path) -> None:
    store.create_snapshot("one")
    digest = store.digest()
    failing: list[tuple[Callable[[], object], type[Exception]]] = [
        (lambda: store.create_snapshot("one"), SnapshotExistsError),
        (lambda: store.create_snapshot("1"), SnapshotExistsError),
        (lambda: store.create_snapshot(""), ValueError),
        (lambda: store.delete_snapshot("two"), SnapshotNotFoundError),
        (lambda: store.apply_snapshot("two"), SnapshotNotFoundError),
    ]
    for fail, error in failing:
        with pytest.raises(error):
            fail()
    with pytest.raises(ValueError, match="transaction"), store.transaction():
        store.create_snapshot("within")
    assert [one.name for one in store.snapshots()] == ["one"]
    assert store.digest() == digest
    raw = tmp_path / "raw"
    with blobstore.create(raw, {"a": 10}, encrypted=False) as other:
        for call in (
            other.snapshots,
            lambda: other.create_snapshot("x"),
            lambda: other.delete_snapshot("x"),
            lambda: other.apply_snapshot("x"),
        ):
            with pytest.raises(UnsupportedError, match="raw image"):
                call()
    with pytest.raises(UnsupportedError, match="on a device"):
        Store.on_device(MemoryDevice(raw.read_bytes()), encrypted=False).snapshots()
    store.close()
    with pytest.raises(ValueError, match="closed"):
        store.snapshots()


def test_a_store_opened_for_reading_lists_and_changes_nothing(
    store: Store, image: Path, kind: dict[str, Any]
) -> None:
    store.create_snapshot("one")
    for lock in (False, True):
        if lock:
            store.close()
        with blobstore.open(
            image, kind.get("secret"), read_only=True, lock=lock, direct=True
        ) as reader:
            assert [one.name for one in reader.snapshots()] == ["one"]
            for call in (reader.create_snapshot, reader.delete_snapshot, reader.apply_snapshot):
                with pytest.raises(ReadOnlyError):
                    call("one")


def test_o83_a_store_is_set_back_and_goes_on_from_there(
    store: Store, image: Path, kind: dict[str, Any]
) -> None:
    store.put("a", b"one")
    store.create_snapshot("then")
    digest = store.digest()
    store.put("a", b"two")
    store.register("grown", 2 << 20)  # the disk grows for it
    store.put("grown", bytes(1 << 20))
    assert store.apply_snapshot("then").name == "then"
    assert store.digest() == digest
    assert store.get("a") == b"one"
    assert "grown" not in store
    store.put("a", b"three")
    store.register("more", 100_000)
    store.put("more", b"m" * 100_000)
    state = contents(store)
    assert seen(image, kind, "then")[0] == {"a": b"one", "b": UNWRITTEN}
    store.close()
    require_sound(image, kind)
    with blobstore.open(image, kind.get("secret"), direct=True) as again:
        assert contents(again) == state
        assert again.verify().ok


def test_o83_open_windows_and_other_stores_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "image"
    blobstore.create(path, {"a": 10}, encrypted=False, image_format="qcow2").close()
    blobstore.create_snapshot(path, "another store")
    with blobstore.create(
        tmp_path / "new", {"a": 10}, encrypted=False, size=path.stat().st_size
    ) as new:
        new.put("a", b"new")
    content = (tmp_path / "new").read_bytes()
    with FileDevice(path, read_only=False) as file, open_image(file, read_only=False) as disk:
        disk.resize(max(disk.size, len(content)))
        disk.write(0, content)
        disk.flush()
    with blobstore.open(path, direct=True) as store:
        digest = store.digest()
        with pytest.raises(PinMismatchError, match=r"holds another store .*\[O83\]"):
            store.apply_snapshot("another store")
        store.register("flash", 512, "window")
        store.create_snapshot("own")
        with store.window("flash"), pytest.raises(ValueError, match="windows"):
            store.apply_snapshot("own")
        assert store.get("a") == b"new"
        assert store.digest() != digest


def test_o83_another_volume_key_is_refused(tmp_path: Path) -> None:
    """A snapshot from before the volume was made again cannot be opened by today's key."""
    path, other = tmp_path / "image", tmp_path / "other"
    for each in (path, other):
        blobstore.create(each, {"a": 10}, SECRET, kdf=QUICK, image_format="qcow2").close()
    blobstore.create_snapshot(path, "before")
    with FileDevice(other) as source, open_image(source) as theirs:
        content = theirs.read(0, theirs.size)
    with FileDevice(path, read_only=False) as file, open_image(file, read_only=False) as disk:
        disk.write(0, content)
        disk.flush()
    with blobstore.open(path, SECRET, direct=True) as store:
        store.put("a", b"1")
        with pytest.raises(luks.PolicyError, match="another way"):
            store.apply_snapshot("before")
        store.put("a", b"2")
        assert store.get("a") == b"2"


# ------------------------------------------------- crashes, failures, interrupts


def on_memory(device: BlockDevice) -> tuple[Store, Qcow2Device]:
    """Open the store on a device that holds a qcow2 image, with all its layers."""
    disk = open_image(device, read_only=False)
    layers = Layers(Path("memory"), cast("Any", device), qcow2=Disk(disk, None, None))
    return Store.on_device(disk, encrypted=False, image=layers.image(), layers=layers), disk


def prepared() -> bytes:
    """Return an image with a snapshot ``then``, which holds another blob than the disk."""
    device = MemoryDevice(b"")
    create(device, 64 << 10, Qcow2Options(cluster_size=512))
    with open_image(device, read_only=False) as disk:
        initialise(
            disk, [spec("a", 900, b"then"), spec("b", 50, b"b")], encrypted=False, block_size=512
        )
    create_snapshot(device, "then")
    store, disk = on_memory(device)
    store.put("a", b"now" * 200)
    store.put("b", b"newer")
    store.close()
    disk.close()
    return bytes(device.content)


def look(content: bytes) -> tuple[Contents, dict[str, Contents]]:
    """Return what the disk holds, and each snapshot; the image must be sound."""
    device = MemoryDevice(content)
    report = check(device)
    assert not report.corruptions, report.findings
    found = {}
    for name in ["", *(one.name for one in list_snapshots(device))]:
        with open_image(device, snapshot=name or None) as disk:
            store = Store.on_device(disk, encrypted=False, read_only=True)
            assert not store.verify().problems
            found[name] = contents(store)
    return found.pop(""), found


CALLS: dict[str, Callable[[Store], object]] = {
    "create": lambda store: store.create_snapshot("new"),
    "delete": lambda store: store.delete_snapshot("then"),
    "apply": lambda store: store.apply_snapshot("then"),
}
#: What is put before each call and not recorded as durable, so that it begins unclean.
PUT = b"just put"


@pytest.mark.parametrize("name", CALLS)
def test_o84_a_crash_leaves_the_image_as_it_was_or_as_it_is_to_be(name: str) -> None:
    before = prepared()
    device = RecordingDevice(before, resizable=True)
    store, disk = on_memory(device)
    store.put("b", PUT)
    old = look(device.content)
    start = device.content
    device.log.clear()
    CALLS[name](store)
    new = look(device.content)
    device.mark("done")
    after = contents(store)
    store.put("b", b"after")
    store.close()
    disk.close()
    last = look(device.content)
    assert old != new
    assert after == new[0]
    assert last[0] == {**new[0], "b": b"after"}
    outcomes = []
    for crash in crash_states(start, device.log, exhaustive=2, samples=6):
        found = look(crash.content)
        assert found in ([new, last] if crash.marks else [old, new, last])
        outcomes.append(found == old)
    assert len(outcomes) > 60
    assert any(outcomes)
    assert not all(outcomes)


@pytest.mark.parametrize("persistent", [False, True], ids=["once", "for ever"])
@pytest.mark.parametrize("operation", get_args(Operation))
@pytest.mark.parametrize("name", CALLS)
def test_o84_every_failing_request(name: str, operation: Operation, persistent: bool) -> None:
    """A clean error; the store goes on with what there is, or refuses to."""
    before = prepared()
    reference = MemoryDevice(before)
    store, _ = on_memory(reference)
    store.put("b", PUT)
    old = look(bytes(reference.content))
    CALLS[name](store)
    new = look(bytes(reference.content))
    number = failures = 0
    while True:
        number += 1
        memory = MemoryDevice(before)
        device = FaultyDevice(memory, operation, 1 << 40, persistent=persistent)
        store, _ = on_memory(device)
        store.put("b", PUT)
        device.arm(number)
        try:
            CALLS[name](store)
        except (DeviceError, PoisonedStoreError):
            assert device.failed
        if not device.failed:
            assert look(bytes(memory.content)) == new
            break
        failures += 1
        found = look(bytes(memory.content))
        assert found in (old, new)
        device.arm(1 << 40)
        try:
            store.put("b", b"after")
        except (DeviceError, PoisonedStoreError, DamagedHeadError):
            assert look(bytes(memory.content)) in (old, new)
        else:
            assert look(bytes(memory.content))[0] == {**found[0], "b": b"after"}
    assert failures


@pytest.mark.parametrize("name", CALLS)
def test_o84_an_interrupt_anywhere(name: str) -> None:
    """The image is old or new, and what the store says and writes after it fits to that."""
    before = prepared()

    def ready() -> tuple[Store, MemoryDevice]:
        memory = MemoryDevice(before)
        store, _ = on_memory(memory)
        store.put("b", PUT)
        return store, memory

    store, memory = ready()
    old = look(bytes(memory.content))
    points = InterruptPoints(lambda: CALLS[name](store))
    new = look(bytes(memory.content))
    outcomes = set()
    for point in points.chosen(SAMPLE):
        store, memory = ready()
        with contextlib.suppress(KeyboardInterrupt), points.interrupted_at(point):
            CALLS[name](store)
        try:
            said = contents(store)
            store.put("b", b"after")
        except (DeviceError, PoisonedStoreError):
            found = look(bytes(memory.content))
            assert found in (old, new)
            outcomes.add((found == old, "refused"))
        else:
            found = look(bytes(memory.content))
            assert found[0] == {**said, "b": b"after"}
            assert found[1] in (old[1], new[1])
            assert said in (old[0], new[0])
            outcomes.add((said == old[0], "goes on"))
    print(f"{name}: {len(points.chosen(SAMPLE))} of {points}: {outcomes}")
    assert outcomes


# ------------------------------------------------------------------- backups


def test_o85_a_backup_is_the_open_store_as_if_closed(
    store: Store, kind: dict[str, Any], tmp_path: Path
) -> None:
    store.put("a", b"one")
    store.register("flash", 4096, "window")
    store.register("in place", 4096, "window")
    copy = tmp_path / "copy"
    with store.window("flash") as window, store.window("in place", in_place=True) as other:
        window.write(512, b"written and not flushed")
        other.write(512, b"in place")
        store.create_snapshot("not in the copy")
        blobstore.backup(store, copy)
        window.write(512, b"after it")
        then = contents(store)
    with blobstore.open(copy, kind.get("secret"), direct=True) as found:
        assert found.info().clean
        assert found.snapshots() == []
        assert contents(found)["flash"] == bytes(512) + b"written and not flushed" + bytes(3561)
        assert contents(found)["a"] == then["a"]
        with found.window("in place", accept_unverified=True) as kept:
            assert kept.read(512, 8) == b"in place"
    require_sound(copy, kind)


def test_o86_an_image_that_changes_is_copied_again_until_little_is_left(tmp_path: Path) -> None:
    """What is put while the first copy is made is in the copy, also where the image grows."""
    path, copy = tmp_path / "image", tmp_path / "copy"
    with blobstore.create(path, {"a": 2 << 20}, encrypted=False, free=0) as store:
        passes = 0

        def progress(_done: int, _total: int) -> None:
            nonlocal passes
            if passes < 3:
                passes += 1
                store.put("a", bytes([passes]) * (2 << 20))
                store.register(f"more {passes}", 1 << 20)
                store.put(f"more {passes}", bytes([passes]) * (1 << 20))

        blobstore.backup(store, copy, progress=progress)
        state = contents(store)
        assert passes
    with blobstore.open(copy, direct=True) as found:
        assert contents(found) == state
        assert found.verify().ok


def test_o85_an_interrupt_leaves_no_copy_or_a_whole_one(tmp_path: Path) -> None:
    path = tmp_path / "image"
    blobstore.create(path, {"a": 5000}, encrypted=False, free=50_000).close()
    numbers = iter(range(10_000))

    def copy(store: Store) -> None:
        blobstore.backup(store, tmp_path / f"copy {next(numbers)}")

    def opened() -> Store:
        store = blobstore.open(path, direct=True)
        store.put("a", b"one")  # so that there is something to be put in order
        return store

    with opened() as store:
        points = InterruptPoints(lambda: copy(store))
    outcomes = {"goes on": 0, "open it again": 0}
    for point in points.chosen(SAMPLE):
        with opened() as store:
            with contextlib.suppress(KeyboardInterrupt), points.interrupted_at(point):
                copy(store)
            assert store.get("a") == b"one"
            try:
                store.put("a", b"two")
            except PoisonedStoreError:  # while D was being written
                outcomes["open it again"] += 1
            else:
                outcomes["goes on"] += 1
    gc.collect()  # an interrupted call may still have its copy open, and locked
    whole = 0
    for made in tmp_path.glob("*copy*"):
        assert not made.name.startswith(".")
        with blobstore.open(made, direct=True) as found:
            assert found.get("a") == b"one"
            whole += 1
    print(f"{len(points.chosen(SAMPLE))} of {points}: {outcomes}, {whole} copies")
    assert whole
    assert outcomes["goes on"]


class FailingFile(FaultyDevice):
    """An image file of which a read fails."""

    def data_ranges(self, offset: int, size: int) -> Iterator[tuple[int, int]]:
        yield offset, size


@pytest.mark.parametrize("persistent", [False, True], ids=["once", "for ever"])
def test_o85_every_failing_read(tmp_path: Path, persistent: bool) -> None:
    """There is a whole copy or none, and the store goes on."""
    path, copy = tmp_path / "image", tmp_path / "copy"
    number = failures = 0
    with blobstore.create(path, {"a": 5000}, encrypted=False, free=50_000) as store:
        layers = store.session.layers
        assert layers is not None
        while True:
            number += 1
            store.put("a", b"one")
            device = FailingFile(layers.file, "read", number, persistent=persistent)
            store.session.layers = replace(layers, file=cast("FileDevice", device))
            try:
                blobstore.backup(store, copy)
            except DeviceError:
                assert [each.name for each in tmp_path.iterdir()] == ["image"]
                failures += 1
            else:
                # A head that could not be read once is read again.
                with blobstore.open(copy, direct=True) as found:
                    assert found.verify().ok
                    assert found.get("a") == b"one"
                copy.unlink()
            if not device.failed:
                break
        store.session.layers = layers
        assert store.verify().ok
    assert failures > 1


def test_o85_what_cannot_be_copied_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "image"
    blobstore.create(path, {"a": 100}, encrypted=False).close()
    with blobstore.open(path, read_only=True, direct=True) as reader:
        blobstore.backup(reader, tmp_path / "of a reader")
    with (
        blobstore.open(path, read_only=True, lock=False, direct=True) as unlocked,
        pytest.raises(UnsupportedError),
    ):
        blobstore.backup(unlocked, tmp_path / "copy")
    on_device = Store.on_device(MemoryDevice(path.read_bytes()), encrypted=False)
    with pytest.raises(UnsupportedError):
        blobstore.backup(on_device, tmp_path / "copy")
    with (
        blobstore.open(path, direct=True) as store,
        pytest.raises(ValueError, match="transaction"),
        store.transaction(),
    ):
        blobstore.backup(store, tmp_path / "copy")
    assert not (tmp_path / "copy").exists()
    with blobstore.open(tmp_path / "of a reader", direct=True) as found:
        assert found.verify().ok
