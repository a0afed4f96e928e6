"""`blobstore verify`."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING

import click

from blobstore.cli.access import PATH, Access, access_options
from blobstore.cli.output import print_json, progress
from blobstore.errors import CorruptBlobError

if TYPE_CHECKING:
    from pathlib import Path


@click.command("verify")
@click.argument("image", type=PATH)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@access_options
def command(*, access: Access, image: Path, as_json: bool) -> None:
    """Read and check everything in IMAGE: heads, blobs, also the older copies.

    Exits with 65 if anything is wrong with what was read.
    """
    with access.open(image) as store, progress("verifying") as advance:
        report = store.verify(advance)
    if as_json:
        print_json(asdict(report) | {"ok": report.ok})
    else:
        for problem in report.problems:
            click.echo(problem.message)
        for note in report.notes:
            click.echo(f"no problem: {note.message}")
        click.echo(
            f"{report.sections} sections, {report.records} records, {report.blob_bytes} bytes of "
            f"blobs: {len(report.problems) or 'no'} problems"
            + ("" if report.clean else "; the store was not closed after its last change")
        )
    if not report.ok:
        raise CorruptBlobError(f"{image} has {len(report.problems)} problems")
