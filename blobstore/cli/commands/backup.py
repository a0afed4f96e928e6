"""`blobstore backup`."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

import blobstore
from blobstore.cli.access import IMAGE, Access, shared_access_options
from blobstore.cli.output import check_other, progress

if TYPE_CHECKING:
    from blobstore import Place


@click.command("backup")
@click.argument("image", type=IMAGE)
@click.argument("destination", type=IMAGE)
@click.option("--force", is_flag=True, help="Overwrite DESTINATION.")
@shared_access_options
def command(*, access: Access, image: Place, destination: Place, force: bool) -> None:
    """Copy IMAGE to DESTINATION, consistently, also while it is in use.

    The copy opens with the same passphrases. A detached LUKS header is not
    copied. The owner of IMAGE, if it has one, makes the copy, and no passphrase is needed.
    """
    check_other(destination, image, access.header)
    client = access.find_owner(image)
    if client is not None:
        with client, progress("copying") as advance:
            client.backup(destination, overwrite=force, progress=advance)
        return
    with access.secret_for(image) as secret, progress("copying") as advance:
        blobstore.backup(
            image,
            destination,
            secret,
            header=access.header,
            overwrite=force,
            limits=access.key.limits,
            progress=advance,
        )
