"""`blobstore luks`: LUKS volumes as such, whatever they hold."""

from __future__ import annotations

from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

import click

import blobstore
import luks
from blobstore.cli.encryption import HASH, SECTOR_SIZE, bytes_of, kdf_options, with_hash
from blobstore.cli.header import (
    HEADER_COPIES,
    KEY_SLOT,
    PRIORITIES,
    image_and_changed_header,
    image_and_header,
    passphrase,
)
from blobstore.cli.keys import PATH, first_key_options
from blobstore.cli.luks_dump import dump as dump_text
from blobstore.cli.output import escaped, waiting
from blobstore.cli.types import IMAGE, SizeType

if TYPE_CHECKING:
    from pathlib import Path

    from blobstore import Place
    from blobstore.cli.keys import KeySource

_BITS = click.IntRange(min=8)


@click.group("luks")
def command() -> None:
    """Make LUKS volumes, and look at, configure and repair their headers.

    What they hold does not matter. `blobstore key`, `token` and `header` do the rest.
    """


@command.command("format")
@click.argument("image", type=IMAGE)
@click.option("--size", type=SizeType(), help="Size of the payload; a new file needs it.")
@click.option(
    "--type", "version", type=click.Choice(["1", "2"]), help="Version of LUKS.  [default: 2]"
)
@click.option(
    "--like",
    type=click.Choice(sorted(luks.PROFILES)),
    help="Cipher and layout as this program chooses them.",
)
@click.option(
    "--cipher", metavar="CIPHER", help="As dm-crypt writes it.  [default: aes-xts-plain64]"
)
@click.option(
    "--key-size", "volume_key_size", type=_BITS, metavar="BITS", help="Of the volume key."
)
@HASH
@click.option("--sector-size", type=SECTOR_SIZE, help="Bytes, in LUKS2.  [default: 4096]")
@click.option("--uuid", metavar="UUID", help="UUID of the volume.  [default: random]")
@click.option("--label", help="Label of LUKS2.")
@click.option("--subsystem", help="Subsystem of LUKS2.")
@click.option(
    "--luks2-metadata-size", "metadata_size", type=SizeType(), help="Size of one header copy."
)
@click.option(
    "--luks2-keyslots-size", "keyslots_size", type=SizeType(), help="Size of the keyslots area."
)
@click.option("--offset", "data_offset", type=SizeType(), help="Where the payload begins.")
@click.option("--align-payload", "alignment", type=SizeType(), help="Of what it is a multiple.")
@click.option("--keyslot-cipher", metavar="CIPHER", help="Cipher of the key material, in LUKS2.")
@click.option("--keyslot-key-size", type=_BITS, metavar="BITS", help="Bits of the key of that.")
@click.option("--header", type=IMAGE, metavar="FILE", help="Put the header here, detached.")
@click.option("--volume-key-file", type=PATH, metavar="FILE", help="Take this volume key.")
@click.option("--force", is_flag=True, help="Destroy what is there.")
@kdf_options
@first_key_options
def format_(
    *,
    image: Place,
    key: KeySource,
    size: int | None,
    version: str | None,
    like: str | None,
    volume_key_size: int | None,
    keyslot_cipher: str | None,
    keyslot_key_size: int | None,
    header: Place | None,
    volume_key_file: Path | None,
    force: bool,
    hash_name: str | None,
    kdf: dict[str, Any],
    **said: Any,
) -> None:
    """Make a LUKS volume of IMAGE, with one passphrase.

    A new file appears complete or not at all; what exists is formatted in place. The payload
    reads as garbage until it is written.
    """
    if (keyslot_cipher is None) != (keyslot_key_size is None):
        raise click.UsageError("--keyslot-cipher and --keyslot-key-size go together")
    options: dict[str, Any] = dict(luks.PROFILES[like]) if like else {}
    options |= {name: value for name, value in said.items() if value is not None}
    options |= with_hash(kdf, hash_name)
    if version is not None:
        options["version"] = int(version)
    if volume_key_size is not None:
        options["key_size"] = bytes_of(volume_key_size)
    if keyslot_cipher is not None and keyslot_key_size is not None:
        options["keyslot_cipher"] = (keyslot_cipher, bytes_of(keyslot_key_size))
    with passphrase(key, f"Passphrase to set for {image}: ", confirm=True) as secret:
        if volume_key_file is None:
            _format(image, secret, options, header, size, force=force)
            return
        with luks.Secret.from_file(volume_key_file) as volume_key:
            options = {"key_size": len(volume_key), **options, "volume_key": volume_key}
            _format(image, secret, options, header, size, force=force)


def _format(
    image: Place,
    secret: luks.Secret,
    options: dict[str, Any],
    header: Place | None,
    size: int | None,
    *,
    force: bool,
) -> None:
    with ExitStack() as stack:
        where = stack.enter_context(blobstore.for_luks(image, write=True))
        apart = (
            None if header is None else stack.enter_context(blobstore.for_luks(header, write=True))
        )
        with waiting("deriving keys"):
            luks.format(where, secret, header=apart, size=size, overwrite=force, **options).close()


@command.command("dump")
@image_and_header
def dump(*, image: Place, place: luks.Place) -> None:
    """Show the header of IMAGE in the form of `cryptsetup luksDump`.

    `blobstore header dump --json` is for programs.
    """
    click.echo("\n".join(map(escaped, dump_text(luks.load_header(place), str(image)).split("\n"))))


@command.command("is")
@image_and_header
@click.option("--type", "version", type=click.Choice(["1", "2"]), help="Only this version counts.")
@click.pass_context
def is_(context: click.Context, *, image: Place, place: luks.Place, version: str | None) -> None:
    """Say by the exit code if IMAGE has a LUKS header: 0 if it has, 1 if not.

    A damaged header counts; with --type only one that can be read does.
    """
    del image
    there = luks.is_luks(place)
    if there and version is not None:
        there = luks.load_header(place).version == int(version)
    context.exit(0 if there else 1)


@command.command("convert")
@click.argument("image", type=IMAGE)
@click.option(
    "--to",
    "version",
    type=click.Choice(["luks1", "luks2"]),
    required=True,
    help="Version that the header is to have.",
)
@click.option("--header", type=IMAGE, metavar="FILE", help="The image's detached LUKS header.")
@click.option(
    "--force", is_flag=True, help="Lose tokens, labels, flags and priorities, as LUKS1 has none."
)
def convert(*, image: Place, version: str, header: Place | None, force: bool) -> None:
    """Change the version of the LUKS header of IMAGE, in place; the payload is not touched.

    All passphrases stay, and need not be given. A crash leaves the old header or the new one;
    then run the command again. The image may be in use, unless it is a qcow2 image.
    """
    number = int(version.removeprefix("luks"))
    blobstore.convert_header(image, number, header=header, force=force)
    click.echo(f"the header of {image} is LUKS{number}")


@command.command("repair")
@image_and_changed_header
def repair(*, image: Place, place: luks.Place) -> None:
    """Rewrite a damaged header copy of IMAGE from the other, and erase unused keyslots."""
    stale = luks.load_header(place).stale_copy
    header = luks.repair(place)
    if stale is None:
        # A re-encryption, or an unknown requirement, may need the space of no keyslot.
        erased = "" if header.requirements else "; what no keyslot uses is erased"
        click.echo(f"the header of {image} is sound{erased}")
    else:
        click.echo(f"the {HEADER_COPIES[stale]} header copy of {image} is rewritten")


@command.command("config")
@image_and_changed_header
@KEY_SLOT
@click.option("--priority", type=click.Choice(PRIORITIES), help="When --key-slot is tried.")
@click.option("--label", help='Label; "" removes it.')
@click.option("--subsystem", help='Subsystem; "" removes it.')
@click.option("--uuid", metavar="UUID", help="UUID.")
@click.option(
    "--flag",
    "flags",
    multiple=True,
    metavar="NAME",
    help="Activation flag, such as allow-discards, instead of all there are. Repeatable.",
)
@click.option("--no-flags", is_flag=True, help="Remove all activation flags.")
def config(
    *,
    image: Place,
    place: luks.Place,
    key_slot: int | None,
    priority: str | None,
    label: str | None,
    subsystem: str | None,
    uuid: str | None,
    flags: tuple[str, ...],
    no_flags: bool,
) -> None:
    """Change what the header of IMAGE says besides keys, in one step.

    LUKS1 has a UUID only. No passphrase is needed.
    """
    del image
    if (priority is None) != (key_slot is None):
        raise click.UsageError("--priority and --key-slot go together")
    if flags and no_flags:
        raise click.UsageError("--flag and --no-flags exclude each other")
    if (priority, label, subsystem, uuid) == (None,) * 4 and not flags and not no_flags:
        raise click.UsageError("nothing is to be changed")
    with luks.edit(place) as header:
        if key_slot is not None and priority is not None:
            header.set_priority(key_slot, PRIORITIES.index(priority))
        if label is not None or subsystem is not None:
            header.set_labels(label=label, subsystem=subsystem)
        if uuid is not None:
            header.set_uuid(uuid)
        if flags or no_flags:
            header.set_flags(flags)
