"""`blobstore resize`."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from blobstore.cli.access import IMAGE, Access, shared_access_options
from blobstore.cli.types import SizeType

if TYPE_CHECKING:
    from blobstore import Place


@click.command("resize")
@click.argument("image", type=IMAGE)
@click.argument("name")
@click.argument("size", type=SizeType())
@shared_access_options
def command(*, access: Access, image: Place, name: str, size: int) -> None:
    """Change the worst-case size of the section NAME of IMAGE.

    SIZE is in bytes, or with KiB, MiB or GiB after it. The image grows if it
    must and can.
    """
    with access.open_shared(image, read_only=False) as store:
        store.resize(name, size)
