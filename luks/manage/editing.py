"""Any set of changes of a header that happens as a whole, or not at all.

    with luks.edit("disk.img") as header:
        header.unlock(b"old passphrase")
        header.add_keyslot(b"new passphrase")
        header.remove_keyslot(0)

Nothing is written before the block ends, and nothing if it ends with an error. A
crash leaves the old header or the new one, with a passphrase that opens; key
material that it leaks is erased by the next commit (L10 to L12, L91, L92).

Most of its lines document `HeaderEdit`, which users see; what each change does to a header
is in `luks.manage.changes`.
"""

from __future__ import annotations

from contextlib import ExitStack, contextmanager
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final, Self

from formats.errors import ArgumentError
from formats.frozen import replace
from luks.crypto.hashes import canonical, lookup
from luks.crypto.kdf import DEFAULT_LIMITS
from luks.errors import DeviceBusyError, PolicyError, SecretRequiredError
from luks.header import luks1
from luks.header.load import check_areas, opened_for_header, read_header
from luks.header.policy import DEFAULT_POLICY, check_requirements
from luks.header.writer import next_header, write_header
from luks.keys.costs import digest_cost, keyslot_cost
from luks.keys.enroll import choose_keyslot, enroll_key, new_digest
from luks.keys.keyslots import VolumeKey, matching, unlock, verify_volume_key
from luks.manage import changes
from luks.model import PRIORITY_NORMAL
from luks.secret.secrets import view_of

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping
    from types import TracebackType

    from formats.devices.device import BlockDevice
    from luks.crypto.kdf import KdfLimits
    from luks.header.detection import Place
    from luks.header.policy import Policy
    from luks.model import Header, KdfCost, Keyslot
    from luks.secret.secrets import Secret

_MAX_KEY_SIZE: Final = 512


@contextmanager
def edit(
    path_or_device: Place,
    *,
    policy: Policy = DEFAULT_POLICY,
    limits: KdfLimits = DEFAULT_LIMITS,
) -> Iterator[HeaderEdit]:
    """Change keyslots, tokens and the like of a header, all at once at the end.

    The volume may be in use meanwhile: its payload is not touched. Other
    programs that change headers, cryptsetup among them, wait.

    Args:
        path_or_device: Image file, block device, or detached header.
        policy: What the header must fulfil.
        limits: What one of its key derivations may cost at most.

    Raises:
        EmptyImageError, ForeignImageError, TruncatedImageError, LuksHeaderError:
            There is no sound LUKS header.
        UnsupportedError: It requires something that is not implemented.
        DeviceBusyError: Another program is changing the header.
        DeviceError: It cannot be read or written. After a failed write the
            header is the old or the new one.
    """
    with ExitStack() as stack:
        device = stack.enter_context(opened_for_header(path_or_device))
        changed = stack.enter_context(HeaderEdit(device, policy=policy, limits=limits))
        yield changed
        changed.commit()


class HeaderEdit:
    """Changes of a header that are collected, and then written as a whole.

    Attributes:
        header: The header as it will be.
    """

    def __init__(
        self,
        device: BlockDevice,
        *,
        policy: Policy = DEFAULT_POLICY,
        limits: KdfLimits = DEFAULT_LIMITS,
    ) -> None:
        """Begin with the header on ``device``; see `edit`, which is easier."""
        self._device = device
        self._limits = limits
        self._old = read_header(device)
        policy.check_header(self._old)
        check_requirements(self._old)
        check_areas(device, self._old)
        self._policy = policy
        self._material: dict[int, bytes] = {}
        self._key: VolumeKey | None = None
        self._written: Header | None = None  # by a commit of which the outcome is in doubt
        self.header: Header = self._old

    def unlock(self, secret: bytes | Secret | VolumeKey, *, keyslot: int | None = None) -> int:
        """Find the volume key, so that keyslots can be added.

        Args:
            secret: Passphrase, content of a key file, or the verified volume
                key itself, see `luks.verify_volume_key`.
            keyslot: Try only this keyslot, whatever its priority.

        Returns:
            The keyslot that it opens; -1 for the volume key itself.

        Raises:
            NoKeyslotMatchError, UnlockError: It opens none.
            PolicyError, UnsupportedError: As `luks.unlock`.
        """
        if isinstance(secret, VolumeKey):
            key = verify_volume_key(
                self._old, secret.key.view(), limits=self._limits, policy=self._policy
            )
        else:
            key = unlock(
                self._device,
                self._old,
                secret,
                keyslot=keyslot,
                limits=self._limits,
                policy=self._policy,
            )
        self._forget()
        self._key = key
        return -1 if key.keyslot is None else key.keyslot

    def matching(self, secret: bytes | Secret, *, keyslot: int | None = None) -> tuple[int, ...]:
        """Return the keyslots of the volume key that a secret opens as things are.

        Args:
            secret: Passphrase or content of a key file. Not modified.
            keyslot: Try only this one.

        Raises:
            PolicyError, UnsupportedError, DeviceError: As `luks.unlock`.
        """
        return matching(
            self._device,
            self._old,
            secret,
            keyslot=keyslot,
            limits=self._limits,
            policy=self._policy,
        )

    def add_keyslot(
        self,
        secret: bytes | Secret,
        *,
        keyslot: int | None = None,
        kdf: KdfCost | str | None = None,
        iter_time: int = 2000,
        hash_name: str | None = None,
        cipher: tuple[str, int] | None = None,
        priority: int = PRIORITY_NORMAL,
        unbound_key: bytes | Secret | None = None,
    ) -> int:
        """Add a keyslot, for the volume key or for a key of its own.

        Args:
            secret: Passphrase or content of a key file. Not modified.
            keyslot: Its number; by default the first that is free.
            kdf: Cost of the key derivation, or its kind, to be measured.
            iter_time: Milliseconds that a measured one is to take.
            hash_name: Hash of PBKDF2 and AF; sha256 by default, in LUKS1 the
                header's.
            cipher: Cipher string and key size in bytes for the key material;
                by default the payload's. LUKS2 only.
            priority: When it is tried. LUKS2 only.
            unbound_key: Key to store that is not the volume's. LUKS2 only.

        Returns:
            Its number.

        Raises:
            SecretRequiredError: No secret has unlocked the volume key.
            KeyslotsFullError: There is no free keyslot, or no room.
            UnsupportedError: A cipher or hash is not available.
            ValueError: The keyslot is active, or these do not fit together.
        """
        header = self.header
        if header.version == luks1.VERSION:
            if unbound_key is not None or cipher is not None or priority != PRIORITY_NORMAL:
                raise ArgumentError("LUKS1 has no unbound keys, priorities, or ciphers of keyslots")
            its_hash: str = header.source.hash_spec
            if hash_name is not None and canonical(hash_name) != canonical(its_hash):
                raise ArgumentError("LUKS1 has one hash for everything")
            hash_name = its_hash
        else:
            hash_name = canonical(hash_name or "sha256")
        there = self._keyslots_there()
        # The place of a LUKS1 keyslot is its own until the header says that it is free.
        in_use = [taken for taken, _ in there] if header.version == luks1.VERSION else ()
        number = choose_keyslot(header, keyslot, in_use)
        key = self._key_to_store(unbound_key)
        cost = keyslot_cost(
            kdf,
            version=header.version,
            hash_name=hash_name,
            key_size=len(key),
            iter_time=iter_time,
        )
        digest_number = None
        if unbound_key is not None:
            size = lookup(hash_name).digest_size
            digest = new_digest(key, digest_cost(kdf, hash_name), size)
            header, digest_number = changes.with_unbound_digest(header, digest)
            cipher = cipher or changes.keyslot_cipher(self._old)
        header, material = enroll_key(
            header,
            number,
            kdf=cost,
            secret=view_of(secret),
            key=key,
            hash_name=hash_name,
            digest_number=digest_number,
            in_use=[slot.area for _, slot in there],
            cipher=cipher,
        )
        if priority != PRIORITY_NORMAL:
            header = changes.with_priority(header, number, priority)
        self.header = header
        self._material.update(material)
        return number

    def change_keyslot(
        self,
        keyslot: int,
        secret: bytes | Secret,
        *,
        kdf: KdfCost | str | None = None,
        iter_time: int = 2000,
        hash_name: str | None = None,
    ) -> int:
        """Give a keyslot of the volume another secret, at another place.

        Args:
            keyslot: An active keyslot that holds the volume key.
            secret: Passphrase or content of a key file. Not modified.
            kdf: As in `add_keyslot`.
            iter_time: As in `add_keyslot`.
            hash_name: As in `add_keyslot`; by default the one that the keyslot has.

        Returns:
            Its number. In LUKS2 it is the same, with the same priority and
            tokens; in LUKS1, where each keyslot has its place, another one.

        Raises:
            KeyslotsFullError: There is no room for both at once.
            SecretRequiredError, UnsupportedError, ValueError: As `add_keyslot`.
        """
        old = self.header
        if keyslot not in changes.volume_keyslots(old):
            raise ArgumentError(f"keyslot {keyslot} does not hold the volume key")
        hash_name = hash_name or old.keyslots[keyslot].af_hash or None
        options: dict[str, Any] = {"kdf": kdf, "iter_time": iter_time, "hash_name": hash_name}
        self.header = changes.without_keyslot(old, keyslot)
        try:
            if old.version == luks1.VERSION:
                return self.add_keyslot(secret, **options)
            self.add_keyslot(secret, keyslot=keyslot, **options)
        except BaseException:
            self.header = old
            raise
        new = replace(self.header.keyslots[keyslot], priority=old.keyslots[keyslot].priority)
        keyslots = {**self.header.keyslots, keyslot: new}
        self.header = replace(self.header, keyslots=MappingProxyType(keyslots), tokens=old.tokens)
        return keyslot

    def remove_keyslot(self, keyslot: int, *, force: bool = False) -> None:
        """Remove a keyslot; its key material is erased with the commit.

        Args:
            keyslot: Its number. It is taken from tokens, which remain.
            force: Remove it even if no other keyslot opens the volume.

        Raises:
            PolicyError: It is the last one.
            ValueError: It is not active.
        """
        header = changes.without_keyslot(self.header, keyslot)
        bound = keyslot in changes.volume_keyslots(self.header)
        if bound and not changes.volume_keyslots(header) and not force:
            raise PolicyError(
                f"keyslot {keyslot} is the last that opens the volume: without it, all is lost",
                hint="force it if that is meant",
            )
        self.header = header

    def set_priority(self, keyslot: int, priority: int) -> None:
        """Say when a keyslot is tried: 0 only by its number, 1 normally, 2 first."""
        self.header = changes.with_priority(self.header, keyslot, priority)

    def set_labels(self, *, label: str | None = None, subsystem: str | None = None) -> None:
        """Set label and subsystem of LUKS2, of at most 47 bytes in UTF-8; "" removes one."""
        self.header = changes.with_labels(self.header, label, subsystem)

    def set_uuid(self, uuid: str) -> None:
        """Set the UUID."""
        self.header = changes.with_uuid(self.header, uuid)

    def set_flags(self, flags: Iterable[str]) -> None:
        """Set LUKS2's persistent activation flags, such as ``allow-discards``."""
        self.header = changes.with_flags(self.header, flags)

    def set_token(self, body: Mapping[str, Any], *, number: int | None = None) -> int:
        """Add or replace a token of LUKS2.

        Args:
            body: Its JSON object, with ``type`` and ``keyslots``.
            number: The token; by default the first that is free.

        Returns:
            Its number.
        """
        self.header, number = changes.with_token(self.header, body, number)
        return number

    def assign_token(self, number: int, keyslot: int, *, assigned: bool = True) -> None:
        """Say that a token of LUKS2 is for an active keyslot, or is not."""
        self.header = changes.with_assignment(self.header, number, keyslot, assigned=assigned)

    def remove_token(self, number: int) -> None:
        """Remove a token of LUKS2."""
        self.header = changes.without_token(self.header, number)

    def commit(self) -> Header:
        """Write everything, durably, and begin again with the header that is there then.

        After an interrupt or an error it can be called again (L98).

        Raises:
            DeviceBusyError: Another program has changed the header meanwhile.
            DeviceError: A write failed: the header is the old or the new one.
            LuksHeaderError: The metadata do not fit.
        """
        there = read_header(self._device)
        if there != self._old:
            self._follow(there)
        in_use = {slot.area.offset for slot in there.keyslots.values()}
        wanted = {slot.area.offset for slot in self.header.keyslots.values()} - in_use
        material = {at: data for at, data in self._material.items() if at in wanted}
        new = replace(self.header, stale_copy=there.stale_copy)
        # From here on until memory has followed, the outcome is in doubt (L98).
        self._written = next_header(new)
        self._old = self.header = write_header(self._device, new, material)
        self._material = {}
        self._written = None
        return self.header

    def _follow(self, there: Header) -> None:
        """Take the header on the device for what it is, if an interrupted commit wrote it."""
        if there != self._written:
            raise DeviceBusyError(
                "another program has changed the header meanwhile"
                if self._written is None
                else "an interrupted commit left the header between two states [L98]",
                hint="begin again with the header as it is now",
            )
        self._old = there
        self.header = replace(self.header, seqid=there.seqid, source=there.source)

    def _keyslots_there(self) -> list[tuple[int, Keyslot]]:
        """Return the keyslots of what may be on the device.

        That is the old header, or what a commit in doubt has written (L98).
        """
        headers = [self._old] if self._written is None else [self._old, self._written]
        return [item for header in headers for item in header.keyslots.items()]

    def _key_to_store(self, unbound_key: bytes | Secret | None) -> memoryview:
        if unbound_key is not None:
            key = view_of(unbound_key)
            if not 0 < len(key) <= _MAX_KEY_SIZE:
                raise ArgumentError(f"a key has 1 to {_MAX_KEY_SIZE} bytes")
            return key
        if self._key is None:
            raise SecretRequiredError(
                "the volume key is needed: unlock it first, by a secret that opens a keyslot"
            )
        return self._key.key.view()

    def _forget(self) -> None:
        if self._key is not None:
            self._key.key.wipe()
            self._key = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._forget()
