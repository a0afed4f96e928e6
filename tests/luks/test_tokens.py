"""Tokens: what is known of them, and the passphrases that they lead to."""

from __future__ import annotations

import ctypes
import json
import os
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import luks
from luks.keys import benchmark
from tests.luks.support import OTHER, PASSPHRASE, PBKDF2, small_volume

if TYPE_CHECKING:
    from collections.abc import Callable

    from formats.devices.device import MemoryDevice

DESCRIPTION = "blobstore-test:token"
PAGE = Path(__file__).resolve().parents[2] / "docs" / "keys.md"


def volume() -> MemoryDevice:
    """A volume of two keyslots."""
    device = small_volume(keyslots_size=512 << 10, data_offset=544 << 10)
    luks.add_keyslot(device, PASSPHRASE, OTHER, kdf=PBKDF2)
    return device


@pytest.mark.parametrize(
    ("body", "name"),
    [
        ({"type": "luks2-keyring", "key_description": "a key"}, "kernel keyring: a key"),
        ({"type": "luks2-keyring", "key_description": 7}, "kernel keyring"),
        ({"type": "systemd-tpm2"}, "TPM 2.0, enrolled by systemd"),
        ({"type": "systemd-fido2"}, "FIDO2, enrolled by systemd"),
        ({"type": "clevis", "jwe": {}}, "Clevis"),
        ({"type": "com.example.unheard-of"}, "com.example.unheard-of"),
    ],
)
def test_l125_known_types_have_names(body: dict[str, Any], name: str) -> None:
    device = volume()
    with luks.edit(device) as header:
        number = header.set_token({**body, "keyslots": ["0"]})
    there = luks.load_header(device)
    assert luks.token_name(there.tokens[number]) == name
    assert json.loads(luks.format_token(there, number)) == {**body, "keyslots": ["0"]}


def test_l125_only_the_keyslots_of_an_unknown_token_change() -> None:
    device = volume()
    body = {"keyslots": ["1"], "type": "acme", "priority": 1e300, "x": [None, {"y": "é"}], "1": 1}
    with luks.edit(device) as header:
        header.set_token(body, number=9)
    with luks.edit(device) as header:
        header.assign_token(9, 0)
        header.assign_token(9, 0)
    assert luks.load_header(device).tokens[9].body == {**body, "keyslots": ["0", "1"]}
    luks.remove_keyslot(device, 1)
    luks.change_keyslot(device, PASSPHRASE, OTHER, kdf=PBKDF2)
    token = luks.load_header(device).tokens[9]
    assert list(token.body.items()) == list({**body, "keyslots": ["0"]}.items())
    with luks.edit(device) as header:
        header.assign_token(9, 0, assigned=False)
        for number, keyslot in ((9, 1), (8, 0)):
            with pytest.raises(ValueError, match=r"not active|no token"):
                header.assign_token(number, keyslot)
    assert luks.load_header(device).tokens[9].keyslots == ()


def test_l125_a_keyring_token_leads_to_its_passphrase(monkeypatch: pytest.MonkeyPatch) -> None:
    device = volume()
    with luks.edit(device) as header:
        header.set_token(luks.keyring_token(DESCRIPTION, [1]))
        header.set_token({"type": "acme", "keyslots": ["1"]})
    there = luks.load_header(device)

    def from_keyring(description: str) -> luks.Secret:
        assert description == DESCRIPTION
        return luks.Secret(OTHER)

    monkeypatch.setattr(luks.Secret, "from_keyring", from_keyring)
    with luks.token_secret(there, 0) as secret, luks.open(device, secret) as opened:
        assert opened.keyslot == 1
    with pytest.raises(luks.UnsupportedError, match="acme"):
        luks.token_secret(there, 1)
    with pytest.raises(ValueError, match="no token 2"):
        luks.token_secret(there, 2)


@pytest.fixture
def add_key() -> Callable[[str, bytes], None]:
    """Adds keys to this process's keyring, which ends with it."""
    library = ctypes.CDLL("libkeyutils.so.1", use_errno=True)

    def add(description: str, content: bytes) -> None:
        process_keyring = ctypes.c_int32(-2)
        name = description.encode()
        if library.add_key(b"user", name, content, len(content), process_keyring) < 0:
            reason = os.strerror(ctypes.get_errno())
            pytest.skip(f"this kernel permits no keys, as some containers do not: {reason}")

    return add


def test_l125_the_passphrase_is_in_the_kernel(add_key: Callable[[str, bytes], None]) -> None:
    device = volume()
    add_key(DESCRIPTION, OTHER)
    with luks.edit(device) as header:
        header.set_token(luks.keyring_token(DESCRIPTION, [1]))
    with luks.token_secret(luks.load_header(device), 0) as secret:
        luks.open(device, secret, keyslot=1).close()


@pytest.mark.parametrize(
    "text",
    [
        *("", "[]", "{", "{}{}", '{"type":"a","type":"b"}', '{"a":1}\0', "nul\0"),
        "{" + '"a":{' * 40 + "}" * 41,
    ],
)
def test_what_no_header_could_store_is_no_token(text: str) -> None:
    """L23."""
    with pytest.raises((luks.FormatError, luks.UnsupportedError), match=r"L23|L126") as caught:
        luks.parse_token(text.encode(), "a file")
    assert not isinstance(caught.value, luks.LuksHeaderError), "no header is damaged"
    assert str(caught.value).startswith("a file ")


@pytest.mark.parametrize("member", [{}, {"key_description": 1}, {"key_description": ""}])
def test_l125_a_keyring_token_has_its_members(member: dict[str, Any]) -> None:
    body = {"type": "luks2-keyring", "keyslots": [], **member}
    with pytest.raises(luks.FormatError, match="L125"):
        luks.parse_token(json.dumps(body).encode())
    with pytest.raises(luks.FormatError, match="exactly one key_description"):
        luks.parse_token(json.dumps({**body, "key_description": "k", "x": 1}).encode())
    with pytest.raises(ValueError, match="without NUL"):
        luks.keyring_token("a\0b", ())


@given(st.binary(max_size=60))
def test_any_bytes_are_a_token_or_none(data: bytes) -> None:
    try:
        luks.parse_token(data)
    except (luks.FormatError, luks.UnsupportedError):
        return
    json.loads(data)


def test_a_token_that_does_not_fit_changes_nothing() -> None:
    device = volume()
    before = bytes(device.content)
    with pytest.raises(luks.LuksHeaderError, match="do not fit"), luks.edit(device) as header:
        header.set_token({"type": "acme", "keyslots": [], "x": "x" * 16384})
    assert bytes(device.content) == before


@pytest.mark.parametrize("version", [1, 2])
def test_a_volume_key_opens_the_volume(version: int) -> None:
    device = small_volume(version=version)
    key = luks.unlock(device, luks.load_header(device), PASSPHRASE)
    luks.destroy_keys(device)
    with luks.open(device, key, read_only=False) as opened:
        assert opened.keyslot is None
        opened.write(0, b"payload")
    with luks.open(device, key) as opened:  # it is still the caller's
        assert opened.read(0, 7) == b"payload"
    with pytest.raises(luks.UnlockError, match="not the volume key"):
        luks.open(small_volume(version=version), key)


def test_the_examples_of_the_page_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(benchmark, "_measure", lambda *_: 100.0)
    (block,) = re.findall(r"^```python\n(.*?)^```$", PAGE.read_text(), re.MULTILINE | re.DOTALL)
    exec(compile(block, str(PAGE), "exec"), {})
    header = luks.load_header("disk.img")
    assert sorted(header.keyslots) == [0, 2]
    assert header.tokens[0].body == {"type": "com.example.escrow", "keyslots": ["2"], "id": 8}
    for name in re.findall(r"luks\.([A-Za-z_]+)\b", PAGE.read_text()):
        assert name in luks.__all__ or name == "md", name
