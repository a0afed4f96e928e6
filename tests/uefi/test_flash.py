"""Records and areas of a flash: read as firmware does, written as it compacts (F30 to F36)."""

from __future__ import annotations

import uuid
from dataclasses import replace

import pytest

from formats.errors import EmptyImageError, FieldError, FormatError
from formats.state.uefi.flash import read_store, write_store
from formats.state.uefi_vars import UefiVariable
from tests.uefi.samples import (
    GLOBAL,
    OTHER,
    RECORDS_AT,
    SIZE,
    SPARE_AT,
    STORE_SIZE,
    TIME,
    WORK_AT,
    first_part,
    flash,
    headers,
    record,
    work_area,
    write_note,
)

ONE = UefiVariable(GLOBAL, "One", 7, b"1")
TWO = UefiVariable(OTHER, "Two", 0x27, b"22222", TIME)
RECORDS = record("One", b"1"), record("Two", b"22222", guid=OTHER, attributes=0x27, time=TIME)


def found(content: bytes) -> dict[str, bytes]:
    return {variable.name: variable.data for variable in read_store(content).variables}


def rules(content: bytes) -> list[str]:
    return [flaw.rule for flaw in read_store(content).flaws]


def test_f30_records_are_read_with_all_that_they_have() -> None:
    store = read_store(flash(*RECORDS))
    assert store.variables == (ONE, TWO)
    assert (store.flaws, store.authenticated) == ((), True)
    assert (store.used, store.capacity) == (sum(map(len, RECORDS)), STORE_SIZE - 28)


def test_f30_a_plain_store_has_shorter_records() -> None:
    content = flash(record("One", b"1", authenticated=False), authenticated=False)
    store = read_store(content)
    assert (store.variables, store.authenticated) == ((ONE,), False)
    assert write_store(content, store.variables) == content
    with pytest.raises(FieldError, match="authenticated"):
        write_store(content, (TWO,))


def test_f30_a_store_larger_than_any_is_refused() -> None:
    large = bytearray(flash().ljust(8 << 20, b"\xff"))
    large[32:40] = (8 << 20).to_bytes(8, "little")
    large[56:60] = (8 << 8).to_bytes(4, "little")
    large[88:92] = (5 << 20).to_bytes(4, "little")
    large[50:52] = b"\0\0"
    total = sum(int.from_bytes(large[at : at + 2], "little") for at in range(0, 72, 2))
    large[50:52] = (-total & 0xFFFF).to_bytes(2, "little")
    with pytest.raises(FormatError, match=r"larger than any.*F30"):
        read_store(large)


@pytest.mark.parametrize(
    ("records", "expected"),
    [
        ([record("A", b"old", state=0x3E), record("A", b"new")], {"A": b"new"}),
        ([record("A", b"old", state=0x3E), record("A", b"new", state=0x7F)], {"A": b"old"}),
        ([record("A", b"old", state=0x3C), record("A", b"new")], {"A": b"new"}),
        ([record("A", b"old", state=0x3D)], {}),
        ([record("A", b"new", state=0x7F), record("B", b"b")], {"B": b"b"}),
        ([record("A", b"new"), record("A", b"old", state=0x3E)], {"A": b"new"}),
    ],
)
def test_f31_states_say_which_record_counts(
    records: list[bytes], expected: dict[str, bytes]
) -> None:
    assert found(flash(*records)) == expected
    assert rules(flash(*records)) == []


@pytest.mark.parametrize(
    ("records", "expected"),
    [
        ([record("A", b"1"), record("A", b"2")], {"A": b"1"}),
        ([record("A", b"1", state=0x2F), record("B", b"2")], {"B": b"2"}),
        ([record("A", b""), record("B", b"2")], {"B": b"2"}),
        ([record("A", name_bytes=b"A\0"), record("B", b"2")], {"B": b"2"}),
        ([record("A", name_bytes=b"A\0B\0"), record("B", b"2")], {"B": b"2"}),
        ([record("A", name_bytes=b"\0\0\0\0"), record("B", b"2")], {"B": b"2"}),
        ([record("A", b"1"), record("B", sizes=(4, 1 << 20))], {"A": b"1"}),
        ([record("A", b"1"), b"rest"], {"A": b"1"}),
        ([record("A", b"1"), b"\xff" * 64, record("B", b"2")], {"A": b"1"}),
    ],
)
def test_f31_what_breaks_the_rules_of_records_is_reported(
    records: list[bytes], expected: dict[str, bytes]
) -> None:
    assert found(flash(*records)) == expected
    assert set(rules(flash(*records))) == {"F31"}


@pytest.mark.parametrize("size", range(2, 60))
def test_f32_a_header_cut_anywhere_has_no_body(size: int) -> None:
    cut = record("Long name", b"data", state=0xFF)[:size].ljust(60, b"\xff")
    content = flash(record("A", b"1"), cut, record("B", b"2"))
    assert found(content) == {"A": b"1", "B": b"2"}
    assert rules(content) == ["F32"]
    assert rules(write_store(content, read_store(content).variables)) == []


@pytest.mark.parametrize("sizes", [(0xFFFFFFFF, 4), (4, 0xFFFFFFFF)])
def test_f32_a_size_that_was_not_written_is_none(sizes: tuple[int, int]) -> None:
    cut = record("A", state=0x7F, sizes=sizes)[:60]
    assert found(flash(cut, record("B", b"2"))) == {"B": b"2"}
    assert rules(flash(cut, record("B", b"2"))) == ["F32"]


def test_f33_a_store_is_written_compact_and_the_rest_stays() -> None:
    log = flash(record("A", b"1", state=0x3C), RECORDS[0], record("B", state=0x7F), RECORDS[1])
    page = b"event log".ljust(4096, b"\xff")
    log = log[: WORK_AT - 4096] + page + log[WORK_AT:]
    expected = flash(*RECORDS)
    expected = expected[: WORK_AT - 4096] + page + expected[WORK_AT:]
    assert write_store(log, read_store(log).variables) == expected
    assert found(write_store(log, ())) == {}


def test_f33_what_does_not_fit_is_refused() -> None:
    room = STORE_SIZE - 28 - len(record("A", b""))
    assert found(write_store(flash(), (replace(ONE, name="A", data=bytes(room)),)))
    with pytest.raises(FieldError, match="the store has 57244"):
        write_store(flash(), (replace(ONE, name="A", data=bytes(room + 1)),))
    for wrong in (replace(ONE, data=b""), replace(ONE, name=""), replace(ONE, name="a\0b")):
        with pytest.raises(FieldError):
            write_store(flash(), (wrong,))
    with pytest.raises(FieldError, match="2048"):
        write_store(flash(), (replace(ONE, name="x" * 1024),))
    with pytest.raises(FieldError, match="one name"):
        write_store(flash(), (ONE, ONE))
    with pytest.raises(FieldError, match="F43"):
        write_store(flash(), (replace(ONE, digest=b"d"),))


def test_f34_a_damaged_work_area_is_reported_and_written_again() -> None:
    for damaged in (bytes(4096), b"\xff" * 4096, work_area()[:20] + b"\xfc" + work_area()[21:]):
        content = flash(*RECORDS, work=damaged)
        assert rules(content) == ["F34"]
        assert write_store(content, (ONE, TWO)) == flash(*RECORDS)


def test_f34_areas_of_other_builds_are_found_by_their_header() -> None:
    content = flash(*RECORDS).ljust(SIZE + 4096, b"\xff")  # a flash of no known build
    assert write_store(content, (ONE,)) == flash(RECORDS[0]).ljust(SIZE + 4096, b"\xff")
    unknown = content.replace(work_area(), b"something else".ljust(4096))
    assert rules(unknown) == []
    assert write_store(unknown, (ONE, TWO)) == unknown


def test_f34_a_guest_cannot_imitate_the_work_area_in_a_variable() -> None:
    lead = 4096 - RECORDS_AT - 60 - 4
    note = write_note(distance=-8192, offset=0, length=4096)
    forged = flash(record("Fake", b"forged"))[:4096]
    data = bytes(lead) + work_area(note) + forged
    content = flash(record("X", data), RECORDS[0])
    at = content.index(work_area(note))
    assert at % 4096 == 0
    assert found(content) == {"X": data, "One": b"1"}
    assert rules(content) == []


OLD, NEW = flash(record("A", b"old")), flash(record("A", b"new"))
COPY = first_part(record("A", b"new")).ljust(0xE000, b"\xff")[:0xE000]


@pytest.mark.parametrize("erased", [0, 72, 4096, 0xE000])
def test_f35_f36_an_unfinished_write_is_finished_first(erased: int) -> None:
    work = work_area(write_note(header=0xF8, bits=0xF9) + write_note())
    torn = b"\xff" * erased + OLD[erased:]
    content = torn[:WORK_AT] + work + COPY.ljust(SIZE - SPARE_AT, b"\xff")
    assert found(content) == {"A": b"new"}
    assert rules(content) == ["F35"]
    assert write_store(content, read_store(content).variables) == NEW


@pytest.mark.parametrize(
    "note",
    [
        write_note(bits=0xFF),  # the spare area is not complete
        write_note(bits=0xF9),  # the target is
        write_note(bits=0xFC),  # a boot block
        write_note(header=0xFD),  # not allocated to its end
        write_note(header=0xF8),  # all complete
        write_note(length=SIZE),  # larger than the spare area
        write_note(distance=-SPARE_AT - 4096),  # before the flash
        write_note(distance=0),  # onto the spare area itself
        write_note(writes=1 << 40),
        write_note(offset=(1 << 64) - 1, length=(1 << 64) - 1),
        bytes(4000),
    ],
)
def test_f35_other_notes_are_not_acted_on(note: bytes) -> None:
    content = OLD[:WORK_AT] + work_area(note) + COPY.ljust(SIZE - SPARE_AT, b"\xff")
    assert found(content) == {"A": b"old"}
    assert rules(content) == []
    assert write_store(content, read_store(content).variables) == OLD


def test_f35_a_note_in_a_damaged_work_area_is_not_acted_on() -> None:
    work = bytearray(work_area(write_note(header=0xF8, bits=0xF9) + write_note()))
    work[16] ^= 1
    content = b"\xff" * 72 + OLD[72:WORK_AT] + work + COPY.ljust(SIZE - SPARE_AT, b"\xff")
    with pytest.raises(FormatError):
        read_store(content)


def test_f35_a_copy_that_is_not_a_store_is_an_error_with_a_hint() -> None:
    content = OLD[:WORK_AT] + work_area(write_note())
    with pytest.raises(EmptyImageError) as raised:
        read_store(content.ljust(SIZE, b"\xff"))
    assert "--repair" in str(raised.value.hint)


def test_f35_a_copy_with_other_sizes_does_not_reach_the_areas() -> None:
    forged = bytearray(COPY)
    forged[88:92] = (SIZE - 72).to_bytes(4, "little")
    content = OLD[:WORK_AT] + work_area(write_note()) + forged.ljust(SIZE - SPARE_AT, b"\xff")
    assert len(write_store(content, (ONE,))) == SIZE
    assert found(write_store(content, (ONE,))) == {"One": b"1"}


def test_f19_damaged_headers_are_an_error_with_a_hint() -> None:
    content = bytearray(flash(*RECORDS))
    content[44] ^= 1
    with pytest.raises(FormatError, match="checksum") as raised:
        read_store(content)
    assert "--repair" in str(raised.value.hint)
    assert headers() == flash()[:100]
    assert uuid.UUID(bytes_le=flash()[72:88]) != OTHER
