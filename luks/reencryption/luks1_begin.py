"""Beginning and resuming the re-encryption of a LUKS1 volume (L210 to L214)."""

from __future__ import annotations

import os
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Final

from formats.devices.device import read_exactly
from formats.errors import ArgumentError
from formats.frozen import replace
from luks.errors import (
    FormatError,
    NoReencryptionError,
    UnfinishedReencryptionError,
    UnlockError,
    UnsupportedError,
)
from luks.header import luks1
from luks.header.detection import MARKED_MAGIC, opened
from luks.header.key_digests import is_reencrypted
from luks.header.layout import area_size
from luks.header.load import check_areas, read_header
from luks.header.policy import DEFAULT_POLICY, check_openable, check_payload_place
from luks.header.writer import replace_header
from luks.keys.keyslots import unlock
from luks.model import SECTOR_SIZE, Argon2, Pbkdf2
from luks.payload.creation import prepare
from luks.payload.profiles import default_key_size
from luks.payload.volume import Volume
from luks.reencryption import luks2_begin
from luks.reencryption.headers import finished, key_digests, read_plan
from luks.reencryption.interface import Reencryption, ReencryptionStatus
from luks.reencryption.luks1 import (
    Luks1Places,
    Luks1Reencryption,
    check_belongs,
    finish,
    is_of_this_state,
    is_taken_back,
    journal_for,
    journal_material,
    luks1_header,
    mark,
    payload_of,
    read_luks1,
    require_size,
)
from luks.reencryption.luks2 import Luks2Reencryption, Places, status_of
from luks.secret.secrets import view_of

if TYPE_CHECKING:
    from formats.devices.device import BlockDevice
    from luks.header.detection import Place
    from luks.model import Header
    from luks.reencryption.interface import ReencryptionOptions
    from luks.reencryption.luks2_begin import Access


#: Iterations of PBKDF2 that a new keyslot has at least (L7).
_MIN_ITERATIONS: Final = 1000


def is_luks1(device: BlockDevice) -> bool:
    """Say whether there is a LUKS1 header, marked or not."""
    start = read_exactly(device, 0, min(len(MARKED_MAGIC) + 2, device.size))
    return start.startswith(MARKED_MAGIC) or start == luks1.MAGIC + b"\0\1"


def journal_place(image: Place, journal: Place | None) -> Place:
    """Return where the journal of an image is: beside it, unless that is said.

    Raises:
        UnsupportedError: The image is an open device, which has no place beside it.
    """
    if journal is not None:
        return journal
    if not isinstance(image, str | os.PathLike):
        raise UnsupportedError(
            "the journal of a LUKS1 volume that is not a file has no place of its own [L211]",
            feature="re-encryption of LUKS1 without a place for the journal",
            hint="say where the journal is (options.journal), or convert the header to LUKS2 first",
        )
    path = Path(os.path.realpath(image))
    return path.with_name(f"{path.name}.luks1-reencryption")


def begin_reencryption(
    places: Places, access: Access, options: ReencryptionOptions, where: Place
) -> Reencryption:
    """Begin to re-encrypt a LUKS1 volume; see `luks.begin_reencryption`.

    Args:
        places: The image and its LUKS1 header.
        access: How it is unlocked.
        options: Those of the caller.
        where: The journal to be made.
    """
    header = read_header(places.header)
    access.policy.check_header(header)
    check_openable(header, allow_unencrypted=access.policy.allow_unencrypted)
    check_areas(places.header, header)
    check_payload_place(places.image, header)
    if not header.keyslots:
        raise UnlockError("the volume has no keyslots")
    options = _luks1_options(header, options)
    new_size = area_size(_new_key_size(header, options))
    if 0 < header.data_offset < luks1.AREA_ALIGNMENT + luks1.KEYSLOT_COUNT * new_size:
        raise UnsupportedError(
            f"the payload at byte {header.data_offset} leaves no room for eight keyslots of the new"
            " key [L212]",
            feature="a longer key in this LUKS1 volume",
            hint="convert the header to LUKS2 first",
        )
    if isinstance(where, str | os.PathLike) and Path(where).exists():
        raise UnfinishedReencryptionError(
            f"{os.fspath(where)} is there already: a re-encryption has begun [L211]",
            hint="resume or abort it",
        )
    if header.data_offset == 0:
        # It must not turn out at the end that a detached header cannot grow.
        require_size(places.header, luks1.AREA_ALIGNMENT + luks1.KEYSLOT_COUNT * new_size)
    journal = journal_for(header, new_size)
    material = journal_material(places.header, header, journal)
    # At the end of `names` the journal takes its name, or vanishes if something failed.
    with ExitStack() as failed, ExitStack() as names:
        size = journal.keyslots_offset + journal.keyslots_size
        device = prepare(names, failed, where, size, overwrite=False)
        replace_header(device, journal, material)
        owned = places.owned if device is where else (*places.owned, device)
        running = luks2_begin.begin_reencryption(
            Places(payload_of(places.image, header, journal), device, None, owned),
            access._replace(policy=replace(access.policy, versions=None, digest=None)),
            options,
        )
        failed.callback(running.close)
        # LUKS1 must be able to store the outcome: check it before anything is moved.
        begun = read_header(device)
        plan, _ = read_plan(begun, payload_of(places.image, header, journal))
        luks1_header(finished(begun, plan, key_digests(begun)), header)
        names.close()
        with places.locked():
            mark(places.header)
        failed.pop_all()
    return Luks1Reencryption(running, _luks1_places(places, device, where))


def resume(
    places: Places, access: Access, options: ReencryptionOptions, where: Place
) -> Reencryption:
    """Resume a re-encryption of a LUKS1 volume; see `luks.resume_reencryption`.

    Args:
        places: The image and its LUKS1 header.
        access: How it is unlocked.
        options: Those of the caller.
        where: The journal.
    """
    header, is_marked = read_luks1(places.header)
    with ExitStack() as failed:
        device = _open_journal(failed, where, is_marked=is_marked)
        journal = _read_journal(device, header, is_marked=is_marked)
        if not is_marked and not is_of_this_state(header, journal):
            raise NoReencryptionError(
                "the volume has another key than the journal: it was made for another state"
                " of the volume [L213]",
                hint="see whether the payload is right with the header, or with the journal as its"
                " detached header, before one of them is removed",
            )
        access.policy.check_header(header)
        owned = places.owned if device is where else (*places.owned, device)
        luks1_places = _luks1_places(places, device, where)
        secret = access.secrets[0]
        if not is_reencrypted(journal):
            unlock(device, journal, secret, limits=access.limits).key.wipe()
            finish(luks1_places)
            if is_taken_back(journal):
                raise NoReencryptionError("nothing had been moved, and that was taken back [L214]")
            ended: Reencryption = _Ended(places, owned, header.cipher, access)
            failed.pop_all()
            return ended
        image = payload_of(places.image, header, journal)
        plan, progress = read_plan(journal, image)
        check_areas(device, journal)
        inner = access._replace(policy=DEFAULT_POLICY)  # that of the caller is for LUKS1
        keys = luks2_begin.unlocked(device, journal, plan, progress, inner)
        running = Luks2Reencryption(
            Places(image, device, None, owned),
            journal,
            plan,
            progress,
            keys,
            key_digests(journal),
            options,
        )
        failed.callback(running.close)
        if not is_marked:
            with places.locked():
                mark(places.header)
        failed.pop_all()
    return Luks1Reencryption(running, luks1_places)


def status(
    image: BlockDevice, header: BlockDevice, place: Place, journal_named: Place | None
) -> ReencryptionStatus | None:
    """Return how far the re-encryption of a LUKS1 volume is, or None if there is none.

    Args:
        image: Holds the payload.
        header: Holds the LUKS1 header.
        place: What the caller names as the image.
        journal_named: The journal, if it is named.

    Raises:
        UnfinishedReencryptionError: There is one, but its journal is missing.
        FormatError, DeviceError: The journal is damaged, or cannot be read.
    """
    loaded, is_marked = read_luks1(header)
    if journal_named is None and not isinstance(place, str | os.PathLike) and not is_marked:
        return None
    where = journal_place(place, journal_named)
    if not is_marked and isinstance(where, str | os.PathLike) and not Path(where).exists():
        return None
    _require_journal(where, is_marked=is_marked)
    try:
        with opened(where) as device:
            journal = _read_journal(device, loaded, is_marked=is_marked)
    except NoReencryptionError:
        return None
    if is_reencrypted(journal):
        return status_of(*read_plan(journal, payload_of(image, loaded, journal)))
    if not is_marked:
        return None  # only the journal is left to be removed
    ended = _ended_status(loaded.cipher, journal, image.size - loaded.data_offset)
    position = 0 if is_taken_back(journal) else ended.size
    return replace(ended, position=position, needs_recovery=True)


def _luks1_options(header: Header, options: ReencryptionOptions) -> ReencryptionOptions:
    """Return the options with what LUKS1 needs: sectors of 512 bytes, PBKDF2 with one hash."""
    if options.sector_size not in (None, SECTOR_SIZE):
        raise ArgumentError(f"LUKS1 has sectors of {SECTOR_SIZE} bytes only [L212]")
    kdf = options.kdf
    if isinstance(kdf, Argon2) or (isinstance(kdf, str) and kdf != "pbkdf2"):
        raise ArgumentError("LUKS1 supports only PBKDF2 as key derivation [L212]")
    if isinstance(kdf, Pbkdf2) and kdf.hash_name != options.hash_name:
        raise ArgumentError("LUKS1 uses one hash for everything: PBKDF2 cannot have another")
    if kdf is None:
        costs = (slot.kdf for slot in header.keyslots.values())
        most = max(cost.iterations for cost in costs if isinstance(cost, Pbkdf2))
        kdf = Pbkdf2(options.hash_name, max(_MIN_ITERATIONS, most))
    return replace(options, sector_size=SECTOR_SIZE, kdf=kdf)


def _new_key_size(header: Header, options: ReencryptionOptions) -> int:
    if options.key_size is not None:
        return options.key_size
    if options.volume_key is not None:
        return len(view_of(options.volume_key))
    same = options.cipher in (None, header.cipher)
    return header.source.key_bytes if same else default_key_size(options.cipher or "")


def _luks1_places(places: Places, journal: BlockDevice, where: Place) -> Luks1Places:
    path = where if isinstance(where, str | os.PathLike) else None
    return Luks1Places(places.image, places.header, journal, path)


def _require_journal(where: Place, *, is_marked: bool) -> None:
    if not isinstance(where, str | os.PathLike) or Path(where).exists():
        return
    if is_marked:
        raise UnfinishedReencryptionError(
            f"the LUKS1 volume is being re-encrypted, and its journal {os.fspath(where)} is"
            " missing [L211]",
            hint="bring the journal back: it has the keys; or say where it is",
        )
    raise NoReencryptionError("the volume is not being re-encrypted [L210]")


def _read_journal(device: BlockDevice, header: Header, *, is_marked: bool) -> Header:
    """Return the header in the journal of a LUKS1 volume.

    Raises:
        NoReencryptionError: It is not whole, and the LUKS1 header does not need it: the
            re-encryption has not begun, or has ended.
        FormatError: It is damaged.
        HeaderMismatchError: It is another volume's.
    """
    try:
        journal = read_header(device)
    except FormatError:
        if is_marked:
            raise
        raise NoReencryptionError(
            "the volume is not being re-encrypted: its journal is empty or not whole [L211]"
        ) from None
    check_belongs(header, journal)
    return journal


def _open_journal(failed: ExitStack, where: Place, *, is_marked: bool) -> BlockDevice:
    _require_journal(where, is_marked=is_marked)
    if not isinstance(where, str | os.PathLike):
        return where
    from formats.devices.file import FileDevice  # noqa: PLC0415  devices may come from elsewhere

    return failed.enter_context(FileDevice(where, read_only=False))


def _ended_status(old_cipher: str | None, header: Header, size: int) -> ReencryptionStatus:
    return ReencryptionStatus(
        mode="reencrypt",
        direction="forward",
        resilience="checksum",
        position=size,
        size=size,
        old_cipher=old_cipher,
        new_cipher=header.cipher,
        old_sector_size=SECTOR_SIZE,
        new_sector_size=SECTOR_SIZE,
    )


class _Ended(Reencryption):
    """What is resumed when only the LUKS1 header was left to be written."""

    def __init__(
        self,
        places: Places,
        owned: tuple[BlockDevice, ...],
        old_cipher: str | None,
        access: Access,
    ) -> None:
        header = read_header(places.header)
        key = unlock(places.header, header, access.secrets[0], limits=access.limits)
        self._volume = Volume(places.image, header, key, read_only=False, owned=owned)
        self._status = _ended_status(old_cipher, header, self._volume.size)

    @property
    def status(self) -> ReencryptionStatus:
        return self._status

    @property
    def volume(self) -> BlockDevice:
        return self._volume

    def step(self) -> bool:
        return False

    def take_back(self) -> None:
        raise UnfinishedReencryptionError("all of the payload has been moved [L214]")

    def close(self) -> None:
        self._volume.close()
