"""`blobstore restore`."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from blobstore.cli.access import IMAGE, Access, shared_access_options

if TYPE_CHECKING:
    from blobstore import Place


@click.command("restore")
@click.argument("image", type=IMAGE)
@click.argument("name")
@shared_access_options
def command(*, access: Access, image: Place, name: str) -> None:
    """Make the previous blob of the section NAME of IMAGE its newest one again.

    The blob before the newest is still there until the next put; get --previous
    shows it first.
    """
    with access.open_shared(image, read_only=False) as store:
        store.restore(name)
