"""Forged containers with damaged heads, missing records, and parts that contradict each other."""

from __future__ import annotations

from typing import Any

import pytest

from tests.reference.forge import Copy, Forged, Gap
from tests.reference.reader import (
    CORRUPT,
    IN_PLACE,
    LIVE,
    TOMBSTONE,
    UNWRITTEN,
    UNWRITTEN_STATE,
    VOID,
    Hidden,
    Reader,
)
from tests.reference.samples import (
    CORRUPT_STORE,
    FIRST,
    UNSUPPORTED,
    Expected,
    assert_is,
    copies,
    damage_elsewhere,
    sample,
    section_of,
)
from tests.reference.syntax import HEAD

with_or_without_damage = pytest.mark.parametrize("damaged", [False, True])


# --- What a damaged head hides (C43) -----------------------------------------------------------


@pytest.mark.parametrize("framed", [False, True])
@pytest.mark.parametrize("hidden", [0, 1])
def test_a_head_inside_a_blob(hidden: int, framed: bool) -> None:
    """Only where nothing tells the length of a hidden item is its interior looked into."""
    forged = Forged()
    forged.section("a", 1000, b"first")
    forged.items.append(Gap(700))
    record = forged.records[hidden]
    interior = 2 * 512 + hidden * record.length(512) + HEAD
    inner = Copy(b"inner".ljust(16), "inner", 0, copies=1)
    record.blob = inner.encode(forged.keys, interior, 512)
    forged.attest()
    content = forged.encode()
    assert_is(content, {"a": record.blob if hidden == 0 else b"first"})
    start = interior - HEAD
    kept = 4 if framed else 0  # tag and length
    content = content[: start + kept] + bytes(HEAD - kept) + content[interior:]
    # (a) by its framing, (b) by the copy before it, (c) up to the next sound head.
    found: Expected = {"a": CORRUPT}
    if not framed and not hidden:
        found["inner"] = b""
    assert_is(content, found)


def hidden_lengths(forged: Forged, *lost: int, kept: int = 0) -> list[int]:
    """Lose the heads of these items but for so many bytes; return what they hide in blocks."""
    content = bytearray(forged.encode())
    at = 2 * forged.block
    for index, item in enumerate(forged.items):
        if index in lost:
            content[at + kept : at + HEAD] = bytes(HEAD - kept)
        at += item.length(forged.block)
    found = Reader(bytes(content))
    assert_is(bytes(content), found.blobs)
    return [item.length // forged.block for item in found.items if isinstance(item, Hidden)]


def test_the_length_of_what_is_hidden() -> None:
    forged = Forged(items=[Gap(2000)])
    forged.section("a", 1400, b"first")
    forged.items.append(Gap(512))
    forged.section("single", 600, b"alone", copies=1)
    forged.items.append(Gap(1024))
    forged.attest()
    assert [item.length(512) // 512 for item in forged.items] == [4, 4, 4, 1, 3, 2]
    for kept in (0, 4):
        for lost in range(6):
            (length,) = hidden_lengths(forged, lost, kept=kept)
            assert length == forged.items[lost].length(512) // 512
        assert hidden_lengths(forged, 1, 3, kept=kept) == [4, 1]
    # (a) requires a sound head after the item, so two in a row are found together
    assert hidden_lengths(forged, 0, 1) == [8]
    assert hidden_lengths(forged, 0, 1, kept=4) == [8]
    assert hidden_lengths(forged, 3, 4, 5, kept=4) == [6]
    # (b) goes before (c), and takes what does not belong to it
    assert hidden_lengths(forged, 2, 3) == [4, 1]
    assert hidden_lengths(forged, 2, 3, kept=4) == [4, 1]


def test_the_length_of_a_second_copy_is_bounded() -> None:
    """C43 (b): it is not longer than the rest, even if sound heads are in it."""
    forged = Forged()
    forged.section("a", 1400, b"first")
    forged.items[1:] = [Gap(512), Gap(512), Gap(512)]
    assert hidden_lengths(forged, 1) == [3]
    forged.items[1:] = [Gap(512), Gap(512), Gap(2000)]
    assert hidden_lengths(forged, 1) == [4, 2]


@pytest.mark.parametrize("tag", [0x73, 0xA0, 0xA1, 0xA2, 0xA3, 0x30])
@pytest.mark.parametrize("length", [b"\x82\x0d\xfc", b"\x83\x00\x0d\xfb", b"\x82\x0d\xfd"])
def test_framing(tag: int, length: bytes) -> None:
    """C43 (a): the tag of a record or a free item, minimal, and a whole number of blocks."""
    forged = Forged(items=[Gap(3584), Gap(700)])
    forged.section("a", 0, b"")
    forged.items[1:1] = [Copy(b"inner".ljust(16), "inner", 0, copies=1)]
    forged.attest()
    content = forged.encode()
    assert content[1024:1028] == b"\xa2\x82\x0d\xfc"
    inner = Copy(b"inside".ljust(16), "inside", 0, copies=1).encode(forged.keys, 2048, 512)
    content = content[:2048] + inner + content[2560:]
    head = (bytes([tag]) + length).ljust(HEAD, b"\0")
    framed = tag in (0xA1, 0xA2) and length == b"\x82\x0d\xfc"
    expected: Expected = {"a": b"", "inner": b""}
    if not framed:
        expected["inside"] = b""
    assert_is(content[:1024] + head + content[1024 + HEAD :], expected)


# --- Records that are not sound though their check is right (C8, C11, C21) ---------------------


@pytest.mark.parametrize(
    "fields",
    [
        {"state": IN_PLACE, "generation": 1},
        {"state": LIVE, "generation": 0},
        {"state": UNWRITTEN_STATE, "generation": 1, "size": 1},
        {"state": TOMBSTONE, "generation": 1, "crc32": b"crc?"},
        {"size": 601},
        {"copies": 1},
        {"name": ""},
        {"name": "ü" * 101},
        {"name": "tab\t"},
        {"type": "x" * 33},
        {"type": "\x85"},
        {"kind": 128},
        {"state": 255},
        {"kind": 2, "name": ""},
    ],
)
def test_rules_that_are_seen_in_a_head(fields: dict[str, Any]) -> None:
    """C11: in an older copy, too."""
    forged = sample()
    for name, value in fields.items():
        setattr(copies(forged, "a")[1], name, value)
    assert_is(forged, FIRST | {"a": CORRUPT})


@pytest.mark.parametrize("fields", [{"kind": 2}, {"state": 5}, {"kind": 127}, {"state": 127}])
@pytest.mark.parametrize("newest", [0, 1])
def test_what_only_later_versions_know(newest: int, fields: dict[str, int]) -> None:
    """C15."""
    forged = sample()
    record = copies(forged, "a")[newest]
    for name, value in fields.items():
        setattr(record, name, value)
    assert_is(forged, UNSUPPORTED)
    damage_elsewhere(forged)
    assert_is(forged, UNSUPPORTED)
    record.damaged = True
    expected = FIRST | {"a": CORRUPT, "never": CORRUPT}
    assert_is(forged, expected)


# --- Extents (C12, C47) ------------------------------------------------------------------------


@with_or_without_damage
@pytest.mark.parametrize("index", [0, 1])
def test_a_record_that_is_missing(index: int, *, damaged: bool) -> None:
    """C47: no crash can do that. Beside a damaged head it may have lain there."""
    forged = sample()
    forged.items.remove(copies(forged, "a")[index])
    if damaged:
        assert_is(forged, FIRST | {"a": CORRUPT} | damage_elsewhere(forged))
    else:
        assert_is(forged, CORRUPT_STORE)


@with_or_without_damage
def test_a_record_of_a_void_extent_is_missing(*, damaged: bool) -> None:
    """C47: of any extent, also one that is left over: the missing one may be the newest."""
    for index in (0, 1):
        forged = sample()
        void = forged.allot("a", 1200, section_of(forged, "a"))
        if damaged:
            void[index].damaged = True
            assert_is(forged, FIRST | {"a": CORRUPT})
        else:
            forged.items.remove(void[index])
            assert_is(forged, CORRUPT_STORE)
        forged = sample()
        void = forged.allot("new", 10)
        if damaged:
            void[index].damaged = True
            assert_is(forged, FIRST | {"new": CORRUPT})
        else:
            forged.items.remove(void[index])
            assert_is(forged, CORRUPT_STORE)


def test_two_extents_of_one_void_record_each() -> None:
    """C47: neither counts, so none counts highest."""
    forged = sample()
    for maximum in (10, 20):
        forged.allot("new", maximum)[0].damaged = True
    assert_is(forged, FIRST | {"new": CORRUPT})


def test_two_newest_extents_of_which_one_is_incomplete() -> None:
    """C47: where a record is missing, the section is corrupt before the store is."""
    forged = sample()
    extent = forged.allot("a", 1200, section_of(forged, "a"))
    extent[0].state, extent[0].generation = LIVE, 1
    extent[1].damaged = True
    assert_is(forged, FIRST | {"a": CORRUPT})


def test_copies_in_the_wrong_order() -> None:
    """C47: they are not an extent."""
    forged = sample()
    newest, older = copies(forged, "a")
    newest.copy, older.copy = 1, 0
    forged.attest()
    assert_is(forged, CORRUPT_STORE)
    forged.items[:2] = older, newest
    assert_is(forged, FIRST)
    forged.items[:2] = newest, older
    assert_is(forged, FIRST | {"a": CORRUPT} | damage_elsewhere(forged))


def test_of_copies_that_count_equally_copy_0_is_the_newest() -> None:
    """C42: no writer leaves two such, and every reader answers alike."""
    forged = sample()
    newest, older = copies(forged, "a")
    older.state, older.generation, older.members = LIVE, newest.generation, newest.members
    older.blob = b"other"
    forged.attest()
    assert_is(forged, FIRST)


@with_or_without_damage
@pytest.mark.parametrize(
    "fields", [{"type": "x"}, {"maximum": 601}, {"kind": 1}, {"maximum": 5000}, {"copies": 1}]
)
def test_two_records_that_disagree(fields: dict[str, Any], *, damaged: bool) -> None:
    """C12; if the lengths differ they are not an extent (C47)."""
    forged = sample()
    newest, _ = copies(forged, "a")
    for name, value in fields.items():
        setattr(newest, name, value)
    forged.attest()
    more = damage_elsewhere(forged) if damaged else {}
    if damaged and fields.get("maximum") == 5000:
        assert_is(forged, FIRST | {"a": CORRUPT} | more)
    else:
        assert_is(forged, CORRUPT_STORE)


def test_records_that_are_not_adjacent() -> None:
    """The last record lies its own length after the first, but another lies between them."""
    forged = Forged(block=1024, items=[Gap(1024, damaged=True)])
    forged.section("a", 101, b"first")
    forged.items.append(Copy(section_of(forged, "a"), "a", 700, state=VOID, generation=0, copy=1))
    assert_is(forged, {"a": CORRUPT})


# --- Names (C13) -------------------------------------------------------------------------------


@with_or_without_damage
def test_two_sections_of_one_name(*, damaged: bool) -> None:
    forged = sample()
    copies(forged, "b")[0].name = "a"
    forged.attest()
    if damaged:
        damage_elsewhere(forged)
    assert_is(forged, CORRUPT_STORE)


@pytest.mark.parametrize(("giver", "taker"), [("a", "b"), ("b", "a")])
@pytest.mark.parametrize("state", [LIVE, UNWRITTEN_STATE, TOMBSTONE])
def test_a_name_that_was_given_away(state: int, giver: str, taker: str) -> None:
    """C13: the lost record may have had another one, or was a tombstone.

    Wherever it lies: before the section that has the name now, or after it.
    """
    forged = sample()
    copies(forged, giver)[1].state = VOID
    (record,) = forged.commit(**{giver: {"state": state, "name": "other", "blob": b""}})
    forged.commit(**{taker: {"name": giver}})
    forged.close()
    expected = dict(FIRST)
    expected[giver] = expected.pop(taker)
    if state != TOMBSTONE:
        expected["other"] = b"" if state == LIVE else UNWRITTEN
    assert_is(forged, expected)
    record.damaged = True
    expected.pop("other", None)
    assert_is(forged, expected)


def test_a_corrupt_blob_keeps_its_name() -> None:
    """C13: without a damaged head nothing gives way."""
    forged = sample()
    copies(forged, "b")[0].name = "a"
    copies(forged, "a")[0].stored = b"other"
    forged.attest()
    assert_is(forged, CORRUPT_STORE)
