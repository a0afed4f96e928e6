"""`blobstore get`."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import click

from blobstore.cli.access import IMAGE, PATH, Access, damaged_option, shared_access_options
from blobstore.cli.output import check_other, write_blob

if TYPE_CHECKING:
    from pathlib import Path

    from blobstore import Place


@click.command("get")
@click.argument("image", type=IMAGE)
@click.argument("name")
@click.option(
    "-o",
    "--output",
    type=PATH,
    metavar="FILE",
    help="Write to this file; - is stdout, even a terminal.",
)
@click.option("--force", is_flag=True, help="Overwrite FILE.")
@click.option(
    "--previous", is_flag=True, help="Read the blob before the newest, or what damage left."
)
@damaged_option
@shared_access_options
def command(
    *,
    access: Access,
    image: Place,
    name: str,
    output: Path | None,
    allow_damaged: bool,
    force: bool,
    previous: bool,
) -> None:
    """Read the blob NAME of IMAGE to stdout or a file."""
    if output is None and sys.stdout.isatty():
        raise click.UsageError("a blob is binary: name a file with -o, or -o - for the terminal")
    if output is not None:
        check_other(output, image, access.header)
    with access.open_shared(image, allow_damaged=allow_damaged) as store:
        blob = store.get(name, previous=previous)
    write_blob(output, blob, force=force)
