"""UEFI variables as bytes: the flash of OVMF, the JSON of QEMU (F19 to F22)."""

from __future__ import annotations

import json
import struct
import uuid
from contextlib import suppress
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from formats.edk2_varstore import VariableFlash, decode_flash
from formats.errors import (
    EmptyImageError,
    ForeignImageError,
    FormatError,
    StorageError,
    TruncatedImageError,
    UnsupportedError,
)
from formats.uefi_vars import UefiVariable, decode_variables

VOLUME = uuid.UUID("fff12b8d-7696-4c8b-a985-2747075b4f50")
AUTHENTICATED = uuid.UUID("aaf32c78-947b-439a-a180-2e144ec37792")
PLAIN = uuid.UUID("ddcf3616-3275-4164-98b6-fe85707ffe7d")


def flash(
    *,
    guid: uuid.UUID = VOLUME,
    blocks: tuple[tuple[int, int], ...] = ((2, 4096), (0, 0)),
    revision: int = 2,
    checksum: int = 0,
    store: uuid.UUID = AUTHENTICATED,
    store_size: int = 4096,
    state: bytes = b"\x5a\xfe",
    signature: bytes = b"_FVH",
    rest: bytes = b"",
) -> bytes:
    """Return a flash of 8192 bytes, and ``rest``."""
    size = 56 + 8 * len(blocks)
    head = (
        bytearray(16)
        + guid.bytes_le
        + struct.pack("<Q4sIHHHBB", 8192, signature, 7, size, 0, 0, 0, revision)
    )
    head += b"".join(struct.pack("<II", *block) for block in blocks)
    total = sum(struct.unpack(f"<{len(head) // 2}H", head)) + checksum
    struct.pack_into("<H", head, 50, -total & 0xFFFF)
    variables = store.bytes_le + struct.pack("<I", store_size) + state + bytes(6)
    return bytes(head + variables).ljust(8192, b"\xff") + rest


def test_f19_a_flash_is_known_by_its_headers() -> None:
    assert decode_flash(flash()) == VariableFlash(8192, 8192, 4096, authenticated=True)
    assert decode_flash(flash(store=PLAIN)) == VariableFlash(8192, 8192, 4096, authenticated=False)


@pytest.mark.parametrize("filler", [b"\0", b"\xff"])
def test_f20_a_flash_may_be_larger_than_its_volume(filler: bytes) -> None:
    assert decode_flash(flash(rest=filler * 4096)).size == 12288


@pytest.mark.parametrize(
    ("content", "error", "match"),
    [
        (b"", EmptyImageError, "no UEFI variables"),
        (bytes(131072), EmptyImageError, "no UEFI variables"),
        (b"\xff" * 131072, ForeignImageError, "no flash"),
        (b"GIF89a", ForeignImageError, "no flash"),
        (b"QFI\xfb" + bytes(9999), UnsupportedError, "qcow2"),
        (flash(guid=PLAIN), ForeignImageError, "no flash"),
        (flash(signature=b"_FVX"), ForeignImageError, "no flash"),
        (b"\x01" + flash()[1:], ForeignImageError, "no flash"),
        (flash()[:8191], TruncatedImageError, "ends after 8191"),
        (flash()[:72], TruncatedImageError, "ends after 72"),
        (flash(checksum=1), FormatError, "checksum"),
        (flash(revision=1), FormatError, "header of the flash's volume"),
        (flash(blocks=()), FormatError, "header of the flash's volume"),
        (flash(blocks=((3, 4096), (0, 0))), FormatError, "do not add up"),
        (flash(blocks=((2, 4096),)), FormatError, "header of the flash's volume"),
        (flash(blocks=((1, 4096), (1, 4096))), FormatError, "do not add up"),
        (flash(store=VOLUME), ForeignImageError, "no variable store"),
        (flash(store_size=8192), FormatError, "variable store is damaged"),
        (flash(store_size=27), FormatError, "variable store is damaged"),
        (flash(state=b"\x5a\xff"), FormatError, "variable store is damaged"),
        (flash(state=b"\xff\xfe"), FormatError, "variable store is damaged"),
        (flash(rest=b"code" * 1024), ForeignImageError, "firmware code"),
        (flash(rest=b"\xff" * 100), FormatError, "no flash has 8292 bytes"),
    ],
)
def test_f19_f20_what_is_no_flash_of_variables_is_refused(
    content: bytes, error: type[StorageError], match: str
) -> None:
    with pytest.raises(error, match=match) as raised:
        decode_flash(content)
    assert type(raised.value) is error


GUID = "8be4df61-93ca-11d2-aa0d-00e098032b8c"
BOOT: dict[str, Any] = {"name": "Boot0000", "guid": GUID, "attr": 7, "data": "00Ff"}


def store(*variables: Any, **more: Any) -> bytes:
    return json.dumps({"version": 2, "variables": list(variables)} | more).encode()


def test_f21_variables_are_read_with_all_they_have() -> None:
    db = BOOT | {"name": "db\u20ac", "time": "07" * 16, "digest": "ab" * 32}
    assert decode_variables(store(BOOT, db)) == (
        UefiVariable(uuid.UUID(GUID), "Boot0000", 7, b"\0\xff"),
        UefiVariable(uuid.UUID(GUID), "db\u20ac", 7, b"\0\xff", b"\x07" * 16, b"\xab" * 32),
    )
    assert decode_variables(store()) == ()


@pytest.mark.parametrize(
    ("content", "error", "match"),
    [
        (b"", EmptyImageError, "no UEFI variables"),
        (b" \n\0\0", EmptyImageError, "no UEFI variables"),
        (b"GIF89a", ForeignImageError, "no JSON"),
        (b"\xff\xfe{", ForeignImageError, "no JSON"),
        (b"\xef\xbb\xbf" + store(), ForeignImageError, "no JSON"),
        (b"[]", ForeignImageError, "no variables of QEMU's"),
        (b'{"a": 1}', ForeignImageError, "no variables of QEMU's"),
        (b"[" * 100_000, ForeignImageError, "nested too deeply"),
        (store(version=1), UnsupportedError, "version 1"),
        (store(version=True), UnsupportedError, "version True"),
        (store(extra=1), FormatError, "a version and a list"),
        (store(variables={}), FormatError, "a version and a list"),
        (b'{"version": 2, "version": 2, "variables": []}', FormatError, "occurs twice"),
        (b'{"version": 2, "variables": [}', FormatError, "damaged JSON"),
        (b'{"version": ' + b"9" * 5000 + b"}", FormatError, "too large"),
        (store() + b"\0" * 10, FormatError, "damaged JSON"),
        (store(BOOT, BOOT), FormatError, "occurs twice"),
        (store(BOOT, BOOT | {"guid": GUID.upper()}), FormatError, "occurs twice"),
        (store("x"), FormatError, "lacks members"),
        (store(BOOT | {"owner": "me"}), FormatError, "lacks members"),
        (store({"name": "x"}), FormatError, "lacks members"),
        (store(BOOT | {"attr": True}), FormatError, "attr has a wrong type"),
        (store(BOOT | {"attr": 7.0}), FormatError, "attr has a wrong type"),
        (store(BOOT | {"time": None}), FormatError, "time has a wrong type"),
        (store(BOOT | {"attr": 1 << 32}), FormatError, "wrong guid or attr"),
        (store(BOOT | {"attr": -1}), FormatError, "wrong guid or attr"),
        (store(BOOT | {"guid": GUID.replace("-", "")}), FormatError, "wrong guid or attr"),
        (store(BOOT | {"data": "0"}), FormatError, "not hexadecimal"),
        (store(BOOT | {"data": "0g"}), FormatError, "not hexadecimal"),
        (store(BOOT | {"data": "00 00"}), FormatError, "not hexadecimal"),
        (store(BOOT | {"time": "07" * 15}), FormatError, "time has 15 bytes"),
    ],
)
def test_f21_what_qemu_does_not_write_is_refused(
    content: bytes, error: type[StorageError], match: str
) -> None:
    with pytest.raises(error, match=match) as raised:
        decode_variables(content)
    assert type(raised.value) is error


def test_f22_every_cut_of_the_json_is_refused() -> None:
    content = store(BOOT)
    cut = 0
    for size in range(1, len(content)):
        with pytest.raises(FormatError) as raised:
            decode_variables(content[:size])
        cut += isinstance(raised.value, TruncatedImageError)
    assert cut > len(content) * 0.9  # in the middle of a word it looks like another damage


@given(st.binary(max_size=300), st.sampled_from([flash(), flash()[:60], store(BOOT)[:40]]))
def test_f2_any_bytes_give_a_value_or_one_of_our_errors(content: bytes, start: bytes) -> None:
    for decode in (decode_flash, decode_variables):
        with suppress(FormatError, UnsupportedError):
            decode(start + content)
