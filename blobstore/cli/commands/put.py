"""`blobstore put`."""

from __future__ import annotations

from typing import IO, TYPE_CHECKING

import click

from blobstore.cli.access import IMAGE, Access, shared_access_options

if TYPE_CHECKING:
    from blobstore import Place


@click.command("put")
@click.argument("image", type=IMAGE)
@click.argument("name")
@click.argument("file", type=click.File("rb"))
@shared_access_options
def command(*, access: Access, image: Place, name: str, file: IO[bytes]) -> None:
    """Replace the blob NAME of IMAGE by FILE, or by stdin if FILE is -."""
    access.check_stdin(has_data=file.name == "<stdin>")
    blob = file.read()
    with access.open_shared(image, read_only=False) as store:
        store.put(name, blob)
