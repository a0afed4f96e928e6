"""`blobstore clone`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, Literal

import click

import blobstore
from blobstore.cli.access import (
    IMAGE,
    Access,
    NewAccess,
    clone_access_options,
    shared_access_options,
)
from blobstore.cli.encryption import kdf_options

if TYPE_CHECKING:
    from blobstore import Place

#: What can become of a TPM.
_TPM: Final = ("keep", "fresh", "drop")


@click.command("clone")
@click.argument("image", type=IMAGE)
@click.argument("destination", type=IMAGE)
@click.option(
    "--tpm",
    type=click.Choice(_TPM),
    help="What becomes of a TPM: the same one (keep), a new one that the emulator makes "
    "(fresh), or none (drop). There is no default.",
)
@click.option("--only", metavar="NAME", multiple=True, help="Take this section. Repeatable.")
@click.option("--without", metavar="NAME", multiple=True, help="Leave it out. Repeatable.")
@click.option("--force", is_flag=True, help="Overwrite DESTINATION.")
@kdf_options
@shared_access_options
@clone_access_options
def command(
    *,
    access: Access,
    new_access: NewAccess,
    image: Place,
    destination: Place,
    tpm: Literal["keep", "fresh", "drop"] | None,
    only: tuple[str, ...],
    without: tuple[str, ...],
    force: bool,
    kdf: dict[str, Any],
) -> None:
    """Make DESTINATION an independent store with the sections of IMAGE.

    It has an id and keys of its own, so that nothing of one passes for the
    other, and a passphrase of its own. It is a qcow2 image if IMAGE is one.

    The TPM of a machine is its identity: where there is one, --tpm has to say what
    becomes of it. Where damage hides sections or a blob, no clone is made.
    """
    with access.open_shared(image) as source, new_access.secret_for(destination) as secret:
        options = kdf if new_access.encrypted else {}
        blobstore.clone(
            source,
            destination,
            secret,
            tpm=tpm,
            only=only or None,
            without=without,
            header=new_access.header,
            overwrite=force,
            **options,
        ).close()
