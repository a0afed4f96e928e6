"""`blobstore clone`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from blobstore.cli.access import (
    PATH,
    Access,
    NewAccess,
    access_options,
    clone_access_options,
)
from blobstore.cli.encryption import kdf_options
from blobstore.cloning import clone

if TYPE_CHECKING:
    from pathlib import Path


@click.command("clone")
@click.argument("image", type=PATH)
@click.argument("destination", type=PATH)
@click.option("--force", is_flag=True, help="Overwrite DESTINATION.")
@kdf_options
@access_options
@clone_access_options
def command(
    *,
    access: Access,
    new_access: NewAccess,
    image: Path,
    destination: Path,
    force: bool,
    kdf: dict[str, Any],
) -> None:
    """Make DESTINATION an independent store with the sections of IMAGE.

    It has an id and keys of its own, so that nothing of one passes for the
    other, and a passphrase of its own. It is a qcow2 image if IMAGE is one.
    """
    with access.open(image) as source, new_access.secret_for(destination) as secret:
        options = kdf if new_access.encrypted else {}
        clone(
            source, destination, secret, header=new_access.header, overwrite=force, **options
        ).close()
