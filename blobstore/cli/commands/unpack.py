"""`blobstore unpack`."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

import blobstore
from blobstore.cli.access import IMAGE, PATH, Access, damaged_option, shared_access_options
from blobstore.cli.output import sections_hidden
from blobstore.cli.types import layout_option
from blobstore.errors import CorruptBlobError

if TYPE_CHECKING:
    from pathlib import Path

    from blobstore import Place


@click.command("unpack")
@click.argument("image", type=IMAGE)
@click.option("-o", "--output", "directory", type=PATH, required=True, metavar="DIR")
@click.option("--force", is_flag=True, help="Write into DIR although it is not empty.")
@layout_option
@damaged_option
@shared_access_options
def command(
    *,
    access: Access,
    image: Place,
    directory: Path,
    layouts: tuple[Path, ...],
    allow_damaged: bool,
    force: bool,
) -> None:
    """Write the blobs of IMAGE to files in DIR, and a manifest that packs them again.

    What cannot be read is named and left out, and the exit code says so. The manifest
    then packs only once you have said in it what becomes of that.
    """
    declared = [blobstore.load_layout(path) for path in layouts]
    with access.open_shared(image, allow_damaged=allow_damaged) as store:
        unpacked = blobstore.unpack(store, directory, overwrite=force, layouts=declared)
        info = store.info()
    for error in unpacked.failed.values():
        click.echo(f"blobstore: {error}", err=True)
    for section in unpacked.nameless:
        click.echo(f"blobstore: at byte {section.offset}, a section {section.damage}", err=True)
    if not info.complete:
        raise sections_hidden(image, info)
    if unpacked.failed:
        raise CorruptBlobError(f"{len(unpacked.failed)} sections could not be unpacked")
