"""What `spec/container.asn1` says, for pyca's strict decoder, and the framing of heads (C1, C5)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, TypeAlias

from cryptography.hazmat import asn1

HEAD = 512

Counter: TypeAlias = Annotated[bytes, asn1.Size.exact(8)]
Mask: TypeAlias = Annotated[bytes, asn1.Size.exact(8)]
Digest: TypeAlias = Annotated[bytes, asn1.Size.exact(32)]
Octets4: TypeAlias = Annotated[bytes, asn1.Size.exact(4)]
Octets16: TypeAlias = Annotated[bytes, asn1.Size.exact(16)]


@asn1.sequence
class Header:
    identifier: str
    version: int
    copy: int
    block_size: int
    store_id: Octets16
    encrypted: bool
    authentication: asn1.TLV  # ENUMERATED
    key: Annotated[bytes, asn1.Size(0, 32)]
    incompatible: Mask
    read_only_compatible: Mask
    compatible: Mask
    sequence: Counter
    total: Counter
    durable: Counter
    root: Digest
    check: Digest
    padding: bytes


@asn1.sequence
class Meta:
    section_id: Octets16
    copy: int
    copies: int
    kind: asn1.TLV  # ENUMERATED
    maximum: int
    type: str
    name: str
    state: asn1.TLV  # ENUMERATED
    generation: Counter
    members: Octets4
    size: Counter
    crc32: Octets4
    mac: Digest
    root: Digest
    prev: Digest
    check: Digest


@asn1.sequence
class Record:
    meta: Meta
    align: asn1.Null | None
    padding: bytes
    blob: bytes


@asn1.sequence
class Free:
    generation: Counter
    root: Digest
    check: Digest
    filler: bytes


@asn1.sequence
class Container:
    items: list[
        Annotated[Header, asn1.Implicit(0)]
        | Annotated[Record, asn1.Implicit(1)]
        | Annotated[Free, asn1.Implicit(2)]
    ]


def is_valid_der(container: bytes) -> bool:
    """Say whether these bytes are one DER value of the module, and nothing more (C1)."""
    if container[:1] != b"\x73":  # [APPLICATION 19], constructed
        return False
    sequence_of = b"\x30" + container[1:]
    wrapped = b"\x30" + der_length(len(sequence_of)) + sequence_of
    try:
        decoded = asn1.decode_der(Container, wrapped)
        for item in decoded.items:
            if isinstance(item, Header):
                enumerated(item.authentication)
            elif isinstance(item, Record):
                enumerated(item.meta.kind)
                enumerated(item.meta.state)
    except ValueError:
        return False
    return asn1.encode_der(decoded) == wrapped


def der_length(length: int) -> bytes:
    """Return the minimal encoding of a length."""
    if length < 128:
        return bytes([length])
    octets = length.to_bytes((length.bit_length() + 7) // 8)
    return bytes([0x80 | len(octets)]) + octets


def enumerated(value: asn1.TLV) -> int:
    """Return the number of an ENUMERATED; C5 keeps it to one octet, C15 to 0 and more."""
    if value.tag_bytes != b"\x0a" or len(value.data) != 1 or value.data[0] > 127:
        raise ValueError("not an ENUMERATED of one octet")
    return value.data[0]


number = int.from_bytes


def frame(head: bytes, at: int) -> tuple[int, int, int]:
    """Return tag, start and end of the contents; the length must be minimal (C1)."""
    count = head[at + 1] - 0x80 if head[at + 1 : at + 2] > b"\x80" else 0
    coded = head[at + 1 : at + 2 + count]
    length = number(coded[1:]) if count else number(coded)
    if not coded or coded != der_length(length):
        raise ValueError("the length is not minimal, or leaves the head")
    start = at + 1 + len(coded)
    return head[at], start, start + length


@dataclass(frozen=True)
class Item:
    """The head of an item, with the last OCTET STRING, which may leave the head, emptied."""

    head: bytes
    tag: int
    end: int
    first: tuple[int, int]  # where the first component starts and ends
    last: tuple[int, int]  # where the last component, and its contents, start
    der: bytes  # as SEQUENCE

    @classmethod
    def parse(cls, head: bytes, at: int = 0) -> Item:
        """C5: all tags and lengths lie in the head."""
        tag, position, item_end = frame(head, at)
        first = position
        _, start, end = frame(head, first)
        first_end = end
        while end < item_end:
            position = end
            _, start, end = frame(head, position)
        if len(head) < HEAD or end != item_end or head[position] != 0x04 or start > HEAD:
            raise ValueError("the components do not fill the item")
        body = head[first:position] + b"\x04\x00"
        der = b"\x30" + der_length(len(body)) + body
        return cls(head, tag, item_end, (first, first_end), (position, start), der)
