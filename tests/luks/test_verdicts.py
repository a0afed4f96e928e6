"""What cryptsetup makes of headers that were changed in every way, and what we make of them.

The corpus has some of each kind; here they are made, many more, and the program
that owns the format says at once which it takes.
"""

from __future__ import annotations

import copy
import hashlib
import itertools
import json
import re
from typing import TYPE_CHECKING, Any

import pytest

import luks
from formats.devices.device import MemoryDevice
from luks.header import luks2
from tests.luks.programs import CHEAP, cryptsetup, key_file
from tests.luks.support import Template, fix_checksum, json_of, put_copy, with_json
from tests.support.foreign import ForeignProgramError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

pytestmark = [pytest.mark.interop, pytest.mark.slow]

Root = dict[str, Any]
KIB = 1024
#: Bytes of a header copy, and of its JSON area.
COPY, JSON = 16 * KIB, 12 * KIB


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Template:
    """A header of cryptsetup's with something of everything."""
    directory = tmp_path_factory.mktemp("verdicts")
    image = directory / "image"
    image.write_bytes(bytes(640 * KIB))
    one, two, three = (key_file(directory, secret) for secret in (b"one", b"two", b"three"))
    layout = ("--luks2-metadata-size=16k", "--luks2-keyslots-size=500k", "--offset=1280")
    size = ("--key-size=256", "--sector-size=512")
    cryptsetup("luksFormat", "--type=luks2", *CHEAP["argon2id"], *layout, *size, image, one)
    cryptsetup("luksAddKey", "--key-file", one, *CHEAP["pbkdf2"], image, two)
    unbound = ("--unbound", "--key-size=256")
    cryptsetup("luksAddKey", "--key-file", one, *unbound, *CHEAP["pbkdf2"], image, three)
    cryptsetup("token", "add", "--key-description=acme", "--key-slot=1", image)
    cryptsetup("config", "--priority=prefer", "--key-slot=1", image)
    device = MemoryDevice(image.read_bytes())
    return Template(device, luks.load_header(device))


def root_of(base: Template) -> Root:
    root = json_of(base.header)
    root["config"].update(flags=["allow-discards"], requirements={"mandatory": []})
    return root


def theirs(device: MemoryDevice, directory: Path) -> str | None:
    """What cryptsetup dumps, or None if it refuses."""
    image = directory / "image"
    image.write_bytes(device.content)
    try:
        return cryptsetup("luksDump", image)
    except ForeignProgramError:
        return None


def ours(device: MemoryDevice) -> luks.Header | None:
    try:
        return luks.load_header(device)
    except (luks.FormatError, luks.UnsupportedError):
        return None


def disagreement(name: object, device: MemoryDevice, directory: Path) -> list[object]:
    """Return nothing if both accept the header or both refuse it, else the difference."""
    taken = theirs(device, directory) is not None
    return [] if taken == (ours(device) is not None) else [(name, "they take it", taken)]


def paths(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    if path:
        yield path
    names = list(value) if isinstance(value, dict) else []
    for name in range(len(value)) if isinstance(value, list) else names:
        yield from paths(value[name], (*path, name))


def put(root: Root, path: tuple[Any, ...], value: Any) -> None:
    place: Any = root
    for step in path[:-1]:
        place = place[step]
    if value is ...:
        del place[path[-1]]
    else:
        place[path[-1]] = value


def putting(*path_and_value: Any) -> Callable[[Root], None]:
    *path, value = path_and_value
    return lambda root: put(root, tuple(path), value)


VALUES: list[Any] = [
    *(..., 42, "42", 0, "0", -1, "-1", "", [], {}, None, True, 1.5, "x", "01", "4096", 4096),
    *(str(2**64), str(2**64 - 1), "0x10", 2**31, 2**32, 2**63, 512, "512"),
    *(["0"], ["9"], [0], [["0"]], {"0": {}}, "dynamic"),
]


def test_each_member_of_the_metadata_replaced(base: Template, tmp_path: Path) -> None:
    """L24 to L29, L90. Every member gets some of the values, all of them together all."""
    values = itertools.cycle(VALUES)
    wrong = []
    for path in paths(root_of(base)):
        for value in itertools.islice(values, 5):
            root = root_of(base)
            put(root, path, value)
            wrong += disagreement((path, value), with_json(base, root), tmp_path)
    assert wrong == []


def segments(base: Template) -> dict[str, dict[str, Any]]:
    template = root_of(base)["segments"]["0"]
    start = int(template["offset"])

    def crypt(offset: int, size: int | str = "dynamic", **more: Any) -> Root:
        return {**template, "offset": str(start + offset), "size": str(size), **more}

    def other(offset: int, size: int | str, type_: str = "linear", **more: Any) -> Root:
        return {"type": type_, "offset": str(offset), "size": str(size), **more}

    backup = ["backup-x"]
    tags = {"type": "hmac(sha256)", "journal_encryption": "none", "journal_integrity": "none"}
    return {
        "two": {"0": crypt(0, 512), "1": crypt(512)},
        "with a gap": {"0": crypt(0, 512), "1": crypt(4096)},
        "overlapping": {"0": crypt(0, 1024), "1": crypt(512)},
        "dynamic before the last": {"0": crypt(0), "1": crypt(512, 512)},
        "in reverse": {"0": crypt(512, 512), "1": crypt(0, 512)},
        "both dynamic": {"0": crypt(0), "1": crypt(0)},
        "from 1": {"1": crypt(0)},
        "without 1": {"0": crypt(0, 512), "2": crypt(512)},
        "named 00": {"00": crypt(0)},
        "linear first": {"0": other(start, 512), "1": crypt(512)},
        "linear only": {"0": other(start, "dynamic")},
        "linear at 0": {"0": other(0, 512), "1": crypt(0)},
        "linear in the keyslots": {"0": other(65536, 512), "1": crypt(0)},
        "linear last": {"0": crypt(0, 512), "1": other(start + 512, "dynamic")},
        "backup only": {"0": crypt(0, flags=["backup-final"])},
        "backup 1": {"0": crypt(0), "1": other(512, 512, flags=backup)},
        "backup 2": {"0": crypt(0), "2": other(512, 512, flags=backup)},
        "backup far": {"0": crypt(0), "268435472": other(512, 512, flags=backup)},
        "backup between": {
            "0": crypt(0, 512),
            "1": other(512, 512, flags=backup),
            "2": crypt(512),
        },
        "many and a backup far": {
            "0": crypt(0, 512),
            **{str(n): other(start + 512 * n, 512) for n in range(1, 65)},
            "268435472": other(512, 512, flags=backup),
        },
        "backup crypt": {"0": crypt(0), "1": crypt(0, flags=["backup-previous"])},
        "backup crypt low": {
            "0": crypt(0),
            "1": crypt(512 - start, flags=["backup-previous"]),
        },
        "odd flags": {"0": crypt(0, flags=["odd", "in-reencryption"])},
        "flag without a dash": {"0": crypt(0), "1": crypt(0, flags=["backup"])},
        "unknown last": {"0": crypt(0, 512), "1": other(start + 512, "dynamic", "some")},
        "unknown only": {"0": other(start, "dynamic", "some")},
        "unknown low": {"0": other(0, 512, "some"), "1": crypt(0)},
        "largest": {"0": crypt(0, 2**64 - 512)},
        "behind the end": {"0": crypt(0, 2**64 - 512), "1": crypt(512, 512)},
        "at 0": {"0": crypt(-start)},
        "in the header": {"0": crypt(4096 - start)},
        "size inside a sector": {"0": crypt(0, 512, sector_size=4096)},
        "offset inside a sector": {"0": crypt(512, sector_size=4096)},
        "sectors of 1536": {"0": crypt(0, sector_size=1536)},
        "sectors of 8192": {"0": crypt(0, sector_size=8192)},
        "largest iv_tweak": {"0": crypt(0, iv_tweak=str(2**64 - 1))},
        "integrity": {"0": crypt(0, integrity=tags)},
        "integrity and more": {"0": crypt(0, integrity={**tags, "key_size": 32})},
        "integrity, too little": {"0": crypt(0, integrity={"type": "hmac(sha256)"})},
        "integrity null": {"0": crypt(0, integrity=None)},
        "integrity text": {"0": crypt(0, integrity="none")},
        "opal": {"0": other(start, 65536, "hw-opal", opal_segment_number=1)},
        "opal and crypt": {"0": crypt(0, 65536, type="hw-opal-crypt", opal_segment_number=1)},
    }


def test_segments_in_every_arrangement(base: Template, tmp_path: Path) -> None:
    """L28."""
    wrong = []
    for name, value in segments(base).items():
        root = root_of(base)
        root["segments"] = value
        root["digests"]["0"]["segments"] = list(value)
        wrong += disagreement(name, with_json(base, root), tmp_path)
    assert wrong == []


def objects(base: Template) -> Iterator[tuple[object, Callable[[Root], object]]]:
    """Changes of keyslots, digests, tokens and config: a name, and what makes it."""
    root = root_of(base)
    area = root["keyslots"]["0"]["area"]
    end = 2 * COPY + int(root["config"]["keyslots_size"])
    free = {"type": "none", "offset": str(end - 4096), "size": "4096"}

    def keyslot(number: str, *, owner: str = "0", **more: str) -> Callable[[Root], object]:
        def change(root: Root) -> None:
            new = {"type": "acme", "key_size": 7, "area": {**free, **more}}
            root["keyslots"][number] = new
            root["digests"].get(owner, {"keyslots": []})["keyslots"].append(number)

        return change

    yield "a keyslot without a digest", keyslot("7", owner="none")
    # "07" they take, for a keyslot that is not 7; we take no second name.
    for number in ("7", "31", "x", "-1"):
        yield ("keyslot", number), keyslot(number)
    for more in (
        {"offset": area["offset"], "size": area["size"]},
        {"offset": str(int(area["offset"]) + int(area["size"]) - 512)},
        {"size": "4097"},
        {"offset": str(end - 4095), "size": "17"},
        {"size": "0"},
        {"type": ""},
        {"offset": "4096"},
        {"offset": str(2 * COPY - 1)},
        {"offset": str(2**64 - 1)},
        {"size": str(2**64 - 1)},
        {"size": "+4096"},
        {"size": " 4096"},
        {"size": "-4096"},
    ):
        yield ("area", more), keyslot("7", **more)
    bare: Root = {"type": "acme", "keyslots": [], "segments": []}
    for number, digest in {"5": bare, "x": bare, "99": bare, "6": {}, "7": {"type": "x"}}.items():
        yield ("digest", number), putting("digests", number, digest)
    for keyslots in (["0", "0", "1"], ["0"], ["0", "1", "2"], ["00", "1"], []):
        yield ("digest of", keyslots), putting("digests", "0", "keyslots", keyslots)
    tokens: list[Any] = [
        {},
        {"type": "x"},
        {"type": "x", "keyslots": []},
        {"type": "x", "keyslots": ["0", "0"]},
        {"type": "x", "keyslots": ["77"]},
        {"type": "x", "keyslots": [0]},
        {"type": "x", "keyslots": {}},
        {"type": "luks2-keyring", "keyslots": []},
        {"type": "luks2-keyring", "keyslots": ["0"], "key_description": 1},
        {"type": "luks2-other", "keyslots": []},
        *(5, [], "x", None),
    ]
    for token in tokens:
        yield ("token", token), putting("tokens", "3", token)
    known = [f"online-reencrypt{suffix}" for suffix in ("", "-v2", "-v3", "-v9", "-v2x")]
    words: list[list[Any]] = [["acme"], [""], [1], ["offline-reencrypt"]]
    for required in (*words, *([word] for word in known)):
        yield ("required", required), putting("config", "requirements", "mandatory", required)
    config: dict[str, list[Any]] = {
        "requirements": [{}, [], {"mandatory": [], "optional": ["x"]}, None],
        "flags": [None, {}, [1], "x", ["x", ""], ["a"] * 500],
        "keyslots_size": [
            str(size)
            for size in (0, 4096, 4095, 508 * KIB, 604 * KIB, 608 * KIB, 612 * KIB, 128 << 20)
        ],
    }
    for name, values in config.items():
        for value in values:
            yield (name, value), putting("config", name, value)
    yield "nothing but a segment", _without_keyslots
    yield "an unknown member", lambda root: root.update(acme={"deep": [None]})


def _without_keyslots(root: Root) -> None:
    root.update(keyslots={}, tokens={})
    root["config"]["keyslots_size"] = "0"
    for digest in root["digests"].values():
        digest["keyslots"] = []


def test_objects_of_every_kind(base: Template, tmp_path: Path) -> None:
    """L24 to L31."""
    wrong = []
    for name, change in objects(base):
        root = root_of(base)
        change(root)
        wrong += disagreement(name, with_json(base, root), tmp_path)
    assert wrong == []


def texts(root: Root) -> Iterator[tuple[str, bytes]]:
    """The metadata in other words; None of them is what json-c alone takes."""
    text = json.dumps(root, separators=(",", ":")).encode()
    head, room = text[:-1] + b',"x":', JSON - len(text)
    yield from {
        "space before": b" " + text,
        "BOM": b"\xef\xbb\xbf" + text,
        "space behind": text + b" \n",
        "text behind": text + b"x",
        "text behind a zero": text + b"\0x",
        "text at the end": text.ljust(JSON - 1, b"\0") + b"x",
        "full": head + b'"' + b"X" * (room - 8) + b'"}',
        "full, no zero": head + b'"' + b"X" * (room - 7) + b'"}',
        "no value": head + b"}",
        "minus": head + b"-}",
        "plus": head + b"+1}",
        "point": head + b".5}",
        "undefined": head + b"undefined}",
        "large": head + b"9" * 40 + b"}",
        "minus zero": head + b"-0}",
        "surrogate": head + b'"\\ud800"}',
        "zero in text": head + b'"\\u0000"}',
        "odd escape": head + b'"\\x41"}',
        "slash": head + b'"\\/"}',
        "no quotes": text[:-1] + b",x:1}",
        "empty name": text[:-1] + b',"":1}',
        "white space": b"{\t\r\n " + text[1:],
        "vertical tab": b"{\x0b" + text[1:],
        "array": b"[" + text + b"]",
        "nothing": b"",
        "empty": b"{}",
        "pretty": json.dumps(root, indent=1).encode(),
        "escaped name": text.replace(b'"tokens"', b'"tok\\u0065ns"'),
        "float": text.replace(b'"sector_size":512', b'"sector_size":512.0'),
        **{f"depth {n}": head + b"[" * n + b"]" * n + b"}" for n in (20, 30, 31, 32, 33, 40)},
    }.items()


def test_the_text_in_other_words(base: Template, tmp_path: Path) -> None:
    """L23. What json-c takes and JSON does not have is left out: we refuse that."""
    wrong = []
    for name, text in texts(root_of(base)):
        assert len(text) <= JSON
        wrong += disagreement(name, with_json(base, text), tmp_path)
    assert wrong == []


def _copy(device: MemoryDevice, base: Template, which: int, kind: str) -> None:
    """Put one header copy of some kind into its place."""
    at = which * COPY
    root = json_of(base.header)
    if kind == "bad metadata":
        root["segments"] = {}
    label = (b"primary", b"secondary")[which].ljust(48, b"\0")
    fields: dict[str, Any] = {"seqid": {"older": 3, "oldest": 0, "newest": 2**64 - 1}.get(kind, 5)}
    if kind in {"sha1", "sha512", "SHA256"}:
        fields["checksum_hash"] = kind
    put_copy(device, base.header, json.dumps(root).encode(), which, at, label=label, **fields)
    patches = {
        "zero": (0, bytes(COPY)),
        "zero block": (0, bytes(4096)),
        "magic": (0, b"XXXX"),
        "other magic": (0, (b"SKUL", b"LUKS")[which]),
        "version 3": (6, b"\0\3"),
        "half as large": (8, (COPY // 2).to_bytes(8, "big")),
        "twice as large": (8, (2 * COPY).to_bytes(8, "big")),
        "huge": (8, (2**63).to_bytes(8, "big")),
        "offset": (256, (512).to_bytes(8, "big")),
        "unknown hash": (72, b"acme\0\0\0\0"),
        "no UUID": (168, bytes(40)),
        "odd UUID": (168, b"\xff" * 40),
        "odd padding": (264, b"\xff" * 184),
    }
    if kind in patches:
        offset, data = patches[kind]
        device.content[at + offset : at + offset + len(data)] = data
        if not kind.startswith("zero"):
            fix_checksum(device, at)
    elif kind == "bad checksum":
        device.content[at + 5000] ^= 1
    elif kind == "longer checksum":
        device.content[at + 500] = 7


KINDS = [
    *("good", "older", "oldest", "newest", "bad checksum", "longer checksum", "bad metadata"),
    *("sha1", "SHA256", "zero", "zero block", "magic", "other magic", "version 3"),
    *("half as large", "twice as large", "huge", "offset", "unknown hash"),
    *("no UUID", "odd UUID", "odd padding"),
]


def test_two_copies_of_every_kind(base: Template, tmp_path: Path) -> None:
    """L20 to L22: which copy counts, and which one cryptsetup rewrites."""
    wrong = []
    pairs = [
        *((kind, other) for kind in KINDS for other in ("good", "bad checksum", "older")),
        *((other, kind) for kind in KINDS for other in ("good", "bad checksum", "older")),
    ]
    for kinds in dict.fromkeys(pairs):
        device = base.copy()
        for which, kind in enumerate(kinds):
            _copy(device, base, which, kind)
        dump, header = theirs(device, tmp_path), ours(device)
        label = re.search(r"Label:\s+(.*)", dump).group(1) if dump else None  # type: ignore[union-attr]
        after = (tmp_path / "image").read_bytes()
        rewritten = [
            which
            for which in (luks2.PRIMARY, luks2.SECONDARY)
            if after[which * COPY :][:COPY] != device.content[which * COPY :][:COPY]
        ]
        stale = [] if header is None or header.stale_copy is None else [header.stale_copy]
        if (label, rewritten) != (header.label if header else None, stale):
            wrong.append((kinds, label, rewritten, header))
    assert wrong == []


def test_this_finds_disagreements(base: Template, tmp_path: Path) -> None:
    """A token that is accepted by mistake would be found and reported."""
    root = copy.deepcopy(root_of(base))
    root["tokens"]["32"] = {"type": "x", "keyslots": []}
    device = with_json(base, root)
    assert hashlib.sha256(device.content).digest() != hashlib.sha256(base.device.content).digest()
    assert disagreement("token", device, tmp_path) == [("token", "they take it", True)]
