"""Our reader on containers that were written from `spec/` alone: commits and what crashes leave."""

from __future__ import annotations

import itertools

import pytest

from tests.reference.forge import Gap
from tests.reference.headers import HMAC_SHA256, SHA256
from tests.reference.reader import (
    CORRUPT,
    IN_PLACE,
    LIVE,
    TOMBSTONE,
    UNWRITTEN_STATE,
    VOID,
)
from tests.reference.samples import (
    CORRUPT_STORE,
    FIRST,
    Changes,
    assert_is,
    copies,
    damage_elsewhere,
    land,
    sample,
)
from tests.reference.syntax import is_valid_der


@pytest.mark.parametrize("algorithm", [SHA256, HMAC_SHA256])
@pytest.mark.parametrize("block", [512, 1024, 4096, 65_536])
def test_another_writer(algorithm: int, block: int) -> None:
    forged = sample(algorithm, block)
    assert is_valid_der(forged.encode())
    assert_is(forged, FIRST)
    forged.commit(a={"blob": b"second"}, window={"blob": b"56789"})
    assert is_valid_der(forged.encode())
    assert_is(forged, FIRST | {"a": b"second", "window": b"56789"})
    forged.close()
    assert_is(forged, FIRST | {"a": b"second", "window": b"56789"})
    forged.commit(never={"blob": b"now"})
    assert_is(forged, FIRST | {"a": b"second", "window": b"56789", "never": b"now"})


@pytest.mark.parametrize("damaged", [False, True])
def test_every_part_of_a_commit_of_several(damaged: bool) -> None:
    """C44: a commit is all of its members or none, and undecided beside a damaged head."""
    changes: Changes = {
        "a": {"blob": b"second"},
        "b": {"state": TOMBSTONE},
        "window": {"blob": b"56789"},
    }
    for landed in itertools.product(("whole", "torn", "not"), repeat=3):
        forged = sample()
        land(forged, changes, landed)
        expected = dict(FIRST)
        if landed in (("whole", "whole", "whole"), ("whole", "torn", "whole")):
            expected |= {"a": b"second", "window": b"56789"}
            del expected["b"]  # a tombstone has no blob to tear
        elif damaged:
            names = zip(changes, landed, strict=True)
            expected |= {name: CORRUPT for name, state in names if state != "not"}
        if damaged:
            expected |= damage_elsewhere(forged)
        assert_is(forged, expected)


def test_members_that_disagree() -> None:
    """C44: this cannot come from a crash; beside a damaged head as well the store is corrupt."""
    wrong: list[dict[str, object]] = [
        {"members": 1},
        {"members": 0},
        {"members": 3},
        {"root": bytes(32)},
        {"prev": bytes(32)},
    ]
    for fields, damaged in itertools.product(wrong, (False, True)):
        forged = sample()
        written = forged.commit(a={"blob": b"second"}, window={"blob": b"56789"})
        for name, value in fields.items():
            setattr(written[0], name, value)
        if damaged:
            damage_elsewhere(forged)
        assert_is(forged, CORRUPT_STORE)
        if fields.get("members"):  # too many of them, or too few
            written[1].members = written[0].members
            expected = FIRST | (damage_elsewhere(forged) if damaged else {})
            if damaged and written[0].members > 2:
                expected |= {"a": CORRUPT, "window": CORRUPT}
            assert_is(forged, expected if written[0].members > 2 else CORRUPT_STORE)


def test_a_commit_of_nobody() -> None:
    """C33, C44: with `members` 0 nothing is decided but by D or a free item."""
    forged = sample()
    (record,) = forged.commit(a={"blob": b"second"})
    record.members = 0
    record.root = forged.root()
    assert_is(forged, CORRUPT_STORE)
    forged.close()
    assert_is(forged, FIRST | {"a": b"second"})


def test_rename() -> None:
    """C54; and two names changed places in one commit."""
    forged = sample()
    forged.commit(a={"name": "c"})
    expected = FIRST | {"c": b"first"}
    del expected["a"]
    assert_is(forged, expected)
    forged = sample()
    written = forged.commit(a={"name": "b"}, b={"name": "a"})
    assert_is(forged, FIRST | {"a": b"", "b": b"first"})
    written[0].stored = b""
    assert_is(forged, FIRST)


def test_window_in_place() -> None:
    """C62: the blob of a window that is being written has no mac."""
    forged = sample()
    (record,) = forged.commit(window={"state": IN_PLACE})
    assert_is(forged, FIRST | {"window": CORRUPT})
    record.stored = b"anyth"
    record.crc32 = b"junk"  # C10
    record.root = forged.root()
    assert_is(forged, FIRST | {"window": CORRUPT})
    forged.commit(window={"state": LIVE, "blob": b"anyth", "crc32": None})
    assert_is(forged, FIRST | {"window": b"anyth"})
    (record,) = forged.commit(window={"state": IN_PLACE})
    record.wrong_mac = True  # C21: of its Meta alone, as it has no blob
    assert_is(forged, FIRST | {"window": CORRUPT})


def test_grow() -> None:
    """C57."""
    forged = sample()
    root, old = forged.root(), len(forged.encode())
    forged.items.append(Gap(5000, 1, root))
    first, second = forged.headers
    first.outer = first.total = second.total = old
    assert_is(forged, FIRST)
    first.outer = first.total = None
    assert_is(forged, CORRUPT_STORE)  # but for the sequence this could be damage
    first.sequence = 2
    assert_is(forged, FIRST)
    first.damaged = True
    assert_is(forged, FIRST)
    first.damaged, second.damaged = False, True
    assert_is(forged, FIRST)
    second.damaged, second.total, second.sequence = False, None, 2
    assert_is(forged, FIRST)


def test_voids_of_recovery() -> None:
    """C60, C48: the rest of an orphan still attests the state before it."""
    forged = sample()
    changes: Changes = {"a": {"blob": b"second"}, "window": {"blob": b"56789"}}
    written = forged.commit(**changes)
    written[0].stored = b""
    written[0].state = VOID
    assert_is(forged, FIRST)
    written[1].state = VOID
    assert_is(forged, FIRST)
    written[0].crc32 = b"junk"  # C10, C60: the other fields mean nothing then
    written[0].members, written[1].root = 7, bytes(32)
    assert_is(forged, FIRST)
    copies(forged, "a")[0].state = VOID  # set back to a state before: the root disagrees
    assert_is(forged, CORRUPT_STORE)


def test_a_mac_that_only_a_void_record_may_have() -> None:
    """C22: it is not verified there."""
    forged = sample()
    older = copies(forged, "a")[1]
    older.wrong_mac = True
    assert_is(forged, FIRST)


@pytest.mark.parametrize("state", [UNWRITTEN_STATE, TOMBSTONE])
def test_a_name_that_the_mac_does_not_cover(state: int) -> None:
    """C21: such a head is damaged though its check agrees."""
    forged = sample()
    (record,) = forged.commit(never={"state": state})
    forged.close()
    record.wrong_mac = True
    content = forged.encode()
    assert_is(content, FIRST | {"never": CORRUPT})


def test_generation_zero() -> None:
    """C11: it stands for void records only."""
    for state in (UNWRITTEN_STATE, LIVE, TOMBSTONE):
        forged = sample()
        copies(forged, "a")[1].state = state
        assert_is(forged, FIRST | {"a": CORRUPT})
        forged = sample()
        newest = copies(forged, "a")[0]
        newest.generation, newest.state = 0, state
        assert_is(forged, FIRST | {"a": CORRUPT})
