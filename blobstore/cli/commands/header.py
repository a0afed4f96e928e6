"""`blobstore header`: a LUKS header as a whole."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

import blobstore
import luks
from blobstore.cli.header import image_and_changed_header, image_and_header
from blobstore.cli.keys import PATH
from blobstore.cli.output import check_other, print_json, print_table
from blobstore.cli.types import IMAGE
from blobstore.errors import OutputExistsError

if TYPE_CHECKING:
    from pathlib import Path

    from blobstore import Place

_FILE = click.argument("file", type=PATH)
_PLACE = click.argument("file", type=IMAGE)
_IMAGE = click.argument("image", type=IMAGE)
_OVERWRITE = click.option("--force", is_flag=True, help="Overwrite FILE.")


@click.group("header")
def command() -> None:
    """Look at an image's LUKS header, back it up, restore it, or move it."""


@command.command("dump")
@image_and_header
@click.option("--json", "as_json", is_flag=True, help="Print JSON, with all that is stored.")
def dump(*, image: Place, place: luks.Place, as_json: bool) -> None:
    """Show what the LUKS header of IMAGE says. No passphrase is needed."""
    del image
    described = luks.describe_header(luks.load_header(place))
    if as_json:
        print_json(described)
        return
    described.pop("metadata", None)
    _print(described)


def _print(described: dict[str, Any]) -> None:
    rows = [(name, _text(value)) for name, value in described.items() if not _is_section(value)]
    print_table([(name.replace("_", " "), text) for name, text in rows])
    for section, objects in described.items():
        if not _is_section(objects):
            continue
        for number, values in objects.items():
            click.echo(f"{section.removesuffix('s')} {number}:")
            print_table([(f"  {k.replace('_', ' ')}", _text(v)) for k, v in values.items()])


def _is_section(value: object) -> bool:
    return isinstance(value, dict)


def _text(value: object) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key} {_text(item)}" for key, item in value.items())
    if isinstance(value, list):
        return ", ".join(map(str, value)) or "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return "none" if value in (None, "") else str(value)


@command.command("backup")
@image_and_header
@_FILE
@_OVERWRITE
def backup(*, image: Place, place: luks.Place, file: Path, force: bool) -> None:
    """Copy the LUKS header of IMAGE with its key material to FILE.

    It opens the image with the passphrases of today, whatever becomes of them.
    """
    check_other(file, image, place)
    try:
        luks.backup_header(place, file, overwrite=force)
    except FileExistsError as error:
        raise OutputExistsError(f"{file} exists", hint="overwrite it with --force") from error


@command.command("restore")
@image_and_changed_header
@_FILE
@click.option(
    "--force", is_flag=True, help="Even if nothing shows that the backup belongs to IMAGE."
)
def restore(*, image: Place, place: luks.Place, file: Path, force: bool) -> None:
    """Put the LUKS header of IMAGE back as the backup FILE has it.

    Then its passphrases open IMAGE, and no others. Exits with 58 if it does not
    belong to IMAGE.
    """
    del image
    luks.restore_header(place, file, force=force)


@command.command("detach")
@_IMAGE
@_PLACE
@_OVERWRITE
def detach(*, image: Place, file: Place, force: bool) -> None:
    """Move the LUKS header of IMAGE to FILE; random bytes take its place.

    From then on IMAGE is opened with --header FILE.
    """
    check_other(file, image)
    blobstore.detach_header(image, file, overwrite=force)


@command.command("attach")
@_IMAGE
@_PLACE
def attach(*, image: Place, file: Place) -> None:
    """Write the detached LUKS header FILE to the start of IMAGE, if there is room.

    FILE stays: remove it when IMAGE opens without it.
    """
    blobstore.attach_header(image, file)
