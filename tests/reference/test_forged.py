"""Our reader on containers that were written from `spec/` alone, right ones and wrong ones.

Where the two readers are known to disagree, a test that is expected to fail says so, and the
other tests keep away from it.
"""

from __future__ import annotations

import contextlib
import itertools
import random
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest
from cryptography.hazmat import asn1

from tests.reference.agreement import assert_agree, ours, theirs
from tests.reference.forge import Copy, Forged, Gap, seal
from tests.reference.reader import (
    CORRUPT,
    HMAC_SHA256,
    IN_PLACE,
    LIVE,
    SHA256,
    TOMBSTONE,
    UNWRITTEN,
    UNWRITTEN_STATE,
    VOID,
    WINDOW,
    ContainerError,
    Corrupt,
    Reader,
    is_valid_der,
)
from tests.reference.syntax import HEAD, Header, Item, Record, enumerated, frame, number

if TYPE_CHECKING:
    from collections.abc import Iterator

Expected = dict[str, bytes | str] | None
Change = dict[str, object]
Changes = dict[str, Change]

FIRST: dict[str, bytes | str] = {
    "a": b"first",
    "b": b"",
    "single": b"alone",
    "window": b"01234",
    "never": UNWRITTEN,
}


def sample(algorithm: int = HMAC_SHA256, block: int = 512) -> Forged:
    forged = Forged(algorithm=algorithm, block=block)
    forged.section("a", 600, b"first")
    forged.items.append(Gap(700))
    forged.section("b", 0, b"")
    forged.section("single", 300, b"alone", copies=1)
    forged.section("window", 5, b"01234", kind=WINDOW)
    forged.section("never", 10)
    forged.attest()
    return forged


def assert_is(forged: Forged, expected: Expected) -> None:
    content = forged.encode()
    assert theirs(content) == expected
    assert ours(content) == expected


def copies(forged: Forged, name: str) -> tuple[Copy, Copy]:
    """Return the records of a section of two copies, the newest first."""
    newest = forged.newest(next(r.section for r in forged.records if r.name == name))
    (older,) = (r for r in forged.records if r.section == newest.section and r is not newest)
    return newest, older


# --- Right ones --------------------------------------------------------------------------------


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
        before = {name: copies(forged, name)[1] for name in changes}
        for record, state in zip(forged.commit(**changes), landed, strict=True):
            if state == "torn":
                record.stored = b""
            elif state == "not":
                forged.items[forged.items.index(record)] = before[record.name]
        expected = dict(FIRST)
        if landed in (("whole", "whole", "whole"), ("whole", "torn", "whole")):
            expected |= {"a": b"second", "window": b"56789"}
            del expected["b"]  # a tombstone has no blob to tear
        elif damaged:
            names = zip(changes, landed, strict=True)
            expected |= {name: CORRUPT for name, state in names if state != "not"}
        if damaged:
            copies(forged, "never")[1].damaged = True
            expected["never"] = CORRUPT
        assert_is(forged, expected)


def test_delete() -> None:
    """C53, C47: a tombstone leaves its extent over, until a free item takes the place."""
    expected = {name: blob for name, blob in FIRST.items() if name != "a"}
    forged = sample()
    (tombstone,) = forged.commit(a={"state": TOMBSTONE})
    assert_is(forged, expected)
    del forged.items[:3]
    assert tombstone not in forged.items
    size = 2 * tombstone.length(512) + 1024
    forged.items.insert(0, Gap(size, tombstone.generation, tombstone.root))
    assert_is(forged, expected)
    forged.close()
    assert_is(forged, expected)


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
    assert_is(forged, FIRST | {"window": CORRUPT})
    forged.commit(window={"state": LIVE, "blob": b"anyth"})
    assert_is(forged, FIRST | {"window": b"anyth"})


def test_grow() -> None:
    """C57. SPEC: without a higher sequence for the new total, C40 takes this for corruption."""
    forged = sample()
    root, old = forged.root(), len(forged.encode())
    forged.items.append(Gap(5000, 1, root))
    first, second = forged.headers
    first.outer = first.total = second.total = old
    assert_is(forged, FIRST)
    first.outer = first.total = None
    assert_is(forged, None)
    first.sequence = 2
    assert_is(forged, FIRST)
    first.damaged = True
    assert_is(forged, FIRST)
    first.damaged, second.damaged = False, True
    assert_is(forged, FIRST)
    second.damaged, second.total, second.sequence = False, None, 2
    assert_is(forged, FIRST)


def test_resize() -> None:
    """C55, C47: the old extent is left over until it is free."""
    forged = sample()
    old, void = copies(forged, "a")
    new = replace(old, maximum=1200, generation=2, prev=old.root)
    place = forged.items.index(void) + 2
    forged.items[place:place] = [new, replace(new, copy=1, state=VOID, generation=0)]
    gap = forged.items[place - 1]
    assert isinstance(gap, Gap)
    gap.generation = 2
    new.root = gap.root = forged.root()
    assert_is(forged, FIRST)
    gap.generation = 1  # C46: not published
    assert_is(forged, None)
    gap.generation, new.stored = 2, b""  # C45: published before it was written
    assert_is(forged, FIRST | {"a": CORRUPT})


def test_voids_of_recovery() -> None:
    """C60, C48: what is left of an orphan still attests what was before it."""
    forged = sample()
    changes: Changes = {"a": {"blob": b"second"}, "window": {"blob": b"56789"}}
    written = forged.commit(**changes)
    written[0].stored = b""
    written[0].state = VOID
    assert_is(forged, FIRST)
    written[1].state = VOID
    assert_is(forged, FIRST)
    copies(forged, "a")[0].state = VOID  # set back to a state before: the root disagrees
    assert_is(forged, None)


# --- Wrong ones --------------------------------------------------------------------------------


@pytest.mark.parametrize("framed", [False, True])
@pytest.mark.parametrize("hidden", [0, 1])
def test_a_head_inside_a_blob(hidden: int, framed: bool) -> None:
    """C43: only where nothing tells the length of a hidden item is its interior looked into."""
    forged = Forged()
    forged.section("a", 1000, b"first")
    forged.items.append(Gap(700))
    record = forged.records[hidden]
    interior = 2 * 512 + hidden * record.length(512) + HEAD
    inner = Copy(b"inner".ljust(16), "inner", 0, copies=1)
    record.blob = inner.encode(forged.keys, interior, 512)
    forged.attest()
    content = forged.encode()
    assert theirs(content) == ours(content) == {"a": record.blob if hidden == 0 else b"first"}
    start = interior - HEAD
    kept = 4 if framed else 0  # tag and length
    content = content[: start + kept] + bytes(HEAD - kept) + content[interior:]
    # (a) by its framing, (b) by the copy before it, (c) up to the next sound head.
    expected = {"a": CORRUPT} if framed or hidden else {"a": CORRUPT, "inner": b""}
    assert theirs(content) == ours(content) == expected


class Unattested(Reader):
    """Does not mind a wrong root."""

    def check_root(self) -> None:
        with contextlib.suppress(Corrupt):
            super().check_root()


def arbitrary(generator: random.Random) -> Forged:
    """Return a right container that a few commits have gone through."""
    choice = generator.choice
    forged = Forged(algorithm=choice((SHA256, HMAC_SHA256)), block=choice((512, 512, 1024, 4096)))
    for name in "abcd"[: generator.randint(1, 4)]:
        maximum = choice((0, 1, 100, 512, 513, 2000))
        blob = choice((None, generator.randbytes(generator.randint(0, maximum))))
        forged.section(name, maximum, blob, copies=choice((2, 2, 2, 1)), kind=choice((0, 0, 0, 1)))
        if generator.random() < 0.5:
            forged.items.append(Gap(choice((512, 1024, 3000))))
    forged.attest()
    for _ in range(generator.randint(0, 4)):
        pairs = {r.section for r in forged.records if r.copies == 2}
        found = [forged.newest(section) for section in sorted(pairs)]
        names = [newest.name for newest in found if newest.state != TOMBSTONE]
        if not names:
            break
        changes: Changes = {}
        for name in generator.sample(names, generator.randint(1, len(names))):
            blob = generator.randbytes(min(r.maximum for r in forged.records if r.name == name))
            other = choice(({"state": TOMBSTONE}, {"state": UNWRITTEN_STATE}, {"name": name + "x"}))
            kinds: list[Change] = [{"blob": blob}, {"blob": blob[:7]}, {**other}]
            changes[name] = choice(kinds)
        forged.commit(**changes)
        if generator.random() < 0.3:
            forged.close()
    return forged


def spoil(forged: Forged, generator: random.Random) -> None:
    """Change something that is sealed afterwards, so that only its meaning is wrong."""
    choice = generator.choice
    highest = max(item.generation for item in forged.items)
    record, item = choice(forged.records), choice(forged.items)
    header = choice(forged.headers)
    generation = generator.randrange(6)
    near = (0, 1, max(highest - 1, 0), highest, highest + 1, item.generation + 1)
    match generator.randrange(16):
        case 0:
            states = [VOID, UNWRITTEN_STATE, LIVE, TOMBSTONE]
            record.state = choice(states + [IN_PLACE] * record.kind)
        case 1:
            item.generation = near[generation]
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
            record.prev = choice(
                (bytes(32), choice(forged.items).root, choice(forged.records).prev)
            )
        case 8 | 9:
            item.damaged = True
        case 10:
            record.name = choice((choice(forged.records).name, "z"))
        case 11:
            header.sequence = choice((0, 1, 2, 3))
        case 12:
            for header in forged.headers:
                header.durable = near[generation]
        case 13:
            header.damaged = True
        case 14:
            values = choice(({"incompatible": 1}, {"store_id": bytes(16)}, {"root": item.root}))
            for name, value in values.items():
                setattr(header, name, value)
        case 15:
            gaps = [i for i, gap in enumerate(forged.items) if isinstance(gap, Gap)]
            place = choice(gaps or [0])
            new = replace(forged.newest(record.section), copy=0, members=0)
            new.generation, new.maximum = highest + 1, new.maximum + choice((0, 1, 600))
            void = replace(new, copy=1, state=VOID, generation=0)
            forged.items[place + 1 : place + 1] = [new, void][: new.copies] if gaps else []
            forged.items[place].generation = choice((highest + 1, forged.items[place].generation))


def attest_what_is_found(forged: Forged) -> None:
    """Give every head the root a reader finds, so that C48 does not hide the other rules."""
    with contextlib.suppress(ContainerError):
        root = Unattested(forged.encode()).root
        for item in (*forged.headers, *forged.items):
            item.root = root
        for record in forged.records:
            record.prev = root


@pytest.mark.parametrize("seed", range(20))
def test_spoilt_containers(seed: int) -> None:
    generator = random.Random(seed)
    for _ in range(250):
        forged = arbitrary(generator)
        for _ in range(generator.choice((1, 1, 2, 2, 3, 4))):
            spoil(forged, generator)
        if generator.random() < 0.6:
            attest_what_is_found(forged)
            attest_what_is_found(forged)
        assert_agree([forged.encode()])


def kept_away(head: bytes, start: int) -> bool:
    """Say whether a changed head is one of those that the expected failures below are about."""
    try:
        outer = 0 if start else frame(head, 0)[1]
        item = Item.parse(head, outer)
        if item.tag == 0xA0:
            header = asn1.decode_der(Header, item.der)
            total = number(header.total)
            impossible = total % 512 != 0 or not 1024 <= total < 1 << 63
            contradicted = not start and total != frame(head, 0)[2]
            return header.version != 1 or impossible or contradicted
        if item.tag == 0xA1:
            meta = asn1.decode_der(Record, item.der).meta
            kind, state = enumerated(meta.kind), enumerated(meta.state)
            # Is an ENUMERATED below zero a kind that is not known (C15), or none at all (C21)?
            return kind > 127 or (kind != WINDOW and state == IN_PLACE)
    except ValueError:
        pass
    return False


def sealed_flips(content: bytes, first: int) -> Iterator[bytes]:
    """Flip every fifth bit of the heads, and put the check right again."""
    found = Reader(content)
    at, starts = 2 * found.block, [0, found.block]
    for part in found.items:
        starts.append(at)
        at += part.length
    for start in starts:
        head = content[start : start + HEAD]
        item = Item.parse(head, 0 if start else frame(head, 0)[1])
        end = item.first[1] if item.tag == 0xA1 else item.last[0]
        meant = range(min(HEAD, item.last[1] + 1))
        for place, bit in itertools.product(meant, range(8)):
            changed = bytearray(head)
            changed[place] ^= 1 << bit
            if (place + bit) % 5 != first or end - 32 <= place < end:
                continue
            if kept_away(bytes(changed), start):
                continue
            changed[end - 32 : end] = bytes(32)
            sealed = seal(found.authentication, bytes(changed), start, end)
            yield content[:start] + sealed + content[start + HEAD :]


@pytest.mark.parametrize("commits", [0, 1, 2])
def test_flips_under_a_right_check(commits: int) -> None:
    forged = Forged()
    forged.section("a", 600, b"first")
    forged.items.append(Gap(700))
    forged.section("single", 300, b"alone", copies=1)
    forged.section("window", 5, b"01234", kind=WINDOW)
    forged.attest()
    if commits:
        forged.commit(a={"blob": b"second"})
    if commits == 2:
        forged.close()
        forged.commit(a={"blob": b"third"}, window={"blob": b"56789"})
    assert assert_agree(sealed_flips(forged.encode(), commits)) > 3000


# --- Where the readers disagree ----------------------------------------------------------------


@pytest.mark.xfail(strict=True, reason="C47: ours refuses the whole store")
def test_a_copy_that_is_not_there() -> None:
    forged = sample()
    newest, older = copies(forged, "a")
    forged.items.remove(older)
    assert newest in forged.items
    assert_is(forged, FIRST | {"a": CORRUPT})


@pytest.mark.xfail(strict=True, reason="C40: ours takes the first header copy for damaged")
def test_a_total_that_is_not_the_outer_length() -> None:
    forged = sample()
    forged.headers[0].total = len(forged.encode()) - 512
    assert_is(forged, None)


@pytest.mark.xfail(strict=True, reason="C21 does not list C2: ours takes the copy for damaged")
def test_a_total_that_is_no_number_of_blocks() -> None:
    forged = sample()
    forged.headers[1].total = len(forged.encode()) + 1
    assert_is(forged, None)


@pytest.mark.xfail(strict=True, reason="C15: ours reads on with the copy whose version it knows")
def test_another_version_in_one_header_copy() -> None:
    forged = sample()
    forged.headers[1].version = 2
    assert_is(forged, None)


@pytest.mark.xfail(strict=True, reason="C11, C21: ours takes the head for sound")
def test_a_blob_in_place() -> None:
    forged = sample()
    copies(forged, "a")[1].state = IN_PLACE
    assert_is(forged, FIRST | {"a": CORRUPT})


@pytest.mark.parametrize("state", [UNWRITTEN_STATE, TOMBSTONE])
@pytest.mark.xfail(strict=True, reason="C45: ours verifies live records only")
def test_a_name_that_the_mac_does_not_cover(state: int) -> None:
    forged = sample()
    forged.commit(never={"state": state})
    forged.close()
    content = forged.encode()
    at = content.rindex(b"never")
    start = at // 512 * 512
    head = content[start:at] + b"NEVER" + content[at + 5 : start + 512]
    item = Item.parse(head)
    end = item.first[1]
    blank = head[: end - 32] + bytes(32) + head[end:]
    sealed = seal(forged.keys, blank, start, end)
    content = content[:start] + sealed + content[start + 512 :]
    expected = {name: blob for name, blob in FIRST.items() if name != "never"}
    assert theirs(content) == expected | {"NEVER": CORRUPT}
    assert ours(content) == theirs(content)
