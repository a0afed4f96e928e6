"""Where extents go in free space (C52), and what the digests of a store keep in mind (C24)."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from blobstore.container.authentication import _RECENT, Authenticator
from blobstore.container.extents import take_extents
from blobstore.container.open_container import open_container
from blobstore.errors import NoSpaceError
from formats.container.model import Identity, Kind, State
from formats.devices.device import MemoryDevice
from formats.errors import DeviceFullError
from tests.support.devices import RecordingDevice
from tests.support.stores import image, open_store, spec

if TYPE_CHECKING:
    from collections.abc import Iterator


def with_gaps(*lengths: int) -> RecordingDevice:
    """Return a store that cannot grow; free are one block at the end, and pieces like these."""
    specs = []
    for number, length in enumerate(lengths):
        specs.append(spec(f"gap {number}", length - 512, copies=1))
        specs.append(spec(f"between {number}", 100, copies=1))
    device = MemoryDevice(image(specs, free=512))
    with open_store(device) as store:
        for number in range(len(lengths)):
            store.delete(f"gap {number}")
    free = open_container(device).directory.free
    assert sorted(item.length for item in free.values()) == sorted([512, *lengths])
    return RecordingDevice(device.content)


def test_c52_the_longest_extent_is_placed_first() -> None:
    """In another order the short one takes the piece that only a long one fits."""
    device = with_gaps(4608, 5632)
    with open_store(device) as store, store.transaction() as changes:
        changes.register("short", 512, copies=1)
        changes.register("long", 3584, copies=1)
        changes.register("also long", 3584, copies=1)
        changes.put("short", b"placed")
    assert open_store(device, read_only=True).get("short") == b"placed"


def test_c52_an_extent_goes_where_the_least_is_left() -> None:
    device = with_gaps(8192, 2048, 4096)
    with open_store(device) as store:
        store.register("new", 512, copies=1)
    free = open_container(device).directory.free
    assert sorted(item.length for item in free.values()) == [512, 1024, 4096, 8192]


def identity(length: int, name: str = "new") -> Identity:
    """Return what makes an extent of so many bytes, with one copy."""
    return Identity(b"section id of 16", 0, 1, Kind.BLOB, length - 512, "", name)


@pytest.mark.parametrize(("gaps", "usable"), [((2048, 4096), 3584), ((), 0)])
def test_c52_who_finds_no_room_is_told_how_much_there_is(
    gaps: tuple[int, ...], usable: int
) -> None:
    container = open_container(with_gaps(*gaps))
    with pytest.raises(NoSpaceError, match=rf"needs 10240 bytes .* piece has {usable}\b"):
        take_extents(container, [identity(10240)])


class Sparse(RecordingDevice):
    """Has space for some ranges only, and finds it for others, or does not."""

    def __init__(self, content: bytes, backed: list[tuple[int, int]], full: set[int]) -> None:
        super().__init__(content)
        self.backed, self.full = backed, full
        self.reserved: list[tuple[int, int]] = []

    def backed_ranges(self, offset: int, size: int) -> Iterator[tuple[int, int]]:
        for start, length in self.backed:
            low, high = max(start, offset), min(start + length, offset + size)
            if low < high:
                yield low, high - low

    def reserve(self, offset: int, size: int, /) -> None:
        if offset in self.full:
            raise DeviceFullError("no space left")
        self.reserved.append((offset, size))


def sparse(
    backed: list[tuple[int, int]] | None, full: tuple[int, ...] = ()
) -> tuple[Sparse, list[int]]:
    """Return a device with free pieces of 4096 and 8192 bytes, and where those begin.

    Args:
        backed: What of the pieces has space: offset in the second one, and length.
        full: Offsets in the first piece, then in the second, that find no space.
    """
    content = with_gaps(4096, 8192).content
    free = open_container(MemoryDevice(content)).directory.free
    pieces = sorted((item.length, offset) for offset, item in free.items())[1:]
    starts = [offset for _, offset in pieces]
    return (
        Sparse(
            content,
            [(starts[1] + start, length) for start, length in backed or []],
            {start + offset for start, offset in zip(starts, full, strict=False)},
        ),
        starts,
    )


def taken(device: Sparse, length: int) -> tuple[int, dict[int, int]]:
    """Return where an extent goes, and the lengths of what is free then."""
    container = open_container(device)
    (extent,) = take_extents(container, [identity(length)])
    found = open_container(MemoryDevice(device.content)).directory
    assert [left.place for left in found.left_over] == [extent.place]
    return extent.place[0], {offset: item.length for offset, item in found.free.items()}


def test_c57_what_has_space_comes_before_what_has_the_least_left() -> None:
    device, (first, second) = sparse([(6144, 2048)])
    place, free = taken(device, 2048)
    assert place == second + 6144
    assert (free[first], free[second]) == (4096, 6144)
    assert device.reserved == []


@pytest.mark.parametrize("size", [2560, 2600])
def test_c57_an_extent_goes_into_the_middle_of_a_piece_if_there_is_space(size: int) -> None:
    """With a block after it that has space too, for the head of what is left."""
    device, (first, second) = sparse([(2048, size)])
    place, free = taken(device, 2048)
    assert place == second + 2048
    assert (free[second], free[second + 4096]) == (2048, 4096)
    assert free[first] == 4096
    assert device.reserved == []


@pytest.mark.parametrize("backed", [[(2048, 2048)], [(0, 2048 + 511)], [(2049, 2600)]])
def test_c57_too_little_space_in_the_middle_of_a_piece_is_not_used(
    backed: list[tuple[int, int]],
) -> None:
    device, (first, second) = sparse(backed)
    place, free = taken(device, 2048)
    assert place == first + 2048
    assert free[second] == 8192
    assert device.reserved == [(place, 2048)]


def test_c57_where_one_piece_finds_no_space_the_next_one_is_asked() -> None:
    device, (first, second) = sparse(None, full=(2048,))
    place, free = taken(device, 2048)
    assert place == second + 6144
    assert free[first] == 4096
    assert device.reserved == [(place, 2048)]


def test_c57_without_any_space_nothing_is_written() -> None:
    device, _ = sparse(None, full=(2048, 6144))
    container = open_container(device)
    with pytest.raises(DeviceFullError, match=r"'new' needs 2048 bytes, .*: no space left"):
        take_extents(container, [identity(2048)])
    assert device.log == []


def test_c57_only_the_piece_that_was_asked_for_is_used() -> None:
    device, (_, second) = sparse(None)
    container = open_container(device)
    (extent,) = take_extents(container, [identity(2048)], within=second)
    assert extent.place == (second + 6144, 2048)


def test_c24_a_tombstone_adds_nothing_to_the_state() -> None:
    container = open_container(MemoryDevice(image([spec("a", 100, b"a")])))
    copy = container.directory.sections["a"].newest
    gone = replace(copy, version=copy.version._replace(state=State.TOMBSTONE))
    assert container.authenticator.member_of(copy) == container.directory.state
    assert container.authenticator.member_of(gone) == 0
    assert container.authenticator.member_of(None) == 0


def test_c24_numbers_of_sections_are_kept_for_a_while_only() -> None:
    container = open_container(MemoryDevice(image()))
    authenticator = Authenticator.of(container.header)
    for _ in range(2):
        for number in range(3 * _RECENT):
            meta = b"%d" % number
            anew = Authenticator.of(container.header).member(meta, bytes(32))
            assert authenticator.member(meta, bytes(32)) == anew
            assert len(authenticator._recent) <= _RECENT
