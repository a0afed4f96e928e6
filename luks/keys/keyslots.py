"""Keyslots: from a secret to the volume key, and back."""

from __future__ import annotations

from typing import TYPE_CHECKING

from formats.frozen import Frozen
from formats.logs import LateLogger
from luks.crypto.af import af_merge, af_split
from luks.crypto.ciphers import check_usable, sector_cipher
from luks.crypto.hashes import lookup
from luks.crypto.kdf import DEFAULT_LIMITS, confirms, derive
from luks.crypto.spec import takes_key
from luks.errors import (
    FormatError,
    LuksHeaderError,
    NoKeyslotMatchError,
    PolicyError,
    StorageError,
    TruncatedImageError,
    UnlockError,
    UnsupportedError,
)
from luks.header.key_digests import (
    check_fits,
    encrypted_by,
    usable_digest,
    volume_digest,
    volume_key_sizes,
)
from luks.header.policy import DEFAULT_POLICY
from luks.model import PRIORITY_IGNORE, PRIORITY_NORMAL, PRIORITY_PREFER, SECTOR_SIZE
from luks.secret.secrets import Secret, view_of

if TYPE_CHECKING:
    from collections.abc import Iterable

    from formats.devices.device import BlockDevice, ReadableBuffer
    from luks.crypto.kdf import KdfLimits
    from luks.header.policy import Policy
    from luks.model import Digest, Header, Keyslot
    from luks.secret.randomness import RandomSource

_log = LateLogger("luks")

# Editors end files with one. Who knows that much of a secret knows nothing of it.
_NEWLINE = (
    "the secret ends with a newline, which counts: if an editor put it into the key file,"
    " leave it out (--keyfile-size)"
)


class VolumeKey(Frozen):
    """A key that a header's digest has confirmed, made by the functions below.

    Attributes:
        key: The key; closing the volume that was opened with it wipes it.
        keyslot: Number of the keyslot it came from, or None.
    """

    key: Secret
    keyslot: int | None


def unlock(
    device: BlockDevice,
    header: Header,
    secret: bytes | Secret,
    *,
    keyslot: int | None = None,
    limits: KdfLimits = DEFAULT_LIMITS,
    policy: Policy = DEFAULT_POLICY,
) -> VolumeKey:
    """Find the volume key that ``secret`` opens.

    Keyslots are tried by priority, then by number. A keyslot that cannot be tried
    (damaged, unknown, or beyond ``limits``) is skipped. The payload need not be one that can
    be opened here (L76).

    Args:
        device: Holds the header and its keyslot areas.
        header: As it was loaded; it is not read again.
        secret: Passphrase or key file content. Not modified.
        keyslot: Try only this one, regardless of its priority.
        limits: Largest permitted cost of a key derivation.
        policy: Requirements for header and keyslots; keyslots that do not meet
            them are not tried.

    Raises:
        NoKeyslotMatchError: No keyslot opens with it.
        UnlockError: There is no keyslot to try, or not enough memory.
        UnfinishedReencryptionError: A re-encryption has two keys; see `luks.unlock_all`.
        PolicyError: The header must not be used; ``secret`` was not used.
        UnsupportedError, FormatError, DeviceError: No keyslot could be tried.
    """
    policy.check_header(header)
    return unlock_digest(
        device,
        header,
        volume_digest(header),
        secret,
        keyslot=keyslot,
        limits=limits,
        policy=policy,
    )


def unlock_digest(
    device: BlockDevice,
    header: Header,
    digest: Digest,
    secret: bytes | Secret,
    *,
    keyslot: int | None = None,
    limits: KdfLimits = DEFAULT_LIMITS,
    policy: Policy = DEFAULT_POLICY,
) -> VolumeKey:
    """Find the key of one of the header's digests; arguments and errors as `unlock`."""
    plain = policy.allow_unencrypted
    if digest.kdf is not None:
        limits.check(digest.kdf)
    candidates = _candidates(header, digest, keyslot)
    refusals: dict[int, StorageError] = {}
    spent = 0.0
    for number in candidates:
        try:
            spent = _charge(spent, header.keyslots[number], digest, limits)
            policy.check_keyslot(header.keyslots[number])
            key = _try_keyslot(device, header, number, digest, view_of(secret), limits, plain=plain)
        except StorageError as error:
            refusals[number] = error
            continue
        if key is not None:
            return VolumeKey(key, number)
    if len(refusals) == len(candidates):
        raise refusals[candidates[0]]
    not_tried = "".join(f"; keyslot {n} was not tried: {why}" for n, why in refusals.items())
    raise NoKeyslotMatchError(
        "no keyslot opens with this secret: it is wrong, or the key material is damaged,"
        f" which cannot be distinguished{not_tried}",
        tried={n: str(refusals.get(n, "the secret does not open it")) for n in candidates},
        hint=_hint(secret),
    )


def matching(
    device: BlockDevice,
    header: Header,
    secret: bytes | Secret,
    *,
    keyslot: int | None = None,
    limits: KdfLimits = DEFAULT_LIMITS,
    policy: Policy = DEFAULT_POLICY,
) -> tuple[int, ...]:
    """Return all keyslots of the volume key that ``secret`` opens, regardless of priority.

    Keyslots that cannot be tried count as not opened.

    Args:
        device: Holds the header and its keyslot areas.
        header: As it was loaded.
        secret: Passphrase or key file content. Not modified.
        keyslot: Try only this one.
        limits: Largest permitted cost of each key derivation, and of all together.
        policy: Requirements for header and keyslots.

    Raises:
        PolicyError, UnsupportedError: The header must not be used.
        DeviceError: A keyslot cannot be read.
    """
    policy.check_header(header)
    plain = policy.allow_unencrypted
    digest = volume_digest(header)
    found = []
    spent = 0.0
    for number in sorted(digest.keyslots):
        if keyslot not in {None, number}:
            continue
        slot = header.keyslots[number]
        try:
            spent = _charge(spent, slot, digest, limits)
            policy.check_keyslot(slot)
            key = _try_keyslot(device, header, number, digest, view_of(secret), limits, plain=plain)
        except (FormatError, UnsupportedError, PolicyError, UnlockError) as error:
            _log.warning("keyslot %s was not tried: %s", number, error)
            continue
        if key is not None:
            key.wipe()
            found.append(number)
    return tuple(found)


def unbound_key(
    device: BlockDevice,
    header: Header,
    secret: bytes | Secret,
    keyslot: int,
    *,
    limits: KdfLimits = DEFAULT_LIMITS,
    policy: Policy = DEFAULT_POLICY,
) -> Secret:
    """Return the key in an unbound keyslot, which is not that of the payload (L141).

    Args:
        device: Holds the header and its keyslot areas.
        header: As it was loaded.
        secret: Passphrase or key file content. Not modified.
        keyslot: One of ``header.unbound_keyslots``.
        limits: Largest permitted cost of a key derivation.
        policy: Requirements for header and keyslot.

    Returns:
        The key; it is the caller's to wipe.

    Raises:
        NoKeyslotMatchError: The secret does not open it.
        UnlockError: The keyslot is not unbound.
        PolicyError, UnsupportedError, FormatError, DeviceError: It cannot be tried.
    """
    policy.check_header(header)
    if keyslot not in header.unbound_keyslots:
        raise UnlockError(f"keyslot {keyslot} is not an unbound one")
    policy.check_keyslot(header.keyslots[keyslot])
    number = next(
        number
        for number, digest in header.digests.items()
        if keyslot in digest.keyslots and not digest.segments
    )
    digest = usable_digest(header, number)
    _charge(0.0, header.keyslots[keyslot], digest, limits)
    plain = policy.allow_unencrypted
    key = _try_keyslot(device, header, keyslot, digest, view_of(secret), limits, plain=plain)
    if key is None:
        raise NoKeyslotMatchError(
            f"the unbound keyslot {keyslot} does not open with this secret",
            tried={keyslot: "the secret does not open it"},
            hint=_hint(secret),
        )
    return key


def verify_volume_key(
    header: Header,
    key: ReadableBuffer,
    *,
    limits: KdfLimits = DEFAULT_LIMITS,
    policy: Policy = DEFAULT_POLICY,
) -> VolumeKey:
    """Check that ``key`` is the volume key; it is copied.

    Raises:
        UnlockError: It is not.
        PolicyError, UnsupportedError: As `unlock`.
    """
    policy.check_header(header)
    return verify_digest_key(header, volume_digest(header), key, limits=limits)


def verify_digest_key(
    header: Header, digest: Digest, key: ReadableBuffer, *, limits: KdfLimits = DEFAULT_LIMITS
) -> VolumeKey:
    """Check that ``key`` is the key of one of the header's digests; it is copied.

    Raises:
        UnlockError: It is not.
        PolicyError, UnsupportedError, LuksHeaderError: The digest cannot be computed.
    """
    view = memoryview(key).cast("B")
    _check_length(header, digest, len(view))
    if not confirms(digest, view, limits) or _is_padded(header, digest, view):
        raise UnlockError("the key given is not the volume key")
    return VolumeKey(Secret(key), None)


def seal(
    keyslot: Keyslot,
    secret: ReadableBuffer,
    key: ReadableBuffer,
    random: RandomSource | None = None,
) -> bytes:
    """Return the key material that makes ``secret`` open ``key``.

    Args:
        keyslot: Its parameters and its salt are used.
        secret: Not modified.
        key: ``keyslot.key_size`` bytes. Not modified.
        random: Source of the stripes.

    Returns:
        Encrypted material for the start of the keyslot's area.
    """
    if keyslot.kdf is None or keyslot.area.cipher is None:
        raise ValueError(f"a keyslot of type {keyslot.type!r} cannot be made")
    if len(key) != keyslot.key_size:
        raise ValueError(
            f"a keyslot for a key of {keyslot.key_size} bytes cannot hold {len(key)} [L65]"
        )
    size = _material_size(keyslot)
    material = bytearray(size)
    filler = None if random is None else random(len(key) * (keyslot.stripes - 1))
    stripes = af_split(key, stripes=keyslot.stripes, hash_name=keyslot.af_hash, random=filler)
    with (
        Secret.adopt(stripes),
        derive(keyslot.kdf, secret, keyslot.salt, keyslot.area.key_size) as area_key,
    ):
        material[: len(stripes)] = stripes
        cipher = sector_cipher(keyslot.area.cipher, area_key.view(), SECTOR_SIZE)
        cipher.encrypt(0, material, material)
    return bytes(material)


def _candidates(header: Header, digest: Digest, keyslot: int | None) -> list[int]:
    if keyslot is not None:
        if keyslot not in header.keyslots:
            raise UnlockError(f"keyslot {keyslot} is not active")
        if keyslot not in digest.keyslots:
            raise UnlockError(f"keyslot {keyslot} does not hold the volume key")
        return [keyslot]
    candidates = [
        number
        for priority in (PRIORITY_PREFER, PRIORITY_NORMAL)
        for number in sorted(digest.keyslots)
        if header.keyslots[number].priority == priority
    ]
    if not candidates:
        if any(header.keyslots[n].priority == PRIORITY_IGNORE for n in digest.keyslots):
            raise UnlockError(
                "every keyslot that could be tried has the priority 'ignore'",
                hint="they are tried only when they are named: --key-slot",
            )
        raise UnlockError("no keyslot is active")
    return candidates


def _charge(spent: float, keyslot: Keyslot, digest: Digest, limits: KdfLimits) -> float:
    """Return the total cost once this keyslot has been tried as well."""
    costs = [cost for cost in (keyslot.kdf, digest.kdf) if cost is not None]
    for cost in costs:
        limits.check(cost)  # a refused keyslot costs nothing
    charged = spent + sum(limits.share(cost) for cost in costs)
    if spent and charged > limits.total:
        raise PolicyError(
            f"the keyslots ask for more than {limits.total} times what one of them may [L61]",
            hint="name the keyslot (--key-slot), or permit more with --allow-slow-keys FACTOR,"
            " or a larger luks.KdfLimits.total in Python",
        )
    return charged


def _try_keyslot(
    device: BlockDevice,
    header: Header,
    number: int,
    digest: Digest,
    secret: memoryview,
    limits: KdfLimits,
    *,
    plain: bool,
) -> Secret | None:
    """Return the key, or None if the digest does not confirm it."""
    keyslot = header.keyslots[number]
    area = keyslot.area
    if keyslot.problem:
        raise LuksHeaderError(keyslot.problem)
    if keyslot.kdf is None or area.cipher is None:
        raise UnsupportedError(
            f"keyslots of type {keyslot.type!r}, or their key derivation, are unknown",
            feature=f"keyslot type {keyslot.type}",
        )
    # Every possible refusal comes before the key derivation starts.
    if digest.segments:  # of an unbound key nothing is known
        check_fits(header, digest, keyslot.key_size)
    check_usable(area.cipher, area.key_size, permit_null=plain)
    limits.check(keyslot.kdf)
    lookup(keyslot.af_hash)
    size = _material_size(keyslot)
    if size > area.size:
        raise LuksHeaderError("the key material is larger than its area", rule="L27")
    if area.offset + size > device.size:
        raise TruncatedImageError(
            f"the image of {device.size} bytes ends inside a keyslot", offset=area.offset
        )
    material = bytearray(size)
    device.read_into(area.offset, material)
    with (
        Secret.adopt(material),
        derive(keyslot.kdf, secret, keyslot.salt, area.key_size) as area_key,
    ):
        cipher = sector_cipher(area.cipher, area_key.view(), SECTOR_SIZE, permit_null=plain)
        cipher.decrypt(0, material, material)
        candidate = Secret.adopt(
            af_merge(
                memoryview(material)[: keyslot.key_size * keyslot.stripes],
                key_size=keyslot.key_size,
                stripes=keyslot.stripes,
                hash_name=keyslot.af_hash,
            )
        )
    confirmed = False
    try:
        if confirms(digest, candidate.view(), limits):
            if _is_padded(header, digest, candidate.view()):
                raise LuksHeaderError(
                    f"the key in keyslot {number} is the volume key with zero bytes appended,"
                    " which decrypts to garbage",
                    rule="L65",
                )
            confirmed = True
    finally:
        if not confirmed:
            candidate.wipe()
    return candidate if confirmed else None


def _check_length(header: Header, digest: Digest, size: int) -> None:
    """Check that the volume key can have ``size`` bytes, before its digest is computed (L65)."""
    known = volume_key_sizes(header, digest)
    ciphers = [segment.cipher or "" for segment in encrypted_by(header, digest)]
    if size in known or (not known and all(takes_key(cipher, size) for cipher in ciphers)):
        return
    expected = f" instead of {' or '.join(map(str, known))}" if known else ""
    raise UnlockError(f"the key given is not the volume key: it has {size} bytes{expected} [L65]")


def _is_padded(header: Header, digest: Digest, key: memoryview) -> bool:
    """Say whether a confirmed key is a shorter one with zero bytes appended.

    HMAC pads keys with zeros, so the digest confirms both. The shorter one must have a
    size that keyslots hold or, if no keyslot states one, that the ciphers accept.
    """
    shorter: Iterable[int] = volume_key_sizes(header, digest)
    if not shorter:
        ciphers = [segment.cipher or "" for segment in encrypted_by(header, digest)]
        shorter = (n for n in range(len(key)) if all(takes_key(name, n) for name in ciphers))
    return any(size < len(key) and not any(key[size:]) for size in shorter)


def _hint(secret: bytes | Secret) -> str | None:
    """Return what may be wrong with a secret that opens nothing."""
    return _NEWLINE if bytes(view_of(secret)[-1:]) == b"\n" else None


def _material_size(keyslot: Keyslot) -> int:
    """Bytes of the key material in whole sectors."""
    return -(-keyslot.key_size * keyslot.stripes // SECTOR_SIZE) * SECTOR_SIZE
