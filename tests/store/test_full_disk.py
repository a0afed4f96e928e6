"""C51, C52, C57: a full disk costs the change that does not fit, and nothing else."""

from __future__ import annotations

import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

import blobstore
from blobstore.errors import PoisonedStoreError
from formats.devices.device import MemoryDevice
from formats.errors import DeviceFullError
from tests.store.on_full_disk import KINDS, SCENARIOS
from tests.support.stores import contents, image, open_store, spec

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from blobstore.store.store import Store
    from formats.devices.device import ReadableBuffer

#: A namespace of its own needs no rights, and ends with the process.
_IN_NAMESPACE = ("unshare", "--user", "--map-root-user", "--mount", "sh", "-c")
_MOUNT = 'mount -t tmpfs -o size=8m tmpfs "$1" && shift && exec "$@"'


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", SCENARIOS)
def test_on_a_full_disk(name: str, kind: str, tmp_path: Path) -> None:
    scenario = (sys.executable, "-m", "tests.store.on_full_disk", name, kind, str(tmp_path))
    done = subprocess.run(
        (*_IN_NAMESPACE, _MOUNT, "sh", str(tmp_path), *scenario),
        capture_output=True,
        text=True,
        check=False,
        timeout=100,
    )
    assert done.returncode == 0, done.stderr


class _FullDevice(MemoryDevice):
    """Has no space for writes from some byte on, and cannot say so before."""

    full_from = 1 << 60

    def write(self, offset: int, data: ReadableBuffer, /) -> None:
        if offset + len(data) > self.full_from:
            raise DeviceFullError("full")
        super().write(offset, data)


@pytest.mark.parametrize(
    "change",
    [
        lambda store: store.register("c", 3000),
        lambda store: store.resize("a", 3000),
        lambda store: store.register("c", 60_000),
        lambda store: store.compact(),
    ],
    ids=["create", "resize", "grow", "compact"],
)
def test_c51_a_write_to_free_space_that_fails_poisons_nothing(
    change: Callable[[Store], object],
) -> None:
    specs = [spec("a", 700, b"old a"), spec("gap", 700), spec("b", 100, b"old b")]
    device = _FullDevice(image(specs, free=20_000))
    store = open_store(device)
    store.delete("gap")
    device.full_from = len(device.content) - 15_000
    with pytest.raises(DeviceFullError):
        change(store)
    device.full_from = 1 << 60
    store.put("b", b"new b")
    assert contents(store) == {"a": b"old a", "b": b"new b"}
    change(store)
    store.close()
    store = open_store(device)
    assert store.verify().ok
    assert store.get("b") == b"new b"


def test_c51_a_put_that_fails_poisons() -> None:
    device = _FullDevice(image([spec("a", 700, b"old a")]))
    store = open_store(device)
    device.full_from = 0
    with pytest.raises(DeviceFullError):
        store.put("a", b"new a")
    device.full_from = 1 << 60
    with pytest.raises(PoisonedStoreError):
        store.put("a", b"new a")


@pytest.mark.parametrize("image_format", ["raw", "qcow2"])
def test_c57_c59_what_no_disk_holds_is_refused_before_anything_is_written(
    tmp_path: Path, image_format: str
) -> None:
    path = tmp_path / "image"
    huge = 1 << 42
    with pytest.raises(DeviceFullError):
        blobstore.create(path, {"a": huge}, encrypted=False, image_format=image_format)
    assert list(tmp_path.iterdir()) == []
    with blobstore.create(path, {"a": 9}, encrypted=False, image_format=image_format) as store:
        before = path.stat()
        with pytest.raises(DeviceFullError):
            store.register("b", huge)
        assert path.stat().st_blocks <= before.st_blocks + 1024
        assert path.stat().st_size <= before.st_size + (1 << 20)
        store.register("c", 9)
