"""swtpm's states and linear files as bytes (F8 to F15)."""

from __future__ import annotations

import struct
from contextlib import suppress
from itertools import product

import pytest
from hypothesis import given
from hypothesis import strategies as st

from blobstore.errors import StateAuthenticationError
from blobstore.foreign.encryption import StateKey
from formats.errors import (
    EmptyImageError,
    ForeignImageError,
    FormatError,
    StorageError,
    TruncatedImageError,
    UnsupportedError,
)
from formats.state.swtpm import (
    EncryptedState,
    PlainState,
    Slot,
    TpmVersion,
    decode_state,
    encode_state,
    tpm_version,
    validate_slot,
)
from formats.state.swtpm_linear import HEADER_SIZE, decode_linear, encode_linear
from luks import SecretRequiredError

PERMANENT = bytes.fromhex("0003ab364723") + b"permanent"
VOLATILE = bytes.fromhex("000445637889") + b"volatile"
TPM_12 = bytes.fromhex("00010022") + b"permanent"

PLAIN = encode_state(PlainState(PERMANENT))
KEY = StateKey(bytes(16), "binary")
ENCRYPTED = encode_state(KEY.encrypt(PlainState(PERMANENT)))


def header(
    body: bytes, *, version: int = 2, least: int = 1, size: int = 10, flags: int = 0, more: int = 0
) -> bytes:
    return struct.pack(">BBHHI", version, least, size, flags, 10 + len(body) + more) + body


def field(tag: int, content: bytes) -> bytes:
    return struct.pack(">HI", tag, len(content)) + content


def test_f8_f9_a_state_in_the_clear_byte_by_byte() -> None:
    expected = bytes.fromhex("0201000a00000000001f00010000000f") + PERMANENT
    assert encode_state(PlainState(PERMANENT)) == expected
    assert decode_state(PLAIN) == PlainState(PERMANENT)


@given(st.binary(min_size=1), st.sampled_from([16, 32]))
def test_f9_f10_every_state_comes_back(data: bytes, key_size: int) -> None:
    state = PlainState(data)
    assert decode_state(encode_state(state)) == state
    key = StateKey(bytes(key_size), "binary")
    encrypted = decode_state(encode_state(key.encrypt(state)))
    assert isinstance(encrypted, EncryptedState)
    assert encrypted.key_size == len(encrypted.iv) == key_size
    assert len(encrypted.ciphertext) == (len(data) // key_size + 1) * key_size
    assert key.decrypt(encrypted) == state


@pytest.mark.parametrize("state", [PLAIN, ENCRYPTED], ids=["plain", "encrypted"])
def test_f8_every_cut_is_told_from_everything_else(state: bytes) -> None:
    for size in range(len(state)):
        with pytest.raises(TruncatedImageError):
            decode_state(state[:size])


@pytest.mark.parametrize(
    ("content", "error", "match"),
    [
        (b"GIF89a" * 9, FormatError, "does not begin"),
        (bytes(100), FormatError, "does not begin"),
        (PERMANENT, FormatError, "does not begin"),
        (header(b"", size=9), FormatError, "does not begin"),
        (header(b"", size=11), FormatError, "does not begin"),
        (header(PERMANENT, version=1), UnsupportedError, "version 1"),
        (header(field(1, b"x"), version=9, least=3), UnsupportedError, "version 9"),
        (PLAIN + b"\0", FormatError, "continues after"),
        (header(field(1, b"x"), flags=2), UnsupportedError, "flags 0x2"),
        (header(field(1, b"x"), flags=4), UnsupportedError, "flags 0x4"),
        (header(field(4, b"x")), FormatError, r"fields \(4,\)"),
        (header(b""), FormatError, r"fields \(\)"),
        (header(field(1, b"")), FormatError, "no data"),
        (header(field(1, b"x") + field(1, b"x")), FormatError, "does not fit"),
        (header(field(1, b"x")[:-1]), FormatError, "does not fit"),
        (header(field(1, b"x") + b"\0"), FormatError, "ends inside a field"),
        (header(field(1, b"x"), flags=1), FormatError, "fields"),
        (
            header(field(2, bytes(15)) + field(3, bytes(32)) + field(6, bytes(16)), flags=1),
            FormatError,
            "contradict",
        ),
        (
            header(field(2, bytes(32)) + field(3, bytes(32)) + field(6, bytes(16)), flags=9),
            FormatError,
            "contradict",
        ),
        (
            header(field(2, b"") + field(3, bytes(32)) + field(6, bytes(16)), flags=1),
            FormatError,
            "contradict",
        ),
        (
            header(field(2, bytes(16)) + field(3, bytes(31)) + field(6, bytes(16)), flags=1),
            FormatError,
            "contradict",
        ),
    ],
)
def test_f8_f9_what_is_no_state_is_refused(
    content: bytes, error: type[StorageError], match: str
) -> None:
    with pytest.raises(error, match=match) as raised:
        decode_state(content)
    assert not isinstance(raised.value, TruncatedImageError)


def test_f8_a_later_version_that_version_2_reads_is_read() -> None:
    later = struct.pack(">BBHHI", 3, 2, 12, 0, 12 + 7) + b"??" + field(1, b"x")
    assert decode_state(later) == PlainState(b"x")


@pytest.mark.parametrize("offset", range(1, len(ENCRYPTED)))
def test_f10_every_changed_byte_but_the_version_is_found(offset: int) -> None:
    changed = bytearray(ENCRYPTED)
    changed[offset] ^= 0x01
    try:
        state = decode_state(changed)
    except (FormatError, UnsupportedError):
        return
    assert isinstance(state, EncryptedState), "an encrypted state became one in the clear"
    with pytest.raises(StateAuthenticationError):
        KEY.decrypt(state)


def test_f10_what_verifies_and_is_nonsense_is_a_format_error() -> None:
    """Only who has the key can make such a thing."""
    import hmac

    from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

    for padded in (
        b"x" * 15 + b"\0",
        b"x" * 15 + b"\x11" * 17,
        b"x" * 14 + b"\x01\x02",
        b"\x10" * 16,
    ):
        cipher = Cipher(algorithms.AES(bytes(16)), modes.CBC(bytes(16))).encryptor()
        ciphertext = cipher.update(padded) + cipher.finalize()
        mac = hmac.digest(bytes(16), ciphertext + bytes(16), "sha256")
        with pytest.raises(FormatError):
            KEY.decrypt(EncryptedState(ciphertext, mac, bytes(16), 16))


@pytest.mark.parametrize(
    ("content", "source", "mode"),
    [
        (b"", "hex", None),
        (b"00" * 15, "hex", None),
        (b"00" * 16 + b"0", "hex", None),
        (b"zz" * 16, "hex", None),
        (b" " + b"00" * 16, "hex", None),
        (b"00" * 16, "hex", "aes-256-cbc"),
        (b"00" * 32, "hex", "aes-cbc"),
        (bytes(17), "binary", None),
        (bytes(32), "binary", "aes-cbc"),
        (b"", "pbkdf2", None),
        (b"", "sha512", None),
    ],
)
def test_f11_a_file_without_a_key_is_no_wrong_key(
    content: bytes, source: str, mode: str | None
) -> None:
    with pytest.raises(SecretRequiredError):
        StateKey(content, source, mode).encrypt(PlainState(b"x"))


def test_f11_a_key_shows_nothing_of_itself() -> None:
    assert repr(StateKey(b"hunter2", "pbkdf2")) == "<StateKey>"
    with pytest.raises(ValueError, match="cannot be made of"):
        StateKey(b"", "scrypt")
    with pytest.raises(ValueError, match="no encryption"):
        StateKey(b"", "hex", "aes-gcm")


def test_f13_the_version_and_the_kind_of_a_state_show_in_its_data() -> None:
    assert tpm_version(PlainState(PERMANENT)) is TpmVersion.TPM_2
    assert tpm_version(PlainState(TPM_12)) is TpmVersion.TPM_12
    good = {
        (PERMANENT, Slot.PERMANENT, TpmVersion.TPM_2),
        (VOLATILE, Slot.VOLATILE, TpmVersion.TPM_2),
        (TPM_12, Slot.PERMANENT, TpmVersion.TPM_12),
        (TPM_12, Slot.VOLATILE, TpmVersion.TPM_12),  # nothing tells these apart
        (TPM_12, Slot.SAVED, TpmVersion.TPM_12),
        (TPM_12, Slot.SAVED, TpmVersion.TPM_2),
    }
    for case in product((PERMANENT, VOLATILE, TPM_12), Slot, TpmVersion):
        data, slot, version = case
        if case in good:
            validate_slot(PlainState(data), slot, version)
        else:
            with pytest.raises(FormatError):
                validate_slot(PlainState(data), slot, version)
    for data in (b"x", VOLATILE, bytes(20)):
        with pytest.raises(FormatError, match="not the permanent state of a TPM"):
            tpm_version(PlainState(data))


@given(st.dictionaries(st.sampled_from(Slot), st.binary(min_size=1, max_size=3000), min_size=1))
def test_f14_f15_every_linear_file_comes_back(states: dict[Slot, bytes]) -> None:
    content = encode_linear(states)
    assert decode_linear(content) == states
    assert decode_linear(content + bytes(4096)) == states


@pytest.mark.parametrize(("size", "place"), [(1, 1), (1024, 1024), (1025, 2048)])
def test_f15_a_place_is_the_next_power_of_two(size: int, place: int) -> None:
    content = encode_linear({Slot.PERMANENT: bytes(size)})
    assert struct.unpack_from("<III", content, 12) == (HEADER_SIZE, size, place)
    assert len(content) == HEADER_SIZE + place


def linear(*places: tuple[int, int, int], size: int = 8192) -> bytes:
    content = bytearray(size)
    content[:12] = b"nilmptws\x01\0\xc0\0"
    for number, place in enumerate(places):
        struct.pack_into("<III", content, 12 + 12 * number, *place)
    return bytes(content)


@pytest.mark.parametrize(
    ("content", "error"),
    [
        (b"", EmptyImageError),
        (bytes(4096), EmptyImageError),
        (linear(), EmptyImageError),
        (b"LUKS\xba\xbe" + bytes(4096), ForeignImageError),
        (b"nilmptw", ForeignImageError),
        (linear((192, 10, 16))[:191], TruncatedImageError),
        (linear((192, 10, 16), size=200), TruncatedImageError),
        (linear((192, 10, 1 << 31)), TruncatedImageError),
        (linear((192, 17, 16)), FormatError),
        (linear((192, 0, 16)), FormatError),
        (linear((0, 10, 16)), FormatError),
        (linear((191, 10, 16)), FormatError),
        (linear((192, 10, 16), (207, 10, 16)), FormatError),
        (linear((208, 10, 16), (192, 10, 17)), FormatError),
        (linear(*[(0, 0, 0)] * 3, (192, 10, 16)), FormatError),
        (linear((192, 10, 16)).replace(b"\x01\0\xc0", b"\x02\0\xc0", 1), FormatError),
        (linear((192, 10, 16)).replace(b"\x01\0\xc0", b"\x01\0\xc1", 1), FormatError),
    ],
)
def test_f14_what_is_no_linear_file_is_refused(content: bytes, error: type[FormatError]) -> None:
    with pytest.raises(error) as raised:
        decode_linear(content)
    assert type(raised.value) is error


def test_f14_every_cut_of_a_linear_file_is_refused() -> None:
    content = encode_linear({Slot.PERMANENT: PLAIN, Slot.VOLATILE: PLAIN})
    for size in range(len(content)):
        with pytest.raises(FormatError):
            decode_linear(content[:size])
    assert content[HEADER_SIZE:].startswith(PLAIN)


@given(st.binary(max_size=300), st.sampled_from([b"", PLAIN[:10], linear()[:12]]))
def test_f2_any_bytes_give_a_value_or_one_of_our_errors(content: bytes, start: bytes) -> None:
    for decode in (decode_state, decode_linear):
        with suppress(FormatError, UnsupportedError):
            decode(start + content)
