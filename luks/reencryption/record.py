"""The record of a re-encryption, as it is written when one begins (L150).

It consists of a keyslot that holds no key, a requirement that keeps other programs away,
backup segments, and a digest that proves all this to be made with the keys.
"""

from __future__ import annotations

from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from formats.frozen import replace
from luks.crypto.hashes import canonical, lookup
from luks.errors import KeyslotsFullError
from luks.header.luks2 import with_keyslot
from luks.header.luks2_reencrypt_rules import REENCRYPT, reencrypt_record
from luks.header.validate import AREA_ALIGNMENT
from luks.keys.costs import digest_cost
from luks.keys.enroll import choose_keyslot, new_digest
from luks.keys.reencryption import signed_text
from luks.model import Area
from luks.reencryption.headers import with_progress
from luks.reencryption.plan import Progress

if TYPE_CHECKING:
    from luks.header.luks2_reencrypt_rules import ReencryptRecord
    from luks.keys.reencryption import VolumeKeys
    from luks.model import Digest, Header
    from luks.reencryption.headers import KeyDigests
    from luks.reencryption.interface import Direction, Mode, ReencryptionOptions
    from luks.reencryption.plan import Plan

_REQUIREMENT: Final = "online-reencrypt-v2"
#: For a decryption with data shift, which older versions of cryptsetup do not know.
_SHIFTED_DECRYPTION: Final = "online-reencrypt-v3"
#: Bytes that a checksum covers if the payload has a whole number of them.
_BLOCK: Final = 4096


class Intent(NamedTuple):
    """What is to begin.

    Attributes:
        mode: ``"reencrypt"``, ``"encrypt"`` or ``"decrypt"``.
        direction: ``"forward"`` or ``"backward"``.
        sector_size: Bytes of the largest sector of the payload, before or afterwards.
        size: Bytes of the payload.
        shift_size: Bytes by which the payload is moved, or 0.
    """

    mode: Mode
    direction: Direction
    sector_size: int
    size: int
    shift_size: int = 0


def with_record(header: Header, intent: Intent, options: ReencryptionOptions) -> Header:
    """Return a header with the keyslot and the requirement of a re-encryption.

    Args:
        header: With all other keyslots that it is to have.
        intent: What is to begin.
        options: Its resilience.

    Raises:
        KeyslotsFullError: There is no keyslot left, or no room in the keyslots area.
    """
    resilience = _resilience(intent, options)
    least = AREA_ALIGNMENT
    area = _largest_gap(header)
    if area is None or area.size < least:
        raise KeyslotsFullError(
            "the keyslots area has no room for what a re-encryption records",
            hint="remove keyslots that are not needed",
        )
    if resilience == "datashift":
        area = replace(area, size=least)
    described: dict[str, Any] = {
        "type": resilience,
        "offset": str(area.offset),
        "size": str(area.size),
    }
    if "checksum" in resilience:
        described["hash"] = canonical(options.resilience_hash)
        described["sector_size"] = _block_size(intent)
    if intent.shift_size:
        described["shift_size"] = str(intent.shift_size)
    body = {
        "type": REENCRYPT,
        "key_size": 1,
        "mode": intent.mode,
        "direction": intent.direction,
        "area": described,
    }
    word = _SHIFTED_DECRYPTION if resilience.startswith("datashift-") else _REQUIREMENT
    marked = replace(header, requirements=(*header.requirements, word))
    return with_keyslot(marked, choose_keyslot(header, None), body)


def record_of(header: Header) -> ReencryptRecord:
    """Return the record of a header that has one."""
    record = reencrypt_record(header)
    assert record is not None
    return record


def with_proof(
    header: Header,
    plan: Plan,
    keys: VolumeKeys,
    digests: KeyDigests,
    options: ReencryptionOptions,
) -> Header:
    """Return the header with all segments of a re-encryption that begins, and its digest.

    Args:
        header: From `with_record`.
        plan: What is to begin.
        keys: The old and the new key.
        digests: Theirs.
        options: The cost of the digest.
    """
    described = with_progress(header, plan, Progress(0), digests)
    cost = digest_cost(options.kdf, options.hash_name)
    with signed_text(described, keys) as text:
        digest = new_digest(text.view(), cost, lookup(options.hash_name).digest_size)
    proof = replace(digest, keyslots=(plan.record.keyslot,), segments=())
    return with_digest(described, free_digest(described), proof)


def with_digest(header: Header, number: int, digest: Digest) -> Header:
    """Return the header with one more digest."""
    return replace(header, digests=MappingProxyType({**header.digests, number: digest}))


def free_digest(header: Header) -> int:
    """Return the number of the first digest that does not exist."""
    return next(n for n in range(len(header.digests) + 1) if n not in header.digests)


def _block_size(intent: Intent) -> int:
    """Return the bytes that a checksum covers: as cryptsetup, more than a sector if possible."""
    return _BLOCK if intent.size % _BLOCK == 0 else intent.sector_size


def _resilience(intent: Intent, options: ReencryptionOptions) -> str:
    if not intent.shift_size:
        return options.resilience
    return "datashift" if intent.mode == "encrypt" else f"datashift-{options.resilience}"


def _largest_gap(header: Header) -> Area | None:
    """Return the largest part of the keyslots area that no keyslot refers to."""
    gaps = []
    position = header.keyslots_offset
    end = header.keyslots_offset + header.keyslots_size
    areas = sorted((slot.area for slot in header.keyslots.values()), key=lambda area: area.offset)
    for area in (*areas, Area(end, 0, cipher=None, key_size=0)):
        size = area.offset - position
        gaps.append(Area(position, size // AREA_ALIGNMENT * AREA_ALIGNMENT, None, 0))
        position = max(position, area.end + -area.end % AREA_ALIGNMENT)
    return max(gaps, key=lambda gap: gap.size, default=None)
