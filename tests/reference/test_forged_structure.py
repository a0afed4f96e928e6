"""Sections that are made, moved and deleted, forged step by step: void and left over extents."""

from __future__ import annotations

import itertools

import pytest

from tests.reference.forge import Copy, Forged, Gap
from tests.reference.reader import (
    CORRUPT,
    LIVE,
    TOMBSTONE,
    UNWRITTEN,
    UNWRITTEN_STATE,
    VOID,
)
from tests.reference.samples import (
    CORRUPT_STORE,
    FIRST,
    Changes,
    Expected,
    assert_is,
    attest_what_is_found,
    copies,
    damage_elsewhere,
    land,
    sample,
    section_of,
)
from tests.reference.syntax import HEAD, is_valid_der
from tests.support.stores import open_store

WITHOUT_A = {name: blob for name, blob in FIRST.items() if name != "a"}


def void_heads(records: list[Copy]) -> None:
    """C56, 1."""
    for record in records:
        if record.state != TOMBSTONE:
            record.state, record.generation = VOID, 0


# --- Right ones --------------------------------------------------------------------------------


@pytest.mark.parametrize("copies_", [1, 2])
def test_create(copies_: int) -> None:
    """C52; a void extent is not a section, and an uncommitted one does not exist."""
    forged = sample()
    forged.allot("new", 700, copies=copies_)
    assert is_valid_der(forged.encode())
    assert_is(forged, FIRST)
    before = list(forged.items)
    forged.commit(new={"state": UNWRITTEN_STATE})
    assert_is(forged, FIRST | {"new": UNWRITTEN})
    forged.close()
    assert_is(forged, FIRST | {"new": UNWRITTEN})
    forged.items, after = before, forged.items
    assert_is(forged, CORRUPT_STORE)  # set back: D has another root
    forged.items = after
    assert_is(forged, FIRST | {"new": UNWRITTEN})
    forged.commit(new={"blob": b"blob" * 100})
    assert_is(forged, FIRST | {"new": b"blob" * 100})


@pytest.mark.parametrize("damaged", [False, True])
def test_create_inside_a_transaction(damaged: bool) -> None:
    """C44: one that is `unwritten`, in a new extent, is a member as any other."""
    changes: Changes = {"a": {"blob": b"second"}, "new": {"state": UNWRITTEN_STATE}}
    for landed in itertools.product(("whole", "torn", "not"), repeat=2):
        forged = sample()
        forged.allot("new", 100)
        land(forged, changes, landed)
        complete = landed[0] == "whole" and landed[1] != "not"  # `unwritten` has nothing to tear
        expected = FIRST | ({"a": b"second", "new": UNWRITTEN} if complete else {})
        if damaged:
            expected |= damage_elsewhere(forged)
            if not complete:
                names = zip(changes, landed, strict=True)
                expected |= {name: CORRUPT for name, how in names if how != "not"}
        assert_is(forged, expected)


def test_everything_in_one_commit() -> None:
    """C31, C32, C52 to C55: created, moved, renamed, deleted, also of one copy."""
    changes: Changes = {
        "a": {"blob": b"longer" * 200},
        "b": {"state": TOMBSTONE},
        "single": {"name": "renamed"},
        "new": {"state": UNWRITTEN_STATE},
        "window": {"name": "b"},
    }
    expected: Expected = {
        "a": b"longer" * 200,
        "renamed": b"alone",
        "new": UNWRITTEN,
        "b": b"01234",
        "never": UNWRITTEN,
    }
    for lost in (None, *changes):
        forged = sample()
        forged.allot("a", 1200, section_of(forged, "a"))
        forged.allot("single", 400, section_of(forged, "single"), copies=1)
        forged.allot("new", 10, copies=1)
        assert_is(forged, FIRST)
        landed = tuple("not" if name == lost else "whole" for name in changes)
        land(forged, changes, landed)
        assert_is(forged, FIRST if lost else expected)
        if not lost:
            forged.close()
            assert_is(forged, expected)


@pytest.mark.parametrize("in_front", [False, True])
@pytest.mark.parametrize("landed", ["whole", "torn", "not"])
def test_resize(landed: str, in_front: bool) -> None:
    """C55, C46, C47, C56: through all of its states."""
    forged = sample()
    if in_front:
        forged.items.insert(0, Gap(6000, 1, forged.root()))
    section = section_of(forged, "a")
    forged.allot("a", 1200, section)
    assert_is(forged, FIRST)
    land(forged, {"a": {"blob": b"first" if landed == "torn" else b"second"}}, (landed,))
    expected = FIRST | ({"a": b"second"} if landed == "whole" else {})
    assert_is(forged, expected)
    if landed == "torn":
        (orphan,) = (record for record in forged.records if record.generation == 2)
        orphan.state = VOID  # C60, 2
        assert_is(forged, expected)
    forged.close()
    assert_is(forged, expected)
    extents = forged.extents(section)
    extents.sort(key=lambda extent: extent[0].maximum == 1200)
    over = extents[landed != "whole"]
    kept = [record.state for record in over]
    for voided in range(3):  # C56, 1: the heads reach the medium in any order
        for record, state in zip(over, kept, strict=True):
            record.state = state
        void_heads(over[:voided] if in_front else over[2 - voided :])
        assert_is(forged, expected)
    forged.release(over)
    assert is_valid_der(forged.encode())
    assert_is(forged, expected)
    forged.commit(a={"blob": b"third"})
    assert_is(forged, expected | {"a": b"third"})


def test_delete() -> None:
    """C53, C47: a tombstone leaves its extent over, until a free item takes the place."""
    forged = sample()
    (tombstone,) = forged.commit(a={"state": TOMBSTONE})
    assert_is(forged, WITHOUT_A)
    forged.close()
    assert_is(forged, WITHOUT_A)
    (extent,) = forged.extents(tombstone.section)
    void_heads(extent)
    assert_is(forged, WITHOUT_A)
    forged.release(extent)
    assert len(forged.items) == len(sample().items) - 2
    assert_is(forged, WITHOUT_A)
    forged.create("a", 50)
    assert_is(forged, FIRST | {"a": UNWRITTEN})


def test_delete_before_the_name_is_used_again() -> None:
    """C13, C47: what is deleted has no name any more."""
    forged = sample()
    forged.commit(a={"state": TOMBSTONE}, b={"name": "a"})
    expected = WITHOUT_A | {"a": b""}
    del expected["b"]
    assert_is(forged, expected)


def test_delete_one_copy() -> None:
    """C53: into the only one."""
    forged = sample()
    (record,) = forged.commit(single={"state": TOMBSTONE})
    assert len(forged.extents(record.section)) == 1
    expected = {name: blob for name, blob in FIRST.items() if name != "single"}
    assert_is(forged, expected)
    forged.close()
    assert_is(forged, expected)
    forged.release([record])
    assert_is(forged, expected)
    forged = sample()
    (record,) = forged.commit(single={"state": TOMBSTONE})
    record.wrong_mac = True
    assert_is(forged, expected)  # its only copy may have had any name


# --- One copy (C44, the exception) -------------------------------------------------------------


def test_one_copy_torn() -> None:
    for damaged in (False, True):
        forged = sample()
        land(forged, {"single": {"blob": b"again"}}, ("torn",))
        expected = FIRST | {"single": CORRUPT} | (damage_elsewhere(forged) if damaged else {})
        assert_is(forged, expected)
        forged.close()
        assert_is(forged, expected)


@pytest.mark.parametrize("old_state", [LIVE, UNWRITTEN_STATE, TOMBSTONE, VOID])
@pytest.mark.parametrize("damaged", [False, True])
def test_one_copy_torn_in_a_new_extent(old_state: int, damaged: bool) -> None:
    """Where what it replaces is still there it is an orphan; otherwise it has overwritten that."""
    forged = sample()
    section = section_of(forged, "single")
    old = forged.newest(section)
    forged.allot("single", 900, section, copies=1)
    (new,) = forged.commit(single={"blob": b"moved"})
    assert_is(forged, FIRST | {"single": b"moved"})
    new.stored, old.state = b"", old_state
    if old_state == VOID:
        old.generation = 0
    attest_what_is_found(forged)
    more = damage_elsewhere(forged) if damaged else {}
    expected = FIRST | {"single": b"alone"} | more
    if damaged or old_state != LIVE:
        expected["single"] = CORRUPT
    assert_is(forged, expected)


def test_one_copy_torn_beside_a_void_extent() -> None:
    """An interrupted move that was not released; and a void record of the same commit."""
    forged = sample()
    written = forged.commit(single={"blob": b"again"})
    section = written[0].section
    forged.allot("single", 900, section, copies=1)
    for item in forged.items:
        if isinstance(item, Gap):
            item.generation, item.root = 1, written[0].prev
    assert_is(forged, FIRST | {"single": b"again"})
    written[0].stored = b""
    assert_is(forged, FIRST | {"single": CORRUPT})
    _has_each_byte_once(forged)
    void = copies(forged, "a")[1]
    void.generation, void.prev = 2, written[0].prev
    expected = {name: blob for name, blob in FIRST.items() if name != "single"}
    assert_is(forged, CORRUPT_STORE)  # an orphan, so no section, and the root is another
    attest_what_is_found(forged)
    assert_is(forged, expected)


def _has_each_byte_once(forged: Forged) -> None:
    """Whatever the reader does twice, an extent is left over once (C46, C47)."""
    content = forged.encode()
    with open_store(content, read_only=True) as store:
        regions = store.regions()
    ends = [region.offset + region.size for region in regions]
    assert [region.offset for region in regions] == [0, *ends[:-1]]
    assert ends[-1] == len(content)


# --- Extents that contradict each other --------------------------------------------------------


def test_a_void_extent_has_no_name() -> None:
    """C46: nor any member: neither C13 nor the root knows of it."""
    forged = sample()
    extent = forged.allot("a", 100, b"some other a".ljust(16))
    assert_is(forged, FIRST)
    for record in extent:
        record.generation, record.prev = 1, bytes(32)
    assert_is(forged, FIRST)  # generation ½ is not the highest


def test_two_extents_with_equal_newest_generations() -> None:
    for damaged in (False, True):
        forged = sample()
        second = forged.allot("a", 1200, section_of(forged, "a"))
        second[1].state, second[1].generation = LIVE, 1
        forged.attest()
        assert_is(forged, CORRUPT_STORE)
        if damaged:
            damage_elsewhere(forged)
        assert_is(forged, CORRUPT_STORE)


def test_three_extents_of_one_section() -> None:
    """C46, C47: void ones, an old one and the section's."""
    forged = sample()
    section = section_of(forged, "b")
    for maximum in (200, 300, 400):
        forged.allot("b", maximum, section)
    forged.commit(b={"blob": b"moved"})
    assert len(forged.extents(section)) == 4
    assert_is(forged, FIRST | {"b": b"moved"})
    forged.commit(b={"blob": b"moved again"})  # into another of the void ones
    assert_is(forged, FIRST | {"b": b"moved again"})
    forged.commit(b={"state": TOMBSTONE})
    expected = {name: blob for name, blob in FIRST.items() if name != "b"}
    assert_is(forged, expected)


@pytest.mark.parametrize("tombstone", [False, True])
def test_what_lies_in_a_free_item_whose_head_is_lost(*, tombstone: bool) -> None:
    """C56: what step 3 would have overwritten is void or a tombstone, if C43 (c) finds it."""
    forged = sample()
    section = section_of(forged, "a")
    if tombstone:
        forged.commit(a={"state": TOMBSTONE})
    else:
        forged.allot("a", 1200, section)
        forged.commit(a={"blob": b"second"})
    forged.close()
    old = forged.extents(section)[0]
    void_heads(old)
    before = forged.encode()
    forged.release(old)
    gap, at = forged.items[0], 2 * 512
    assert isinstance(gap, Gap)
    interior, end = at + HEAD, at + gap.length(512)
    content = forged.encode()
    content = content[:interior] + before[interior:end] + content[end:]
    expected: Expected = dict(WITHOUT_A) if tombstone else FIRST | {"a": b"second"}
    assert_is(content, expected)
    content = content[:at] + bytes(HEAD) + content[interior:]
    # Only one of the two records is found, so that by C47 the section is corrupt, which is deleted
    # or lies elsewhere, sound and whole.
    assert_is(content, expected | {"a": CORRUPT})
