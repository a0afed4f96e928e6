"""`blobstore show`."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

import blobstore
from blobstore.cli.access import IMAGE, Access, shared_access_options
from blobstore.cli.output import escaped, print_json
from formats.errors import FormatError

if TYPE_CHECKING:
    from blobstore import DecodedBlob, Place


@click.command("show")
@click.argument("image", type=IMAGE)
@click.argument("name", required=False)
@click.option("--type", "type_", metavar="TYPE", help="Read it as this, whatever its section says.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON, with what is wrong.")
@shared_access_options
def command(
    *, access: Access, image: Place, name: str | None, type_: str | None, as_json: bool
) -> None:
    """Show the fields of the blob NAME of IMAGE, as a manifest has them.

    Without NAME, IMAGE is a bare binary, and --type says of what.

    What breaks the rules of its format is named on stderr, the rest is shown, and
    the exit code is 30.
    """
    if name is None:
        if type_ is None:
            raise click.UsageError("name a section, or for a bare binary its --type")
        decoded = blobstore.decode_file(image, type_)
    else:
        with access.open_shared(image) as store:
            decoded = blobstore.decode_section(store, name, type_)
    _print(decoded, as_json=as_json)
    for problem in decoded.problems:
        click.echo(f"blobstore: {problem}", err=True)
    if decoded.problems:
        raise FormatError(f"this breaks {len(decoded.problems)} rules of its format")


def _print(decoded: DecodedBlob, *, as_json: bool) -> None:
    if as_json:
        problems = [
            {"offset": problem.offset, "rule": problem.rule, "message": problem.message}
            for problem in decoded.problems
        ]
        print_json({"type": decoded.type, "fields": decoded.fields, "problems": problems})
        return
    import tomli_w  # noqa: PLC0415  JSON needs none

    click.echo(escaped(tomli_w.dumps(decoded.fields)), nl=False)
