"""A lost refcount table and incomplete snapshot entries, beside qemu-img. Q30, Q31."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING

import pytest

from formats.devices.device import MemoryDevice
from formats.errors import CorruptImageError, FormatError
from formats.qcow2 import features
from formats.qcow2.check import check
from formats.qcow2.creation import Qcow2Options
from formats.qcow2.header import is_refcount_table_lost, read_header
from formats.qcow2.opening import open_image
from formats.qcow2.repair import repair
from formats.qcow2.snapshots import (
    apply_snapshot,
    create_snapshot,
    delete_snapshot,
    list_snapshots,
)
from tests.qcow2.support import assert_clean, assert_same, content, new_image, qemu_check, qemu_img

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

SIZE = 1 << 20
DATA = random.Random(1).randbytes(300 << 10)
NOW = DATA.ljust(SIZE, b"\0")
#: Places in the header: offset and clusters of the refcount table.
TABLE_AT, CLUSTERS_AT = 48, 56
FAR = 1 << 40
SMALL = Qcow2Options(cluster_size=4096)
OLD = Qcow2Options(version=2, cluster_size=4096)


def image_with_snapshot(options: Qcow2Options = SMALL) -> MemoryDevice:
    image = new_image(SIZE, options)
    with open_image(image, read_only=False) as disk:
        disk.write(0, DATA[:8192])
    create_snapshot(image, "a")
    with open_image(image, read_only=False) as disk:
        disk.write(0, DATA)
    return image


def without_table(image: MemoryDevice) -> None:
    image.write(CLUSTERS_AT, bytes(4))


def table_far_away(image: MemoryDevice) -> None:
    image.write(TABLE_AT, FAR.to_bytes(8))


def table_at_end(image: MemoryDevice) -> None:
    """As if the file had been cut off before the table."""
    image.resize(image.size + -image.size % 4096)
    image.write(TABLE_AT, image.size.to_bytes(8))


def table_at_zero(image: MemoryDevice) -> None:
    image.write(TABLE_AT, bytes(8))


LOSSES = [without_table, table_far_away, table_at_end, table_at_zero]


@pytest.mark.parametrize("options", [SMALL, OLD, Qcow2Options()], ids=["small", "old", "usual"])
@pytest.mark.parametrize("lose", LOSSES)
def test_q30_without_its_refcount_table_an_image_is_read_and_not_written(
    lose: Callable[[MemoryDevice], None], options: Qcow2Options
) -> None:
    image = image_with_snapshot(options)
    lose(image)
    assert is_refcount_table_lost(read_header(image), image.size)
    before = bytes(image.content)
    assert content(image) == NOW
    with open_image(image, snapshot="a") as disk:
        assert disk.read(0, SIZE) == DATA[:8192].ljust(SIZE, b"\0")
    assert [snapshot.name for snapshot in list_snapshots(image)] == ["a"]
    for change in (
        lambda: open_image(image, read_only=False),
        lambda: create_snapshot(image, "b"),
        lambda: apply_snapshot(image, "a"),
        lambda: delete_snapshot(image, "a"),
    ):
        with pytest.raises(CorruptImageError, match="lost its refcount table") as caught:
            change()
        assert "--repair all" in (caught.value.hint or "")
    assert not check(image).ok
    assert not repair(image, leaks_only=True).ok
    assert image.content == before


@pytest.mark.interop
@pytest.mark.parametrize("options", [SMALL, OLD, Qcow2Options()], ids=["small", "old", "usual"])
@pytest.mark.parametrize("lose", LOSSES)
def test_q30_a_repair_makes_a_refcount_table_that_qemu_accepts(
    lose: Callable[[MemoryDevice], None], options: Qcow2Options, tmp_path: Path
) -> None:
    path = tmp_path / "image"
    image = image_with_snapshot(options)
    lose(image)
    path.write_bytes(image.content)
    if lose is not without_table:  # that QEMU only checks and repairs
        assert_same(path, NOW)
    found = check(image)
    if lose is not table_at_zero:  # QEMU takes the header for the table then
        theirs = qemu_check(path)
        assert (found.corruptions, found.leaks) == (theirs["corruptions"], theirs.get("leaks", 0))
    after = repair(image, leaks_only=False)
    if lose is table_at_end and options.version == 2:
        assert not after.ok
        assert "counts of clusters was cut off" in after.findings[0]
        return
    assert (after.ok, after.corruptions_fixed) == (True, found.corruptions)
    path.write_bytes(image.content)
    assert_clean(path)
    assert_same(path, NOW)
    with open_image(image, read_only=False) as disk:
        disk.write(SIZE - 4096, b"x" * 4096)
    assert check(image).ok


@pytest.mark.parametrize("lose", LOSSES)
def test_q30_a_crash_while_the_table_is_made_anew(lose: Callable[[MemoryDevice], None]) -> None:
    """In each state the image is whole, or nothing writes to it; its content is as it was."""
    image = image_with_snapshot()
    lose(image)
    states: list[bytes] = []

    class Recorder(MemoryDevice):
        def write(self, offset: int, data: bytes | bytearray | memoryview, /) -> None:
            super().write(offset, data)
            states.append(bytes(self.content))

        def resize(self, size: int, /) -> None:
            super().resize(size)
            states.append(bytes(self.content))

    assert repair(Recorder(image.content), leaks_only=False).ok
    assert len(states) > 3
    for state in states:
        crashed = MemoryDevice(state)
        header = read_header(crashed)
        refused = bool(header.incompatible & features.CORRUPT)
        refused = refused or is_refcount_table_lost(header, crashed.size)
        assert refused or check(crashed).ok
        assert content(crashed) == NOW
        again = repair(crashed, leaks_only=False)
        assert again.ok, again.findings
        assert content(crashed) == NOW


def test_q30_an_image_whose_table_is_cut_off_is_not_written() -> None:
    image = image_with_snapshot()
    table_at_end(image)
    image.resize(image.size + 100)
    with pytest.raises(CorruptImageError, match="lost its refcount table"):
        open_image(image, read_only=False)
    assert any("refcount table is cut off" in text for text in check(image).findings)
    assert repair(image, leaks_only=False).ok
    assert content(image) == NOW


def test_q3_an_unaligned_table_is_refused() -> None:
    """As QEMU refuses it."""
    image = new_image(SIZE, SMALL)
    image.write(TABLE_AT, (4096 + 512).to_bytes(8))
    with pytest.raises(FormatError, match="cluster boundary"):
        open_image(image)


def with_extra(image: MemoryDevice, size: int) -> None:
    """Cut the extra data of the only snapshot to ``size`` bytes."""
    at = read_header(image).snapshots_offset
    entry = bytearray(image.read(at, 40))
    (kept,) = list_snapshots(image)
    entry[36:40] = size.to_bytes(4)
    entry += kept.extra[:size] + kept.id.encode() + kept.name.encode()
    image.write(at, bytes(entry).ljust(40 + 24 + 8, b"\0"))


@pytest.mark.interop
@pytest.mark.parametrize("options", [SMALL, OLD, Qcow2Options()], ids=["small", "old", "usual"])
@pytest.mark.parametrize("size", [0, 8])
def test_q31_entries_of_snapshots_are_completed(
    size: int, options: Qcow2Options, tmp_path: Path
) -> None:
    path = tmp_path / "image"
    image = image_with_snapshot(options)
    with_extra(image, size)
    path.write_bytes(image.content)
    assert len(list_snapshots(image)[0].extra) == size
    with open_image(image, snapshot="a") as disk:
        assert disk.read(0, 8192) == DATA[:8192]
    found, theirs = check(image), qemu_check(path)
    expected = theirs.get("corruptions", 0), theirs.get("leaks", 0)
    assert (found.corruptions, found.leaks) == expected == (int(options.version == 3), 0)
    after = repair(image, leaks_only=False)
    assert (after.ok, after.corruptions_fixed) == (True, found.corruptions)
    (snapshot,) = list_snapshots(image)
    assert snapshot.disk_size == (SIZE if options.version == 3 else None)
    assert len(snapshot.extra) == (24 if options.version == 3 else size)
    path.write_bytes(image.content)
    assert_clean(path)
    assert_same(path, NOW)
    qemu_img("snapshot", "-a", "a", path)
    assert content(MemoryDevice(path.read_bytes())) == DATA[:8192].ljust(SIZE, b"\0")
