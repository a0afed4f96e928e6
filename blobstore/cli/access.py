"""How commands reach an image: its header, its secret, and what they permit."""

from __future__ import annotations

import functools
import os
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NamedTuple

import click

from blobstore.cli.header import VOLUME_KEY, read_volume_key
from blobstore.cli.keys import PATH, KeySource, key_options
from blobstore.cli.types import DigestType
from blobstore.image.layers import is_encrypted
from blobstore.image.luks_header import luks_place
from luks import Secret

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from blobstore.owner.protocol import AnyStore
    from blobstore.store.description import Digest
    from blobstore.store.store import Store
    from formats.qcow2.snapshot_table import SnapshotKey
    from luks import VolumeKey

    _Command = Callable[..., Any]

__all__ = [
    "PATH",
    "Access",
    "NewAccess",
    "access_options",
    "clone_access_options",
    "converted_access_options",
    "damaged_option",
    "new_access_options",
    "other_access_options",
    "shared_access_options",
]


class Access(NamedTuple):
    """What the options of `access_options` say."""

    key: KeySource
    header: Path | None
    allow_unprotected: bool
    expect_digest: Digest | None
    at_least_generation: int
    lock: bool
    borrowed_key: bool = False  # of another image: for this one only if it needs a key
    volume_key_file: Path | None = None
    snapshot: str | SnapshotKey | None = None
    direct: bool = False

    @contextmanager
    def secret_for(
        self, image: Path, *, encrypted: bool | None = None
    ) -> Iterator[Secret | VolumeKey | None]:
        """Yield the image's secret, asked for if it needs one and none is named.

        Args:
            image: The image.
            encrypted: Whether it is; None looks.
        """
        needed = encrypted
        if needed is None:
            needed = bool(self.header) or is_encrypted(image)
        if self.volume_key_file and needed:
            with (
                luks_place(image, self.header) as place,
                read_volume_key(place, self.key, self.volume_key_file) as volume_key,
            ):
                yield volume_key
            return
        if self.volume_key_file and not self.borrowed_key:
            # Whoever has a key takes the image for encrypted; to open it refuses that.
            with Secret.from_file(self.volume_key_file) as key:
                yield key
            return
        secret = None
        if needed or not self.borrowed_key:
            secret = self.key.read()
        if secret is None and needed:
            secret = Secret.from_terminal(f"Passphrase for {image}: ")
        if secret is None:
            yield None
            return
        with secret:
            yield secret

    def open(
        self,
        image: Path,
        *,
        read_only: bool = True,
        released: bool = False,
        allow_damaged: bool = False,
    ) -> Store:
        """Open an image's store, as `blobstore.open`; ask for the passphrase if it needs one."""
        if not (self.lock or read_only):
            raise click.UsageError("--no-lock is for reading only")
        if self.snapshot is not None and not read_only:
            raise click.UsageError("--snapshot is for reading only")
        from blobstore.opening import open_store  # noqa: PLC0415  some verbs open no store

        with self.secret_for(image) as secret:
            return open_store(
                image,
                secret,
                header=self.header,
                read_only=read_only,
                allow_unprotected=self.allow_unprotected,
                expect_digest=self.expect_digest,
                at_least_generation=self.at_least_generation,
                allow_damaged=allow_damaged,
                lock=self.lock,
                released=released,
                snapshot=self.snapshot,
            )

    def open_shared(
        self, image: Path, *, read_only: bool = True, allow_damaged: bool = False
    ) -> AnyStore:
        """Return the store of the process that owns an image; if none does, open it here."""
        asks = not self.direct and self.lock and self.snapshot is None and not allow_damaged
        if asks and _may_have_owner():
            from blobstore import find_owner  # noqa: PLC0415  few images have one

            owner = find_owner(
                image,
                expect_digest=self.expect_digest,
                at_least_generation=self.at_least_generation,
            )
            if owner is not None:
                return owner
        return self.open(image, read_only=read_only, allow_damaged=allow_damaged)

    def check_stdin(self, *, has_data: bool) -> None:
        """Refuse a stdin that is to give both the data and the key."""
        if has_data and self.key.is_stdin:
            raise click.UsageError("stdin cannot be both the key and the data")

    def bad_luks_copy(self, image: Path) -> str | None:
        """Say which copy of the image's LUKS2 header is damaged or old, if one is."""
        if not (self.header or is_encrypted(image)):
            return None
        from luks import load_header  # noqa: PLC0415  rarely used

        with luks_place(image, self.header) as place:
            stale = load_header(place).stale_copy
        return None if stale is None else ("primary", "secondary")[stale]


def _may_have_owner() -> bool:
    """Say whether to look for an owner, which imports what it takes to ask one.

    A `get` is not to pay for that where none has ever been started (O2).
    """
    places = ("/run", os.environ.get("XDG_RUNTIME_DIR") or "/run")
    return "BLOBSTORE_RUNTIME_DIR" in os.environ or any(
        os.path.isdir(f"{place}/blobstore")  # noqa: PTH112  where every import counts
        for place in places
    )


class NewAccess(NamedTuple):
    """What the options of `new_access_options` say of an image to be made."""

    key: KeySource
    header: Path | None
    encrypted: bool

    @contextmanager
    def secret_for(self, image: Path) -> Iterator[Secret | None]:
        """Yield the new image's secret, asked for twice if none is named.

        Yields None for an image in the clear.
        """
        if not self.encrypted:
            if self.key.is_named or self.header:
                raise click.UsageError("an image without encryption has no key and no LUKS header")
            yield None
            return
        secret = self.key.read()
        if secret is None:
            secret = Secret.from_terminal(f"New passphrase for {image}: ", confirm=True)
        with secret:
            yield secret

    @contextmanager
    def existing_secret_for(self, image: Path) -> Iterator[Secret | None]:
        """Yield the secret of an image that exists after all, asked for if it needs one."""
        secret = self.key.read()
        if secret is None and (self.header or is_encrypted(image)):
            secret = Secret.from_terminal(f"Passphrase for {image}: ")
        if secret is None:
            yield None
            return
        with secret:
            yield secret


#: For verbs that give out blobs: those that nothing proves to be the newest, too.
damaged_option = click.option(
    "--allow-damaged",
    is_flag=True,
    help="Read what is left of a damaged store, though nothing proves that it is the newest.",
)


def access_options(function: _Command) -> _Command:
    """Add the options of `Access`; the function gets them as ``access``."""

    @functools.wraps(function)
    def wrapped(
        *,
        key: KeySource,
        header: Path | None,
        allow_unprotected: bool,
        expect_digest: Digest | None,
        at_least_generation: int,
        no_lock: bool,
        volume_key_file: Path | None,
        snapshot: str | None,
        snapshot_id: str | None,
        snapshot_name: str | None,
        **rest: Any,
    ) -> Any:
        access = Access(
            key,
            header,
            allow_unprotected,
            expect_digest,
            at_least_generation,
            not no_lock,
            volume_key_file=volume_key_file,
            snapshot=snapshot_key(snapshot, snapshot_id, snapshot_name),
        )
        return function(access=access, **rest)

    for option in (
        click.option(
            "--snapshot",
            metavar="SNAPSHOT",
            help="Read this internal snapshot of a qcow2 image: its name or ID.",
        ),
        click.option("--snapshot-id", metavar="ID", help="Read the one with this ID."),
        click.option("--snapshot-name", metavar="NAME", help="Read the one with this name."),
        click.option(
            "--no-lock",
            is_flag=True,
            help="Read an image that others use, whatever they are just writing.",
        ),
        click.option(
            "--at-least-generation",
            type=click.IntRange(min=0),
            default=0,
            metavar="N",
            help="Refuse an image that has not reached this generation.",
        ),
        click.option(
            "--expect-digest",
            type=DigestType(),
            metavar="DIGEST",
            help="Refuse an image in any other state than this one, as info shows it.",
        ),
        click.option(
            "--allow-unprotected",
            is_flag=True,
            help="Accept an image that is less protected than it should be.",
        ),
        VOLUME_KEY,
    ):
        wrapped = option(wrapped)
    return _secret_options(wrapped, "The image's detached LUKS header.")


def shared_access_options(function: _Command) -> _Command:
    """Add the options of an `Access` whose `Access.open_shared` the function uses."""

    @functools.wraps(function)
    def wrapped(*, access: Access, direct: bool, **rest: Any) -> Any:
        return function(access=access._replace(direct=direct), **rest)

    option = click.option(
        "--direct",
        is_flag=True,
        help="Open IMAGE itself, and do not ask the process that owns it.",
    )
    return access_options(option(wrapped))


def snapshot_key(which: str | None, id_: str | None, name: str | None) -> str | SnapshotKey | None:
    """Return what says which snapshot is meant: by ID or name, or by what is said of them.

    Raises:
        click.UsageError: Both ways are used at once.
    """
    if id_ is None and name is None:
        return which
    if which is not None:
        raise click.UsageError("name the snapshot once: by itself, or by its ID and its name")
    from formats.qcow2.snapshot_table import SnapshotKey  # noqa: PLC0415  rarely needed

    return SnapshotKey(id_, name)


def new_access_options(function: _Command) -> _Command:
    """Add the options of `NewAccess`; the function gets them as ``access``."""

    @functools.wraps(function)
    def wrapped(
        *,
        key: KeySource,
        header: Path | None,
        no_encryption: bool,
        **rest: Any,
    ) -> Any:
        return function(access=NewAccess(key, header, not no_encryption), **rest)

    option = click.option("--no-encryption", is_flag=True, help="Make an image in the clear.")
    return _secret_options(option(wrapped), "Put the LUKS header here, detached.")


def clone_access_options(function: _Command) -> _Command:
    """Add the options of a `NewAccess` beside another image's, as ``new_access``."""

    @functools.wraps(function)
    def wrapped(*, new_access: NewAccess, no_encryption: bool, **rest: Any) -> Any:
        return function(new_access=new_access._replace(encrypted=not no_encryption), **rest)

    option = click.option("--no-encryption", is_flag=True, help="Make the new image in the clear.")
    return converted_access_options(option(wrapped))


def converted_access_options(function: _Command) -> _Command:
    """Add what of a `NewAccess` is no choice of encryption, as ``new_access``."""

    @functools.wraps(function)
    def wrapped(*, new_key: KeySource, new_header: Path | None, **rest: Any) -> Any:
        return function(new_access=NewAccess(new_key, new_header, encrypted=True), **rest)

    return _secret_options(wrapped, "Put the new LUKS header here, detached.", "new")


def other_access_options(function: _Command) -> _Command:
    """Add the options of a second image's `Access` as ``other_access``, below `access_options`."""

    @functools.wraps(function)
    def wrapped(
        *,
        other_key: KeySource,
        other_header: Path | None,
        **rest: Any,
    ) -> Any:
        access: Access = rest["access"]
        borrowed = not other_key.is_named
        if borrowed:
            access = rest["access"] = access._replace(key=access.key.reusable())
        other = access._replace(
            key=access.key if borrowed else other_key,
            header=other_header,
            expect_digest=None,
            at_least_generation=0,
            borrowed_key=borrowed,
            volume_key_file=access.volume_key_file if borrowed else None,
            snapshot=None,
        )
        return function(other_access=other, **rest)

    return _secret_options(wrapped, "The other image's detached LUKS header.", "other")


def _secret_options(function: _Command, header_help: str, whose: str = "") -> _Command:
    prefix = f"{whose}-" if whose else ""
    option = click.option(f"--{prefix}header", type=PATH, metavar="FILE", help=header_help)
    return key_options(whose)(option(function))
