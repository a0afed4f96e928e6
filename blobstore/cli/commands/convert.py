"""`blobstore convert`."""

from __future__ import annotations

from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

import click

from blobstore.cli.access import (
    PATH,
    Access,
    NewAccess,
    access_options,
    converted_access_options,
)
from blobstore.cli.encryption import SECTOR_SIZE, kdf_options
from blobstore.cli.output import check_other, progress
from blobstore.converting.conversion import FORMATS, convert
from blobstore.layers import is_encrypted

if TYPE_CHECKING:
    from pathlib import Path

    from luks import Secret


@click.command("convert")
@click.argument("source", type=PATH)
@click.argument("destination", type=PATH)
@click.option(
    "--to",
    type=click.Choice(list(FORMATS)),
    help="What DESTINATION becomes.  [default: what SOURCE is]",
)
@click.option(
    "--from",
    "source_format",
    type=click.Choice(["raw", "luks"]),
    help="What SOURCE is, without looking.",
)
@click.option(
    "-n",
    "--no-create",
    is_flag=True,
    help="Write into the payload of a DESTINATION that exists, in place.",
)
@click.option(
    "--sparse",
    is_flag=True,
    help="Keep holes, and make some of zeros where DESTINATION is in the clear.",
)
@click.option(
    "--as-bytes", is_flag=True, help="Copy a store byte for byte too, its flag and key as they are."
)
@click.option(
    "-j",
    "--jobs",
    type=click.IntRange(min=1),
    metavar="N",
    help="Workers.  [default: one for each core]",
)
@click.option(
    "--cipher", metavar="CIPHER", help="Cipher string of DESTINATION, as dm-crypt has it."
)
@click.option(
    "--key-size", type=click.IntRange(min=64), metavar="BITS", help="Of DESTINATION's volume key."
)
@click.option("--sector-size", type=SECTOR_SIZE, help="Bytes of a sector of DESTINATION.")
@click.option("--force", is_flag=True, help="Overwrite DESTINATION.")
@kdf_options
@access_options
@converted_access_options
def command(
    *,
    access: Access,
    new_access: NewAccess,
    source: Path,
    destination: Path,
    to: str | None,
    source_format: str | None,
    no_create: bool,
    sparse: bool,
    as_bytes: bool,
    jobs: int | None,
    cipher: str | None,
    key_size: int | None,
    sector_size: int | None,
    force: bool,
    kdf: dict[str, Any],
) -> None:
    """Write the payload of SOURCE into a new image DESTINATION.

    Each is a LUKS1 or LUKS2 volume, its header attached or detached, or in the
    clear. DESTINATION gets a volume key of its own. A store is carried over as
    one, with the same sections, and a new key that authenticates it; any other
    payload byte for byte.
    """
    check_other(destination, source, access.header, new_access.header)
    chosen = {
        "cipher": cipher,
        "key_size": key_size and _bytes_of(key_size),
        "sector_size": sector_size,
    }
    options = {name: value for name, value in chosen.items() if value is not None}
    if no_create and (to or force or options):
        raise click.UsageError("--no-create takes DESTINATION as it is")
    source_is_luks = bool(access.header) or (
        is_encrypted(source) if source_format is None else source_format == "luks"
    )
    becomes_luks = source_is_luks if to is None else to != "raw"
    if options and not becomes_luks:
        raise click.UsageError("an image in the clear has no cipher, key or sectors")
    with ExitStack() as stack:
        secret = stack.enter_context(access.secret_for(source, encrypted=source_is_luks))
        new_secret: Secret | None
        if no_create:
            new_secret = stack.enter_context(new_access.existing_secret_for(destination))
        else:
            new_access = new_access._replace(encrypted=becomes_luks)
            new_secret = stack.enter_context(new_access.secret_for(destination))
            if becomes_luks:
                options |= kdf
        advance = stack.enter_context(progress("converting"))
        convert(
            source,
            destination,
            secret,
            new_secret,
            to=to,
            encrypted=source_is_luks,
            header=access.header,
            new_header=new_access.header,
            create=not no_create,
            overwrite=force,
            as_bytes=as_bytes,
            holes=sparse,
            jobs=jobs,
            allow_unprotected=access.allow_unprotected,
            expect_digest=access.expect_digest,
            at_least_generation=access.at_least_generation,
            lock=access.lock,
            progress=advance,
            **options,
        )


def _bytes_of(bits: int) -> int:
    if bits % 8:
        raise click.UsageError(f"a key of {bits} bits is no whole number of bytes")
    return bits // 8
