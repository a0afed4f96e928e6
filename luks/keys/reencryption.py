"""The keys of a volume that is being re-encrypted, and the digest that proves its record.

Such a volume has an old key, a new one, or both. Nothing in its header is authentic: an
attacker who can write to the image could record a decryption, and have the next program
that resumes it decrypt the payload (CVE-2021-4122). So cryptsetup stores a digest of the
keys together with everything that determines what a re-encryption does, and neither it nor
this project uses that record before the digest verifies (L181, L182).
"""

from __future__ import annotations

from contextlib import ExitStack
from typing import TYPE_CHECKING, Final, Self

from formats.frozen import Frozen
from luks.crypto.kdf import DEFAULT_LIMITS, confirms
from luks.errors import PolicyError, UnlockError, UnsupportedError
from luks.header.key_digests import (
    backup_digests,
    is_reencrypted,
    key_digests,
    usable_digest,
)
from luks.header.luks2_reencrypt_rules import (
    BACKUP_FINAL,
    BACKUP_MOVED,
    BACKUP_PREVIOUS,
    reencrypt_record,
)
from luks.header.policy import DEFAULT_POLICY
from luks.keys.keyslots import VolumeKey, unlock, unlock_digest, verify_digest_key
from luks.secret.secrets import Secret

if TYPE_CHECKING:
    from collections.abc import Mapping
    from types import TracebackType

    from formats.devices.device import BlockDevice, ReadableBuffer
    from luks.crypto.kdf import KdfLimits
    from luks.header.luks2_reencrypt_rules import ReencryptRecord
    from luks.header.policy import Policy
    from luks.model import Digest, Header, Segment

#: Version of the oldest metadata that has a digest.
_FIRST_WITH_DIGEST: Final = 2
#: Kinds of resilience of which it is known what the digest covers.
_RESILIENCE: Final = frozenset(
    {"none", "checksum", "journal", "datashift", "datashift-journal", "datashift-checksum"}
)


class VolumeKeys(Frozen):
    """All keys that a volume needs (L180), made by `unlock_all`.

    Attributes:
        by_digest: Each key, by the number of the digest that confirmed it: the old key of
            a re-encryption first.
    """

    by_digest: Mapping[int, VolumeKey]

    @classmethod
    def only(cls, header: Header, key: VolumeKey) -> VolumeKeys:
        """Return the keys of a volume that needs just this one.

        Raises:
            UnsupportedError: It needs several.
        """
        numbers = key_digests(header)
        if len(numbers) != 1:
            raise UnsupportedError(
                "the volume is being re-encrypted and has two keys [L180]",
                feature="several volume keys",
                hint="give a passphrase, or all keys (luks.unlock_all)",
            )
        return cls({numbers[0]: key})

    @property
    def keyslot(self) -> int | None:
        """Number of the keyslot that the first key came from, or None."""
        return next((key.keyslot for key in self.by_digest.values()), None)

    @property
    def first_size(self) -> int:
        """Bytes of the first key."""
        return len(next(iter(self.by_digest.values())).key)

    def copy(self) -> VolumeKeys:
        """Return copies of the keys, to be wiped on their own."""
        return VolumeKeys(
            {n: VolumeKey(Secret(key.key.view()), key.keyslot) for n, key in self.by_digest.items()}
        )

    def wipe(self) -> None:
        """Overwrite the keys, as the end of a ``with`` block does; twice is fine."""
        for key in self.by_digest.values():
            key.key.wipe()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.wipe()


def unlock_all(
    device: BlockDevice,
    header: Header,
    secret: bytes | Secret,
    *,
    keyslot: int | None = None,
    limits: KdfLimits = DEFAULT_LIMITS,
    policy: Policy = DEFAULT_POLICY,
) -> VolumeKeys:
    """Find all keys of a volume, and verify the record of a re-encryption with them.

    Of a volume that is not being re-encrypted it is the one key, as `luks.unlock` finds it.

    Args:
        device: Holds the header and its keyslot areas.
        header: As it was loaded; it is not read again.
        secret: Passphrase or key file content, which must open the keyslots of both keys.
            Not modified.
        keyslot: Try only this one for the key that it holds.
        limits: Largest permitted cost of a key derivation.
        policy: Requirements for header and keyslots.

    Returns:
        The keys; they are the caller's to wipe.

    Raises:
        NoKeyslotMatchError: The secret does not open a keyslot of each key.
        PolicyError: The record of the re-encryption is not the one that its digest
            confirms (L182).
        UnlockError, UnsupportedError, FormatError, DeviceError: As `luks.unlock`.
    """
    if not is_reencrypted(header):
        key = unlock(device, header, secret, keyslot=keyslot, limits=limits, policy=policy)
        return VolumeKeys.only(header, key)
    policy.check_header(header)
    record_digest(header)  # refuse before the secret is used
    numbers = key_digests(header)
    of_keyslots = [header.digests[number].keyslots for number in numbers]
    if keyslot is not None and not any(keyslot in keyslots for keyslots in of_keyslots):
        raise UnlockError(f"keyslot {keyslot} does not hold a key of the volume")
    with ExitStack() as stack:
        found: dict[int, VolumeKey] = {}
        for number, keyslots in zip(numbers, of_keyslots, strict=True):
            found[number] = unlock_digest(
                device,
                header,
                usable_digest(header, number),
                secret,
                keyslot=keyslot if keyslot in keyslots else None,
                limits=limits,
                policy=policy,
            )
            stack.callback(found[number].key.wipe)
        keys = VolumeKeys(found)
        verify_record(header, keys, limits=limits)
        stack.pop_all()
    return keys


def verify_keys(
    header: Header,
    keys: VolumeKeys,
    *,
    limits: KdfLimits = DEFAULT_LIMITS,
    policy: Policy = DEFAULT_POLICY,
) -> VolumeKeys:
    """Check that keys are those of a volume, as `unlock_all` does; return copies.

    Args:
        header: As it was loaded.
        keys: They stay the caller's.
        limits: Largest permitted cost of a digest.
        policy: Requirements for the header.

    Raises:
        UnlockError: One is missing, or is not the one that its digest confirms.
        PolicyError, UnsupportedError, LuksHeaderError: As `unlock_all`.
    """
    policy.check_header(header)
    with ExitStack() as stack:
        found: dict[int, VolumeKey] = {}
        for number in key_digests(header):
            key = keys.by_digest.get(number)
            if key is None:
                raise UnlockError(f"the key of digest {number} is missing [L180]")
            digest = usable_digest(header, number)
            found[number] = verify_digest_key(header, digest, key.key.view(), limits=limits)
            stack.callback(found[number].key.wipe)
        verified = VolumeKeys(found)
        if is_reencrypted(header):
            verify_record(header, verified, limits=limits)
        stack.pop_all()
    return verified


def record_digest(header: Header) -> Digest:
    """Return the digest that proves the record of a re-encryption (L181).

    Raises:
        PolicyError: It has none, so that nothing proves it.
        UnsupportedError, LuksHeaderError: It cannot be computed here.
    """
    record = _record(header)
    numbers = [n for n, digest in header.digests.items() if record.keyslot in digest.keyslots]
    if not numbers or record.version < _FIRST_WITH_DIGEST:
        raise PolicyError(
            "nothing proves who began the re-encryption that the header records: it has no digest"
            " [L182]",
            hint="if you began it, with an old cryptsetup, cryptsetup repair adds the digest",
        )
    if not backup_digests(header):
        raise PolicyError(
            "nothing proves the re-encryption that the header records: no key takes part in it"
            " [L182]",
            hint="the header was made by a program that has no key: restore it from a backup",
        )
    return usable_digest(header, numbers[0])


def _record(header: Header) -> ReencryptRecord:
    record = reencrypt_record(header)
    if record is None:
        raise ValueError("the volume is not being re-encrypted")
    if record.resilience not in _RESILIENCE:
        raise UnsupportedError(
            f"the resilience {record.resilience!r} of the re-encryption is unknown",
            feature=f"resilience {record.resilience}",
        )
    return record


def verify_record(
    header: Header, keys: VolumeKeys, *, limits: KdfLimits = DEFAULT_LIMITS
) -> ReencryptRecord:
    """Verify the record of a re-encryption with the keys of its volume; return it.

    Args:
        header: As it was loaded; a re-encryption is in progress.
        keys: Those of `key_digests`.
        limits: Largest permitted cost of the digest.

    Raises:
        PolicyError: The digest does not confirm the record, or costs too much.
        UnsupportedError, LuksHeaderError: It cannot be computed here.
    """
    record, digest = _record(header), record_digest(header)
    with signed_text(header, keys) as text:
        if confirms(digest, text.view(), limits):
            return record
    raise PolicyError(
        "the header records a re-encryption that its digest does not confirm: a program without"
        " the key has written or changed the record [L182]",
        hint="nothing was done; find out where the header comes from, and restore it from a backup",
    )


def signed_text(header: Header, keys: VolumeKeys) -> Secret:
    """Return what the digest of a re-encryption is computed from (L181); the caller wipes it.

    Args:
        header: With the record and the backup segments.
        keys: Those of `key_digests`.

    Raises:
        UnsupportedError: It is not known what the digest covers.
    """
    record = _record(header)
    described = _record_text(record)
    for flag in (BACKUP_PREVIOUS, BACKUP_FINAL, BACKUP_MOVED):
        segment = header.flagged(flag)
        if segment is not None:
            described += _segment_text(header.segments[segment])
    parts: list[ReadableBuffer] = [f"v{record.version}".encode()]
    parts += [keys.by_digest[number].key.view() for number in backup_digests(header)]
    parts.append(described)
    text = bytearray(sum(map(len, parts)))  # in one piece, so that no copy of a key stays
    at = 0
    for part in parts:
        text[at : at + len(part)] = part
        at += len(part)
    return Secret.adopt(text)


def _record_text(record: ReencryptRecord) -> bytes:
    text = _words(record.mode, record.direction, record.resilience)
    text += record.area.offset.to_bytes(8) + record.area.size.to_bytes(8)
    if record.hash_name:
        text += _words(record.hash_name) + record.sector_size.to_bytes(4)
    if record.shift_size:
        text += record.shift_size.to_bytes(8)
    return text


def _segment_text(segment: Segment) -> bytes:
    text = _words(segment.type) + segment.offset.to_bytes(8)
    text += b"dynamic" if segment.size is None else segment.size.to_bytes(8)
    if segment.type == "crypt":
        text += segment.iv_tweak.to_bytes(8) + _words(segment.cipher or "")
        text += segment.sector_size.to_bytes(4)
    return text


def _words(*words: str) -> bytes:
    return "".join(words).encode(errors="backslashreplace")
