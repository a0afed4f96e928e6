"""Payloads and stores between raw, LUKS1 and LUKS2 images, attached and detached."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any

import pytest

import blobstore
import luks
from formats.devices.file import FileDevice
from formats.errors import DeviceBusyError, DeviceFullError, ForeignImageError
from tests.support.stores import contents

if TYPE_CHECKING:
    from pathlib import Path

SECRET, OTHER = b"one", b"two"
KDF = luks.Pbkdf2("sha256", 1000)
#: More than two workers' pieces, and no whole number of them.
SIZE = (9 << 20) + 4096
KINDS = ("raw", "luks1", "luks1 detached", "luks2", "luks2 detached", "luks2 512")


def payload(size: int = SIZE) -> bytes:
    """Return bytes that say where they are, with zeros among them."""
    block = b"".join(number.to_bytes(8, "big") for number in range(1 << 16))
    data = (block * (size // len(block) + 1))[:size]
    hole = bytes(1 << 20)
    return data[: 3 << 20] + hole[: max(0, size - (3 << 20))] + data[4 << 20 :]


class Place:
    """An image of one kind, and how it is named in a conversion."""

    def __init__(self, directory: Path, kind: str, name: str) -> None:
        self.kind = kind
        self.path = directory / name
        self.header = directory / f"{name}.header" if "detached" in kind else None
        self.secret = None if kind == "raw" else (SECRET if name == "source" else OTHER)
        self.format = kind.split(maxsplit=1)[0]
        self.options: dict[str, Any] = {} if kind == "raw" else {"kdf": KDF}
        if kind == "luks2 512":
            self.options["sector_size"] = 512

    def fill(self, data: bytes) -> None:
        if self.kind == "raw":
            self.path.write_bytes(data)
            return
        with luks.format(
            self.path,
            SECRET,
            version=int(self.format[-1]),
            header=self.header,
            size=len(data),
            **self.options,
        ) as volume:
            volume.write(0, data)

    def read(self) -> bytes:
        if self.kind == "raw":
            return self.path.read_bytes()
        assert self.secret
        with luks.open(self.path, self.secret, header=self.header) as volume:
            assert volume.header.version == int(self.format[-1])
            return volume.read(0, volume.size)

    def volume_key(self) -> bytes:
        assert self.secret
        with FileDevice(self.header or self.path) as device:
            found = luks.unlock(device, luks.load_header(device), self.secret)
        with found.key as key:
            return bytes(key.view())


def convert(source: Place, target: Place, **more: Any) -> None:
    blobstore.convert(
        source.path,
        target.path,
        source.secret,
        target.secret,
        to=target.format,
        header=source.header,
        new_header=target.header,
        **(target.options | more),
    )


@pytest.mark.parametrize("after", KINDS)
@pytest.mark.parametrize("before", KINDS)
def test_every_kind_becomes_every_other(tmp_path: Path, before: str, after: str) -> None:
    source, target = Place(tmp_path, before, "source"), Place(tmp_path, after, "target")
    data = payload()
    source.fill(data)
    convert(source, target, jobs=3)
    assert target.read() == data
    if before != "raw" and after != "raw":
        assert source.volume_key() != target.volume_key()


def test_by_default_an_image_stays_what_it_is(tmp_path: Path) -> None:
    for kind in ("raw", "luks1", "luks2"):
        directory = tmp_path / kind
        directory.mkdir()
        source, target = Place(directory, kind, "source"), Place(directory, kind, "target")
        source.fill(payload(65536))
        blobstore.convert(source.path, target.path, source.secret, target.secret, **target.options)
        assert target.read() == payload(65536)


@pytest.mark.parametrize("size", [1, 511, 1000, 4096 + 512, (2 << 20) + 7])
def test_what_is_no_whole_sector_is_filled_up_with_zeros(tmp_path: Path, size: int) -> None:
    source, target = Place(tmp_path, "raw", "source"), Place(tmp_path, "luks2", "target")
    source.fill(b"\xff" * size)
    convert(source, target)
    assert target.read() == (b"\xff" * size).ljust(size + -size % 512, b"\0")


@pytest.mark.parametrize("jobs", [1, 2, 5])
def test_workers_and_progress(tmp_path: Path, jobs: int) -> None:
    source, target = Place(tmp_path, "luks1", "source"), Place(tmp_path, "raw", "target")
    source.fill(payload())
    calls: list[tuple[int, int]] = []
    convert(source, target, jobs=jobs, progress=lambda *call: calls.append(call))
    assert target.read() == payload()
    assert calls == sorted(calls)
    assert calls[-1] == (SIZE, SIZE)


def test_holes_are_kept_where_that_is_asked_for(tmp_path: Path) -> None:
    source = Place(tmp_path, "raw", "source")
    with source.path.open("wb") as file:
        file.truncate(64 << 20)
        file.seek(20 << 20)
        file.write(payload(5 << 20))  # with a MiB of zeros that is no hole
    data = source.path.read_bytes()
    full, sparse = Place(tmp_path, "raw", "full"), Place(tmp_path, "raw", "sparse")
    convert(source, full)
    convert(source, sparse, holes=True)
    assert full.read() == sparse.read() == data
    # A file system that had to split the file counts blocks of its own as well.
    assert 64 << 20 <= _allocated(full.path) < 65 << 20
    assert 4 << 20 <= _allocated(sparse.path) < 5 << 20

    encrypted = Place(tmp_path, "luks2", "encrypted")
    convert(source, encrypted, holes=True)
    assert encrypted.read() == data  # zeros are content, below encryption


def test_what_was_never_written_to_a_volume_stays_so(tmp_path: Path) -> None:
    source = Place(tmp_path, "luks2", "source")
    with luks.format(source.path, SECRET, size=64 << 20, kdf=KDF) as volume:
        volume.write(20 << 20, payload(5 << 20))
    for kind in ("luks1", "luks2", "raw"):
        target = Place(tmp_path, kind, f"sparse {kind}")
        convert(source, target, holes=True)
        assert _allocated(target.path) < 10 << 20
        found = target.read()
        assert found[20 << 20 : 25 << 20] == payload(5 << 20)
        if kind == "raw":
            assert not any(found[: 20 << 20])


def test_no_header_takes_the_place_of_what_is_read_or_made(tmp_path: Path) -> None:
    image, header, target = (tmp_path / name for name in ("image", "header", "target"))
    with blobstore.create(image, {"a": 100}, SECRET, header=header, kdf=KDF) as store:
        store.put("a", b"kept")
    (tmp_path / "linked").symlink_to(header)
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    options: dict[str, Any] = {"overwrite": True, "kdf": KDF}
    for new in (image, header, target, tmp_path / "linked", tmp_path / "x" / ".." / "target"):
        (tmp_path / "x").mkdir(exist_ok=True)
        with pytest.raises(ValueError, match="the image"):
            blobstore.convert(
                image, target, SECRET, OTHER, header=header, new_header=new, **options
            )
        with (
            blobstore.open(image, SECRET, header=header, read_only=True) as store,
            pytest.raises(ValueError, match="image"),
        ):
            blobstore.clone(store, target, OTHER, header=new, **options)
        (tmp_path / "x").rmdir()
    with pytest.raises(ValueError, match="its header"):
        blobstore.convert(image, header, SECRET, header=header, to="raw", overwrite=True)
    with pytest.raises(ValueError, match="its header"):
        blobstore.backup(image, header, SECRET, header=header, overwrite=True)
    with pytest.raises(ValueError, match="both the image and its LUKS header"):
        blobstore.create(target, {}, SECRET, header=target, kdf=KDF)
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before


@pytest.mark.parametrize(
    ("to", "error"),
    [
        ("luks2", KeyboardInterrupt("stop")),
        ("luks2-in-qcow2", KeyboardInterrupt("stop")),
        ("qcow2-luks", DeviceFullError("full")),
    ],
)
def test_interrupted_it_leaves_nothing(tmp_path: Path, to: str, error: BaseException) -> None:
    source, target = tmp_path / "source", tmp_path / "target"
    source.write_bytes(payload(5 << 20))
    with source.open("r+b") as file:
        file.truncate(200 << 20)

    def interrupt(done: int, total: int) -> None:
        assert done <= total
        raise error

    options: dict[str, Any] = {"to": to, "jobs": 2, "kdf": KDF}
    with pytest.raises(type(error), match=str(error)) as caught:
        blobstore.convert(source, target, None, OTHER, progress=interrupt, **options)
    assert caught.value is error
    assert list(tmp_path.iterdir()) == [source]
    assert [thread for thread in threading.enumerate() if "convert" in thread.name] == []
    blobstore.convert(source, target, None, OTHER, **options)


def test_a_failing_worker_ends_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source, target = Place(tmp_path, "raw", "source"), Place(tmp_path, "raw", "target")
    source.fill(payload())
    writes = FileDevice.write
    count = 0

    def fail_once(self: FileDevice, offset: int, data: Any, /) -> None:
        nonlocal count
        count += 1
        if count == 3:
            raise DeviceFullError("no space left")
        writes(self, offset, data)

    monkeypatch.setattr(FileDevice, "write", fail_once)
    with pytest.raises(DeviceFullError, match="no space left"):
        convert(source, target, jobs=2)
    assert list(tmp_path.iterdir()) == [source.path]


def test_into_an_image_that_exists(tmp_path: Path) -> None:
    source = Place(tmp_path, "raw", "source")
    data = payload(4 << 20)
    source.fill(data)
    target = Place(tmp_path, "luks1", "target")
    with luks.format(target.path, OTHER, version=1, size=6 << 20, kdf=KDF) as volume:
        volume.write(5 << 20, b"behind")
        header = volume.header
    blobstore.convert(source.path, target.path, None, OTHER, create=False)
    assert target.read()[: 4 << 20] == data
    assert target.read()[5 << 20 :][:6] == b"behind"
    assert luks.load_header(target.path) == header


@pytest.mark.parametrize("content", [b"\x01" * 8192, bytes(8192)])
def test_an_image_that_exists_must_be_large_enough(tmp_path: Path, content: bytes) -> None:
    source, target = Place(tmp_path, "raw", "source"), Place(tmp_path, "raw", "target")
    source.fill(payload(12288))
    target.path.write_bytes(content)
    with pytest.raises(DeviceFullError, match="8192 bytes; 12288"):
        blobstore.convert(source.path, target.path, create=False)
    assert target.path.read_bytes() == content


def test_nothing_is_replaced_by_accident(tmp_path: Path) -> None:
    source, target = Place(tmp_path, "raw", "source"), Place(tmp_path, "luks2", "target")
    source.fill(payload(65536))
    target.path.write_bytes(b"somebody's")
    with pytest.raises(ForeignImageError):
        convert(source, target)
    convert(source, target, overwrite=True)
    with pytest.raises(blobstore.ImageExistsError):
        convert(source, target)
    with pytest.raises(ValueError, match="the image itself"):
        blobstore.convert(source.path, source.path, overwrite=True)
    (tmp_path / "link").symlink_to(source.path)
    with pytest.raises(ValueError, match="the image itself"):
        blobstore.convert(source.path, tmp_path / "link", overwrite=True)
    assert source.read() == payload(65536)


def test_policy(tmp_path: Path) -> None:
    raw, encrypted = Place(tmp_path, "raw", "source"), Place(tmp_path, "luks2", "target")
    raw.fill(payload(65536))
    with pytest.raises(luks.PolicyError, match="not encrypted"):
        blobstore.convert(raw.path, encrypted.path, SECRET, OTHER, to="luks2", kdf=KDF)
    with pytest.raises(ValueError, match="needs a secret"):
        blobstore.convert(raw.path, encrypted.path, to="luks2", kdf=KDF)
    with pytest.raises(ValueError, match="no secret"):
        blobstore.convert(raw.path, encrypted.path, new_secret=OTHER, to="raw")
    with pytest.raises(ValueError, match="'qcow9' is not a kind of image"):
        blobstore.convert(raw.path, encrypted.path, to="qcow9")
    assert not encrypted.path.exists()
    convert(raw, encrypted)
    with pytest.raises(luks.SecretRequiredError):
        blobstore.convert(encrypted.path, tmp_path / "clear", to="raw")
    with FileDevice(encrypted.path, read_only=False), pytest.raises(DeviceBusyError):
        blobstore.convert(encrypted.path, tmp_path / "clear", OTHER, to="raw")
    # A disk that only looks like a volume is taken as it is.
    blobstore.convert(encrypted.path, tmp_path / "copy", to="raw", encrypted=False)
    assert (tmp_path / "copy").read_bytes() == encrypted.path.read_bytes()


# --------------------------------------------------------------------- stores


def make_store(place: Place) -> dict[str, bytes | str]:
    with blobstore.create(
        place.path,
        {"a": 9000, "unwritten": 100},
        place.secret,
        encrypted=place.secret is not None,
        header=place.header,
        **({"luks_version": int(place.format[-1])} | place.options if place.secret else {}),
    ) as store:
        store.put("a", b"old")
        store.put("a", b"new" * 1000)
        return contents(store)


@pytest.mark.parametrize("after", KINDS)
@pytest.mark.parametrize("before", KINDS)
def test_c80_a_store_is_one_everywhere(tmp_path: Path, before: str, after: str) -> None:
    source, target = Place(tmp_path, before, "source"), Place(tmp_path, after, "target")
    truth = make_store(source)
    convert(source, target)
    with blobstore.open(target.path, target.secret, header=target.header) as store:
        assert contents(store) == truth
        assert store.get("a", previous=True) == b"old"
        assert store.verify().ok
        store.put("a", b"newer")
    # Free space was not written, so that it takes none.
    assert _allocated(target.path) < 1 << 20 if target.header or not target.secret else 4 << 20


def test_c80_a_store_with_the_wrong_flag_is_set_right(tmp_path: Path) -> None:
    source = Place(tmp_path, "raw", "source")
    truth = make_store(source)
    wrong, right = tmp_path / "wrong", tmp_path / "right"
    blobstore.convert(source.path, wrong, None, OTHER, to="luks2", as_bytes=True, kdf=KDF)
    with pytest.raises(luks.PolicyError):
        blobstore.open(wrong, OTHER)
    with pytest.raises(luks.PolicyError):
        blobstore.convert(wrong, right, OTHER, OTHER, kdf=KDF)
    assert not right.exists()
    blobstore.convert(wrong, right, OTHER, OTHER, allow_unprotected=True, kdf=KDF)
    with blobstore.open(right, OTHER) as store:
        assert contents(store) == truth


def test_a_store_can_be_pinned(tmp_path: Path) -> None:
    source, target = Place(tmp_path, "raw", "source"), tmp_path / "target"
    make_store(source)
    with blobstore.open(source.path) as store:
        pin = store.digest()
    with pytest.raises(blobstore.PinMismatchError):
        blobstore.convert(source.path, target, at_least_generation=pin.generation + 1)
    blobstore.convert(source.path, target, expect_digest=pin)
    (tmp_path / "disk").write_bytes(payload(65536))
    with pytest.raises(ValueError, match="only a store has a digest"):
        blobstore.convert(tmp_path / "disk", tmp_path / "other", expect_digest=pin)


def _allocated(path: Path) -> int:
    return path.stat().st_blocks * 512
