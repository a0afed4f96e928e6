"""Forged containers in numbers: random histories, then something is spoilt under a right check."""

from __future__ import annotations

import contextlib
import itertools
import random
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from tests.reference.agreement import assert_agree
from tests.reference.forge import Copy, Forged, Gap, NoRoomError, seal
from tests.reference.headers import HMAC_SHA256, SHA256
from tests.reference.reader import (
    IN_PLACE,
    LIVE,
    TOMBSTONE,
    UNWRITTEN_STATE,
    VOID,
    WINDOW,
    Reader,
)
from tests.reference.samples import Change, Changes, attest_what_is_found
from tests.reference.syntax import HEAD, Item, frame
from tests.support.effort import cases

if TYPE_CHECKING:
    from collections.abc import Iterator


def arbitrary(generator: random.Random) -> Forged:
    """Return a right container that a few changes have gone through."""
    choice = generator.choice
    forged = Forged(algorithm=choice((SHA256, HMAC_SHA256)), block=choice((512, 512, 1024, 4096)))
    for name in "abcd"[: generator.randint(1, 4)]:
        maximum = choice((0, 1, 100, 512, 513, 2000))
        blob = choice((None, generator.randbytes(generator.randint(0, maximum))))
        forged.section(name, maximum, blob, copies=choice((2, 2, 2, 1)), kind=choice((0, 0, 0, 1)))
        if generator.random() < 0.5:
            forged.items.append(Gap(choice((512, 1024, 3000, 20_000, 100_000))))
    forged.attest()
    for _ in range(generator.randint(0, 4)):
        change_something(forged, generator)
        if generator.random() < 0.3:
            forged.close()
    return forged


def change_something(forged: Forged, generator: random.Random) -> None:
    """Make void extents, then commit to some sections, or release left over extents."""
    choice = generator.choice
    existing = [
        newest
        for section in sorted({record.section for record in forged.records})
        if (newest := forged.newest(section)).counts and newest.state != TOMBSTONE
    ]
    created = f"new {forged.highest}"
    changes: Changes = {}
    if generator.random() < 0.4:
        with contextlib.suppress(NoRoomError):
            forged.allot(created, choice((0, 100, 600)), copies=choice((1, 2)))
            if generator.random() < 0.8:
                changes[created] = {"state": UNWRITTEN_STATE}
    for newest in generator.sample(existing, generator.randint(0, len(existing))):
        if generator.random() < 0.4:
            more = {"copies": newest.copies, "kind": newest.kind}
            with contextlib.suppress(NoRoomError):
                forged.allot(newest.name, newest.maximum + 600, newest.section, **more)
        overwritten = newest.copies == 1 and forged.place(newest.section) is newest
        if overwritten and changes:
            continue  # C32
        blob = generator.randbytes(newest.maximum)
        other = choice(({"state": TOMBSTONE}, {"state": UNWRITTEN_STATE}, {"name": created + "x"}))
        kinds: list[Change] = [{"blob": blob}, {"blob": blob[:7]}, {**other}]
        changes[newest.name] = choice(kinds)
        if overwritten:
            break
    if changes:
        forged.commit(**changes)
    elif generator.random() < 0.5:
        for section in sorted({record.section for record in forged.records}):
            for extent in forged.extents(section):
                if not any(record.counts for record in extent):
                    forged.release(extent)


def spoil(forged: Forged, generator: random.Random) -> None:
    """Change something that is sealed afterwards, so that only its meaning is wrong."""
    choice, highest = generator.choice, forged.highest
    item, header = choice(forged.items), choice(forged.headers)
    record = choice(forged.records or [Copy(b"", "", 0)])
    near = choice((0, 1, max(highest - 1, 0), highest, highest + 1, item.generation + 1))
    match generator.randrange(18):
        case 0:
            states = [VOID, UNWRITTEN_STATE, LIVE, TOMBSTONE, IN_PLACE]
            record.state = choice(states)
        case 1:
            item.generation = near
        case 2:
            record.members = generator.randrange(4)
        case 3:
            record.stored = choice((b"", generator.randbytes(min(3, record.maximum))))
        case 4:
            record.size = choice((0, 1, record.maximum, record.maximum + 1))
        case 5:
            record.crc32 = generator.randbytes(4)
        case 6:
            item.root = choice((bytes(32), choice(forged.items).root))
        case 7:
            roots = [bytes(32), choice(forged.items).root]
            record.prev = choice(roots + [other.prev for other in forged.records])
        case 8 | 9:
            item.damaged = True
        case 10:
            record.name = choice(["z"] + [other.name for other in forged.records])
        case 11:
            header.sequence = choice((0, 1, 2, 3))
        case 12:
            for header in generator.sample(forged.headers, choice((1, 2, 2))):
                header.durable = near
        case 13:
            header.damaged = True
        case 14:
            header.incompatible, header.store_id = choice(((1, None), (0, bytes(16))))
        case 15:
            header.root = item.root
        case 16:
            record.wrong_mac = True
        case 17:
            add_an_extent(forged, record, generator)


def add_an_extent(forged: Forged, record: Copy, generator: random.Random) -> None:
    """Write another extent of a section after something, with random content."""
    choice, highest = generator.choice, forged.highest
    new = replace(record, copy=0, maximum=record.maximum + choice((0, 1, 600)))
    new.state, new.generation = choice((record.state, VOID)), choice((0, highest, highest + 1))
    new.members = choice((0, 1, 2))
    void = replace(new, copy=1, state=VOID, generation=choice((0, 0, highest, highest + 1)))
    place = generator.randrange(len(forged.items) + 1)
    forged.items[place:place] = [new, void][: choice((new.copies, new.copies, 1))]


@pytest.mark.parametrize("seed", range(20))
def test_spoilt_containers(seed: int) -> None:
    generator = random.Random(seed)
    for _ in range(cases(80, 250)):
        forged = arbitrary(generator)
        for _ in range(generator.choice((0, 1, 1, 2, 2, 3, 4))):
            spoil(forged, generator)
        if generator.random() < 0.6:
            attest_what_is_found(forged)
            attest_what_is_found(forged)
        assert_agree([forged.encode()])


def sealed_flips(content: bytes, first: int) -> Iterator[bytes]:
    """Flip some bits of the heads, and put the check right again."""
    step = cases(75, 5)
    found = Reader(content)
    starts = [0, found.block, *(item.offset for item in found.items)]
    for start in starts:
        head = content[start : start + HEAD]
        item = Item.parse(head, 0 if start else frame(head, 0)[1])
        end = item.first[1] if item.tag == 0xA1 else item.last[0]
        meant = range(min(HEAD, item.last[1] + 1))
        for place, bit in itertools.product(meant, range(8)):
            changed = bytearray(head)
            changed[place] ^= 1 << bit
            if (place + bit) % step != first or end - 32 <= place < end:
                continue
            changed[end - 32 : end] = bytes(32)
            sealed = seal(found.authentication, bytes(changed), start, end)
            yield content[:start] + sealed + content[start + HEAD :]


@pytest.mark.parametrize("commits", [0, 1, 2])
def test_flips_under_a_right_check(commits: int) -> None:
    forged = Forged()
    forged.section("a", 600, b"first")
    forged.items.append(Gap(3000))
    forged.section("single", 300, b"alone", copies=1)
    forged.section("window", 5, b"01234", kind=WINDOW)
    forged.attest()
    if commits:
        forged.commit(a={"blob": b"second"})
    if commits == 2:
        forged.close()
        forged.allot("new", 10, copies=1)
        forged.commit(a={"blob": b"third"}, window={"state": IN_PLACE})
    assert assert_agree(sealed_flips(forged.encode(), commits)) > cases(200, 3000)
