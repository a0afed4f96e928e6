"""No silent downgrade and no silent rollback: a store must be what its user relies on."""

from __future__ import annotations

import hmac
from typing import TYPE_CHECKING

from blobstore.container.open_container import open_container
from blobstore.errors import DamagedHeadError, PinMismatchError
from formats.container.model import Authentication
from luks.errors import PolicyError

if TYPE_CHECKING:
    from blobstore.container.directory import Directory
    from blobstore.container.open_container import OpenContainer
    from blobstore.store.description import StateDigest
    from formats.container.model import ContainerHeader

_ANEW = "close it and open the image again, if what it is now is what is wanted"


def require_protection(header: ContainerHeader, *, encrypted: bool, with_secret: bool) -> None:
    """Check that a container is as protected as its user has reason to believe (C25).

    Args:
        header: Of the container.
        encrypted: Whether it lies in an encrypted volume.
        with_secret: Whether the user gave a secret to open it.

    Raises:
        PolicyError: It is not: another one may have been put in its place.
    """
    if with_secret and not encrypted:
        reason = "a secret was given, but the image is not encrypted"
    elif encrypted and header.authentication is not Authentication.HMAC_SHA256:
        reason = "the container inside the encrypted volume is not authenticated"
    elif encrypted and not header.encrypted:
        reason = "the container was made without encryption but lies in an encrypted volume"
    elif header.encrypted and not encrypted:
        reason = "the container was made for an encrypted volume but lies in the clear"
    else:
        return
    raise PolicyError(
        f"{reason} [C25]", hint="if that is intended, permit it with allow_unprotected"
    )


def require_pinned(
    directory: Directory, expected: StateDigest | None, at_least_generation: int
) -> None:
    """Check that a store is in the state that its user pinned outside.

    What is compared is the highest generation that counts, not that of a commit
    which is rolled back (C68). A higher one than the pinned one is fine if the
    root is the same: recovery uses generations up.

    Args:
        directory: Of the store.
        expected: The state it must be in, or None.
        at_least_generation: The generation it must have reached.

    Raises:
        PinMismatchError: It is in another state.
        DamagedHeadError: Damage leaves its state unknown.
    """
    if at_least_generation and not directory.fresh:
        raise damaged_head(directory, "nothing proves how new what is left is [C67]")
    if directory.counted < at_least_generation:
        raise PinMismatchError(
            f"the store has generation {directory.counted}; at least {at_least_generation} is "
            "expected",
            hint="the image was set back to an older state",
        )
    if expected is None:
        return
    if directory.root is None:
        raise damaged_head(directory, "the state of the store is not known [C67]")
    same = hmac.compare_digest(directory.root, expected.root)
    if not same or directory.counted < expected.generation:
        raise PinMismatchError(
            f"the store is in the state of generation {directory.counted}, not in the one of "
            f"generation {expected.generation} that is expected",
            hint="the image was set back, or changed by another program",
        )


def damaged_head(directory: Directory, what: str) -> DamagedHeadError:
    """Return the error that the first damaged head leads to; ``what`` says what that means."""
    offset, _ = directory.damaged[0]
    return DamagedHeadError(
        f"the head at byte {offset} is damaged: {what}",
        offset=offset,
        hint="repair the store (blobstore verify --repair); what is left, however old, is read "
        "with allow_damaged (--allow-damaged)",
    )


def follow_store(known: OpenContainer) -> OpenContainer:
    """Open a container as another process left it; nothing is written.

    Args:
        known: As this process knew it last. Not modified.

    Raises:
        PinMismatchError: It is another store, or an older state of it.
        DamagedHeadError: Damage leaves unknown whether it is that.
        FormatError, CorruptStoreError, UnsupportedError, DeviceError: As
            `blobstore.container.open_container.open_container`.
    """
    container = open_container(known.device, allow_damaged=known.allow_damaged)
    if _identity(container.header) != _identity(known.header):
        raise PinMismatchError("there is another store in the image by now [C65]", hint=_ANEW)
    before, after = known.directory, container.directory
    if not (after.fresh or known.allow_damaged):
        raise damaged_head(after, "nothing proves how new what is left is [C65, C67]")
    if after.counted < before.counted:
        raise PinMismatchError(
            f"the store has generation {after.counted}, but this process knew generation"
            f" {before.counted} already [C65]",
            hint="the image was set back to an older state",
        )
    # Where a commit was seen in part its generation is known, but not its root.
    if (
        after.counted == before.counted
        and not before.orphans
        and None not in (before.root, after.root)
        and not hmac.compare_digest(before.root or b"", after.root or b"")
    ):
        raise PinMismatchError(
            f"generation {after.counted} of the store is not what this process knew it as [C65]",
            hint="the image was set back to an older state, and changed from there",
        )
    return container


def _identity(header: ContainerHeader) -> tuple[object, ...]:
    return header.store_id, header.block_size, header.authentication, header.key
