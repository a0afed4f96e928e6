"""How commands reach a LUKS header, its passphrases, and consent to what cannot be undone."""

from __future__ import annotations

import functools
import sys
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final

import click

import blobstore
import luks
from blobstore.cli.keys import PATH
from blobstore.cli.output import waiting
from blobstore.cli.types import IMAGE, option

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from blobstore import Place
    from blobstore.cli.keys import KeySource
    from blobstore.cli.types import Command

#: Priority of a keyslot to what it is called.
PRIORITIES: Final = ("ignore", "normal", "prefer")

#: The copies of a LUKS2 header, as `luks.Header.stale_copy` numbers them.
HEADER_COPIES: Final = ("primary", "secondary")

#: How often a passphrase can be typed until one opens the volume.
_TRIES: Final = 3

#: Choice of a keyslot.
KEY_SLOT = click.option(
    "--key-slot", type=click.IntRange(min=0), metavar="N", help="Number of the keyslot."
)
#: The volume key instead of a passphrase, in a group of options.
VOLUME_KEY = option(
    "--volume-key-file",
    type=PATH,
    metavar="FILE",
    help="Unlock with the volume key itself, from this file.",
)
#: Likewise, of a command of its own.
volume_key_option: Final[Callable[[Command], Command]] = click.option(
    VOLUME_KEY.name, **VOLUME_KEY.attributes
)


def image_and_header(function: Command) -> Command:
    """Add the argument IMAGE and the option ``--header``.

    The function gets ``image``, and as ``place`` what the header is in: a file, or a
    part of a qcow2 image that is open for reading.
    """
    return _image_and_header(function, write=False)


def image_and_changed_header(function: Command) -> Command:
    """Do as `image_and_header`, for a function that changes the header."""
    return _image_and_header(function, write=True)


def _image_and_header(function: Command, *, write: bool) -> Command:
    @functools.wraps(function)
    def wrapped(*, image: Place, header: Place | None, direct: bool = False, **rest: Any) -> Any:
        with _luks_place(image, header, write=write, direct=direct) as place:
            return function(image=image, place=place, **rest)

    header_option = click.option(
        "--header", type=IMAGE, metavar="FILE", help="The image's detached LUKS header."
    )
    wrapped = header_option(wrapped)
    if write:
        wrapped = click.option(
            "--direct",
            is_flag=True,
            help="Open IMAGE itself, and do not ask the process that owns it.",
        )(wrapped)
    return click.argument("image", type=IMAGE)(wrapped)


@contextmanager
def _luks_place(
    image: Place, header: Place | None, *, write: bool, direct: bool
) -> Iterator[luks.Place]:
    """Yield where an image's header is; only its owner can write one that lies in a qcow2 disk."""
    asks = write and header is None and not direct
    client = blobstore.find_owner(image) if asks else None
    if client is None:
        with blobstore.luks_place(image, header, write=write) as place:
            yield place
        return
    with client, client.luks_place(write=write) as place:
        yield place


@contextmanager
def passphrase(key: KeySource, prompt: str, *, confirm: bool = False) -> Iterator[luks.Secret]:
    """Yield the secret that options name, or what is typed at the terminal."""
    secret = key.read()
    if secret is None:
        secret = luks.Secret.from_terminal(prompt, confirm=confirm)
    with secret:
        yield secret


@contextmanager
def new_passphrase(image: Place, key: KeySource, new_key: KeySource) -> Iterator[luks.Secret]:
    """Yield the secret to be set; what is typed is asked for twice."""
    if key.is_stdin and new_key.is_stdin:
        raise click.UsageError("stdin holds one of the two passphrases")
    with passphrase(new_key, f"New passphrase for {image}: ", confirm=True) as secret:
        yield secret


@contextmanager
def unlocking(
    image: Place, place: luks.Place, key: KeySource, volume_key_file: Path | None
) -> Iterator[luks.Secret | luks.VolumeKey]:
    """Yield what opens the volume: a passphrase, or the verified volume key."""
    if volume_key_file is None:
        with passphrase(key, f"Passphrase for {image}: ") as secret:
            yield secret
    else:
        with read_volume_key(place, key, volume_key_file) as volume_key:
            yield volume_key


@contextmanager
def unlocked(
    place: luks.Place,
    key: KeySource,
    prompt: str,
    *,
    keyslot: int | None = None,
    volume_key_file: Path | None = None,
) -> Iterator[luks.VolumeKey]:
    """Yield the volume key, so that nothing more is asked for if it cannot be had.

    Args:
        place: Where the header is.
        key: What the options say. What is typed at the terminal instead has three tries.
        prompt: For that.
        keyslot: Try only this one.
        volume_key_file: Has the volume key itself.

    Raises:
        StorageError: As `luks.unlock`.
    """
    if volume_key_file is not None:
        with read_volume_key(place, key, volume_key_file) as given:
            yield given
        return
    named = key.read()
    if named is None:
        volume_key = typed_key(place, prompt, keyslot=keyslot, limits=key.limits)
    else:
        with named:
            volume_key = _unlock(place, named, keyslot, key.limits)
    with volume_key.key:
        yield volume_key


def typed_key(
    place: luks.Place, prompt: str, *, keyslot: int | None = None, limits: luks.KdfLimits
) -> luks.VolumeKey:
    """Return the volume key that a passphrase typed at the terminal opens; the caller wipes it.

    There are three tries.

    Raises:
        NoKeyslotMatchError: None of them opened a keyslot.
        StorageError: As `luks.unlock`.
    """
    for left in reversed(range(_TRIES)):
        with luks.Secret.from_terminal(prompt) as secret:
            try:
                return _unlock(place, secret, keyslot, limits)
            except luks.NoKeyslotMatchError:
                if left == 0:
                    raise
        click.echo("blobstore: no keyslot opens with that", err=True)
    raise AssertionError("the last try returns or raises")


def _unlock(
    place: luks.Place, secret: luks.Secret, keyslot: int | None, limits: luks.KdfLimits
) -> luks.VolumeKey:
    with luks.open_header(place) as (device, header), waiting("deriving keys"):
        return luks.unlock(device, header, secret, keyslot=keyslot, limits=limits)


@contextmanager
def read_volume_key(place: luks.Place, key: KeySource, file: Path) -> Iterator[luks.VolumeKey]:
    """Yield the volume key in a file, compared with the header at ``place``.

    Raises:
        UnlockError: It is not the volume key.
    """
    if key.is_named:
        raise click.UsageError("--volume-key-file and a passphrase exclude each other")
    with luks.Secret.from_file(file) as secret:
        header = luks.load_header(place)
        volume_key = luks.verify_volume_key(header, secret.view(), limits=key.limits)
    with volume_key.key:
        yield volume_key


def consent(question: str, *, force: bool) -> None:
    """Ask before something that cannot be undone; ``force`` is the answer given before.

    Raises:
        PolicyError: The answer was no, or it cannot be asked.
    """
    if force:
        return
    if sys.stdin.isatty() and click.confirm(question, err=True):
        return
    raise luks.PolicyError("it was not done", hint="--force does it without asking")
