"""A LUKS header as text, in the form that `cryptsetup luksDump` has and scripts read.

Source: what cryptsetup 2.6.1 prints; a test compares the two.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from luks import Argon2, Pbkdf2

if TYPE_CHECKING:
    from collections.abc import Iterator

    import luks

_PRIORITIES: Final = {0: "ignored", 1: "normal", 2: "preferred"}
_BYTES_IN_LINE: Final = 16


def dump(header: luks.Header, name: str) -> str:
    """Return the lines for a header, without a final newline.

    Args:
        header: As it was loaded.
        name: Of its image, which cryptsetup prints for LUKS1.
    """
    lines = _luks1(header, name) if header.version == 1 else _luks2(header)
    return "\n".join(lines)


def _luks1(header: luks.Header, name: str) -> Iterator[str]:
    raw = header.source
    yield f"LUKS header information for {name}"
    yield ""
    yield "Version:       \t1"
    yield f"Cipher name:   \t{raw.cipher_name}"
    yield f"Cipher mode:   \t{raw.cipher_mode}"
    yield f"Hash spec:     \t{raw.hash_spec}"
    yield f"Payload offset:\t{raw.payload_sector}"
    yield f"MK bits:       \t{raw.key_bytes * 8}"
    yield f"MK digest:     \t{_octets(raw.mk_digest)}"
    first, second = raw.mk_digest_salt[:_BYTES_IN_LINE], raw.mk_digest_salt[_BYTES_IN_LINE:]
    yield f"MK salt:       \t{_octets(first)}"
    yield f"               \t{_octets(second)}"
    yield f"MK iterations: \t{raw.mk_digest_iterations}"
    yield f"UUID:          \t{header.uuid}"
    yield ""
    for number, slot in enumerate(raw.keyslots):
        yield f"Key Slot {number}: {'ENABLED' if slot.active else 'DISABLED'}"
        if slot.active:
            yield f"\tIterations:         \t{slot.iterations}"
            yield f"\tSalt:               \t{_octets(slot.salt[:_BYTES_IN_LINE])}"
            yield f"\t                      \t{_octets(slot.salt[_BYTES_IN_LINE:])}"
            yield f"\tKey material offset:\t{slot.material_sector}"
            yield f"\tAF stripes:            \t{slot.stripes}"


def _luks2(header: luks.Header) -> Iterator[str]:
    yield "LUKS header information"
    yield "Version:       \t2"
    yield f"Epoch:         \t{header.seqid}"
    yield f"Metadata area: \t{header.metadata_size} [bytes]"
    yield f"Keyslots area: \t{header.keyslots_size} [bytes]"
    yield f"UUID:          \t{header.uuid or '(no UUID)'}"
    yield f"Label:         \t{header.label or '(no label)'}"
    yield f"Subsystem:     \t{header.subsystem or '(no subsystem)'}"
    yield f"Flags:       \t{_words(header.flags) or '(no flags)'}"
    if header.requirements:
        yield f"Requirements:\t{_words(header.requirements)}"
    yield ""
    yield "Data segments:"
    for number, segment in sorted(header.segments.items()):
        yield from _segment(number, segment)
    yield "Keyslots:"
    for number, keyslot in sorted(header.keyslots.items()):
        yield from _keyslot(header, number, keyslot)
    yield "Tokens:"
    for number, token in sorted(header.tokens.items()):
        yield f"  {number}: {token.type}"
        for slot in token.keyslots:
            yield f"\tKeyslot:    {slot}"
    yield "Digests:"
    for number, digest in sorted(header.digests.items()):
        yield f"  {number}: {digest.type}"
        if digest.kdf is not None:
            yield f"\tHash:       {digest.kdf.hash_name}"
            yield f"\tIterations: {digest.kdf.iterations}"
            yield from _block("Salt:", digest.salt)
            yield from _block("Digest:", digest.value)


def _segment(number: int, segment: luks.Segment) -> Iterator[str]:
    yield f"  {number}: {segment.type}"
    yield f"\toffset: {segment.offset} [bytes]"
    size = "(whole device)" if segment.size is None else f"{segment.size} [bytes]"
    yield f"\tlength: {size}"
    if segment.cipher is not None:
        yield f"\tcipher: {segment.cipher}"
        yield f"\tsector: {segment.sector_size} [bytes]"
    if segment.integrity is not None:
        yield f"\tintegrity: {segment.integrity}"
    if segment.flags:
        yield f"\tflags : {', '.join(segment.flags)}"
    yield ""


def _keyslot(header: luks.Header, number: int, keyslot: luks.Keyslot) -> Iterator[str]:
    digests = [n for n, digest in header.digests.items() if number in digest.keyslots]
    bound = any(header.digests[n].segments for n in digests)
    unbound = "" if bound or keyslot.type != "luks2" else " (unbound)"
    yield f"  {number}: {keyslot.type}{unbound}"
    yield f"\tKey:        {keyslot.key_size * 8} bits"
    yield f"\tPriority:   {_PRIORITIES.get(keyslot.priority, 'unknown')}"
    if keyslot.area.cipher is not None:
        yield f"\tCipher:     {keyslot.area.cipher}"
        yield f"\tCipher key: {keyslot.area.key_size * 8} bits"
    yield from _kdf(keyslot.kdf)
    if keyslot.kdf is not None:
        yield from _block("Salt:", keyslot.salt)
        yield f"\tAF stripes: {keyslot.stripes}"
        yield f"\tAF hash:    {keyslot.af_hash}"
    yield f"\tArea offset:{keyslot.area.offset} [bytes]"
    yield f"\tArea length:{keyslot.area.size} [bytes]"
    for digest in digests:
        yield f"\tDigest ID:  {digest}"


def _kdf(cost: luks.KdfCost | None) -> Iterator[str]:
    if isinstance(cost, Pbkdf2):
        yield "\tPBKDF:      pbkdf2"
        yield f"\tHash:       {cost.hash_name}"
        yield f"\tIterations: {cost.iterations}"
    elif isinstance(cost, Argon2):
        yield f"\tPBKDF:      {cost.variant}"
        yield f"\tTime cost:  {cost.time}"
        yield f"\tMemory:     {cost.memory_kib}"
        yield f"\tThreads:    {cost.lanes}"


def _block(title: str, value: bytes) -> Iterator[str]:
    for at in range(0, len(value), _BYTES_IN_LINE):
        yield f"\t{title if at == 0 else '':<12}{_octets(value[at : at + _BYTES_IN_LINE])}"


def _octets(value: bytes) -> str:
    return "".join(f"{byte:02x} " for byte in value)


def _words(words: tuple[str, ...]) -> str:
    return "".join(f"{word} " for word in words)
