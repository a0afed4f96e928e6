"""The container's syntax as asn1crypto classes: the second opinion of `verify`.

`spec/container.asn1` in the terms of a general ASN.1 library. Reading and
writing do not need it (spec/decisions/0004-asn1crypto.md); verification decodes
every item with it as well, which detects a container that only our own reader
accepts.

asn1crypto is not a strict reader: it takes non-minimal lengths, indefinite
lengths and odd BOOLEANs, and its plain ``dump()`` gives the original bytes back
and hides them. The guard is to touch every field and to encode again with
``dump(force=True)``: only canonical DER survives that unchanged.
"""

from __future__ import annotations

from typing import Any

from asn1crypto import core

from formats.container import der
from formats.container.model import FREE_TAG, HEADER_TAG
from formats.errors import FormatError


class _Authentication(core.Enumerated):
    _map = {0: "sha256", 1: "hmacSha256"}  # noqa: RUF012  asn1crypto's way of declaring


class _Kind(core.Enumerated):
    _map = {0: "blob", 1: "window"}  # noqa: RUF012


class _State(core.Enumerated):
    _map = {0: "void", 1: "unwritten", 2: "live", 3: "tombstone", 4: "inPlace"}  # noqa: RUF012


class _Header(core.Sequence):
    class_, tag = 2, 0
    _fields = [  # noqa: RUF012
        ("identifier", core.UTF8String),
        ("version", core.Integer),
        ("copy", core.Integer),
        ("blockSize", core.Integer),
        ("storeId", core.OctetString),
        ("encrypted", core.Boolean),
        ("authentication", _Authentication),
        ("key", core.OctetString),
        ("incompatible", core.OctetString),
        ("readOnlyCompatible", core.OctetString),
        ("compatible", core.OctetString),
        ("sequence", core.OctetString),
        ("total", core.OctetString),
        ("durable", core.OctetString),
        ("root", core.OctetString),
        ("check", core.OctetString),
        ("padding", core.OctetString),
    ]


class _Meta(core.Sequence):
    _fields = [  # noqa: RUF012
        ("sectionId", core.OctetString),
        ("copy", core.Integer),
        ("copies", core.Integer),
        ("kind", _Kind),
        ("maximum", core.Integer),
        ("type", core.UTF8String),
        ("name", core.UTF8String),
        ("state", _State),
        ("generation", core.OctetString),
        ("members", core.OctetString),
        ("size", core.OctetString),
        ("crc32", core.OctetString),
        ("mac", core.OctetString),
        ("root", core.OctetString),
        ("prev", core.OctetString),
        ("check", core.OctetString),
    ]


class _Free(core.Sequence):
    class_, tag = 2, 2
    _fields = [  # noqa: RUF012
        ("generation", core.OctetString),
        ("root", core.OctetString),
        ("check", core.OctetString),
        ("filler", core.OctetString),
    ]


_CLASSES: dict[int, Any] = {HEADER_TAG: _Header, der.SEQUENCE: _Meta, FREE_TAG: _Free}


def require_canonical(encoding: bytes) -> None:
    """Check that a header, the Meta of a record, or a free item is canonical DER.

    Args:
        encoding: One whole value, from its tag to its end.

    Raises:
        FormatError: It is not canonical, or its fields are not those of the syntax.
    """
    specification = _CLASSES.get(encoding[0] if encoding else 0)
    if specification is None:
        raise FormatError("a value is not a header, a Meta or a free item", rule="C1")
    try:
        value = specification.load(encoding, strict=True)
        _ = value.native  # asn1crypto parses lazily: this parses every field
        again: bytes = value.dump(force=True)
    except (ValueError, TypeError, KeyError, OverflowError) as error:
        raise FormatError(f"a general ASN.1 reader refuses a value: {error}", rule="C1") from error
    if again != encoding:
        raise FormatError("a value is not canonical DER", rule="C1")
