"""A header as data that every language reads: what ``header dump --json`` prints."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from formats.frozen import as_dict
from luks.header import luks1
from luks.header.key_digests import backup_digests
from luks.manage.tokens import token_name
from luks.model import Argon2

if TYPE_CHECKING:
    from luks.model import Digest, Header, KdfCost, Keyslot, Segment


def describe_header(header: Header) -> dict[str, Any]:
    """Return everything that a header says, as JSON knows it; nothing in it is a key.

    Offsets and sizes are bytes, salts and digests hexadecimal; objects are keyed by
    their numbers, as text. In LUKS2 ``metadata`` is the JSON area as it is stored,
    with all that is not known here; what owners of tokens store there is shown.
    """
    described: dict[str, Any] = {
        "version": header.version,
        "uuid": header.uuid,
        "label": header.label,
        "subsystem": header.subsystem,
        "seqid": header.seqid,
        "cipher": header.cipher,
        "sector_size": header.sector_size,
        "data_offset": header.data_offset,
        "metadata_size": header.metadata_size,
        "keyslots_offset": header.keyslots_offset,
        "keyslots_size": header.keyslots_size,
        "flags": list(header.flags),
        "requirements": list(header.requirements),
        "damaged_copy": header.stale_copy,
        "keyslots": {str(n): _keyslot(header, n) for n in sorted(header.keyslots)},
        "digests": {str(n): _digest(d) for n, d in sorted(header.digests.items())},
        "segments": {str(n): _segment(s) for n, s in sorted(header.segments.items())},
        "tokens": {
            str(n): {
                "type": token.type,
                "name": token_name(token),
                "keyslots": list(token.keyslots),
            }
            for n, token in sorted(header.tokens.items())
        },
    }
    if header.version != luks1.VERSION:
        described["metadata"] = header.source.root
    return described


def _keyslot(header: Header, number: int) -> dict[str, Any]:
    keyslot: Keyslot = header.keyslots[number]
    volume = {*header.payload_digests, *backup_digests(header)}
    return {
        "type": keyslot.type,
        "holds_volume_key": any(number in header.digests[n].keyslots for n in volume),
        "key_size": keyslot.key_size,
        "priority": keyslot.priority,
        "kdf": _kdf(keyslot.kdf),
        "salt": keyslot.salt.hex(),
        "stripes": keyslot.stripes,
        "af_hash": keyslot.af_hash,
        "area": as_dict(keyslot.area),
        "tokens": [n for n, token in sorted(header.tokens.items()) if number in token.keyslots],
        "problem": keyslot.problem or None,
    }


def _kdf(cost: KdfCost | None) -> dict[str, Any] | None:
    if cost is None:
        return None
    if isinstance(cost, Argon2):
        return {
            "type": cost.variant,
            "time": cost.time,
            "memory_kib": cost.memory_kib,
            "lanes": cost.lanes,
        }
    return {"type": "pbkdf2", "hash": cost.hash_name, "iterations": cost.iterations}


def _digest(digest: Digest) -> dict[str, Any]:
    return {
        "type": digest.type,
        "keyslots": list(digest.keyslots),
        "segments": list(digest.segments),
        "kdf": _kdf(digest.kdf),
        "salt": digest.salt.hex(),
        "value": digest.value.hex(),
    }


def _segment(segment: Segment) -> dict[str, Any]:
    return {**as_dict(segment), "flags": list(segment.flags)}
