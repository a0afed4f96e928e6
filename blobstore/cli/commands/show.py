"""`blobstore show`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import click

from blobstore.cli.access import PATH, Access, access_options
from blobstore.cli.output import escaped, print_json
from blobstore.manifests.fields import decode_blob
from formats.errors import FormatError

if TYPE_CHECKING:
    from pathlib import Path

    from blobstore.manifests.fields import DecodedBlob

#: What is larger is no EEPROM, and its fields are nothing that anybody could read. Bytes.
_MOST: Final = 16 << 20


@click.command("show")
@click.argument("image", type=PATH)
@click.argument("name", required=False)
@click.option("--type", "type_", metavar="TYPE", help="Read it as this, whatever its section says.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON, with what is wrong.")
@access_options
def command(
    *, access: Access, image: Path, name: str | None, type_: str | None, as_json: bool
) -> None:
    """Show the fields of the blob NAME of IMAGE, as a manifest has them.

    Without NAME, IMAGE is a bare binary, and --type says of what.

    What breaks the rules of its format is named on stderr, the rest is shown, and
    the exit code is 30.
    """
    if name is None:
        if type_ is None:
            raise click.UsageError("name a section, or for a bare binary its --type")
        decoded = decode_blob(_read_binary(image), type_)
    else:
        with access.open(image) as store:
            section = store.section(name)
            _check_size(f"section {name!r}", section.size or 0)
            decoded = decode_blob(store.get(name), section.type if type_ is None else type_)
    _print(decoded, as_json=as_json)
    for problem in decoded.problems:
        click.echo(f"blobstore: {problem}", err=True)
    if decoded.problems:
        raise FormatError(f"this breaks {len(decoded.problems)} rules of its format")


def _read_binary(path: Path) -> bytes:
    from formats.devices.file import FileDevice  # noqa: PLC0415  only for bare binaries

    with FileDevice(path, lock=False) as device:
        _check_size(str(path), device.size)
        content = bytearray(device.size)
        device.read_into(0, content)
    return bytes(content)


def _check_size(what: str, size: int) -> None:
    if size > _MOST:
        raise FormatError(f"{what} has {size} bytes: no EEPROM has so many")


def _print(decoded: DecodedBlob, *, as_json: bool) -> None:
    if as_json:
        problems = [
            {"offset": problem.offset, "rule": problem.rule, "message": problem.message}
            for problem in decoded.problems
        ]
        print_json({"type": decoded.type, "fields": decoded.fields, "problems": problems})
        return
    import tomli_w  # noqa: PLC0415  not for JSON

    click.echo(escaped(tomli_w.dumps(decoded.fields)), nl=False)
