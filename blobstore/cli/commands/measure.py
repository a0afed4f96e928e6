"""`blobstore measure`."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

import blobstore
from blobstore.cli.output import print_json
from blobstore.cli.types import IMAGE, SizeType

if TYPE_CHECKING:
    from blobstore import Place


@click.command("measure")
@click.argument("source", type=IMAGE, required=False)
@click.option("--size", type=SizeType(), help="Of the disk, instead of SOURCE.")
@click.option(
    "--cluster-size", type=SizeType(), default="64KiB", show_default=True, help="Of the new image."
)
@click.option(
    "--refcount-bits",
    type=click.Choice(["1", "2", "4", "8", "16", "32", "64"]),
    default="16",
    show_default=True,
    help="Of the new image.",
)
@click.option("--luks", is_flag=True, help="The new image is encrypted with LUKS.")
@click.option("--backing", is_flag=True, help="SOURCE may use backing files beside it.")
@click.option(
    "--probe-backing",
    "probe",
    is_flag=True,
    help="Guess the format of backing files where SOURCE does not name it.",
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON, as qemu-img does.")
def command(
    *,
    source: Place | None,
    size: int | None,
    cluster_size: int,
    refcount_bits: str,
    luks: bool,
    backing: bool,
    probe: bool,
    as_json: bool,
) -> None:
    """Say how large a qcow2 image becomes that holds a disk as large as SOURCE, or of SIZE.

    SOURCE is a qcow2 image, or anything else taken as it is; its holes need no room. Two
    numbers are said: what the image takes with the data that there is, and what it
    takes once all of the disk was written.
    """
    if (source is None) == (size is None):
        raise click.UsageError("name either a SOURCE or a --size")
    if probe and not backing:
        raise click.UsageError("--probe-backing needs --backing")
    try:
        options = blobstore.Qcow2Options(
            cluster_size=cluster_size, refcount_bits=int(refcount_bits)
        )
    except ValueError as error:
        raise click.UsageError(str(error)) from error
    found = blobstore.measure(
        size or 0 if source is None else source,
        options,
        encrypted=luks,
        open_backing=blobstore.BackingFiles(probe=probe) if backing else None,
    )
    if as_json:
        print_json({"required": found.required, "fully-allocated": found.fully_allocated})
        return
    click.echo(f"required size: {found.required}")
    click.echo(f"fully allocated size: {found.fully_allocated}")
