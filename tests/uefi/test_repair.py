"""Repairing torn and damaged flashes (F39)."""

from __future__ import annotations

import random

import pytest

from formats.errors import EmptyImageError, ForeignImageError, FormatError, TruncatedImageError
from formats.state.uefi.flash import read_store, repair_store
from tests.uefi.samples import (
    OTHER,
    SIZE,
    SPARE_AT,
    TIME,
    WORK_AT,
    first_part,
    flash,
    record,
    work_area,
)

RECORDS = [record(f"Variable {number}", bytes([number]) * 100) for number in range(20)]
WHOLE = flash(*RECORDS)


def repaired(content: bytes) -> dict[str, bytes]:
    """Repair a flash; return its variables, after a check that nothing is wrong with it."""
    result, store = repair_store(content)
    again = read_store(result)
    assert (again.variables, again.flaws) == (store.variables, ())
    assert len(result) == len(content)
    assert repair_store(result)[0] == result
    return {variable.name: variable.data for variable in store.variables}


def test_f39_a_sound_flash_stays_as_it_is() -> None:
    assert repair_store(WHOLE)[0] == WHOLE
    assert repair_store(WHOLE)[1].flaws == ()


@pytest.mark.parametrize("lost", range(0, 4096, 512))
@pytest.mark.parametrize("filler", [b"\0", b"\xff"])
def test_f39_the_loss_of_a_sector_costs_the_variables_in_it(lost: int, filler: bytes) -> None:
    content = WHOLE[:lost] + filler * 512 + WHOLE[lost + 512 :]
    rescued = repaired(content)
    at = 100
    for number, one in enumerate(RECORDS):
        name = f"Variable {number}"
        if at + len(one) <= lost or at >= lost + 512:
            assert rescued.pop(name) == bytes([number]) * 100
        else:
            rescued.pop(name, None)  # if only the end of its data is lost
        at += len(one)
    assert rescued == {}


def test_f39_what_firmware_can_read_never_changes() -> None:
    chance = random.Random(19)
    for _ in range(150):
        content = bytearray(WHOLE)
        for _ in range(chance.randrange(1, 4)):
            at = chance.randrange(100, 4096)
            content[at : at + chance.randrange(1, 64)] = chance.randbytes(chance.randrange(1, 64))
        content = content[:SIZE].ljust(SIZE, b"\xff")
        try:
            before = read_store(content)
        except FormatError:
            continue
        rescued = repaired(bytes(content))
        for variable in before.variables:
            assert rescued[variable.name] == variable.data


def test_f39_keys_after_a_gap_are_named() -> None:
    key = record("db", b"key", guid=OTHER, attributes=0x27, time=TIME)
    content = flash(RECORDS[0], b"\0" * 64, key, RECORDS[1])
    result, store = repair_store(content)
    assert [variable.name for variable in store.variables] == ["Variable 0", "db", "Variable 1"]
    assert [str(flaw) for flaw in store.flaws][1:] == [
        f"'db', which may be an imitation, at byte {content.index(key)} [F39]"
    ]
    assert read_store(result).flaws == ()


def test_f39_a_lost_store_comes_back_from_the_spare_area() -> None:
    copy = first_part(b"".join(RECORDS))[:0xE000]
    content = b"\xff" * 0xE000 + WHOLE[0xE000:WORK_AT] + work_area() + copy
    content = content.ljust(SIZE, b"\xff")
    with pytest.raises(EmptyImageError):
        read_store(content)
    assert repair_store(content)[0] == WHOLE


def test_f39_lost_headers_are_made_again() -> None:
    assert repair_store(bytes(100) + WHOLE[100:])[0] == WHOLE
    assert repair_store(b"\xff" * 72 + WHOLE[72:])[0] == WHOLE


@pytest.mark.parametrize(
    ("content", "error"),
    [
        (bytes(SIZE), EmptyImageError),
        (b"\xff" * SIZE, EmptyImageError),
        (b"", EmptyImageError),
        (WHOLE[: SIZE // 2], TruncatedImageError),
        (b"\xff" * 4096 + b"\0" * (SIZE - 4096), FormatError),
        (bytes(range(256)) * (SIZE // 256), FormatError),
        (WHOLE[:16] + bytes(16) + WHOLE[32:], ForeignImageError),  # a volume of something else
        (WHOLE + b"code".ljust(4096, b"\1"), ForeignImageError),
        (bytes(4096) + WHOLE[4096 : SPARE_AT + 4096], FormatError),  # of no known size
    ],
)
def test_f39_nothing_is_made_of_what_is_not_a_flash(
    content: bytes, error: type[FormatError]
) -> None:
    with pytest.raises(error):
        repair_store(content)
