"""The container as three foreign ASN.1 programs read it.

`strict` is pyca's declarative decoder in Rust, which takes canonical DER only;
`compiled` is asn1tools with `spec/container.asn1`; `openssl` is the program.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Annotated, Any

from cryptography.hazmat import asn1

from formats.container import der
from tests.support.foreign import run

MODULE = Path(__file__).resolve().parents[2] / "spec" / "container.asn1"


@asn1.sequence
class Header:
    identifier: str
    version: int
    copy: int
    block_size: int
    store_id: bytes
    encrypted: bool
    authentication: asn1.TLV
    key: bytes
    incompatible: bytes
    read_only_compatible: bytes
    compatible: bytes
    sequence: bytes
    total: bytes
    durable: bytes
    root: bytes
    check: bytes
    padding: bytes


@asn1.sequence
class Meta:
    section_id: bytes
    copy: int
    copies: int
    kind: asn1.TLV
    maximum: int
    type: str
    name: str
    state: asn1.TLV
    generation: bytes
    members: bytes
    size: bytes
    crc32: bytes
    mac: bytes
    root: bytes
    prev: bytes
    check: bytes


@asn1.sequence
class Record:
    meta: Meta
    align: asn1.Null | None
    padding: bytes
    blob: bytes


@asn1.sequence
class Free:
    generation: bytes
    root: bytes
    check: bytes
    filler: bytes


_Item = (
    Annotated[Header, asn1.Implicit(0)]
    | Annotated[Record, asn1.Implicit(1)]
    | Annotated[Free, asn1.Implicit(2)]
)


@asn1.sequence
class _Wrapped:
    items: list[_Item]


def strict(container: bytes) -> list[Header | Record | Free]:
    """Decode a container strictly and check that encoding it gives the same bytes.

    Raises:
        ValueError: It is not canonical DER of that syntax.
    """
    # The decoder knows no APPLICATION tags and no bare SEQUENCE OF.
    if container[0] != 0x73:
        raise ValueError("the outer tag is not [APPLICATION 19]")
    wrapped = der.encode(der.SEQUENCE, b"\x30" + container[1:])
    decoded = asn1.decode_der(_Wrapped, wrapped)
    if asn1.encode_der(decoded) != wrapped:
        raise ValueError("encoding it again gives other bytes")
    return decoded.items


@cache
def _compiler() -> Any:
    import asn1tools

    return asn1tools.compile_files(str(MODULE), "der")


def compiled(container: bytes) -> list[Any]:
    """Decode a container by the published module; check that it encodes to the same bytes."""
    items: list[Any] = _compiler().decode("Container", container)
    if _compiler().encode("Container", items) != container:
        raise ValueError("encoding it again gives other bytes")
    return items


def openssl(path: Path) -> str:
    """Return what ``openssl asn1parse`` lists of a file; it fails on what is not DER."""
    return run("openssl", "asn1parse", "-inform", "DER", "-in", path).decode()
