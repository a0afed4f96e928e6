"""UEFI variables as bytes: the flash of OVMF, the JSON of QEMU (F19 to F22)."""

from __future__ import annotations

import uuid
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from formats.errors import (
    EmptyImageError,
    ForeignImageError,
    FormatError,
    StorageError,
    TruncatedImageError,
    UnsupportedError,
)
from formats.state.edk2_varstore import VariableFlash, decode_flash, require_blank_flash
from formats.state.uefi_vars import UefiVariable, decode_variables
from tests.foreign.samples import BOOT, GUID, PLAIN, VOLUME, flash, uefi_json


def test_f19_a_flash_is_known_by_its_headers() -> None:
    assert decode_flash(flash()) == VariableFlash(8192, 8192, 4096, authenticated=True)
    assert decode_flash(flash(store=PLAIN)) == VariableFlash(8192, 8192, 4096, authenticated=False)


def test_f19_the_blocks_may_be_those_of_the_whole_flash() -> None:
    content = flash(blocks=((256, 262144), (0, 0)), rest=bytes(4096))
    assert decode_flash(content).volume_size == 8192


@pytest.mark.interop
@pytest.mark.parametrize("name", ["AAVMF_VARS.ms.fd", "AAVMF_VARS.snakeoil.fd"])
def test_f19_variables_of_aarch64_are_a_flash(name: str) -> None:
    content = Path("/usr/share/AAVMF", name).read_bytes()
    assert decode_flash(content) == VariableFlash(64 << 20, 768 << 10, 262072, authenticated=True)


@pytest.mark.interop
def test_f20_a_blank_template_is_one_if_the_caller_says_so() -> None:
    template = Path("/usr/share/AAVMF/AAVMF_VARS.fd").read_bytes()
    with pytest.raises(EmptyImageError):
        decode_flash(template)
    assert require_blank_flash(template) == 64 << 20
    assert require_blank_flash(b"\xff" * 8192) == 8192


@pytest.mark.parametrize(
    ("content", "error"),
    [
        (b"", EmptyImageError),
        (bytes(4097), FormatError),
        (bytes(4096) + b"\xff" * 4096, ForeignImageError),
        (flash(), ForeignImageError),
    ],
)
def test_f20_what_is_not_blank_is_not_taken_for_it(
    content: bytes, error: type[StorageError]
) -> None:
    with pytest.raises(error) as raised:
        require_blank_flash(content)
    assert type(raised.value) is error


@pytest.mark.parametrize("filler", [b"\0", b"\xff"])
def test_f20_a_flash_may_be_larger_than_its_volume(filler: bytes) -> None:
    assert decode_flash(flash(rest=filler * 4096)).size == 12288


@pytest.mark.parametrize(
    ("content", "error", "match"),
    [
        (b"", EmptyImageError, "UEFI variables is empty"),
        (bytes(131072), EmptyImageError, "UEFI variables is empty"),
        (b"\xff" * 131072, EmptyImageError, "UEFI variables is empty"),
        (b"GIF89a", ForeignImageError, "not a flash"),
        (flash(guid=PLAIN), ForeignImageError, "not a flash"),
        (flash(signature=b"_FVX"), ForeignImageError, "not a flash"),
        (b"\x01" + flash()[1:], ForeignImageError, "not a flash"),
        (flash()[:8191], TruncatedImageError, "ends after 8191"),
        (flash()[:72], TruncatedImageError, "ends after 72"),
        (flash(checksum=1), FormatError, "checksum"),
        (flash(revision=1), FormatError, "header of the flash's volume"),
        (flash(blocks=()), FormatError, "header of the flash's volume"),
        (flash(blocks=((1, 4096), (0, 0))), FormatError, "do not add up"),
        (flash(blocks=((2, 4096),)), FormatError, "header of the flash's volume"),
        (flash(blocks=((1, 4096), (1, 4096))), FormatError, "do not add up"),
        (flash(blocks=((2, 4096), (1, 4096))), FormatError, "do not add up"),
        (flash(store=VOLUME), ForeignImageError, "no variable store"),
        (flash(store_size=8192), FormatError, "variable store is damaged"),
        (flash(store_size=27), FormatError, "variable store is damaged"),
        (flash(state=b"\x5a\xff"), FormatError, "variable store is damaged"),
        (flash(state=b"\xff\xfe"), FormatError, "variable store is damaged"),
        (flash(rest=b"code" * 1024), ForeignImageError, "firmware code"),
        (flash(rest=b"\xff" * 100), FormatError, "a flash cannot have 8292 bytes"),
    ],
)
def test_f19_f20_what_is_no_flash_of_variables_is_refused(
    content: bytes, error: type[StorageError], match: str
) -> None:
    with pytest.raises(error, match=match) as raised:
        decode_flash(content)
    assert type(raised.value) is error


def test_f21_variables_are_read_with_all_they_have() -> None:
    db = BOOT | {"name": "db\u20ac", "time": "07" * 16, "digest": "ab" * 32}
    assert decode_variables(uefi_json(BOOT, db)) == (
        UefiVariable(uuid.UUID(GUID), "Boot0000", 7, b"\0\xff"),
        UefiVariable(uuid.UUID(GUID), "db\u20ac", 7, b"\0\xff", b"\x07" * 16, b"\xab" * 32),
    )
    assert decode_variables(uefi_json()) == ()


@pytest.mark.parametrize(
    ("content", "error", "match"),
    [
        (b"", EmptyImageError, "UEFI variables is empty"),
        (b" \n\0\0", EmptyImageError, "UEFI variables is empty"),
        (b"GIF89a", ForeignImageError, "is not JSON"),
        (b"\xff\xfe{", ForeignImageError, "is not JSON"),
        (b"\xef\xbb\xbf" + uefi_json(), ForeignImageError, "is not JSON"),
        (b"[]", ForeignImageError, "does not hold QEMU's UEFI variables"),
        (b'{"a": 1}', ForeignImageError, "does not hold QEMU's UEFI variables"),
        (b"[" * 100_000, ForeignImageError, "nested too deeply"),
        (uefi_json(version=1), UnsupportedError, "version 1"),
        (uefi_json(version=True), UnsupportedError, "version True"),
        (uefi_json(version=2.0), UnsupportedError, "version 2.0"),
        (uefi_json(extra=1), FormatError, "a version and a list"),
        (uefi_json(variables={}), FormatError, "a version and a list"),
        (b'{"version": 2, "version": 2, "variables": []}', FormatError, "occurs twice"),
        (b'{"version": 2, "variables": [}', FormatError, "damaged JSON"),
        (b'{"version": ' + b"9" * 5000 + b"}", FormatError, "too large"),
        (uefi_json() + b"\0" * 10, FormatError, "damaged JSON"),
        (uefi_json(BOOT, BOOT), FormatError, "occurs twice"),
        (uefi_json(BOOT, BOOT | {"guid": GUID.upper()}), FormatError, "occurs twice"),
        (uefi_json("x"), FormatError, "lacks members"),
        (uefi_json(BOOT | {"owner": "me"}), FormatError, "lacks members"),
        (uefi_json({"name": "x"}), FormatError, "lacks members"),
        (uefi_json(BOOT | {"attr": True}), FormatError, "attr has a wrong type"),
        (uefi_json(BOOT | {"attr": 7.0}), FormatError, "attr has a wrong type"),
        (uefi_json(BOOT | {"time": None}), FormatError, "time has a wrong type"),
        (uefi_json(BOOT | {"attr": 1 << 32}), FormatError, "wrong guid or attr"),
        (uefi_json(BOOT | {"attr": -1}), FormatError, "wrong guid or attr"),
        (uefi_json(BOOT | {"guid": GUID.replace("-", "")}), FormatError, "wrong guid or attr"),
        (uefi_json(BOOT | {"data": "0"}), FormatError, "not hexadecimal"),
        (uefi_json(BOOT | {"data": "0g"}), FormatError, "not hexadecimal"),
        (uefi_json(BOOT | {"data": "00 00"}), FormatError, "not hexadecimal"),
        (uefi_json(BOOT | {"time": "07" * 15}), FormatError, "time has 15 bytes"),
    ],
)
def test_f21_what_qemu_does_not_write_is_refused(
    content: bytes, error: type[StorageError], match: str
) -> None:
    with pytest.raises(error, match=match) as raised:
        decode_variables(content)
    assert type(raised.value) is error


def test_f22_every_cut_of_the_json_is_refused() -> None:
    content = uefi_json(BOOT)
    cut = 0
    for size in range(1, len(content)):
        with pytest.raises(FormatError) as raised:
            decode_variables(content[:size])
        cut += isinstance(raised.value, TruncatedImageError)
    assert cut > len(content) * 0.9  # in the middle of a word it looks like another damage


@given(st.binary(max_size=300), st.sampled_from([flash(), flash()[:60], uefi_json(BOOT)[:40]]))
def test_f2_any_bytes_give_a_value_or_one_of_our_errors(content: bytes, start: bytes) -> None:
    for decode in (decode_flash, decode_variables):
        with suppress(FormatError, UnsupportedError):
            decode(start + content)
