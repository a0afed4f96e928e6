"""Any bytes give a header or one of our errors, in bounded time and memory."""

from __future__ import annotations

import json
import time
from contextlib import suppress
from functools import cache
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import luks
from formats.devices.device import MemoryDevice
from luks.header import luks1, luks2
from luks.header.luks2_json import format_area, parse_area
from luks.header.luks2_objects import decode
from luks.header.validate import validate_luks1
from tests.luks.support import PASSPHRASE, Template, json_of, put_copy, template

# What a header may cost us here: an example that passes validation is opened too.
LIMITS = luks.KdfLimits(iterations=2000, memory_kib=64, time=8, work_kib=512, lanes=4)

JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**70), 2**70)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=8)
    | st.sampled_from(["0", "1", "dynamic", "32768", "crypt", "luks2", "aes-xts-plain64"]),
    lambda values: (
        st.lists(values, max_size=4) | st.dictionaries(st.text(max_size=8), values, max_size=4)
    ),
    max_leaves=12,
)


@cache
def base(version: int) -> Template:
    return template(version=version)


def load_and_open(device: MemoryDevice) -> None:
    try:
        header = luks.load_header(device)
    except (luks.FormatError, luks.UnsupportedError):
        return
    with suppress(luks.StorageError), luks.open(device, PASSPHRASE, limits=LIMITS) as volume:
        volume.read(0, min(volume.size, 8192))
    if header.version == 2:
        assert json_of(luks2.decode_copy(luks2.encode(header)[0], 0, 0)) == json_of(header)


@given(st.binary(max_size=2000))
@settings(deadline=None)
def test_any_bytes_are_no_luks1_header_or_one(data: bytes) -> None:
    with suppress(luks.FormatError, luks.UnsupportedError):
        validate_luks1(luks1.decode(data))


@given(changes=st.dictionaries(st.integers(6, 591), st.integers(0, 255), min_size=1, max_size=8))
@settings(max_examples=300, deadline=None)
def test_any_change_of_a_luks1_header(changes: dict[int, int]) -> None:
    device = base(1).copy()
    for place, value in changes.items():
        device.content[place] = value
    load_and_open(device)


@given(st.binary(max_size=300))
@settings(deadline=None)
def test_any_bytes_are_no_json_area_or_one(text: bytes) -> None:
    try:
        root = parse_area(text + bytes(9))
    except luks.LuksHeaderError:
        return
    assert parse_area(format_area(root, 12288)) == root


@given(JSON)
@settings(deadline=None)
def test_any_json_is_no_metadata_or_some(value: Any) -> None:
    root = value if isinstance(value, dict) else {"keyslots": value, "config": value}
    with suppress(luks.LuksHeaderError):
        decode(root)


@given(data=st.data())
@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_any_change_of_the_metadata(data: st.DataObject) -> None:
    root = json_of(base(2).header)
    for _ in range(data.draw(st.integers(1, 3))):
        _change_somewhere(root, data)
    device = base(2).copy()
    text = json.dumps(root).encode()
    if len(text) < 12000:
        for which in (luks2.PRIMARY, luks2.SECONDARY):
            put_copy(device, base(2).header, text, which, which * 16384)
        load_and_open(device)


def _change_somewhere(root: Any, data: st.DataObject) -> None:
    """Walk down and replace, remove or add one member."""
    place = root
    while True:
        keys = list(place) if isinstance(place, dict) else list(range(len(place)))
        if not keys:
            return
        key = data.draw(st.sampled_from(keys))
        inner = place[key]
        if isinstance(inner, dict | list) and data.draw(st.integers(0, 5)):
            place = inner
            continue
        if isinstance(place, dict) and data.draw(st.booleans()):
            place[data.draw(st.sampled_from(["0", "1", "31", "x"]))] = inner
        elif data.draw(st.booleans()):
            place[key] = data.draw(JSON)
        else:
            del place[key]
        return


@given(changes=st.dictionaries(st.integers(0, 511), st.integers(0, 255), min_size=1, max_size=6))
@settings(max_examples=200, deadline=None)
def test_any_change_of_both_binary_headers(changes: dict[int, int]) -> None:
    device = base(2).copy()
    for place, value in changes.items():
        device.content[place] = device.content[16384 + place] = value
    load_and_open(device)


@given(size=st.integers(0, 250_000), version=st.sampled_from([1, 2]))
@settings(deadline=None)
def test_any_truncation(size: int, version: int) -> None:
    content = base(version).device.content
    load_and_open(MemoryDevice(content[: min(size, len(content))]))


@pytest.mark.parametrize(
    "text",
    [
        b'{"a":' + b"[" * 2_000_000,
        b'{"a":[' + b"[]," * 600_000 + b"[]]}",
        b'{"a":"' + b"x" * 4_000_000 + b'"}',
        b"{" + b",".join(b'"%d":0' % n for n in range(300_000)) + b"}",
        b'{"a":' + b"1" * 4_000_000 + b"}",
        b'{"a":1e' + b"1" * 4_000_000 + b"}",
        b'{"a":' + b'{"a":' * 100_000 + b"0" + b"}" * 100_001,
    ],
    ids=["open", "wide", "string", "members", "digits", "exponent", "deep"],
)
def test_the_largest_json_area_takes_bounded_time(text: bytes) -> None:
    """Four MiB is the largest area there is; a second or two is what it may take."""
    start = time.process_time()
    with suppress(luks.LuksHeaderError):
        decode(parse_area(text[: (4 << 20) - 4097].ljust((4 << 20) - 4096, b"\0")))
    assert time.process_time() - start < 10
