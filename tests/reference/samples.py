"""Forged containers that the tests start from, and what they ask of them."""

from __future__ import annotations

import contextlib
from typing import Any

from tests.reference.agreement import Answer, our_answer, their_answer
from tests.reference.forge import Copy, Forged, Gap
from tests.reference.headers import HMAC_SHA256, ContainerError, Corrupt
from tests.reference.reader import CORRUPT, UNWRITTEN, WINDOW, Reader

Change = dict[str, Any]
Changes = dict[str, Change]
Expected = dict[str, bytes | str]

#: Why a container is refused.
NONE, CORRUPT_STORE, UNSUPPORTED = "none", "corrupt", "unsupported"

FIRST: Expected = {
    "a": b"first",
    "b": b"",
    "single": b"alone",
    "window": b"01234",
    "never": UNWRITTEN,
}


def sample(algorithm: int = HMAC_SHA256, block: int = 512) -> Forged:
    """Return a container that holds ``FIRST``, as initialising leaves it (C59)."""
    forged = Forged(algorithm=algorithm, block=block)
    forged.section("a", 600, b"first")
    forged.items.append(Gap(700))
    forged.section("b", 0, b"")
    forged.section("single", 300, b"alone", copies=1)
    forged.section("window", 5, b"01234", kind=WINDOW)
    forged.section("never", 10)
    forged.items.append(Gap(12_000))
    forged.attest()
    return forged


def assert_is(forged: Forged | bytes, expected: Expected | str) -> None:
    """Ask both readers for these blobs, or for this refusal.

    With damaged heads, for the rest, even if nothing proves that it is the newest; then
    what was never written is corrupt (C67).
    """
    content = forged.encode() if isinstance(forged, Forged) else forged
    answer = their_answer(content)
    if isinstance(answer, Answer) and answer.damaged and not isinstance(expected, str):
        expected = {n: CORRUPT if blob == UNWRITTEN else blob for n, blob in expected.items()}
    assert (answer.left if isinstance(answer, Answer) else answer) == expected
    assert our_answer(content) == answer


def section_of(forged: Forged, name: str) -> bytes:
    return next(record.section for record in forged.records if record.name == name)


def copies(forged: Forged, name: str) -> tuple[Copy, Copy]:
    """Return the records of a section of one extent of two copies, the newest first."""
    newest = forged.newest(section_of(forged, name))
    (older,) = (r for r in forged.records if r.section == newest.section and r is not newest)
    return newest, older


def land(forged: Forged, changes: Changes, landed: tuple[str, ...]) -> list[Copy]:
    """Make a commit of which each record lands "whole", "torn" (its blob did not) or "not"."""
    before = list(forged.items)
    written = forged.commit(**changes)
    for record, how in zip(written, landed, strict=True):
        index = forged.items.index(record)
        if how == "torn":
            record.stored = b""
        elif how == "not":
            forged.items[index] = before[index]
    return written


def damage_elsewhere(forged: Forged) -> Expected:
    """Damage the head of a section of its own, and return what that changes (C43)."""
    copies(forged, "never")[1].damaged = True
    return {"never": CORRUPT}


class Unattested(Reader):
    """Does not mind a wrong root."""

    def check_root(self) -> None:
        with contextlib.suppress(Corrupt):
            super().check_root()


def attest_what_is_found(forged: Forged) -> None:
    """Give every head the root a reader finds, so that C48 does not hide the other rules."""
    with contextlib.suppress(ContainerError):
        root = Unattested(forged.encode()).root
        for item in (*forged.headers, *forged.items):
            item.root = root
        for record in forged.records:
            record.prev = root
