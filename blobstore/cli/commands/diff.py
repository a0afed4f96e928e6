"""`blobstore diff`."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

import blobstore
from blobstore.cli.access import (
    IMAGE,
    Access,
    OtherAccess,
    other_access_options,
    shared_access_options,
)
from blobstore.cli.differences import difference_options, show_differences
from blobstore.cli.output import sections_hidden

if TYPE_CHECKING:
    from blobstore import Place


@click.command("diff")
@click.argument("image", type=IMAGE)
@click.argument("other", type=IMAGE)
@difference_options
@shared_access_options
@other_access_options
def command(
    *,
    access: Access,
    other_access: OtherAccess,
    image: Place,
    other: Place,
    as_json: bool,
    exit_code: bool,
) -> None:
    """Show which sections differ between IMAGE and OTHER: size, generation, SHA-256.

    Both must be complete: with a damaged head in one, it is not known what is
    missing there. The exit code is 65 if a section could not be read.

    The key of IMAGE is tried for OTHER too, unless that has options of its own.
    """
    access_first, access_second = access.beside(other_access)
    with access_first.open_shared(image) as first, access_second.open_shared(other) as second:
        for path, store in ((image, first), (other, second)):
            info = store.info()
            if not info.complete:
                raise sections_hidden(path, info)
        differences = blobstore.compare(first, second)
    show_differences(differences, as_json=as_json, exit_code=exit_code)
