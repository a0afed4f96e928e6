"""Any bytes give variables or one of our errors, in bounded time (F30 to F42)."""

from __future__ import annotations

import time
from contextlib import suppress

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from blobstore import Signatures, UefiVariables
from formats.errors import StorageError
from formats.state.uefi.flash import read_store, repair_store, write_store
from formats.state.uefi_vars import UefiVariable, decode_variables, encode_variables
from tests.uefi.samples import OTHER, SIZE, WORK_AT, flash, record, work_area, write_note

CONTENT = flash(
    record("BootOrder", b"\0\0\1\0"),
    record("Boot0000", bytes(40)),
    record("A", b"old", state=0x3E),
    record("x", b"1" * 50, state=0x7F),
    record("A", b"new"),
    work=work_area(write_note()),
    spare=flash(record("B", b"b"))[:WORK_AT],
)
#: What matters: the headers, the records, the work area, the beginning of the spare area.
_PLACES = st.one_of(
    st.integers(0, 600),
    st.integers(WORK_AT, WORK_AT + 200),
    st.integers(WORK_AT + 4096, WORK_AT + 4500),
)
_CHANGES = st.lists(st.tuples(_PLACES, st.binary(min_size=1, max_size=9)), min_size=1, max_size=6)
_NAMES = st.text(min_size=1, max_size=20).filter(lambda name: "\0" not in name)


@given(_CHANGES)
@settings(deadline=None)
def test_f31_f39_a_damaged_flash_is_read_and_repaired_or_refused(
    changes: list[tuple[int, bytes]],
) -> None:
    content = bytearray(CONTENT)
    for at, data in changes:
        content[at : at + len(data)] = data
    assert len(content) == SIZE
    before = None
    with suppress(StorageError):
        before = UefiVariables(read_store(content).variables)
        before.fields()
        [before.describe(f"{one.name}-{one.guid}") for one in before]
    with suppress(StorageError):
        result, store = repair_store(content)
        assert read_store(result).flaws == ()
        assert read_store(result).variables == store.variables
        if before is not None:
            known = {one.key: one for one in store.variables}
            assert all(known[one.key] == one for one in before)


@given(st.lists(st.tuples(_NAMES, st.binary(min_size=1, max_size=100)), unique_by=lambda x: x[0]))
@settings(deadline=None)
def test_f33_f43_what_is_written_is_read_again(pairs: list[tuple[str, bytes]]) -> None:
    variables = tuple(UefiVariable(OTHER, name, 7, data) for name, data in pairs)
    assert read_store(write_store(CONTENT, variables)).variables == variables
    assert decode_variables(encode_variables(variables)) == variables


@given(
    st.binary(max_size=300), st.sampled_from([b"", b"\x30\x82", b"-----BEGIN CERTIFICATE-----\n"])
)
def test_f38_f40_any_file_of_keys_is_taken_or_refused(content: bytes, start: bytes) -> None:
    with suppress(StorageError):
        signatures = Signatures.decode(start + content)
        UefiVariables(()).enrol("db", signatures)


@pytest.mark.parametrize("pattern", [b"\xaa\x55\x3f\0", b"\xaa\x55\x3f\0" * 8 + b"\4\4\0\0" * 3])
def test_f39_the_slowest_flash_takes_seconds(pattern: bytes) -> None:
    size = 1 << 20
    head = bytearray(flash()[:100])
    head[32:40] = (2 * size).to_bytes(8, "little")
    head[56:60] = (2 * size >> 12).to_bytes(4, "little")
    head[88:92] = size.to_bytes(4, "little")
    head[50:52] = b"\0\0"
    total = sum(int.from_bytes(head[at : at + 2], "little") for at in range(0, 72, 2))
    head[50:52] = (-total & 0xFFFF).to_bytes(2, "little")
    content = bytes(head) + b"\0" * 4 + pattern * (size // len(pattern))
    content = content[:size].ljust(2 * size, b"\xff")
    begin = time.process_time()
    repair_store(content)
    assert time.process_time() - begin < 10
