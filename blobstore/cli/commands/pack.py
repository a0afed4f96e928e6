"""`blobstore pack`."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import click

from blobstore.cli.access import PATH, NewAccess, new_access_options
from blobstore.cli.encryption import kdf_options
from blobstore.manifest import load_manifest
from blobstore.packing import pack

if TYPE_CHECKING:
    from pathlib import Path


@click.command("pack")
@click.argument("manifest_path", metavar="MANIFEST", type=PATH)
@click.option("-o", "--output", "image", type=PATH, required=True, metavar="IMAGE")
@click.option("--force", is_flag=True, help="Overwrite IMAGE.")
@kdf_options
@new_access_options
def command(
    *, access: NewAccess, manifest_path: Path, image: Path, force: bool, kdf: dict[str, Any]
) -> None:
    """Make IMAGE out of MANIFEST, a TOML file, and the files that it names.

    The image is as large as the worst-case sizes of its sections need, unless
    the manifest says otherwise.
    """
    manifest = load_manifest(manifest_path)
    if access.header:
        manifest = replace(manifest, header=access.header)
    if not access.encrypted:
        manifest = replace(manifest, luks_version=None, header=None)
    access = access._replace(encrypted=manifest.luks_version is not None)
    with access.secret_for(image) as secret:
        pack(manifest, image, secret, overwrite=force, **(kdf if access.encrypted else {})).close()
