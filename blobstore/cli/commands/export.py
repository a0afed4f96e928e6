"""`blobstore export`."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import click

import blobstore
from blobstore.cli.access import IMAGE, PATH, Access, damaged_option, shared_access_options
from blobstore.cli.output import check_other
from blobstore.cli.state_key import state_key, swtpm_key_option

if TYPE_CHECKING:
    from pathlib import Path

    from blobstore import Place


@click.command("export")
@click.argument("image", type=IMAGE)
@click.argument("destination", type=PATH)
@click.option(
    "--to",
    "form",
    type=click.Choice([str(form) for form in blobstore.StateFormat]),
    required=True,
    help="What DESTINATION is to be; `blobstore import --help` explains them.",
)
@click.option(
    "--name",
    metavar="SECTION",
    help="The section; for a TPM the first part of its sections' names.  "
    "[default: tpm, uefi-variables, uefi-vars-json]",
)
@click.option(
    "--format",
    "image_format",
    type=click.Choice(["raw", "qcow2"]),
    default="raw",
    show_default=True,
    help="Of the file, for ovmf-vars.",
)
@click.option("--force", is_flag=True, help="Overwrite DESTINATION.")
@swtpm_key_option
@damaged_option
@shared_access_options
def command(
    *,
    access: Access,
    image: Place,
    destination: Path,
    form: str,
    name: str | None,
    image_format: str,
    allow_damaged: bool,
    force: bool,
    swtpm_key: blobstore.StateKeySource | None,
) -> None:
    """Write the state of a device in IMAGE to DESTINATION, as its program keeps it.

    It is in the clear then, unless --swtpm-key encrypts the state of a TPM.
    DESTINATION - is stdout.
    """
    kind = blobstore.StateFormat(form)
    try:
        kind.validate_name(name)
    except ValueError as error:
        raise click.UsageError(f"--name: {error}") from error
    if swtpm_key is not None and not kind.is_tpm:
        raise click.UsageError(f"{kind} takes no --swtpm-key")
    if image_format != "raw" and kind is not blobstore.StateFormat.OVMF_VARS:
        raise click.UsageError(f"{kind} takes no --format")
    if str(destination) == "-" and kind is blobstore.StateFormat.SWTPM_DIR:
        raise click.UsageError("a directory does not go to stdout")
    check_other(destination, image, access.header)
    with (
        state_key(swtpm_key) as key,
        access.open_shared(image, allow_damaged=allow_damaged) as store,
    ):
        blobstore.export_state(
            store,
            sys.stdout.buffer if str(destination) == "-" else destination,
            kind,
            name=name,
            key=key,
            overwrite=force,
            image_format=image_format,
        )
