"""`blobstore reencrypt`."""

from __future__ import annotations

from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

import click

import blobstore
import luks
from blobstore.cli.encryption import kdf_options, with_hash
from blobstore.cli.keys import PATH, KeySource, key_options
from blobstore.cli.reencryption import (
    Begin,
    Cipher,
    Run,
    asked_kdf,
    carry_out,
    cipher_options,
    run_options,
)
from blobstore.cli.types import IMAGE

if TYPE_CHECKING:
    from pathlib import Path

    from blobstore import Place


@click.command("reencrypt")
@click.argument("image", type=IMAGE)
@cipher_options
@click.option(
    "--other-key-file",
    "others",
    type=PATH,
    multiple=True,
    metavar="FILE",
    help="A key file that opens another keyslot, which is kept. Repeatable.",
)
@click.option(
    "--drop-keyslots",
    is_flag=True,
    help="Give up keyslots whose passphrases are not given.",
)
@run_options
@kdf_options
@key_options
def command(
    *,
    image: Place,
    key: KeySource,
    run: Run,
    cipher: Cipher,
    hash_name: str | None,
    others: tuple[Path, ...],
    drop_keyslots: bool,
    kdf: dict[str, Any],
) -> None:
    """Give IMAGE a new volume key, in place; also another cipher or sector size.

    It can be interrupted at any instant, and is continued with --resume, or by cryptsetup. A
    store in IMAGE gets a new key, too. If a process owns IMAGE, that one does it, and goes on to
    serve the store.
    """
    chosen = with_hash(kdf, hash_name)

    def begin(secret: luks.Secret) -> blobstore.ImageReencryption:
        options = luks.ReencryptionOptions(
            **chosen, **cipher.said, **run.moved, drop_keyslots=drop_keyslots
        )
        with ExitStack() as stack:
            secrets = [stack.enter_context(luks.Secret.from_file(path)) for path in others]
            return blobstore.begin_reencryption(
                image,
                secret,
                header=run.header,
                others=secrets,
                options=options,
                as_bytes=run.as_bytes,
                limits=key.limits,
            )

    asked = asked_kdf(chosen) | cipher.said | {"drop_keyslots": drop_keyslots}
    if others:
        asked["other_key_files"] = [str(path.absolute()) for path in others]
    carry_out(image, key, run, Begin("reencrypt", begin, asked))
