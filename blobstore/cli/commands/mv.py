"""`blobstore mv`."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from blobstore.cli.access import IMAGE, Access, shared_access_options

if TYPE_CHECKING:
    from blobstore import Place


@click.command("mv")
@click.argument("image", type=IMAGE)
@click.argument("name")
@click.argument("new")
@shared_access_options
def command(*, access: Access, image: Place, name: str, new: str) -> None:
    """Rename the section NAME of IMAGE to NEW."""
    with access.open_shared(image, read_only=False) as store:
        store.rename(name, new)
