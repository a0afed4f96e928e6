"""`blobstore compact`."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from blobstore.cli.access import IMAGE, Access, shared_access_options
from blobstore.cli.output import progress

if TYPE_CHECKING:
    from blobstore import Place


@click.command("compact")
@click.argument("image", type=IMAGE)
@shared_access_options
def command(*, access: Access, image: Place) -> None:
    """Move the sections of IMAGE together, so that its free space is in larger pieces.

    The image does not get smaller.
    """
    with access.open_shared(image, read_only=False) as store, progress("moving") as advance:
        moved = store.compact(advance)
        free = max((region.size for region in store.regions() if region.use == "free"), default=0)
    click.echo(f"{moved} sections moved; the largest free piece has {free} bytes")
