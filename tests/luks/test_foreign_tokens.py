"""Tokens that cryptsetup imported, whatever they say, survive what is done to the header (L23)."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

import luks
from luks.header.luks2_json import format_object, parse_object
from tests.luks.programs import accepts, cryptsetup, key_file
from tests.luks.support import PASSPHRASE, PBKDF2

if TYPE_CHECKING:
    from pathlib import Path

TOKENS = {
    "not UTF-8": b'{"type":"x","keyslots":["0"],"a":"caf\xe9","k\xe9y":"\xff\xfe"}',
    "a type that is not": b'{"type":"ty\xe9pe","keyslots":["0"]}',
    "not numbers": b'{"type":"x","keyslots":["0"],"a":NaN,"b":Infinity,"c":[-Infinity]}',
    "large numbers": b'{"type":"x","keyslots":["0"],"a":1e400,"b":-1e400}',
    "spelled numbers": b'{"type":"x","keyslots":["0"],"a":1.10,"b":1E5,"c":-0.0}',
    "controls": b'{"type":"x","keyslots":["0"],"n":"a\\u0000b\\u001b\x7f"}',
}


def blobstore(*arguments: object) -> bytes:
    command = [sys.executable, "-m", "blobstore", *map(str, arguments)]
    return subprocess.run(command, check=True, capture_output=True).stdout


@pytest.mark.interop
@pytest.mark.parametrize("token", TOKENS.values(), ids=TOKENS)
def test_what_cryptsetup_imported_survives(token: bytes, tmp_path: Path) -> None:
    image, file = tmp_path / "image", tmp_path / "token"
    luks.format(image, PASSPHRASE, size=64 << 10, kdf=PBKDF2).close()
    file.write_bytes(token)
    cryptsetup("token", "import", "--token-id", 0, "--json-file", file, image)
    assert image.read_bytes().count(token) == 2, "cryptsetup stores it as it is"
    with luks.edit(image) as edit:
        edit.unlock(PASSPHRASE)
        edit.add_keyslot(b"new", kdf=PBKDF2)
        edit.assign_token(0, 1)
    with luks.edit(image) as edit:
        edit.assign_token(0, 1, assigned=False)
    assert image.read_bytes().count(token) == 2, "in both copies, byte for byte"
    luks.open(image, b"new").close()
    assert accepts(image, key_file(tmp_path, b"new"))
    assert blobstore("token", "export", image, 0) == token + b"\n"
    blobstore("token", "import", image, file, "--token-id", 3)
    assert image.read_bytes().count(token) == 4
    for command in (["key", "list"], ["key", "list", "--json"], ["token", "list"]):
        assert blobstore(*command, image).isascii() or b"\xef\xbf\xbd" in blobstore(*command, image)


def test_escapes_that_look_like_bytes_become_what_json_c_makes_of_them() -> None:
    text = rb'{"a":"\udc80\ud83d\ude00\\udc80\ud800"}'
    value = parse_object(text)
    assert value == {"a": "�\U0001f600\\udc80\ud800"}
    assert format_object(value) == '{"a":"�\U0001f600\\\\udc80\\ud800"}'.encode()


def test_nan_equals_itself_so_that_headers_can_be_compared() -> None:
    one, two = (parse_object(b'{"a":NaN}') for _ in range(2))
    assert one == two
    assert json.dumps(one) == '{"a": NaN}'
