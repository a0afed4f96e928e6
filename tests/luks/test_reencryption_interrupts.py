"""Ctrl-C at every bytecode of a re-encryption: nothing is lost, and it goes on (L161)."""

from __future__ import annotations

from contextlib import suppress

import pytest

import luks
from formats.devices.device import MemoryDevice, read_exactly
from tests.luks.reencryption_support import Case, Content, by_name, payload
from tests.luks.support import PASSPHRASE
from tests.support.interrupts import InterruptPoints, collecting_what_is_new

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]

SAMPLE = 25


@pytest.fixture(autouse=True)
def few_stripes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Anti-forensic stripes take many bytecodes, all alike; LUKS2 leaves no choice of them."""
    monkeypatch.setattr("luks.keys.enroll.STRIPES", 2)


def _begin(case: Case) -> tuple[luks.Reencryption, Content]:
    """A re-encryption that has begun, over devices in memory."""
    image, header = case.make(case.plain).devices()
    running = case.begin(image, header)
    return running, Content(image.content, None if header is None else header.content)  # type: ignore[arg-type]


def _now(content: Content) -> Content:
    return Content(bytes(content.image), None if content.header is None else bytes(content.header))


@pytest.mark.parametrize("name", ["checksum-4096", "journal", "encrypt", "decrypt-shift"])
def test_l161_an_interrupted_run_goes_on(name: str) -> None:
    """L161: in the same process, and in another one that resumes what it has left."""
    case = by_name(name)
    running, _ = _begin(case)
    with running:
        points = InterruptPoints(running.run)
    with collecting_what_is_new():
        for point in points.chosen(SAMPLE):
            running, content = _begin(case)
            with running:
                with suppress(KeyboardInterrupt), points.interrupted_at(point):
                    running.run()
                assert payload(_now(content), case.size) == case.plain
                assert read_exactly(running.volume, 0, case.size) == case.plain
                running.run()
                assert read_exactly(running.volume, 0, case.size) == case.plain
            assert payload(_now(content), case.size) == case.plain


@pytest.mark.parametrize("name", ["checksum-4096", "encrypt-small", "decrypt-shift-small"])
def test_l165_an_interrupted_beginning_loses_nothing(name: str) -> None:
    """L150, L165: what an interrupt leaves is plain, opens, or is resumed."""
    case = by_name(name)

    def begin(content: Content) -> None:
        image, header = content.devices()
        begun.append((image, header))
        case.begin(image, header).close()

    begun: list[tuple[MemoryDevice, MemoryDevice | None]] = []
    before = case.make(case.plain)
    points = InterruptPoints(lambda: begin(before))
    for point in points.chosen(SAMPLE):
        begun.clear()
        with suppress(KeyboardInterrupt), points.interrupted_at(point):
            begin(before)
        if begun:
            image, header = begun[0]
            found = Content(
                read_exactly(image, 0, image.size),
                None if header is None else read_exactly(header, 0, header.size),
            )
            assert payload(found, case.size) == case.plain


@pytest.mark.parametrize("name", ["checksum-4096", "journal", "encrypt", "decrypt-shift"])
def test_l160_an_interrupted_recovery_is_repeated(name: str) -> None:
    """L160, L161: resuming what a crash left in the middle of a zone."""
    case = by_name(name)
    dirty = next(content for content in case.recorded.cuts() if _is_dirty(content))

    def resume(content: Content) -> luks.Reencryption:
        image, header = content.devices()
        return luks.resume_reencryption(image, PASSPHRASE, header=header)

    with resume(dirty) as running:
        points = InterruptPoints(running.step)
    for point in points.chosen(SAMPLE):
        with resume(dirty) as running:
            with suppress(KeyboardInterrupt), points.interrupted_at(point):
                running.step()
            running.run()
            assert read_exactly(running.volume, 0, case.size) == case.plain


def _is_dirty(content: Content) -> bool:
    image, header = content.devices()
    status = luks.reencryption_status(image, header=header)
    return status is not None and status.needs_recovery
