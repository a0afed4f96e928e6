"""`blobstore encrypt`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

import blobstore
import luks
from blobstore.cli.encryption import kdf_options, with_hash
from blobstore.cli.keys import KeySource, first_key_options
from blobstore.cli.reencryption import (
    Begin,
    Cipher,
    Run,
    asked_kdf,
    carry_out,
    cipher_options,
    run_options,
)
from blobstore.cli.types import IMAGE, SizeType

if TYPE_CHECKING:
    from blobstore import Place


@click.command("encrypt")
@click.argument("image", type=IMAGE)
@click.option("--label", help="Label of LUKS2.")
@click.option(
    "--data-shift", type=SizeType(), metavar="SIZE", help="How far the payload moves at once."
)
@click.option(
    "--no-grow",
    is_flag=True,
    help="Take the room for the header from the end of IMAGE, which must be unused.",
)
@cipher_options
@run_options
@kdf_options
@first_key_options
def command(
    *,
    image: Place,
    key: KeySource,
    run: Run,
    cipher: Cipher,
    hash_name: str | None,
    label: str | None,
    data_shift: int | None,
    no_grow: bool,
    kdf: dict[str, Any],
) -> None:
    """Encrypt IMAGE, which is in the clear, in place.

    Without --header the payload is moved towards the end, and IMAGE grows, to make room for the
    LUKS header. It can be interrupted at any instant, and is continued with --resume, or by
    cryptsetup. A store in IMAGE gets a key. If a process owns IMAGE, that one does it, and goes
    on to serve the store.
    """
    chosen = with_hash(kdf, hash_name) | cipher.said
    if label is not None:
        chosen["label"] = label
    room: dict[str, Any] = {"grow": not no_grow}
    if data_shift is not None:
        room["data_shift"] = data_shift

    def begin(secret: luks.Secret) -> blobstore.ImageReencryption:
        return blobstore.begin_encryption(
            image,
            secret,
            header=run.header,
            format_options=luks.FormatOptions(**chosen),
            options=luks.ReencryptionOptions(**run.moved, **room),
            as_bytes=run.as_bytes,
        )

    asked = asked_kdf(chosen) | room
    carry_out(image, key, run, Begin("encrypt", begin, asked, new_secret=True))
