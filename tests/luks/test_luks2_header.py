"""LUKS2 headers: codecs, JSON text, and what is refused before it is used (L20 to L31)."""

from __future__ import annotations

import copy
import json
from functools import cache
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import pytest

import luks
from formats.frozen import replace
from luks.header import luks2
from luks.header.luks2_json import format_area, parse_area
from luks.header.writer import write_header
from tests.luks.support import PASSPHRASE, Template, json_of, opens, put_copy, template, with_json

if TYPE_CHECKING:
    from collections.abc import Callable

Root = dict[str, Any]


@cache
def base() -> Template:
    return template(label="a label", subsystem="a subsystem")


def changed(change: Callable[[Root], object]) -> Root:
    root = json_of(base().header)
    change(root)
    return root


def refusal(root: Root | bytes) -> luks.LuksHeaderError:
    with pytest.raises(luks.LuksHeaderError) as caught:
        luks.load_header(with_json(base(), root))
    return caught.value


def put(*path_and_value: Any) -> Callable[[Root], None]:
    """A change that sets one member, given by its path, or removes it (...)."""
    *path, name, value = path_and_value

    def change(root: Root) -> None:
        for step in path:
            root = root[step]
        if value is ...:
            del root[name]
        else:
            root[name] = value

    return change


def test_the_binary_header_is_laid_out_as_specified() -> None:
    for offset, magic in ((0, b"LUKS"), (16384, b"SKUL")):
        data = bytes(base().device.content[offset:][:16384])
        assert data[:8] == magic + b"\xba\xbe\x00\x02"
        assert int.from_bytes(data[8:16], "big") == 16384
        assert int.from_bytes(data[16:24], "big") == 1  # seqid
        assert data[24:72] == b"a label".ljust(48, b"\0")
        assert data[72:104] == b"sha256".ljust(32, b"\0")
        assert data[168:208] == base().header.uuid.encode().ljust(40, b"\0")
        assert data[208:256] == b"a subsystem".ljust(48, b"\0")
        assert int.from_bytes(data[256:264], "big") == offset
        assert data[264:448] == bytes(184)
        assert data[480:4096] == bytes(32 + 3584)
        assert data[4096:4097] == b"{"


def test_the_copies_have_salts_of_their_own() -> None:
    """L1."""
    first, second = (bytes(base().device.content[at : at + 64]) for at in (104, 16384 + 104))
    assert first != second
    assert first.count(0) < 8


def test_the_json_is_what_cryptsetup_writes() -> None:
    root = json_of(base().header)
    assert set(root) == {"keyslots", "tokens", "segments", "digests", "config"}
    assert root["config"] == {"json_size": "12288", "keyslots_size": "131072"}
    assert root["segments"] == {
        "0": {
            "type": "crypt",
            "offset": "163840",
            "size": "dynamic",
            "iv_tweak": "0",
            "encryption": "aes-xts-plain64",
            "sector_size": 4096,
        }
    }
    keyslot = root["keyslots"]["0"]
    assert keyslot["area"] == {
        "type": "raw",
        "offset": "32768",
        "size": "131072",
        "encryption": "aes-xts-plain64",
        "key_size": 32,
    }
    assert keyslot["af"] == {"type": "luks1", "stripes": 4000, "hash": "sha256"}
    assert "priority" not in keyslot
    assert root["digests"]["0"]["keyslots"] == root["digests"]["0"]["segments"] == ["0"]


def test_decoding_undoes_encoding() -> None:
    header = base().header
    for which, data in enumerate(luks2.encode(header)):
        offset = which * header.metadata_size
        assert luks2.decode_copy(data, which, offset) == header


UNKNOWN = {
    "tokens": {"3": {"type": "acme", "keyslots": [], "deep": {"list": [1, 2.5, None, "é☃"]}}},
    "acme-top": {"x": [True]},
}


def test_unknown_members_and_types_survive_a_rewrite() -> None:
    """L32."""

    def add(root: Root) -> None:
        root.update(copy.deepcopy(UNKNOWN))
        root["keyslots"]["0"]["acme"] = 1
        root["keyslots"]["9"] = {
            "type": "acme",
            "key_size": 7,
            "area": {"type": "none", "offset": "32768", "size": "1", "acme": 2},
            "acme": [3],
        }
        root["keyslots"]["0"]["area"].update(offset="36864", size="126976")
        root["keyslots"]["0"]["key_size"] = 31
        root["digests"]["0"].update(acme=4, keyslots=["0", "9"])
        root["segments"]["0"]["acme"] = 5
        root["config"].update(acme=6, flags=["acme-flag"])

    root = changed(add)
    device = with_json(base(), root)
    header = luks.load_header(device)
    assert header.tokens[3].type == "acme"
    write_header(device, replace(header, label="new"), {})
    assert json_of(luks.load_header(device)) == root
    assert luks.load_header(device).label == "new"

    keyslots = {**header.keyslots, 0: replace(header.keyslots[0], priority=2)}
    digests = {0: replace(header.digests[0], keyslots=(0, 9))}
    new = replace(header, keyslots=keyslots, digests=digests, flags=("a", "b"))
    write_header(device, new, {})
    put("keyslots", "0", "priority", 2)(root)
    put("digests", "0", "keyslots", ["0", "9"])(root)
    put("config", "flags", ["a", "b"])(root)
    assert json_of(luks.load_header(device)) == root


def test_objects_of_unknown_types_can_be_kept_or_removed_only() -> None:
    root = changed(put("segments", "0", "flags", ["acme"]))
    header = luks.load_header(with_json(base(), root))
    odd = replace(header.keyslots[0], type="acme")
    for broken in (
        replace(header, keyslots={0: odd}),
        replace(header, segments={0: replace(header.segments[0], type="acme")}),
        replace(header, digests={0: replace(header.digests[0], type="acme")}),
    ):
        with pytest.raises(ValueError, match="can only be kept or removed"):
            luks2.encode(broken)


def test_a_changed_keyslot_keeps_no_costs_of_its_old_key_derivation() -> None:
    header = base().header
    keyslot = replace(header.keyslots[0], kdf=luks.Argon2("argon2i", 5, 64, 2))
    data, _ = luks2.encode(replace(header, keyslots={0: keyslot}))
    kdf = json_of(luks2.decode_copy(data, luks2.PRIMARY, 0))["keyslots"]["0"]["kdf"]
    assert set(kdf) == {"type", "time", "memory", "cpus", "salt"}


def test_requirements_come_and_go() -> None:
    def roundtrip(header: luks.Header) -> tuple[luks.Header, Root]:
        data, _ = luks2.encode(header)
        decoded = luks2.decode_copy(data, luks2.PRIMARY, 0)
        return decoded, json_of(decoded)["config"]

    header, config = roundtrip(replace(base().header, requirements=("acme",)))
    assert config["requirements"] == {"mandatory": ["acme"]}
    assert header.requirements == ("acme",)
    header, config = roundtrip(replace(header, requirements=()))
    assert config["requirements"] == {"mandatory": []}


def test_text_that_fills_its_field_or_is_no_utf_8_survives() -> None:
    """Other writers may leave out the final NUL."""
    device = base().copy()
    text = json.dumps(json_of(base().header)).encode()
    for which, offset in ((luks2.PRIMARY, 0), (luks2.SECONDARY, 16384)):
        put_copy(device, base().header, text, which, offset, label=b"\xff" + b"l" * 47)
    header = luks.load_header(device)
    assert header.label == "�" + "l" * 47
    write_header(device, replace(header, subsystem="new"), {})
    assert device.content[24:72] == b"\xff" + b"l" * 47


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b" {}",
        b"[]",
        b'"x"',
        b"{",
        b'{"a":1,"a":1}',
        b'{"a":{"b":1,"b":2}}',
        b'{"a":1,}',
        b'{"a":"\n"}',
        b"{}x",
        b'{"a":' + b"[" * 32 + b"]" * 32 + b"}",
        b'{"a":' + b"[" * 5000 + b"]" * 5000 + b"}",
        b"{" + b'"a":{' * 2000,
        b'{"a":' + b"9" * 5000 + b"}",
    ],
)
def test_text_that_is_no_metadata_is_refused(text: bytes) -> None:
    """L23."""
    with pytest.raises(luks.LuksHeaderError, match=r"\[L23\]"):
        parse_area(text.ljust(12288, b"\0"))


def test_messages_do_not_quote_the_text() -> None:
    with pytest.raises(luks.LuksHeaderError) as caught:
        parse_area(b'{"secret" "hunter2"}'.ljust(99, b"\0"))
    assert "hunter2" not in f"{caught.value!r}{caught.value.__cause__!r}"


@pytest.mark.parametrize("text", [b"{}", b'{"a":1} \n', b'{"a":' + b"[" * 31 + b"]" * 31 + b"}"])
def test_text_that_is_metadata_is_read(text: bytes) -> None:
    assert parse_area(text.ljust(99, b"\0")) == json.loads(text)


@pytest.mark.parametrize("area", [b"{}", b"{}" + bytes(9) + b"x", b'{"a":"' + b"\0" * 9 + b'"}'])
def test_the_area_behind_the_text_is_zero(area: bytes) -> None:
    with pytest.raises(luks.LuksHeaderError, match="zeros only"):
        parse_area(area)


@pytest.mark.parametrize("value", ["é☃\U0001f512", "\ud800", '\x7f\\"/'])
def test_any_string_is_written_so_that_it_can_be_read(value: str) -> None:
    assert parse_area(format_area({"a": value}, 99)) == {"a": value}


def test_text_is_ended_by_a_zero_when_written() -> None:
    value = {"a": "x" * 91}
    assert format_area(value, 100) == b'{"a":"' + b"x" * 91 + b'"}\0'
    with pytest.raises(luks.LuksHeaderError, match="99 bytes do not fit"):
        format_area(value, 99)


KEYSLOT, SEGMENT, DIGEST = ("keyslots", "0"), ("segments", "0"), ("digests", "0")

WRONG = [
    ("L24", put("keyslots", ...)),
    ("L24", put("keyslots", [])),
    ("L24", put("tokens", ...)),
    ("L24", put("segments", ...)),
    ("L24", put("digests", ...)),
    ("L24", put("config", ...)),
    ("L24", put("keyslots", "00", {})),
    ("L24", put("keyslots", "-0", {})),
    ("L24", put("keyslots", "٣", {})),
    ("L24", put("keyslots", "", {})),
    ("L24", put("keyslots", "1000", {})),
    ("L24", put("keyslots", "1", 5)),
    ("L24", put(*KEYSLOT, "type", ...)),
    ("L24", put(*KEYSLOT, "key_size", "32")),
    ("L24", put(*KEYSLOT, "key_size", 32.0)),
    ("L24", put(*KEYSLOT, "key_size", True)),
    ("L24", put(*KEYSLOT, "key_size", 2**64)),
    ("L24", put(*KEYSLOT, "area", ...)),
    ("L24", put(*KEYSLOT, "area", "type", ...)),
    ("L24", put(*KEYSLOT, "area", "offset", 32768)),
    ("L24", put(*KEYSLOT, "area", "offset", "0x8000")),
    ("L24", put(*KEYSLOT, "area", "offset", "-1")),
    ("L24", put(*KEYSLOT, "area", "offset", "")),
    ("L24", put(*KEYSLOT, "area", "offset", str(2**64))),
    ("L24", put(*KEYSLOT, "area", "encryption", ...)),
    ("L24", put(*KEYSLOT, "kdf", ...)),
    ("L24", put(*KEYSLOT, "kdf", "iterations", "1000")),
    ("L24", put(*KEYSLOT, "kdf", "hash", ...)),
    ("L24", put(*KEYSLOT, "af", ...)),
    ("L24", put(*KEYSLOT, "af", "hash", 256)),
    ("L24", put(*KEYSLOT, "type", "")),
    ("L24", put(*KEYSLOT, "key_size", -1)),
    ("L24", put(*KEYSLOT, "key_size", 2**32)),
    ("L24", put(*KEYSLOT, "area", "type", "acme")),
    ("L24", put(*KEYSLOT, "area", "encryption", "")),
    ("L24", put(*KEYSLOT, "kdf", "type", "")),
    ("L24", put(*KEYSLOT, "kdf", "salt", "")),
    ("L24", put(*KEYSLOT, "af", "type", "acme")),
    ("L24", put(*KEYSLOT, "af", "stripes", "4000")),
    ("L24", put(*KEYSLOT, "kdf", {"type": "argon2id", "time": 4, "memory": 64, "salt": "AA=="})),
    ("L24", put(*DIGEST, "type", "")),
    ("L24", put(*SEGMENT, "encryption", "")),
    ("L24", put(*SEGMENT, "integrity", {"type": "hmac(sha256)"})),
    ("L24", put(*SEGMENT, "type", ...)),
    ("L24", put(*SEGMENT, "offset", ...)),
    ("L24", put(*SEGMENT, "size", ...)),
    ("L24", put(*SEGMENT, "size", "automatic")),
    ("L24", put(*SEGMENT, "size", "18446744073709551616")),
    ("L24", put(*SEGMENT, "iv_tweak", ...)),
    ("L24", put(*SEGMENT, "iv_tweak", 0)),
    ("L24", put(*SEGMENT, "encryption", ...)),
    ("L24", put(*SEGMENT, "sector_size", "4096")),
    ("L24", put(*SEGMENT, "sector_size", -1024)),
    ("L24", put(*SEGMENT, "flags", "backup-final")),
    ("L24", put(*SEGMENT, "flags", [1])),
    ("L24", put(*SEGMENT, "integrity", "hmac")),
    ("L24", put(*DIGEST, "keyslots", "0")),
    ("L24", put(*DIGEST, "keyslots", [0])),
    ("L24", put(*DIGEST, "segments", ["zero"])),
    ("L24", put("tokens", "00", {"type": "acme", "keyslots": []})),
    ("L24", put("tokens", "0", {"type": "acme", "keyslots": ["00"]})),
    ("L24", put("tokens", "0", {"type": "acme"})),
    ("L24", put("tokens", "0", {"keyslots": []})),
    ("L24", put("config", "json_size", 12288)),
    ("L24", put("config", "keyslots_size", ...)),
    ("L24", put("config", "flags", {})),
    ("L24", put("config", "requirements", {"mandatory": "x"})),
    ("L25", put("config", "json_size", "12287")),
    ("L25", put("config", "keyslots_size", "131071")),
    ("L25", put("config", "keyslots_size", "135168")),
    ("L25", put("config", "keyslots_size", str((128 << 20) + 4096))),
    ("L26", put("tokens", "32", {"type": "acme", "keyslots": []})),
    ("L27", put(*KEYSLOT, "area", "offset", "32767")),
    ("L27", put(*KEYSLOT, "area", "offset", "28672")),
    ("L27", put(*KEYSLOT, "area", "offset", "36864")),
    ("L27", put(*KEYSLOT, "area", "offset", str(2**64 - 4096))),
    ("L27", put(*KEYSLOT, "area", "size", "0")),
    ("L27", put(*KEYSLOT, "area", "size", "135168")),
    ("L28", put("segments", {})),
    ("L28", put(*SEGMENT, "offset", "163841")),
    ("L28", put(*SEGMENT, "size", "0")),
    ("L28", put(*SEGMENT, "sector_size", 1023)),
    ("L28", put(*SEGMENT, "size", "8191")),
    ("L28", put(*SEGMENT, "size", "512")),
    ("L28", put(*SEGMENT, "flags", ["backup-final"])),
    ("L29", put("digests", {})),
    ("L29", put(*DIGEST, "keyslots", [])),
    ("L29", put(*DIGEST, "keyslots", ["0", "1"])),
    ("L29", put(*DIGEST, "segments", [])),
    ("L29", put(*DIGEST, "segments", ["0", "1"])),
    ("L29", put("tokens", "0", {"type": "acme", "keyslots": ["1"]})),
]


@pytest.mark.parametrize(
    ("rule", "change"), WRONG, ids=[f"{i}-{r}" for i, (r, _) in enumerate(WRONG)]
)
def test_metadata_that_break_a_rule_are_refused(rule: str, change: Callable[[Root], None]) -> None:
    error = refusal(changed(change))
    assert error.rule == rule
    assert error.exit_code == 35


def test_two_digests_for_one_keyslot_are_refused() -> None:
    def add(root: Root) -> None:
        root["digests"]["1"] = {**root["digests"]["0"], "segments": []}

    assert refusal(changed(add)).rule == "L29"


def test_overlapping_areas_are_refused() -> None:
    """L27: also where only objects of unknown types are concerned."""

    def add(root: Root) -> None:
        area = {"type": "none", "offset": "159744", "size": "4096"}
        root["keyslots"]["5"] = {"type": "acme", "key_size": 1, "area": area}

    error = refusal(changed(add))
    assert error.rule == "L27"
    assert "keyslot 0 and keyslot 5 overlap" in str(error)


def two_segments(root: Root) -> None:
    first = root["segments"]["0"]
    root["segments"]["1"] = {**first, "offset": "196608", "iv_tweak": "64"}
    first["size"] = "32768"
    root["digests"]["0"]["segments"] = ["0", "1"]


@pytest.mark.parametrize(
    "change",
    [
        put("segments", "0", "size", "dynamic"),
        put("segments", "0", "size", "36864"),
        put("segments", "1", "offset", "159744"),
        lambda root: root["segments"].update({"2": root["segments"].pop("1")}),
    ],
)
def test_segments_have_an_order_and_do_not_overlap(change: Callable[[Root], None]) -> None:
    root = changed(two_segments)
    change(root)
    assert refusal(root).rule in {"L28", "L29"}


INTEGRITY = {
    "type": "hmac(sha256)",
    "journal_encryption": "none",
    "journal_integrity": "none",
}
REENCRYPT = {
    "type": "reencrypt",
    "key_size": 1,
    "mode": "reencrypt",
    "direction": "forward",
    "area": {"type": "none", "offset": "163840", "size": "4096"},
}


def reencryption(root: Root) -> None:
    root["config"].update(
        keyslots_size="135168", requirements={"mandatory": ["online-reencrypt-v2"]}
    )
    segment = root["segments"]["0"]
    segment["offset"] = "167936"
    root["segments"]["1"] = {**segment, "flags": ["backup-previous"]}
    root["segments"]["2"] = {**segment, "flags": ["backup-final"]}
    root["digests"]["0"]["segments"] = ["0", "1", "2"]
    root["keyslots"]["1"] = copy.deepcopy(REENCRYPT)


def test_l182_a_reencryption_without_a_digest_loads_and_does_not_open() -> None:
    device = with_json(base(), changed(reencryption))
    assert luks.load_header(device).requirements == ("online-reencrypt-v2",)
    with pytest.raises(luks.PolicyError, match="L182") as caught:
        luks.open(device, PASSPHRASE)
    assert "cryptsetup repair" in str(caught.value.hint)


@pytest.mark.parametrize(
    "change",
    [
        put("config", "requirements", "mandatory", []),
        put("config", "requirements", "mandatory", ["online-reencryptx"]),
        put("config", "requirements", "mandatory", ["online-reencrypt", "online-reencrypt-v3"]),
        put("keyslots", "1", "key_size", 16),
        put("keyslots", "1", "mode", "acme"),
        put("keyslots", "1", "direction", "sideways"),
        put("keyslots", "1", "area", "type", "datashift"),
        put("keyslots", "1", "area", "type", "checksum"),
        put("keyslots", "1", ...),
        put("segments", "0", "encryption", "aes-cbc-plain64"),
        put("segments", "0", "sector_size", 512),
        put("segments", "1", "flags", ["backup-moved-segment"]),
    ],
)
def test_a_reencryption_that_contradicts_itself_is_refused(change: Callable[[Root], None]) -> None:
    root = changed(reencryption)
    change(root)
    assert refusal(root).rule in {"L24", "L30"}


@pytest.mark.parametrize(
    ("change", "error", "text"),
    [
        (put("config", "requirements", {"mandatory": ["acme"]}), luks.UnsupportedError, "'acme'"),
        (put(*SEGMENT, "type", "linear"), luks.PolicyError, "not encrypted"),
        (put(*SEGMENT, "type", "acme"), luks.UnsupportedError, "'acme'"),
        (put(*SEGMENT, "encryption", "cipher_null-ecb"), luks.PolicyError, "not encrypted"),
        (put(*SEGMENT, "encryption", "acme-xts-plain64"), luks.UnsupportedError, "acme-xts"),
        (put(*SEGMENT, "integrity", INTEGRITY), luks.UnsupportedError, "hmac"),
        (put(*SEGMENT, "sector_size", 8192), luks.UnsupportedError, "sectors of 8192"),
        (put(*SEGMENT, "type", "hw-opal-crypt"), luks.UnsupportedError, "OPAL"),
        (put(*SEGMENT, "iv_tweak", "4"), luks.UnsupportedError, "iv_tweak"),
        (put(*DIGEST, "type", "acme"), luks.UnsupportedError, "'acme'"),
        (put(*DIGEST, "digest", "AAAA"), luks.LuksHeaderError, "too short"),
        (put(*DIGEST, "digest", ...), luks.LuksHeaderError, "'digest'"),
        (put(*DIGEST, "salt", 5), luks.LuksHeaderError, "'salt'"),
        (put(*DIGEST, "iterations", 0), luks.LuksHeaderError, "'iterations'"),
        (put(*KEYSLOT, "kdf", {"type": "acme", "salt": "x"}), luks.UnsupportedError, "key deriv"),
        (put(*KEYSLOT, "key_size", 0), luks.LuksHeaderError, "'key_size'"),
        (put(*KEYSLOT, "area", "key_size", -1), luks.LuksHeaderError, "'key_size'"),
        (put(*KEYSLOT, "kdf", "salt", "not base64!"), luks.LuksHeaderError, "'salt'"),
        (put(*KEYSLOT, "kdf", "iterations", 0), luks.LuksHeaderError, "'iterations'"),
        (put(*KEYSLOT, "af", "stripes", 0), luks.LuksHeaderError, "'stripes'"),
        (put(*KEYSLOT, "af", "stripes", 4097), luks.LuksHeaderError, "larger than its area"),
        (put(*KEYSLOT, "area", "size", "127999"), luks.LuksHeaderError, "larger than its area"),
        (put(*KEYSLOT, "priority", "1"), luks.UnlockError, "no keyslot is active"),
        (put(*KEYSLOT, "af", "hash", "acme"), luks.UnsupportedError, "'acme'"),
        (put(*KEYSLOT, "area", "encryption", "cipher_null-ecb"), luks.PolicyError, "null"),
        (put(*KEYSLOT, "area", "encryption", "acme"), luks.UnsupportedError, "acme"),
        (put(*KEYSLOT, "area", "key_size", 2**63), luks.UnsupportedError, "key of"),
        (put(*KEYSLOT, "kdf", "iterations", 2**27 + 1), luks.PolicyError, "iterations="),
        (put(*DIGEST, "iterations", 2**31), luks.PolicyError, "iterations="),
        (put(*KEYSLOT, "priority", 7), luks.UnlockError, "no keyslot is active"),
        (put(*KEYSLOT, "priority", 0), luks.UnlockError, "'ignore'"),
    ],
)
def test_metadata_that_load_but_must_not_open(
    change: Callable[[Root], None],
    error: type[luks.StorageError],
    text: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """L60, L90: the reason is found before the secret is used, in whatever way."""

    def derive(*_: object) -> None:
        pytest.fail("the secret was used")

    root = changed(change)
    device = with_json(base(), root)
    header = luks.load_header(device)
    monkeypatch.setattr("luks.keys.keyslots.derive", derive)
    with pytest.raises(error, match=text.replace("(", r"\(")):
        luks.open(device, PASSPHRASE)
    # What cannot be opened is kept as it is, all the same.
    data, _ = luks2.encode(header)
    assert json_of(luks2.decode_copy(data, luks2.PRIMARY, 0)) == root


@pytest.mark.parametrize(
    "change",
    [
        put("tokens", "31", {"type": "acme", "keyslots": ["0"]}),
        put("config", "requirements", {"mandatory": []}),
        put("config", "requirements", {}),
        put("config", "flags", ["allow-discards", "acme"]),
        put(*KEYSLOT, "priority", 2),
        put(*KEYSLOT, "kdf", "cpus", 4),
        put(*SEGMENT, "size", "65536"),
        put("acme", {}),
    ],
)
def test_metadata_that_say_more_than_we_know_open(change: Callable[[Root], None]) -> None:
    assert opens(with_json(base(), changed(change)))


def test_a_segment_larger_than_any_device_is_sound_and_truncated() -> None:
    device = with_json(base(), changed(put(*SEGMENT, "size", str(2**64 - 4096))))
    with pytest.raises(luks.TruncatedImageError):
        luks.open(device, PASSPHRASE)


def test_the_header_cannot_be_modified() -> None:
    header = base().header
    with pytest.raises(TypeError):
        header.keyslots[1] = header.keyslots[0]  # type: ignore[index]
    assert isinstance(header.digests, MappingProxyType)
