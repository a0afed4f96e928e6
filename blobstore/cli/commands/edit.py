"""`blobstore edit`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

import blobstore
from blobstore.cli.access import IMAGE, Access, shared_access_options
from blobstore.cli.types import SettingType
from formats.errors import DeviceError

if TYPE_CHECKING:
    from blobstore import Place


@click.command("edit")
@click.argument("image", type=IMAGE)
@click.argument("name")
@click.argument("settings", type=SettingType(), nargs=-1, required=True, metavar="FIELD=VALUE...")
@click.option("--type", "type_", metavar="TYPE", help="It is of this, whatever its section says.")
@shared_access_options
def command(
    *,
    access: Access,
    image: Place,
    name: str,
    settings: tuple[tuple[str, str], ...],
    type_: str | None,
) -> None:
    """Change fields in the blob NAME of IMAGE, atomically, and what checks them.

    FIELD is named as in manifests, such as board.serial-number or custom[0]. VALUE is
    text, a number, true or false, bytes in hexadecimal, or @FILE for bytes in a file.
    """
    with access.open_shared(image, read_only=False) as store:
        blobstore.edit_section(store, name, settings, type_=type_, read_file=_read_file)


def _read_file(name: str) -> bytes:
    try:
        return Path(name).read_bytes()
    except OSError as error:
        raise DeviceError(f"cannot read {name}: {error.strerror}") from error
