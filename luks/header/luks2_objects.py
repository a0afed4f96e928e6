"""LUKS2's JSON objects: keyslots, digests, segments, tokens, config; to model and back.

Unknown content survives: an unchanged object is written as it was read, a changed
one keeps its unknown members, and objects of unknown types can only be kept or
removed.

Source: LUKS2 On-Disk Format Specification 1.1, section 3.
"""

from __future__ import annotations

from binascii import b2a_base64
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final, Generic, NamedTuple, TypeVar

from formats.frozen import replace
from luks.errors import LuksHeaderError
from luks.header.luks2_json import Node
from luks.header.luks2_reencrypt_rules import check_reencrypt_keyslot
from luks.model import (
    ARGON2_VARIANTS,
    PRIORITY_NORMAL,
    PRIORITY_UNKNOWN,
    Area,
    Argon2,
    Digest,
    Keyslot,
    Pbkdf2,
    Segment,
    Token,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from luks.model import Header, KdfCost

MAX_UINT32: Final = 2**32 - 1
#: Smallest size of a digest in bytes: a shorter one could confirm keys by chance.
MIN_DIGEST_SIZE: Final = 16

_DYNAMIC: Final = "dynamic"


ItemT = TypeVar("ItemT", Keyslot, Digest, Segment)


class DecodedJson(NamedTuple):
    """The content of the JSON area, decoded but not yet validated."""

    keyslots: Mapping[int, Keyslot]
    digests: Mapping[int, Digest]
    segments: Mapping[int, Segment]
    tokens: Mapping[int, Token]
    flags: tuple[str, ...]
    requirements: tuple[str, ...]
    json_size: int
    keyslots_size: int


def decode(root: dict[str, Any]) -> DecodedJson:
    """Decode the object in a JSON area.

    Raises:
        LuksHeaderError: A member is missing or of the wrong type.
    """
    node = Node(root, "metadata")
    config = node.child("config")
    requirements: tuple[str, ...] = ()
    if config.has("requirements") and config.child("requirements").has("mandatory"):
        requirements = config.child("requirements").words("mandatory")
    return DecodedJson(
        keyslots={n: decode_keyslot(item) for n, item in node.numbered("keyslots", "keyslot")},
        digests={n: _decode_digest(item) for n, item in node.numbered("digests", "digest")},
        segments={n: _decode_segment(item) for n, item in node.numbered("segments", "segment")},
        tokens={n: _decode_token(item) for n, item in node.numbered("tokens", "token")},
        flags=config.words("flags") if config.has("flags") else (),
        requirements=requirements,
        json_size=config.uint64("json_size"),
        keyslots_size=config.uint64("keyslots_size"),
    )


def encode(header: Header, old: Mapping[str, Any], json_size: int) -> dict[str, Any]:
    """Return the object for the JSON area; the parts that it shares with ``old`` stay unmodified.

    Args:
        header: The header to encode.
        old: The object that ``header`` was decoded from, or an empty one.
        json_size: Bytes of the JSON area.

    Raises:
        ValueError: An object of an unknown type is new or changed.
    """
    config = dict(old.get("config", {}))
    config["json_size"] = str(json_size)
    config["keyslots_size"] = str(header.keyslots_size)
    if header.flags or "flags" in config:
        config["flags"] = list(header.flags)
    if header.requirements or "requirements" in config:
        mandatory = {"mandatory": list(header.requirements)}
        config["requirements"] = {**config.get("requirements", {}), **mandatory}
    return {
        **old,
        "keyslots": _merge(header.keyslots, old.get("keyslots", {}), _KEYSLOTS),
        "tokens": {str(n): _encode_token(token) for n, token in sorted(header.tokens.items())},
        "segments": _merge(header.segments, old.get("segments", {}), _SEGMENTS),
        "digests": _merge(header.digests, old.get("digests", {}), _DIGESTS),
        "config": config,
    }


def decode_keyslot(node: Node) -> Keyslot:
    """Decode one keyslot; errors as `decode`."""
    type_, area = node.text("type"), node.child("area")
    area.text("type")  # it must exist
    priority = PRIORITY_NORMAL
    if node.has("priority"):
        # Any other value does not say when to try this keyslot.
        value = node.value["priority"]
        priority = value if type(value) is int else PRIORITY_UNKNOWN
    keyslot = Keyslot(
        type=type_,
        key_size=node.integer("key_size", 0, MAX_UINT32),
        area=Area(area.uint64("offset"), area.uint64("size"), cipher=None, key_size=0),
        kdf=None,
        salt=b"",
        stripes=0,
        af_hash="",
        priority=priority,
    )
    if type_ == "reencrypt":
        check_reencrypt_keyslot(node)
    if type_ != "luks2":
        return keyslot
    _check_keyslot_members(node)
    try:
        return _decode_luks2_keyslot(node, keyslot)
    except LuksHeaderError as error:
        return replace(keyslot, problem=str(error))


def _check_keyslot_members(node: Node) -> None:
    """Check that a luks2 keyslot has the members that every valid header has."""
    kdf, af, area = node.child("kdf"), node.child("af"), node.child("area")
    type_ = kdf.text("type")
    kdf.text("salt")
    if type_ == "pbkdf2":
        kdf.text("hash")
        kdf.any_integer("iterations")
    elif type_ in ARGON2_VARIANTS:
        for name in ("time", "memory", "cpus"):
            kdf.any_integer(name)
    if af.text("type") != "luks1":
        raise LuksHeaderError(f"{af.place}: type {af.text('type')!r} is unknown", rule="L24")
    af.any_integer("stripes")
    af.text("hash")
    if area.text("type") != "raw":
        raise LuksHeaderError(f"{area.place}: type {area.text('type')!r} is unknown", rule="L24")
    area.text("encryption")
    area.any_integer("key_size")


def _decode_luks2_keyslot(node: Node, keyslot: Keyslot) -> Keyslot:
    kdf, af, area = node.child("kdf"), node.child("af"), node.child("area")
    cost = _decode_kdf(kdf)
    return replace(
        keyslot,
        key_size=node.integer("key_size", 1),
        area=replace(
            keyslot.area,
            cipher=area.text("encryption"),
            key_size=area.integer("key_size", 1),
        ),
        kdf=cost,
        salt=kdf.base64("salt") if cost else b"",
        stripes=af.integer("stripes", 1),
        af_hash=af.text("hash"),
    )


def _decode_kdf(node: Node) -> KdfCost | None:
    type_ = node.text("type")
    if type_ == "pbkdf2":
        return Pbkdf2(node.text("hash"), node.integer("iterations", 1))
    for variant in ARGON2_VARIANTS:
        if type_ == variant:
            return Argon2(
                variant,
                time=node.integer("time", 1),
                memory_kib=node.integer("memory", 1),
                lanes=node.integer("cpus", 1),
            )
    return None


def _encode_keyslot(keyslot: Keyslot) -> dict[str, Any]:
    if keyslot.type != "luks2" or keyslot.kdf is None:
        raise ValueError(f"a keyslot of type {keyslot.type!r} can only be kept or removed")
    kdf: dict[str, Any]
    if isinstance(keyslot.kdf, Pbkdf2):
        kdf = {
            "type": "pbkdf2",
            "hash": keyslot.kdf.hash_name,
            "iterations": keyslot.kdf.iterations,
        }
    else:
        kdf = {
            "type": keyslot.kdf.variant,
            "time": keyslot.kdf.time,
            "memory": keyslot.kdf.memory_kib,
            "cpus": keyslot.kdf.lanes,
        }
    value: dict[str, Any] = {
        "type": keyslot.type,
        "key_size": keyslot.key_size,
        "af": {"type": "luks1", "stripes": keyslot.stripes, "hash": keyslot.af_hash},
        "area": {
            "type": "raw",
            "offset": str(keyslot.area.offset),
            "size": str(keyslot.area.size),
            "encryption": keyslot.area.cipher,
            "key_size": keyslot.area.key_size,
        },
        "kdf": {**kdf, "salt": _base64(keyslot.salt)},
    }
    if keyslot.priority != PRIORITY_NORMAL:
        value["priority"] = keyslot.priority
    return value


def _decode_digest(node: Node) -> Digest:
    digest = Digest(
        type=node.text("type"),
        keyslots=node.numbers("keyslots"),
        segments=node.numbers("segments"),
        kdf=None,
        salt=b"",
        value=b"",
    )
    if digest.type != "pbkdf2":
        return digest
    try:
        kdf = Pbkdf2(node.text("hash"), node.integer("iterations", 1))
        salt, value = node.base64("salt"), node.base64("digest")
    except LuksHeaderError as error:
        return replace(digest, problem=str(error))
    if len(value) < MIN_DIGEST_SIZE:
        return replace(digest, problem=f"{node.place} is too short [L29]")
    return replace(digest, kdf=kdf, salt=salt, value=value)


def _encode_digest(digest: Digest) -> dict[str, Any]:
    if digest.type != "pbkdf2" or digest.kdf is None:
        raise ValueError(f"a digest of type {digest.type!r} can only be kept or removed")
    return {
        "type": digest.type,
        "keyslots": _words(digest.keyslots),
        "segments": _words(digest.segments),
        "hash": digest.kdf.hash_name,
        "iterations": digest.kdf.iterations,
        "salt": _base64(digest.salt),
        "digest": _base64(digest.value),
    }


def _decode_segment(node: Node) -> Segment:
    type_ = node.text("type")
    size = node.text("size")
    segment = Segment(
        type=type_,
        offset=node.uint64("offset"),
        size=None if size == _DYNAMIC else node.uint64("size"),
        flags=node.words("flags") if node.has("flags") else (),
    )
    if type_ != "crypt":
        return segment
    integrity = None
    if node.has("integrity"):
        child = node.child("integrity")
        integrity = child.text("type")
        child.text("journal_encryption")
        child.text("journal_integrity")
    return replace(
        segment,
        cipher=node.text("encryption"),
        sector_size=node.integer("sector_size", 1, MAX_UINT32),
        iv_tweak=node.uint64("iv_tweak"),
        integrity=integrity,
    )


def _encode_segment(segment: Segment) -> dict[str, Any]:
    if segment.type not in {"crypt", "linear"} or segment.integrity is not None:
        raise ValueError(f"a segment of type {segment.type!r} can only be kept or removed")
    value: dict[str, Any] = {
        "type": segment.type,
        "offset": str(segment.offset),
        "size": _DYNAMIC if segment.size is None else str(segment.size),
    }
    if segment.type == "crypt":
        value |= {
            "iv_tweak": str(segment.iv_tweak),
            "encryption": segment.cipher,
            "sector_size": segment.sector_size,
        }
    if segment.flags:
        value["flags"] = list(segment.flags)
    return value


def _decode_token(node: Node) -> Token:
    return Token(
        type=node.text("type"), keyslots=node.numbers("keyslots"), body=MappingProxyType(node.value)
    )


def _encode_token(token: Token) -> dict[str, Any]:
    return {**token.body, "type": token.type, "keyslots": _words(token.keyslots)}


def _words(numbers: tuple[int, ...]) -> list[str]:
    return [str(number) for number in numbers]


class _Section(NamedTuple, Generic[ItemT]):
    """How the objects of one section are translated, and which members that covers.

    Attributes:
        simple: Members that can change in objects of any type: their names in the
            model and in JSON.
    """

    decode: Callable[[Node], ItemT]
    encode: Callable[[ItemT], dict[str, Any]]
    members: frozenset[str]
    simple: Mapping[str, Callable[[Any], Any]]


_KEYSLOTS: Final = _Section(
    decode_keyslot,
    _encode_keyslot,
    frozenset({"type", "key_size", "af", "area", "kdf", "priority"}),
    {"priority": lambda priority: priority},
)
_SEGMENTS: Final = _Section(
    _decode_segment,
    _encode_segment,
    frozenset({"type", "offset", "size", "iv_tweak", "encryption", "sector_size", "flags"}),
    {},
)
_DIGESTS: Final = _Section(
    _decode_digest,
    _encode_digest,
    frozenset({"type", "keyslots", "segments", "hash", "iterations", "salt", "digest"}),
    {"keyslots": _words, "segments": _words},
)


def _merge(
    items: Mapping[int, ItemT], old: Mapping[str, Any], section: _Section[ItemT]
) -> dict[str, Any]:
    """Encode the objects of a section over those it was decoded from."""
    merged: dict[str, Any] = {}
    for number, item in sorted(items.items()):
        key = str(number)
        before = old.get(key)
        merged[key] = section.encode(item) if before is None else _update(before, item, section)
    return merged


def _update(before: dict[str, Any], item: ItemT, section: _Section[ItemT]) -> dict[str, Any]:
    """Return an object with only those changes that the item requires."""
    old = section.decode(Node(before, "object"))
    changed = {
        name: encode(getattr(item, name))
        for name, encode in section.simple.items()
        if getattr(item, name) != getattr(old, name)
    }
    if replace(old, **{name: getattr(item, name) for name in changed}) == item:
        return {**before, **changed}
    unknown = {name: value for name, value in before.items() if name not in section.members}
    return {**section.encode(item), **unknown}


def _base64(data: bytes) -> str:
    return b2a_base64(data, newline=False).decode("ascii")
