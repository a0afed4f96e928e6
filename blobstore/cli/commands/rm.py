"""`blobstore rm`."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from blobstore.cli.access import IMAGE, Access, shared_access_options

if TYPE_CHECKING:
    from blobstore import Place


@click.command("rm")
@click.argument("image", type=IMAGE)
@click.argument("names", metavar="NAME...", nargs=-1, required=True)
@shared_access_options
def command(*, access: Access, image: Place, names: tuple[str, ...]) -> None:
    """Delete the sections NAME... of IMAGE and their blobs, all of them or none."""
    with access.open_shared(image, read_only=False) as store, store.transaction() as changes:
        for name in names:
            changes.delete(name)
