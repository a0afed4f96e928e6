"""Changes of a header in memory: each takes one and returns another, which is its name.

`luks.manage.editing` collects them, `luks.header.writer` makes them durable. What cannot
be done is an `ArgumentError`.
"""

from __future__ import annotations

from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final

from formats.errors import ArgumentError
from formats.frozen import replace
from luks.header import luks1
from luks.header.luks2_binary import LABEL_SIZE
from luks.header.luks2_json import TOKEN_DEPTH, is_deeper
from luks.header.text import encode_field, normal_uuid
from luks.header.validate import MAX_OBJECTS
from luks.model import PRIORITY_IGNORE, PRIORITY_NORMAL, PRIORITY_PREFER, Token

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from luks.model import Digest, Header

_PRIORITIES: Final = (PRIORITY_IGNORE, PRIORITY_NORMAL, PRIORITY_PREFER)


def without_keyslot(header: Header, number: int) -> Header:
    """Return the header without a keyslot, and without a digest that only this one used."""
    if number not in header.keyslots:
        raise ArgumentError(f"keyslot {number} is not active")
    digests = {}
    for n, digest in header.digests.items():
        left = _without(digest.keyslots, number)
        # A LUKS1 header always has its digest, as a LUKS2 segment has one.
        if left or digest.segments or left == digest.keyslots:
            digests[n] = replace(digest, keyslots=left)
    tokens = {n: _unassigned(token, number) for n, token in header.tokens.items()}
    keyslots = {n: slot for n, slot in header.keyslots.items() if n != number}
    return replace(
        header,
        keyslots=MappingProxyType(keyslots),
        digests=MappingProxyType(digests),
        tokens=MappingProxyType(tokens),
    )


def volume_keyslots(header: Header) -> tuple[int, ...]:
    """Return the keyslots that can open the volume, but for their passphrases."""
    digest = header.volume_digest
    if digest is None:
        return ()
    numbers = header.digests[digest].keyslots
    return tuple(n for n in numbers if header.keyslots[n].kdf is not None)


def keyslot_cipher(header: Header) -> tuple[str, int] | None:
    """Return cipher string and key size in bytes of the first keyslot that says one."""
    areas = (slot.area for slot in header.keyslots.values())
    return next(((area.cipher, area.key_size) for area in areas if area.cipher), None)


def with_priority(header: Header, number: int, priority: int) -> Header:
    """Return the header with a keyslot's priority: 0 only by number, 1 normally, 2 first."""
    _check_luks2(header, "priorities")
    if number not in header.keyslots:
        raise ArgumentError(f"keyslot {number} is not active")
    if priority not in _PRIORITIES:
        raise ArgumentError(f"priority is one of {_PRIORITIES}, not {priority!r}")
    keyslot = replace(header.keyslots[number], priority=priority)
    return replace(header, keyslots=MappingProxyType({**header.keyslots, number: keyslot}))


def with_labels(header: Header, label: str | None, subsystem: str | None) -> Header:
    """Return it with label and subsystem, at most 47 bytes of UTF-8; None leaves one as it is."""
    _check_luks2(header, "a label")
    for text in (label, subsystem):
        encode_field(text or "", LABEL_SIZE)
    return replace(
        header,
        label=header.label if label is None else label,
        subsystem=header.subsystem if subsystem is None else subsystem,
    )


def with_uuid(header: Header, uuid: str) -> Header:
    """Return it with another UUID, given in any notation of one."""
    return replace(header, uuid=normal_uuid(uuid))


def with_flags(header: Header, flags: Iterable[str]) -> Header:
    """Return it with persistent flags for activation, such as ``allow-discards``."""
    _check_luks2(header, "flags")
    words = tuple(dict.fromkeys(flags))
    if "" in words:
        raise ArgumentError("a flag is a word")
    return replace(header, flags=words)


def with_token(header: Header, body: Mapping[str, Any], number: int | None) -> tuple[Header, int]:
    """Return the header with a token added or replaced.

    Args:
        header: Not modified.
        body: Its JSON object, with ``type`` and ``keyslots``, the latter a list
            of numbers as strings.
        number: The token; by default the first that is free.

    Returns:
        The header, and the token's number.
    """
    _check_luks2(header, "tokens")
    if number is None:
        number = next((n for n in range(MAX_OBJECTS) if n not in header.tokens), MAX_OBJECTS)
    if not 0 <= number < MAX_OBJECTS:
        raise ArgumentError(f"there are {MAX_OBJECTS} tokens, numbered from 0")
    type_, keyslots = body.get("type"), body.get("keyslots")
    if not isinstance(type_, str) or not type_:
        raise ArgumentError("a token has a type")
    if is_deeper(body, TOKEN_DEPTH):
        raise ArgumentError(f"a token has at most {TOKEN_DEPTH} levels of JSON [L126]")
    known = {str(n): n for n in header.keyslots}
    if not isinstance(keyslots, list) or not all(word in known for word in keyslots):
        raise ArgumentError("a token has a list of active keyslots, as strings")
    token = Token(type_, tuple(known[word] for word in keyslots), MappingProxyType(dict(body)))
    return replace(header, tokens=MappingProxyType({**header.tokens, number: token})), number


def with_assignment(header: Header, number: int, keyslot: int, *, assigned: bool) -> Header:
    """Return it with a token that is for a keyslot, or is not; whatever else it says stays."""
    if number not in header.tokens:
        raise ArgumentError(f"there is no token {number}")
    if keyslot not in header.keyslots:
        raise ArgumentError(f"keyslot {keyslot} is not active")
    token = header.tokens[number]
    keyslots = (
        (*_without(token.keyslots, keyslot), keyslot)
        if assigned
        else _without(token.keyslots, keyslot)
    )
    token = _with_keyslots(token, tuple(sorted(keyslots)))
    return replace(header, tokens=MappingProxyType({**header.tokens, number: token}))


def without_token(header: Header, number: int) -> Header:
    """Return the header without a token."""
    if number not in header.tokens:
        raise ArgumentError(f"there is no token {number}")
    tokens = {n: token for n, token in header.tokens.items() if n != number}
    return replace(header, tokens=MappingProxyType(tokens))


def _unassigned(token: Token, number: int) -> Token:
    return _with_keyslots(token, _without(token.keyslots, number))


def _with_keyslots(token: Token, keyslots: tuple[int, ...]) -> Token:
    if keyslots == token.keyslots:
        return token
    words = [str(n) for n in keyslots]
    return replace(
        token, keyslots=keyslots, body=MappingProxyType({**token.body, "keyslots": words})
    )


def _without(numbers: tuple[int, ...], number: int) -> tuple[int, ...]:
    return tuple(n for n in numbers if n != number)


def with_unbound_digest(header: Header, digest: Digest) -> tuple[Header, int]:
    """Return it with the digest of a key that decrypts no segment, and the digest's number."""
    number = next(n for n in range(len(header.digests) + 1) if n not in header.digests)
    unbound = replace(digest, segments=())
    return replace(header, digests=MappingProxyType({**header.digests, number: unbound})), number


def _check_luks2(header: Header, what: str) -> None:
    if header.version == luks1.VERSION:
        raise ArgumentError(f"LUKS1 does not have {what}")
