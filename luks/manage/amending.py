"""Amending keyslots: saying which state they are to have, as QEMU's ``blockdev-amend`` does.

    luks.amend("disk.img", state="active", secret=b"old", new_secret=b"new")
    luks.amend("disk.img", state="inactive", old_secret=b"old")

What is so already is left as it is. QEMU, for which this was designed, implements
it with differences; `docs/keys.md` lists them.

Source: QEMU's qapi/crypto.json, QCryptoBlockAmendOptionsLUKS, and the discussion of
its design on qemu-devel (L100 to L104).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from formats.errors import ArgumentError
from luks.crypto.kdf import DEFAULT_LIMITS
from luks.errors import KeyslotInUseError, NoKeyslotMatchError, PolicyError
from luks.header.load import opened_for_header
from luks.keys.enroll import check_number
from luks.manage.changes import volume_keyslots
from luks.manage.editing import HeaderEdit

if TYPE_CHECKING:
    from luks.crypto.kdf import KdfLimits
    from luks.header.detection import Place
    from luks.keys.keyslots import VolumeKey
    from luks.model import KdfCost
    from luks.secret.secrets import Secret

#: States that keyslots can be asked to have.
STATES: Final = ("active", "inactive")

_ITER_TIME: Final = 2000


def amend(
    path_or_device: Place,
    *,
    state: str,
    secret: bytes | Secret | VolumeKey | None = None,
    new_secret: bytes | Secret | None = None,
    old_secret: bytes | Secret | None = None,
    keyslot: int | None = None,
    iter_time: int | None = None,
    kdf: KdfCost | str | None = None,
    force: bool = False,
    strict_qemu: bool = False,
    limits: KdfLimits = DEFAULT_LIMITS,
) -> tuple[int, ...]:
    """Make keyslots active or inactive, all of them at once.

    Args:
        path_or_device: Image file, block device, or detached header.
        state: ``"active"`` to make one keyslot open with ``new_secret``;
            ``"inactive"`` to remove a keyslot, or all that ``old_secret`` opens.
        secret: What opens the volume now; only for ``"active"``.
        new_secret: For ``"active"`` only, where it is needed.
        old_secret: For ``"inactive"`` only. With ``keyslot``, that keyslot must
            open with it.
        keyslot: Its number; by default the first that is free, or all that
            ``old_secret`` opens.
        iter_time: Milliseconds of the key derivation, 2000 by default; for
            ``"active"`` only.
        kdf: Cost of the key derivation, or its kind; likewise.
        force: Make the last keyslots inactive as well.
        strict_qemu: Fail where nothing is to be done, as QEMU does.
        limits: What one of the header's key derivations may cost at most.

    Returns:
        The keyslots whose state changed; none if nothing was to be done.

    Raises:
        KeyslotInUseError: The keyslot is active with another secret; with
            ``strict_qemu``, or with the same.
        KeyslotsFullError: There is no free keyslot, or no room.
        NoKeyslotMatchError: ``secret`` opens no keyslot, or ``old_secret`` none,
            or not the one that is named.
        PolicyError: No keyslot would be left that opens the volume.
        SecretRequiredError: ``secret`` is needed and not given.
        StorageError: As `luks.edit`.
        ValueError: The arguments do not fit together; with ``strict_qemu``, or
            the keyslot is inactive already, unless that is forced.
    """
    if state not in STATES:
        raise ArgumentError(f"state is one of {', '.join(STATES)}, not {state!r}")
    activate = state == "active"
    if activate and new_secret is None:
        raise ArgumentError("a keyslot becomes active with a new secret, and there is none [L101]")
    if activate and old_secret is not None:
        raise ArgumentError("an old secret is for making keyslots inactive [L101]")
    if not activate and (new_secret, iter_time, kdf) != (None, None, None):
        raise ArgumentError("a new secret and its cost are for making keyslots active [L102]")
    if not activate and keyslot is None and old_secret is None:
        raise ArgumentError("name the keyslot to make inactive, or the secret that opens it [L102]")
    with (
        opened_for_header(path_or_device) as device,
        HeaderEdit(device, limits=limits) as header,
    ):
        if keyslot is not None:
            check_number(header.header, keyslot)
        if new_secret is None:
            changed = _deactivate(header, keyslot, old_secret, force=force, strict=strict_qemu)
        elif keyslot is not None and keyslot in header.header.keyslots:
            _check_same(header, keyslot, new_secret, strict=strict_qemu)
            changed = ()
        else:
            if secret is not None:
                header.unlock(secret)
            time = _ITER_TIME if iter_time is None else iter_time
            changed = (header.add_keyslot(new_secret, keyslot=keyslot, kdf=kdf, iter_time=time),)
        if changed:
            header.commit()
        return changed


def _check_same(
    header: HeaderEdit, keyslot: int, new_secret: bytes | Secret, *, strict: bool
) -> None:
    """Check that an active keyslot is what it is to be: it is not overwritten (L101)."""
    if strict or not header.matching(new_secret, keyslot=keyslot):
        raise KeyslotInUseError(
            f"keyslot {keyslot} is active"
            + ("" if strict else " with another secret, and is not overwritten [L101]"),
            hint="make it inactive first, or choose another; 'key change' replaces a secret safely",
        )


def _deactivate(
    header: HeaderEdit,
    keyslot: int | None,
    old_secret: bytes | Secret | None,
    *,
    force: bool,
    strict: bool,
) -> tuple[int, ...]:
    if keyslot is not None and keyslot not in header.header.keyslots:
        if strict and not (force and old_secret is None):  # L103: QEMU erases it once more
            raise ArgumentError(f"keyslot {keyslot} is inactive already")
        return ()
    chosen: tuple[int, ...]
    if old_secret is None:
        assert keyslot is not None, "amend has checked that one of them is given"
        chosen = (keyslot,)
    else:
        chosen = header.matching(old_secret, keyslot=keyslot)
        if not chosen:
            which = "any keyslot" if keyslot is None else f"keyslot {keyslot}"
            raise NoKeyslotMatchError(f"the old secret does not open {which}", tried={})
    if not force and set(chosen) >= set(volume_keyslots(header.header)):
        raise PolicyError(
            "no other keyslot opens the volume: without these, all is lost [L102]",
            hint="force it if that is meant",
        )
    for number in chosen:
        header.remove_keyslot(number, force=True)
    return chosen
