"""How commands reach an image: its header, its secret, and what they permit."""

from __future__ import annotations

from contextlib import ExitStack, contextmanager, suppress
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import click

import blobstore
import luks
from blobstore.cli.header import HEADER_COPIES, VOLUME_KEY, read_volume_key, typed_key
from blobstore.cli.keys import (
    PATH,
    KeySource,
    key_group,
    object_option,
    opening_key_group,
)
from blobstore.cli.types import IMAGE, DigestType, Group, Option, option, taking

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from blobstore import Place
    from blobstore.cli.types import Command
    from blobstore.owner import AnyStore, StoreClient

__all__ = [
    "IMAGE",
    "PATH",
    "Access",
    "NewAccess",
    "OtherAccess",
    "access_options",
    "clone_access_options",
    "converted_access_options",
    "damaged_option",
    "new_access_options",
    "other_access_options",
    "shared_access_options",
    "snapshot_key",
]


class Access(NamedTuple):
    """What the options of `access_options` say."""

    key: KeySource
    header: Place | None
    volume_key_file: Path | None
    allow_unprotected: bool
    expect_digest: blobstore.StateDigest | None
    at_least_generation: int
    lock: bool
    snapshot: str | blobstore.SnapshotKey | None
    direct: bool = False
    borrowed_key: bool = False  # of another image: for this one only if it needs a key

    def beside(self, other: OtherAccess) -> tuple[Access, Access]:
        """Return how this image and another one are reached.

        The other one is opened by the key of this one, if it needs a key and has no options
        of its own; such a key is read once.
        """
        borrowed = not other.key.is_named
        first = self._replace(key=self.key.reusable()) if borrowed else self
        key = first.key if borrowed else other.key
        second = first._replace(
            key=key._replace(slow_factor=self.key.slow_factor),
            header=other.header,
            volume_key_file=self.volume_key_file if borrowed else None,
            expect_digest=None,
            at_least_generation=0,
            snapshot=None,
            borrowed_key=borrowed,
        )
        return first, second

    @contextmanager
    def secret_for(
        self, image: Place, *, encrypted: bool | None = None
    ) -> Iterator[luks.Secret | luks.VolumeKey | None]:
        """Yield the image's secret, asked for if it needs one and none is named.

        Args:
            image: The image.
            encrypted: Whether it is; None looks.
        """
        needed = encrypted
        if needed is None:
            needed = bool(self.header) or blobstore.is_encrypted(image)
        if self.volume_key_file and needed:
            with (
                blobstore.luks_place(image, self.header) as place,
                read_volume_key(place, self.key, self.volume_key_file) as volume_key,
            ):
                yield volume_key
            return
        if self.volume_key_file and not self.borrowed_key:
            # Who has a key takes the image for encrypted; to open it refuses that.
            with luks.Secret.from_file(self.volume_key_file) as key:
                yield key
            return
        if needed and not self.key.is_named and self.key.held is None:
            with self._typed(image) as typed:
                yield typed
            return
        secret = self.key.read() if needed or not self.borrowed_key else None
        if secret is None:
            yield None
            return
        with secret:
            yield secret

    @contextmanager
    def _typed(self, image: Place) -> Iterator[luks.Secret | luks.VolumeKey]:
        """Yield what is typed at the terminal; or what it opens, if that can be tried."""
        prompt, volume_key = f"Passphrase for {image}: ", None
        with ExitStack() as opened:
            place = None
            # QEMU's old encryption has no header, and every passphrase opens it.
            with suppress(luks.UnsupportedError):
                place = opened.enter_context(blobstore.luks_place(image, self.header))
            if place is not None:
                volume_key = typed_key(place, prompt, limits=self.key.limits)
        if volume_key is None:
            with luks.Secret.from_terminal(prompt) as secret:
                yield secret
            return
        with volume_key.key:
            yield volume_key

    def open(
        self,
        image: Place,
        *,
        read_only: bool = True,
        released: bool = False,
        allow_damaged: bool = False,
        resume: bool = False,
    ) -> blobstore.Store:
        """Open an image's store, as `blobstore.open`; ask for the passphrase if it needs one."""
        if not (self.lock or read_only):
            raise click.UsageError("--no-lock is for reading only")
        if self.snapshot is not None and not read_only:
            raise click.UsageError("--snapshot is for reading only")
        lock = self.lock
        if self.snapshot is not None and not self.direct:
            # It does not change while others use the image.
            lock = lock and not _has_owner(image)
        with self.passphrase_for(image) if resume else self.secret_for(image) as secret:
            return blobstore.open(
                image,
                secret,
                header=self.header,
                read_only=read_only,
                allow_unprotected=self.allow_unprotected,
                expect_digest=self.expect_digest,
                at_least_generation=self.at_least_generation,
                allow_damaged=allow_damaged,
                lock=lock,
                released=released,
                snapshot=self.snapshot,
                limits=None if secret is None else self.key.limits,
                resume=resume,
                direct=True,
            )

    @contextmanager
    def passphrase_for(self, image: Place) -> Iterator[luks.Secret | luks.VolumeKey | None]:
        """Yield the passphrase of a volume, asked for if none is named, and not what it opens."""
        if self.volume_key_file:
            raise click.UsageError("a re-encryption is resumed with a passphrase: it has two keys")
        with self.key.read() or luks.Secret.from_terminal(f"Passphrase for {image}: ") as secret:
            yield secret

    def open_shared(
        self, image: Place, *, read_only: bool = True, allow_damaged: bool = False
    ) -> AnyStore:
        """Return the store of the process that owns an image; if none does, open it here."""
        if not allow_damaged:
            client = self.find_owner(image, read_only=read_only)
            if client is not None:
                return client
        return self.open(image, read_only=read_only, allow_damaged=allow_damaged)

    def find_owner(self, image: Place, *, read_only: bool = True) -> StoreClient | None:
        """Return the store of the process that owns an image, if that is to be asked."""
        if self.direct or not self.lock or self.snapshot is not None:
            return None
        return blobstore.find_owner(
            image,
            read_only=read_only,
            expect_digest=self.expect_digest,
            at_least_generation=self.at_least_generation,
        )

    def check_stdin(self, *, has_data: bool) -> None:
        """Refuse a stdin that is to give both the data and the key."""
        if has_data and self.key.is_stdin:
            raise click.UsageError("stdin cannot be both the key and the data")

    def bad_luks_copy(self, image: Place) -> str | None:
        """Say which copy of the image's LUKS2 header is damaged or old, if one is."""
        if not (self.header or blobstore.is_encrypted(image)):
            return None
        with blobstore.luks_place(image, self.header) as place:
            stale = luks.load_header(place).stale_copy
        return None if stale is None else HEADER_COPIES[stale]


def _has_owner(image: Place) -> bool:
    """Say whether a process owns an image."""
    client = blobstore.find_owner(image)
    if client is not None:
        client.close()
    return client is not None


class NewAccess(NamedTuple):
    """What the options of `new_access_options` say of an image to be made."""

    key: KeySource
    header: Place | None
    encrypted: bool

    @contextmanager
    def secret_for(self, image: Place) -> Iterator[luks.Secret | None]:
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
            secret = luks.Secret.from_terminal(f"New passphrase for {image}: ", confirm=True)
        with secret:
            yield secret

    @contextmanager
    def existing_secret_for(self, image: Place) -> Iterator[luks.Secret | None]:
        """Yield the secret of an image that exists after all, asked for if it needs one."""
        secret = self.key.read()
        if secret is None and (self.header or blobstore.is_encrypted(image)):
            secret = luks.Secret.from_terminal(f"Passphrase for {image}: ")
        if secret is None:
            yield None
            return
        with secret:
            yield secret


class OtherAccess(NamedTuple):
    """What the options of `other_access_options` say of a second image."""

    key: KeySource
    header: Place | None


def snapshot_key(
    which: str | None, id_: str | None, name: str | None
) -> str | blobstore.SnapshotKey | None:
    """Return what says which snapshot is meant: by ID or name, or by what is said of them.

    Raises:
        click.UsageError: Both ways are used at once.
    """
    if id_ is None and name is None:
        return which
    if which is not None:
        raise click.UsageError("name the snapshot once: by itself, or by its ID and its name")
    return blobstore.SnapshotKey(id_, name)


def _access(
    *,
    no_lock: bool,
    snapshot: str | None,
    snapshot_id: str | None,
    snapshot_name: str | None,
    **said: Any,
) -> Access:
    which = snapshot_key(snapshot, snapshot_id, snapshot_name)
    return Access(**said, lock=not no_lock, snapshot=which)


def _new_access(*, key: KeySource, header: Place | None, no_encryption: bool = False) -> NewAccess:
    return NewAccess(key, header, encrypted=not no_encryption)


_OPTIONS: Final[dict[str, Option | Group]] = {
    "key": opening_key_group(),
    "header": option(
        "--header", type=IMAGE, metavar="FILE", help="The image's detached LUKS header."
    ),
    "volume_key_file": VOLUME_KEY,
    "allow_unprotected": option(
        "--allow-unprotected",
        is_flag=True,
        help="Accept an image that is less protected than it should be.",
    ),
    "expect_digest": option(
        "--expect-digest",
        type=DigestType(),
        metavar="DIGEST",
        help="Refuse an image in any other state than this one, as info shows it.",
    ),
    "at_least_generation": option(
        "--at-least-generation",
        type=click.IntRange(min=0),
        default=0,
        metavar="N",
        help="Refuse an image that has not reached this generation.",
    ),
    "no_lock": option(
        "--no-lock",
        is_flag=True,
        help="Read an image that others use, whatever they are just writing.",
    ),
    "snapshot_name": option("--snapshot-name", metavar="NAME", help="Read the one with this name."),
    "snapshot_id": option("--snapshot-id", metavar="ID", help="Read the one with this ID."),
    "snapshot": option(
        "--snapshot",
        metavar="SNAPSHOT",
        help="Read this internal snapshot of a qcow2 image: its name or ID.",
    ),
}
_DIRECT: Final[dict[str, Option | Group]] = {
    "direct": option(
        "--direct",
        is_flag=True,
        help="Open IMAGE itself, and do not ask the process that owns it.",
    ),
}


def access_options(function: Command) -> Command:
    """Add the options that say how an image is reached; the function gets ``access``."""
    return object_option(taking("access", Group(_access, _OPTIONS))(function))


def shared_access_options(function: Command) -> Command:
    """Add those of verbs that an owner serves, too: they use `Access.open_shared`."""
    return object_option(taking("access", Group(_access, _OPTIONS | _DIRECT))(function))


def new_access_options(function: Command) -> Command:
    """Add those that say how a new image will be; the function gets ``access``."""
    group = Group(
        _new_access,
        {
            "key": key_group(),
            "header": option(
                "--header", type=IMAGE, metavar="FILE", help="Put the LUKS header here, detached."
            ),
            "no_encryption": option(
                "--no-encryption", is_flag=True, help="Make an image in the clear."
            ),
        },
    )
    return object_option(taking("access", group)(function))


_CONVERTED: Final[dict[str, Option | Group]] = {
    "key": key_group("new"),
    "header": option(
        "--new-header", type=IMAGE, metavar="FILE", help="Put the new LUKS header here, detached."
    ),
}
_CLONED: Final[dict[str, Option | Group]] = _CONVERTED | {
    "no_encryption": option(
        "--no-encryption", is_flag=True, help="Make the new image in the clear."
    )
}
#: Add those of a new image beside another one; the function gets ``new_access``. The first
#: is for what `convert` makes, which is encrypted or not by what it is.
converted_access_options: Final = taking("new_access", Group(_new_access, _CONVERTED))
clone_access_options: Final = taking("new_access", Group(_new_access, _CLONED))

#: Adds those of a second image beside that of `access_options`; see `Access.beside`.
other_access_options: Final = taking(
    "other_access",
    Group(
        OtherAccess,
        {
            "key": key_group("other"),
            "header": option(
                "--other-header",
                type=IMAGE,
                metavar="FILE",
                help="The other image's detached LUKS header.",
            ),
        },
    ),
)

#: For verbs that give out blobs: those that nothing proves to be the newest, too.
damaged_option: Final[Callable[[Command], Command]] = click.option(
    "--allow-damaged",
    is_flag=True,
    help="Read what is left of a damaged store, though nothing proves that it is the newest.",
)
