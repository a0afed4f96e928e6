"""JSON that json-c reads, and no other, is written; checking it takes time in step with its length.

cryptsetup judges what it reads: a header with one level more is none to it (L23, L126).
"""

from __future__ import annotations

import copy
import json
import time
from typing import TYPE_CHECKING, Any

import pytest

import luks
from formats.errors import ArgumentError
from luks.header.luks2_json import MAX_DEPTH, TOKEN_DEPTH
from tests.luks.programs import accepts, key_file
from tests.luks.support import PASSPHRASE, json_of, template, with_json
from tests.support.cli import blobstore, succeeds
from tests.support.foreign import ForeignProgramError

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


def nested_lists(levels: int) -> Any:
    """Lists in lists, so many levels; the innermost is empty."""
    value: Any = []
    for _ in range(levels - 1):
        value = [value]
    return value


def nested_text(levels: int) -> Any:
    """Objects in objects; the last level is a string, which json-c counts like all others."""
    value: Any = "leaf"
    for _ in range(levels - 1):
        value = {"a": value}
    return value


SHAPES = (nested_lists, nested_text)


def token(value: Any) -> dict[str, Any]:
    """A token with a value one level below."""
    return {"type": "acme", "keyslots": ["0"], "value": value}


def stored(root: dict[str, Any], value: Any) -> None:
    root["tokens"] = {"0": token(value)}


def beside(root: dict[str, Any], value: Any) -> None:
    root["acme"] = value


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(("put", "below"), [(stored, 3), (beside, 1)])
def test_l23_json_has_as_many_levels_as_cryptsetup_reads(
    tmp_path: Path,
    shape: Callable[[int], Any],
    put: Callable[[dict[str, Any], Any], None],
    below: int,
) -> None:
    """With one more, we refuse the header, and so does cryptsetup."""
    base = template()
    image, key = tmp_path / "image", key_file(tmp_path, PASSPHRASE)
    for levels, fits in ((MAX_DEPTH, True), (MAX_DEPTH + 1, False)):
        root = json_of(base.header)
        put(root, shape(levels - below))
        device = with_json(base, root)
        image.write_bytes(device.content)
        if fits:
            luks.open(device, PASSPHRASE).close()
            assert accepts(image, key)
            continue
        with pytest.raises(luks.LuksHeaderError, match="L23"):
            luks.load_header(device)
        with pytest.raises(ForeignProgramError, match="not a valid LUKS"):
            accepts(image, key)


@pytest.mark.parametrize("shape", SHAPES)
def test_l126_a_token_has_as_many_levels_as_cryptsetup_reads(
    tmp_path: Path, shape: Callable[[int], Any]
) -> None:
    image, key = tmp_path / "image", key_file(tmp_path, PASSPHRASE)
    image.write_bytes(template().device.content)
    body = token(shape(TOKEN_DEPTH - 1))
    file = tmp_path / "token.json"
    file.write_text(json.dumps(body))
    succeeds("token", "import", image, file)
    assert accepts(image, key)
    assert luks.load_header(image).tokens[0].body == body
    before = image.read_bytes()
    body = token(shape(TOKEN_DEPTH))
    file.write_text(json.dumps(body))
    done = blobstore("token", "import", image, file)
    assert done.returncode == 40
    assert str(file).encode() in done.stderr
    assert b"L126" in done.stderr
    with pytest.raises(ArgumentError, match="L126"), luks.edit(image) as header:
        header.set_token(body)
    assert image.read_bytes() == before


@pytest.mark.parametrize(
    ("text", "code"),
    [
        *[("", 30), ("{", 30), ("[]", 30), ("\0", 30), ("{}", 30), ("nonsense", 30)],
        *[('{"type": "a"}', 30), ('{"type": "", "keyslots": []}', 30)],
        *[('{"type": "a", "keyslots": [0]}', 30), ('{"type": "a", "keyslots": ["7"]}', 30)],
        ('{"type": "a", "type": "b", "keyslots": []}', 30),
        ('{"type": "luks2-keyring", "keyslots": ["0"]}', 30),
        ('{"type": "luks2-keyring", "keyslots": ["0"], "key_description": "a\\u0000b"}', 30),
        ('{"x":' * 100_000, 30),
    ],
)
def test_l126_a_broken_token_file_is_not_a_damaged_header(
    tmp_path: Path, text: str, code: int
) -> None:
    image, file = tmp_path / "image", tmp_path / "token.json"
    image.write_bytes(template().device.content)
    before = image.read_bytes()
    file.write_text(text)
    done = blobstore("token", "import", image, file)
    assert done.returncode == code, done.stderr
    assert str(file).encode() in done.stderr
    assert b"Traceback" not in done.stderr
    assert image.read_bytes() == before


def many_digests(root: dict[str, Any], segments: int, digests: int, names: int) -> None:
    """Metadata of this many segments, and digests that each name one of them again and again."""
    segment, digest = root["segments"]["0"], root["digests"]["0"]
    start = int(segment["offset"])
    root["segments"] = {
        str(n): {**segment, "offset": str(start + n * 4096), "size": "4096"}
        for n in range(segments)
    }
    digest["segments"] = list(root["segments"])
    for n in range(1, digests):
        more = {**digest, "keyslots": [], "segments": ["0"] * names}
        root["digests"][str(n)] = more


def test_references_are_checked_in_linear_time() -> None:
    """1.3 MB of JSON took four seconds; the time is compared with that of parsing."""
    base = template(metadata_size=2 << 20, data_offset=8 << 20, size=999 * 4096)
    root = json_of(base.header)
    many_digests(root, segments=999, digests=900, names=300)
    device = with_json(base, root)
    text = json.dumps(root)
    started = time.process_time()
    for _ in range(4):
        copy.deepcopy(json.loads(text))
    parsed = time.process_time() - started
    started = time.process_time()
    luks.open(device, PASSPHRASE).close()
    assert time.process_time() - started < max(1.0, 2 * parsed)
