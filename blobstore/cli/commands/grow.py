"""`blobstore grow`."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from blobstore.cli.access import IMAGE, Access, shared_access_options
from blobstore.cli.types import SizeType

if TYPE_CHECKING:
    from blobstore import Place


@click.command("grow")
@click.argument("image", type=IMAGE)
@click.argument("size", type=SizeType())
@shared_access_options
def command(*, access: Access, image: Place, size: int) -> None:
    """Make IMAGE larger, so that its container has SIZE bytes at least.

    SIZE is in bytes, or with KiB, MiB or GiB after it. What is new is free
    space. Registering and resizing sections let the image grow by themselves.
    """
    with access.open_shared(image, read_only=False) as store:
        store.grow(size)
