"""`blobstore token`: what says where passphrases of a LUKS2 volume are."""

from __future__ import annotations

from typing import TYPE_CHECKING, BinaryIO

import click

import luks
from blobstore.cli.header import image_and_changed_header, image_and_header
from blobstore.cli.keys import PATH
from blobstore.cli.output import print_json, print_table, write_blob
from formats.errors import FormatError

if TYPE_CHECKING:
    from pathlib import Path

    from blobstore import Place

_NUMBER = click.argument("number", type=click.IntRange(min=0))
_KEY_SLOT = click.option(
    "--key-slot", type=click.IntRange(min=0), required=True, metavar="N", help="The keyslot."
)
_TOKEN_ID = click.option(
    "--token-id",
    type=click.IntRange(min=0),
    metavar="N",
    help="Number of the token.  [default: the first that is free]",
)


@click.group("token")
def command() -> None:
    """Manage the tokens of an image's LUKS2 volume.

    A token says where the passphrase of keyslots can be had, such as from a TPM.
    """


@command.command("list")
@image_and_header
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def list_(*, image: Place, place: luks.Place, as_json: bool) -> None:
    """List the tokens of IMAGE, by the names that people know them by."""
    del image
    tokens = sorted(luks.load_header(place).tokens.items())
    if as_json:
        print_json(
            [
                {
                    "token": number,
                    "type": token.type,
                    "name": luks.token_name(token),
                    "keyslots": list(token.keyslots),
                }
                for number, token in tokens
            ]
        )
        return
    rows: list[tuple[str, ...]] = [("TOKEN", "TYPE", "KEYSLOTS", "NAME")]
    for number, token in tokens:
        keyslots = ", ".join(map(str, token.keyslots)) or "none"
        rows.append((str(number), token.type, keyslots, luks.token_name(token)))
    print_table(rows, right=frozenset((0,)))


@command.command("add")
@image_and_changed_header
@click.option(
    "--key-description",
    required=True,
    metavar="TEXT",
    help="Description of the key of type user in the kernel's keyring.",
)
@_KEY_SLOT
@_TOKEN_ID
def add(
    *, image: Place, place: luks.Place, key_description: str, key_slot: int, token_id: int | None
) -> None:
    """Say that a keyslot's passphrase is in the kernel's keyring. Prints the token."""
    del image
    with luks.edit(place) as header:
        _check_free(header, token_id)
        body = luks.keyring_token(key_description, [key_slot])
        number = header.set_token(body, number=token_id)
    click.echo(f"token {number}")


@command.command("import")
@image_and_changed_header
@click.argument("file", type=click.File("rb"))
@_TOKEN_ID
@click.option("--force", is_flag=True, help="Replace a token of that number.")
def import_(
    *, image: Place, place: luks.Place, file: BinaryIO, token_id: int | None, force: bool
) -> None:
    """Add the token whose JSON object is in FILE, - for stdin. Prints its number."""
    del image
    body = luks.parse_token(file.read(), file.name)
    with luks.edit(place) as header:
        active = {str(number) for number in header.header.keyslots}
        if not active.issuperset(body["keyslots"]):
            raise FormatError(f"{file.name} names a keyslot that is not active", rule="L125")
        if not force:
            _check_free(header, token_id)
        number = header.set_token(body, number=token_id)
    click.echo(f"token {number}")


@command.command("export")
@image_and_header
@_NUMBER
@click.option("-o", "output", type=PATH, metavar="FILE", help="A file.  [default: stdout]")
@click.option("--force", is_flag=True, help="Overwrite FILE.")
def export(
    *, image: Place, place: luks.Place, number: int, output: Path | None, force: bool
) -> None:
    """Print the JSON object of the token NUMBER as it is stored."""
    del image
    text = luks.format_token(luks.load_header(place), number) + "\n"
    write_blob(output, text.encode(errors="surrogateescape"), force=force)


@command.command("remove")
@image_and_changed_header
@_NUMBER
def remove(*, image: Place, place: luks.Place, number: int) -> None:
    """Remove the token NUMBER; its keyslots stay."""
    del image
    with luks.edit(place) as header:
        header.remove_token(number)


@command.command("assign")
@image_and_changed_header
@_NUMBER
@_KEY_SLOT
def assign(*, image: Place, place: luks.Place, number: int, key_slot: int) -> None:
    """Say that the token NUMBER is for a keyslot, too."""
    del image
    with luks.edit(place) as header:
        header.assign_token(number, key_slot)


@command.command("unassign")
@image_and_changed_header
@_NUMBER
@_KEY_SLOT
def unassign(*, image: Place, place: luks.Place, number: int, key_slot: int) -> None:
    """Say that the token NUMBER is not for a keyslot."""
    del image
    with luks.edit(place) as header:
        header.assign_token(number, key_slot, assigned=False)


def _check_free(header: luks.HeaderEdit, number: int | None) -> None:
    if number in header.header.tokens:
        raise click.UsageError(f"there is a token {number} already")
