"""`blobstore convert`."""

from __future__ import annotations

from contextlib import ExitStack
from typing import TYPE_CHECKING, Any, Final

import click

import blobstore
import luks
from blobstore.cli.access import (
    IMAGE,
    Access,
    NewAccess,
    access_options,
    converted_access_options,
)
from blobstore.cli.encryption import CLUSTER_SIZE, SECTOR_SIZE, bytes_of, kdf_options
from blobstore.cli.output import check_other, progress

if TYPE_CHECKING:
    from blobstore import Place


#: Word to the format of an image file, and whether there is a LUKS volume in it.
_SOURCES: Final = {
    "raw": ("raw", False),
    "luks": ("raw", True),
    "qcow2": ("qcow2", None),
}


@click.command("convert")
@click.argument("source", type=IMAGE)
@click.argument("destination", type=IMAGE)
@click.option(
    "--to",
    type=click.Choice(list(blobstore.IMAGE_KINDS)),
    help="What DESTINATION becomes.  [default: what SOURCE is]",
)
@click.option(
    "--from",
    "source_format",
    type=click.Choice(list(_SOURCES)),
    help="What SOURCE is, without looking.",
)
@click.option(
    "--backing-files",
    "backing",
    type=click.Choice(["beside", "anywhere"]),
    help="Follow SOURCE to its backing files: beside it, or wherever it says.",
)
@click.option(
    "--probe-backing",
    "probe",
    is_flag=True,
    help="Guess the format of backing files where SOURCE does not name it.",
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
    help="Keep holes, and make some of zeros where a raw DESTINATION is in the clear.",
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
@click.option("--cluster-size", type=CLUSTER_SIZE, help="Bytes of a cluster of DESTINATION.")
@click.option("--force", is_flag=True, help="Overwrite DESTINATION.")
@kdf_options
@access_options
@converted_access_options
def command(
    *,
    access: Access,
    new_access: NewAccess,
    source: Place,
    destination: Place,
    to: str | None,
    source_format: str | None,
    backing: str | None,
    probe: bool,
    no_create: bool,
    sparse: bool,
    as_bytes: bool,
    jobs: int | None,
    cipher: str | None,
    key_size: int | None,
    sector_size: int | None,
    cluster_size: int | None,
    force: bool,
    kdf: dict[str, Any],
) -> None:
    """Write the payload of SOURCE into a new image DESTINATION.

    Each is a LUKS1 or LUKS2 volume, its header attached or detached, or in the
    clear; in a raw file or in the disk of a qcow2 image, which can also be
    encrypted by itself (qcow2-luks). DESTINATION gets a volume key of its own. A
    store is carried over as one, with the same sections, and a new key that
    authenticates it; any other payload byte for byte.
    """
    check_other(destination, source, access.header, new_access.header)
    if probe and backing is None:
        raise click.UsageError("--probe-backing needs --backing-files")
    chosen = {
        "cipher": cipher,
        "key_size": key_size and bytes_of(key_size),
        "sector_size": sector_size,
    }
    options: dict[str, Any] = {n: value for n, value in chosen.items() if value is not None}
    if no_create and (to or force or options or cluster_size):
        raise click.UsageError("--no-create takes DESTINATION as it is")
    kinds = blobstore.IMAGE_KINDS
    image_format, encrypted = _SOURCES[source_format] if source_format else (None, None)
    source_encrypted = encrypted
    if source_encrypted is None:
        source_encrypted = bool(access.header) or blobstore.is_encrypted(
            source, image_format=image_format, open_backing=_backing_files(backing, probe=probe)
        )
    becomes_encrypted = source_encrypted if to is None else kinds[to].encrypted
    wanted = new_access.key.is_named or new_access.header or options
    if not no_create and to is None and wanted and not becomes_encrypted:
        raise luks.PolicyError(
            f"{source} is not encrypted, and neither would {destination} be [C25]",
            hint="say with --to what DESTINATION becomes",
        )
    if options and not becomes_encrypted:
        raise click.UsageError("an image in the clear has no cipher, key or sectors")
    if cluster_size is not None and (to is None or kinds[to].image_format != "qcow2"):
        raise click.UsageError("--cluster-size goes with --to qcow2 and the like")
    with ExitStack() as stack:
        secret = stack.enter_context(access.secret_for(source, encrypted=source_encrypted))
        new_secret: luks.Secret | None
        if no_create:
            new_secret = stack.enter_context(new_access.existing_secret_for(destination))
        else:
            new_access = new_access._replace(encrypted=becomes_encrypted)
            new_secret = stack.enter_context(new_access.secret_for(destination))
            if becomes_encrypted:
                options |= kdf
        advance = stack.enter_context(progress("converting"))
        blobstore.convert(
            source,
            destination,
            secret,
            new_secret,
            to=to,
            image_format=image_format,
            encrypted=encrypted,
            snapshot=access.snapshot,
            open_backing=_backing_files(backing, probe=probe),
            header=access.header,
            new_header=new_access.header,
            create=not no_create,
            overwrite=force,
            as_bytes=as_bytes,
            holes=sparse,
            qcow2_options=blobstore.qcow2_options(cluster_size),
            jobs=jobs,
            allow_unprotected=access.allow_unprotected,
            expect_digest=access.expect_digest,
            at_least_generation=access.at_least_generation,
            lock=access.lock,
            limits=access.key.limits,
            progress=advance,
            **options,
        )


def _backing_files(where: str | None, *, probe: bool) -> blobstore.BackingFiles | None:
    """Return what opens the backing files of one image, once."""
    if where is None:
        return None
    return blobstore.BackingFiles(anywhere=where == "anywhere", probe=probe)
