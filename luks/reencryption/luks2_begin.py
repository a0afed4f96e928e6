"""How a LUKS2 re-encryption begins: the header that says what will be moved (L150).

Key material and the header are durable before anything of the payload is touched.
"""

from __future__ import annotations

from contextlib import ExitStack
from typing import TYPE_CHECKING, NamedTuple

from formats.errors import ArgumentError
from formats.frozen import replace
from luks.crypto.ciphers import check_usable
from luks.crypto.hashes import lookup
from luks.errors import PolicyError, UnfinishedReencryptionError, UnlockError, UnsupportedError
from luks.header.key_digests import is_reencrypted, usable_digest
from luks.header.load import check_areas, read_header
from luks.header.policy import check_openable, check_payload_place
from luks.header.writer import erase_unused, rewrite_header
from luks.keys.costs import check_kdf, digest_cost, keyslot_cost
from luks.keys.enroll import choose_keyslot, enroll_key, new_digest
from luks.keys.keyslots import VolumeKey, unlock, unlock_digest
from luks.keys.reencryption import VolumeKeys, unlock_all
from luks.model import Segment
from luks.payload.creation import check_key
from luks.payload.profiles import default_key_size
from luks.reencryption.headers import KeyDigests, key_digests, with_keyslots
from luks.reencryption.luks2 import Luks2Reencryption
from luks.reencryption.plan import ForwardPlan, Progress
from luks.reencryption.record import (
    Intent,
    free_digest,
    record_of,
    with_digest,
    with_proof,
    with_record,
)
from luks.secret.randomness import source_or_system
from luks.secret.secrets import Secret, view_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from formats.devices.device import BlockDevice
    from luks.crypto.kdf import KdfLimits
    from luks.header.policy import Policy
    from luks.model import Digest, Header, KdfCost, Keyslot
    from luks.reencryption.interface import ReencryptionOptions
    from luks.reencryption.luks2 import Places
    from luks.reencryption.plan import Plan


class Access(NamedTuple):
    """How a volume is unlocked.

    Attributes:
        secrets: Passphrases or contents of key files; the first opens the volume, the
            others are further ones that are to open it afterwards.
        limits: What one key derivation may cost at most.
        policy: What the header must be.
    """

    secrets: Sequence[bytes | Secret]
    limits: KdfLimits
    policy: Policy


def begin_reencryption(
    places: Places, access: Access, options: ReencryptionOptions
) -> Luks2Reencryption:
    """Begin to re-encrypt a LUKS2 volume; see `luks.begin_reencryption`."""
    # Whatever fails before the end, the keys are wiped.
    with places.locked(), ExitStack() as failed:
        header, old = loaded(places, access)
        size = payload_size(places, old)
        opened = _opened(places, header, access, options)
        failed.callback(_wipe, opened)
        old_digest = header.volume_digest
        assert old_digest is not None  # or unlock had refused
        key = opened[0][0]
        new = _new_form(old, options)
        _check_size(size, old, new)
        fresh = _new_key(options, old, new, key)
        failed.callback(fresh.wipe)
        digests = KeyDigests(old_digest, free_digest(header))
        composed = with_digest(header, free_digest(header), _digest(fresh, options))
        material: dict[int, bytes] = {}
        for secret, (_, number) in zip(access.secrets, opened, strict=True):
            composed, added = _reenrolled(
                composed, number, free_digest(header), view_of(secret), fresh, new, options
            )
            material.update(added)
        intent = Intent("reencrypt", "forward", max(old.sector_size, new.sector_size), size)
        composed = with_record(composed, intent, options)
        plan = ForwardPlan(record_of(composed), old, new, size, False)
        keys = VolumeKeys({old_digest: key, free_digest(header): VolumeKey(fresh, None)})
        running = begun(places, composed, material, plan, keys, digests, options)
        _wipe(opened[1:])
        failed.pop_all()
        return running


def begun(
    places: Places,
    header: Header,
    material: dict[int, bytes],
    plan: Plan,
    keys: VolumeKeys,
    digests: KeyDigests,
    options: ReencryptionOptions,
) -> Luks2Reencryption:
    """Write the header that begins a re-encryption, and return it."""
    proved = with_proof(header, plan, keys, digests, options)
    written = rewrite_header(places.header, proved, material)
    erase_unused(places.header, written)
    return Luks2Reencryption(
        places,
        written,
        plan,
        Progress(0),
        keys,
        digests,
        options,
    )


def unlocked(
    device: BlockDevice, header: Header, plan: Plan, progress: Progress, access: Access
) -> VolumeKeys:
    """Return the keys of a re-encryption that is resumed; they are the caller's to wipe.

    Raises:
        UnlockError, PolicyError: As `luks.resume_reencryption`.
    """
    (secret,) = access.secrets
    limits, policy = access.limits, access.policy
    try:
        return unlock_all(device, header, secret, limits=limits, policy=policy)
    except UnlockError:
        number = key_digests(header).new
        if progress.done < plan.size or number is None:
            raise
        # cryptsetup erases the old key before it writes the final header (L174).
        digest = usable_digest(header, number)
        key = unlock_digest(device, header, digest, secret, limits=limits, policy=policy)
        return VolumeKeys({number: key})


def loaded(places: Places, access: Access) -> tuple[Header, Segment]:
    """Return the header of a volume that can be re-encrypted, and the form of its payload."""
    header = read_header(places.header)
    access.policy.check_header(header)
    if is_reencrypted(header):
        raise UnfinishedReencryptionError(
            "the volume is being re-encrypted already [L150]", hint="resume that first"
        )
    check_openable(header, allow_unencrypted=access.policy.allow_unencrypted)
    check_areas(places.header, header)
    check_payload_place(places.image, header)
    segment = header.segments[0]
    if len(header.segments) != 1 or segment.size is not None or segment.type != "crypt":
        raise UnsupportedError(
            "only a payload of one encrypted segment, which takes what the image has, can be"
            " re-encrypted [L155]",
            feature="re-encryption of several segments",
        )
    if segment.iv_tweak:
        # cryptsetup ignores it in some of its steps, and decrypts to garbage.
        raise UnsupportedError(
            f"a payload with the iv_tweak {segment.iv_tweak} cannot be re-encrypted [L156]",
            feature="re-encryption with iv_tweak",
        )
    return header, segment


def payload_size(places: Places, segment: Segment) -> int:
    """Return the bytes of a payload that takes what the image has.

    Raises:
        UnsupportedError: They are not whole sectors (L155).
    """
    size = places.image.size - segment.offset
    if size <= 0 or size % segment.sector_size:
        raise UnsupportedError(
            f"the payload of {size} bytes is not a whole number of sectors of"
            f" {segment.sector_size} bytes [L155]",
            feature="re-encryption",
            hint="extend the image to whole sectors",
        )
    return size


def _check_size(size: int, old: Segment, new: Segment) -> None:
    largest = max(old.sector_size, new.sector_size)
    if size % largest or old.offset % largest:
        raise ArgumentError(
            f"sector_size is {largest} bytes, which divides neither or only one of the payload's"
            f" size of {size} bytes and its offset of {old.offset} [L155]"
        )


def _opened(
    places: Places, header: Header, access: Access, options: ReencryptionOptions
) -> list[tuple[VolumeKey, int]]:
    """Return the volume key that each secret opens, with its keyslot."""
    found: list[tuple[VolumeKey, int]] = []
    done = False
    try:
        for secret in access.secrets:
            key = unlock(places.header, header, secret, limits=access.limits, policy=access.policy)
            assert key.keyslot is not None  # a secret opens a keyslot
            found.append((key, key.keyslot))
        numbers = [number for _, number in found]
        if len(set(numbers)) != len(numbers):
            raise ArgumentError("two of the secrets open the same keyslot: give each once")
        digest = header.volume_digest
        held = set() if digest is None else set(header.digests[digest].keyslots)
        lost = sorted(held - set(numbers))
        if lost and not options.drop_keyslots:
            raise PolicyError(
                f"keyslots {', '.join(map(str, lost))} would vanish: the new key can be stored only"
                " for secrets that are given [L164]",
                hint="give their passphrases as well, or permit it (drop_keyslots)",
            )
        done = True
    finally:
        if not done:
            _wipe(found)
    return found


def _wipe(opened: list[tuple[VolumeKey, int]]) -> None:
    for key, _ in opened:
        key.key.wipe()


def _new_form(old: Segment, options: ReencryptionOptions) -> Segment:
    """Return the form that the payload is to get."""
    return Segment(
        "crypt",
        old.offset,
        None,
        cipher=options.cipher or old.cipher,
        sector_size=options.sector_size or old.sector_size,
    )


def _new_key(
    options: ReencryptionOptions, old: Segment, new: Segment, old_key: VolumeKey
) -> Secret:
    """Return the new volume key, checked."""
    cipher = new.cipher or ""
    if options.key_size is not None:
        size = options.key_size
    elif options.volume_key is not None:
        size = len(view_of(options.volume_key))
    else:
        size = len(old_key.key) if cipher == old.cipher else default_key_size(cipher)
    check_usable(cipher, size)
    if options.volume_key is None:
        key = Secret(source_or_system(None)(size))
    else:
        if len(view_of(options.volume_key)) != size:
            raise ArgumentError(f"volume_key is not {size} bytes long, as key_size is")
        if view_of(options.volume_key) == old_key.key.view():
            raise ArgumentError("volume_key is the key that the volume has")
        key = Secret(view_of(options.volume_key))
    check_key(key, cipher)
    return key


def _digest(key: Secret, options: ReencryptionOptions) -> Digest:
    """Return the digest of the new volume key, which decrypts nothing yet."""
    cost = digest_cost(options.kdf, options.hash_name)
    digest = new_digest(key.view(), cost, lookup(options.hash_name).digest_size)
    return replace(digest, segments=())


def _reenrolled(
    header: Header,
    keyslot: int,
    digest_number: int,
    secret: memoryview,
    key: Secret,
    form: Segment,
    options: ReencryptionOptions,
) -> tuple[Header, dict[int, bytes]]:
    """Return the header with a keyslot like ``keyslot`` that holds the new key."""
    old = header.keyslots[keyslot]
    number = choose_keyslot(header, None)
    header, material = enroll_key(
        header,
        number,
        kdf=_cost(old, options, len(key)),
        secret=secret,
        key=key.view(),
        hash_name=options.hash_name,
        digest_number=digest_number,
        cipher=(form.cipher or "", len(key)),
    )
    added = replace(header.keyslots[number], priority=old.priority)
    tokens = {
        n: with_keyslots(token, {*token.keyslots, number}) if keyslot in token.keyslots else token
        for n, token in header.tokens.items()
    }
    return replace(header, keyslots={**header.keyslots, number: added}, tokens=tokens), material


def _cost(old: Keyslot, options: ReencryptionOptions, key_size: int) -> KdfCost:
    """Return the cost of the new keyslot: what is asked for, or that of the old one."""
    kdf = options.kdf or old.kdf
    check_kdf(kdf, 2, options.hash_name)
    return keyslot_cost(
        kdf,
        version=2,
        hash_name=options.hash_name,
        key_size=key_size,
        iter_time=options.iter_time,
    )
