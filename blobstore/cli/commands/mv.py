"""`blobstore mv`."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from blobstore.cli.access import PATH, Access, shared_access_options

if TYPE_CHECKING:
    from pathlib import Path


@click.command("mv")
@click.argument("image", type=PATH)
@click.argument("name")
@click.argument("new")
@shared_access_options
def command(*, access: Access, image: Path, name: str, new: str) -> None:
    """Rename the section NAME of IMAGE to NEW."""
    with access.open_shared(image, read_only=False) as store:
        store.rename(name, new)
