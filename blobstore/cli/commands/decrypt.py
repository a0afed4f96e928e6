"""`blobstore decrypt`."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

import blobstore
import luks
from blobstore.cli.keys import KeySource, key_options
from blobstore.cli.reencryption import Begin, Run, carry_out, run_options
from blobstore.cli.types import IMAGE

if TYPE_CHECKING:
    from blobstore import Place


@click.command("decrypt")
@click.argument("image", type=IMAGE)
@run_options
@key_options
def command(*, image: Place, key: KeySource, run: Run) -> None:
    """Decrypt IMAGE, in place.

    An attached header is exported to the file that --header names, which is needed until the
    end. It can be interrupted at any instant, and is continued with --resume, or by cryptsetup.
    A store in IMAGE stays as it is, but for its key. If a process owns IMAGE, that one does it,
    and goes on to serve the store.
    """

    def begin(secret: luks.Secret) -> blobstore.ImageReencryption:
        return blobstore.begin_decryption(
            image,
            secret,
            header=run.header,
            options=luks.ReencryptionOptions(**run.moved),
            as_bytes=run.as_bytes,
            limits=key.limits,
        )

    carry_out(image, key, run, Begin("decrypt", begin, {}))
