"""`blobstore scrub`."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING

import click

from blobstore.cli.access import IMAGE, Access, shared_access_options
from blobstore.cli.output import print_json, progress
from blobstore.errors import CorruptBlobError

if TYPE_CHECKING:
    from blobstore import Place


@click.command("scrub")
@click.argument("image", type=IMAGE)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@shared_access_options
def command(*, access: Access, image: Place, as_json: bool) -> None:
    """Rewrite both copies of every section of IMAGE, and write zeros where no section is.

    What was put before, or deleted, cannot be read any more, and restore has
    nothing to go back to. Exits with 65 if a section does not verify; it is left
    as it is.
    """
    with access.open_shared(image, read_only=False) as store, progress("scrubbing") as advance:
        done = store.scrub(advance)
    if as_json:
        print_json(asdict(done))
    else:
        for problem in done.skipped:
            click.echo(problem.message)
        click.echo(f"{done.rewritten} sections rewritten, {done.wiped} bytes wiped")
    if done.skipped:
        raise CorruptBlobError(f"{len(done.skipped)} sections of {image} were not scrubbed")
