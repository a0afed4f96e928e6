"""`blobstore pack`."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import click

import blobstore
from blobstore.cli.access import PATH, NewAccess, new_access_options
from blobstore.cli.encryption import kdf_options
from blobstore.cli.output import check_other, progress, write_blob
from blobstore.cli.types import SettingType, layout_option, schema_option

if TYPE_CHECKING:
    from contextlib import AbstractContextManager
    from pathlib import Path

    from blobstore import ManifestFile
    from luks import Secret


@click.command("pack")
@click.argument("manifest_path", metavar="MANIFEST", type=PATH)
@click.option(
    "-o",
    "--output",
    required=True,
    metavar="FILE",
    help="The image; with --table a pattern with {column}, such as unit-{serial}.img. With --raw, "
    "- is stdout.",
)
@click.option(
    "--set",
    "settings",
    type=SettingType(),
    multiple=True,
    metavar="NAME=VALUE",
    help="Give a field, such as board.serial-number, another value. Several times.",
)
@click.option("--table", type=PATH, metavar="CSV", help="Make one file for each row.")
@click.option("--raw", metavar="SECTION", help="Write this section alone, as it goes into a chip.")
@click.option(
    "--seed", type=PATH, metavar="FILE", help="Derive everything random from it, keys as well."
)
@layout_option
@click.option("--force", is_flag=True, help="Overwrite FILE.")
# Its module is imported only then.
@schema_option(lambda: blobstore.manifest_schema(), "manifests")  # noqa: PLW0108
@kdf_options
@new_access_options
def command(
    *,
    access: NewAccess,
    manifest_path: Path,
    output: str,
    settings: tuple[tuple[str, str], ...],
    table: Path | None,
    raw: str | None,
    seed: Path | None,
    layouts: tuple[Path, ...],
    force: bool,
    kdf: dict[str, Any],
) -> None:
    """Make an image out of MANIFEST, a TOML or JSON file, and the files that it names.

    The image is as large as the worst-case sizes of its sections need, unless
    the manifest says otherwise.

    NAME in --set begins with the name of a section, or is a field that only one
    section has. So are the names of the columns of a table; an empty cell leaves
    the field as it is.
    """
    if raw is not None and (access.key.is_named or access.header):
        raise click.UsageError("a bare binary has no key and no LUKS header")
    if raw is None and output == "-":
        raise click.UsageError("an image is a file, and does not go to stdout")
    place = blobstore.place_of(output)
    check_other(place, manifest_path, table, seed)
    source = blobstore.ManifestFile(
        manifest_path,
        settings,
        encrypted=None if access.encrypted else False,
        seed=seed,
        layouts=[blobstore.load_layout(path) for path in layouts],
    )
    if table is not None:
        if access.header:
            raise click.UsageError("--header names one file, and a table makes many images")
        units = blobstore.UnitTable(table, source, output)
        key = _secret(source, access, raw, output)
        with key as secret, progress(table.name, "units") as advance:
            options = {} if secret is None else kdf
            blobstore.pack_table(
                units, secret, raw=raw, overwrite=force, progress=advance, **options
            )
        return
    manifest = source.manifest()
    if raw is not None:
        write_blob(place, manifest.content(raw), force=force)
        return
    if access.header:
        manifest = replace(manifest, header=access.header)
    with _secret(source, access, raw, output) as secret:
        options = {} if secret is None else kdf
        blobstore.pack(manifest, output, secret, overwrite=force, **options).close()


def _secret(
    source: ManifestFile, access: NewAccess, raw: str | None, output: str
) -> AbstractContextManager[Secret | None]:
    """Return what yields the secret of the images to be made, or None."""
    if raw is not None:
        return nullcontext()
    return access._replace(encrypted=source.is_encrypted).secret_for(blobstore.place_of(output))
