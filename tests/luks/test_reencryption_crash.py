"""Power cuts and failing devices in the middle of re-encryptions: no byte is lost."""

from __future__ import annotations

import hashlib
import random
from typing import TYPE_CHECKING

import pytest

import luks
from formats.devices.device import read_exactly
from tests.luks.reencryption_support import CASES, Case, Content, by_name, payload
from tests.luks.support import PASSPHRASE
from tests.support.devices import FaultyDevice, RecordingDevice, crash_states
from tests.support.effort import cases

if TYPE_CHECKING:
    from formats.devices.device import BlockDevice
    from tests.support.devices import Operation

pytestmark = pytest.mark.slow


def fingerprint(content: Content) -> bytes:
    """Digest of a content; most crash states are like another."""
    return hashlib.sha256(content.image + b"|" + (content.header or b"")).digest()


@pytest.mark.parametrize("case", CASES, ids=str)
def test_l151_a_crash_at_any_instant_loses_no_byte(case: Case) -> None:
    """L151, L157 to L161, L165: every crash state is resumed, or needs no resuming."""
    states = {
        fingerprint(content): content
        for content, _ in case.recorded.states(samples=cases(1, 8), exhaustive=cases(1, 3))
    }
    chosen = list(states.values())
    assert len(chosen) > 30
    # The same ones each time; and both ends.
    picked = random.Random(20261130).sample(chosen, min(len(chosen), cases(14, 10**6)))
    for content in (*picked, case.before, case.recorded.after):
        assert payload(content, case.size) == case.plain
    assert luks.load_header(case.place(case.recorded.after)).requirements == ()


@pytest.mark.parametrize("name", ["checksum-512", "journal", "encrypt", "decrypt-shift"])
def test_l160_a_crash_while_a_crash_is_repaired_loses_no_byte(name: str) -> None:
    """L160: recovery writes the same whatever an earlier one has written."""
    case = by_name(name)
    dirty = [
        content
        for content, _ in case.recorded.states(samples=1, exhaustive=1)
        if _needs_recovery(case, content)
    ]
    assert dirty
    for content in random.Random(1).sample(dirty, min(len(dirty), cases(2, 40))):
        _, header = content.devices()
        recording = RecordingDevice(content.image)
        with luks.resume_reencryption(recording, PASSPHRASE, header=header) as running:
            read_exactly(running.volume, 0, 1)  # which repairs it
            assert not running.status.needs_recovery
        seen = set()
        for state in crash_states(content.image, recording.log, samples=1, exhaustive=1):
            # A detached header may be the old or the new one.
            for other in {content.header, None if header is None else bytes(header.content)}:
                again = Content(state.content, other)
                if other is None or state.point == len(recording.log) or other is content.header:
                    seen.add(fingerprint(again))
                    if len(seen) <= cases(6, 1000):
                        assert payload(again, case.size) == case.plain


def _needs_recovery(case: Case, content: Content) -> bool:
    image, header = content.devices()
    try:
        status = luks.reencryption_status(image, header=header)
    except luks.FormatError:
        return False
    return status is not None and status.needs_recovery and 0 < status.position < case.size


@pytest.mark.parametrize("operation", ["read", "write", "flush"])
@pytest.mark.parametrize("name", ["checksum-4096", "journal", "decrypt-checksum", "encrypt"])
def test_l161_after_a_failed_request_the_step_is_repeated(name: str, operation: Operation) -> None:
    """L161: whatever request of a device fails, the payload is whole, then and at the end."""
    case = by_name(name)
    for place in ("image", "header") if case.before.header is not None else ("image",):
        number = 0
        while _fails(case, place, operation, number := number + 1):
            pass
        assert number > 3


def _fails(case: Case, place: str, operation: Operation, number: int) -> bool:
    """Let one request fail after the beginning; return whether there was such a request."""
    image, header = case.before.devices()
    devices: dict[str, BlockDevice | None] = {"image": image, "header": header}
    base = devices[place]
    assert base is not None
    faulty = FaultyDevice(base, operation, 10**9)
    devices[place] = faulty
    began = devices["image"]
    assert began is not None
    with case.begin(began, devices["header"]) as running:
        faulty.arm(number)
        while True:
            try:
                more = running.step()
            except luks.DeviceError:
                # What is read meanwhile is right, or cannot be read.
                assert read_exactly(running.volume, 0, case.size) == case.plain
                continue
            if not more:
                break
        failed = faulty.failed
        faulty.arm(10**9)
        assert read_exactly(running.volume, 0, case.size) == case.plain
    header_content = None if header is None else bytes(header.content)
    assert payload(Content(bytes(image.content), header_content), case.size) == case.plain
    return bool(failed)


def test_l165_a_header_is_placed_again_after_a_failed_request() -> None:
    """L165: until it is placed the image is plain, or the marker says where to go on."""
    case = by_name("encrypt-small")
    number = 0
    while True:
        number += 1
        image, _ = case.before.devices()
        faulty = FaultyDevice(image, "write", number, persistent=True)
        try:
            case.begin(faulty, None).close()
        except luks.DeviceError:
            assert payload(Content(bytes(image.content)), case.size) == case.plain
            continue
        break
    assert number > 6
