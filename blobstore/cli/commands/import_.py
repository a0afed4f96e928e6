"""`blobstore import`."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import click

import blobstore
from blobstore.cli.access import IMAGE, PATH, Access, shared_access_options
from blobstore.cli.state_key import state_key, swtpm_key_option
from blobstore.cli.types import SizeType

if TYPE_CHECKING:
    from pathlib import Path

    from blobstore import Place


@click.command("import")
@click.argument("image", type=IMAGE)
@click.argument("source", type=PATH)
@click.option(
    "--from",
    "form",
    type=click.Choice([str(form) for form in blobstore.StateFormat]),
    required=True,
    help="What SOURCE is.",
)
@click.option(
    "--name",
    metavar="SECTION",
    help="The section; for a TPM the first part of its sections' names.  "
    "[default: tpm, uefi-variables, uefi-vars-json]",
)
@click.option(
    "--max-size",
    type=SizeType(),
    metavar="SIZE",
    help="Worst-case size of the section, for raw and uefi-vars.",
)
@click.option("--blank", is_flag=True, help="SOURCE is a flash of ovmf-vars without variables yet.")
@click.option("--force", is_flag=True, help="Replace sections that were written.")
@swtpm_key_option
@shared_access_options
def command(
    *,
    access: Access,
    image: Place,
    source: Path,
    form: str,
    name: str | None,
    max_size: int | None,
    blank: bool,
    force: bool,
    swtpm_key: blobstore.StateKeySource | None,
) -> None:
    """Store in IMAGE the state that SOURCE has, all of it or nothing.

    \b
    swtpm-dir    the directory of swtpm's --tpmstate dir=
    swtpm-file   the file or block device of swtpm's --tpmstate backend-uri=
    ovmf-vars    the flash with the variables of OVMF, AAVMF and their kin,
                 raw or in qcow2
    uefi-vars    the JSON file of QEMU's uefi-vars device
    raw          any file, into the section --name

    Stop what uses SOURCE first. Encrypted TPM state is decrypted: the image
    protects it. SOURCE - is stdin.
    """  # noqa: D301  \b is click's
    kind = blobstore.StateFormat(form)
    _check(kind, name, max_size, swtpm_key, blank=blank)
    if str(source) == "-" and kind is blobstore.StateFormat.SWTPM_DIR:
        raise click.UsageError("a directory does not come from stdin")
    access.check_stdin(has_data=str(source) == "-")
    with state_key(swtpm_key) as key, access.open_shared(image, read_only=False) as store:
        blobstore.import_state(
            store,
            sys.stdin.buffer if str(source) == "-" else source,
            kind,
            name=name,
            max_size=max_size,
            key=key,
            overwrite=force,
            allow_unprotected=access.allow_unprotected,
            blank=blank,
        )


def _check(
    form: blobstore.StateFormat,
    name: str | None,
    max_size: int | None,
    key: blobstore.StateKeySource | None,
    *,
    blank: bool,
) -> None:
    try:
        form.validate_name(name)
    except ValueError as error:
        raise click.UsageError(f"--name: {error}") from error
    if blank and form is not blobstore.StateFormat.OVMF_VARS:
        raise click.UsageError(f"{form} is never --blank")
    if key is not None and not form.is_tpm:
        raise click.UsageError(f"{form} takes no --swtpm-key")
    if max_size is not None and form not in (
        blobstore.StateFormat.RAW,
        blobstore.StateFormat.UEFI_VARS,
    ):
        raise click.UsageError(f"{form} takes no --max-size")
