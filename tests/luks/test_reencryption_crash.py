"""Power cuts and failing devices in the middle of re-encryptions: no byte is lost."""

from __future__ import annotations

import hashlib

import pytest

import luks
from tests.luks.reencryption_support import CASES, Case, Content, payload
from tests.support.effort import cases

pytestmark = pytest.mark.slow


def fingerprint(content: Content) -> bytes:
    """Digest of a content; most crash states are like another."""
    return hashlib.sha256(content.image + b"|" + (content.header or b"")).digest()


@pytest.mark.parametrize("case", CASES, ids=str)
def test_l151_a_crash_at_any_instant_loses_no_byte(case: Case) -> None:
    """L151, L157 to L161: every crash state is resumed, or needs no resuming."""
    seen: set[bytes] = set()
    for content, complete in case.recorded.states(samples=cases(1, 8)):
        mark = fingerprint(content)
        if mark in seen:
            continue
        seen.add(mark)
        assert payload(content, case.size) == case.plain
        if complete:
            place = content.devices()[0 if content.header is None else 1]
            assert place is not None
            assert luks.load_header(place).requirements == ()
    assert len(seen) > 20
