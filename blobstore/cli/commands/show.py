"""`blobstore show`."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, Final

import click

import blobstore
from blobstore.cli.access import IMAGE, Access, shared_access_options
from blobstore.cli.output import escaped, print_json
from blobstore.cli.types import codec_of, layout_option
from formats.errors import FormatError

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from pathlib import Path

    from blobstore import DecodedBlob, Place, UefiVariables

#: Types of UEFI variables; `blobstore edit` takes them, too.
VARIABLES: Final = ("ovmf-vars", "uefi-vars")
_LONG: Final = 64
_HEX: Final = re.compile("[0-9a-f]+")


@click.command("show")
@click.argument("image", type=IMAGE)
@click.argument("name", required=False)
@click.option("--type", "type_", metavar="TYPE", help="Read it as this, whatever its section says.")
@click.option(
    "--variable",
    "names",
    multiple=True,
    metavar="NAME",
    help="Of UEFI variables, show this one only.",
)
@layout_option
@click.option("--json", "as_json", is_flag=True, help="Print JSON, with what is wrong.")
@shared_access_options
def command(
    *,
    access: Access,
    image: Place,
    name: str | None,
    type_: str | None,
    names: tuple[str, ...],
    layouts: tuple[Path, ...],
    as_json: bool,
) -> None:
    """Show the fields of the blob NAME of IMAGE, as a manifest has them; or its UEFI variables.

    Without NAME, IMAGE is a bare binary. --type says of what: an EEPROM, or ovmf-vars or
    uefi-vars for UEFI variables; without it, the format of an EEPROM is recognised.

    What breaks the rules of its format is named on stderr, the rest is shown, and
    the exit code is 30.
    """
    declared = [blobstore.load_layout(path) for path in layouts]
    kind = codec_of(type_, declared)
    if name is None:
        if type_ in VARIABLES:
            _show_variables(blobstore.read_variables_file(image, type_), names, as_json=as_json)
            return
        kind = blobstore.type_of_file(image, declared) if kind is None else kind
        decoded = blobstore.decode_file(image, kind)
    else:
        with access.open_shared(image) as store:
            if blobstore.holds_variables(store, name, type_):
                variables = blobstore.read_variables(store, name, type_=type_)
                _show_variables(variables, names, as_json=as_json)
                return
            kind = codec_of(store.section(name).type, declared) if kind is None else kind
            decoded = blobstore.decode_section(store, name, kind)
    if names:
        raise click.UsageError("--variable is for UEFI variables")
    _print(decoded, as_json=as_json)
    _report(decoded.problems)


def _print(decoded: DecodedBlob, *, as_json: bool) -> None:
    if as_json:
        fields = {"type": decoded.type, "fields": decoded.fields}
        print_json(fields | {"problems": _plain(decoded.problems)})
    else:
        _print_toml(decoded.fields)


def _show_variables(variables: UefiVariables, names: Sequence[str], *, as_json: bool) -> None:
    if as_json:
        shown = names or tuple(f"{one.name}-{one.guid}" for one in variables)
        content: dict[str, Any] = {"variables": [variables.describe(one) for one in shown]}
        if variables.capacity is not None:
            content |= {"used": variables.used, "capacity": variables.capacity}
        print_json(content | {"problems": _plain(variables.problems)})
    else:
        named = {one: variables.describe(one)["value"] for one in names}
        _print_toml(named or {one: _short(value) for one, value in variables.fields().items()})
    _report(variables.problems)


def _short(value: Any) -> Any:
    """Cut what is long: bytes in hexadecimal, which say nothing in a list."""
    if isinstance(value, str) and len(value) > _LONG and _HEX.fullmatch(value):
        return f"{value[:_LONG]}… ({len(value) // 2} bytes)"
    return value


def _print_toml(fields: dict[str, Any]) -> None:
    import tomli_w  # noqa: PLC0415  JSON needs none

    click.echo(escaped(tomli_w.dumps(fields)), nl=False)


def _plain(problems: Iterable[Any]) -> list[dict[str, Any]]:
    return [
        {"offset": problem.offset, "rule": problem.rule, "message": problem.message}
        for problem in problems
    ]


def _report(problems: Sequence[object]) -> None:
    for problem in problems:
        click.echo(f"blobstore: {problem}", err=True)
    if problems:
        raise FormatError(f"this breaks {len(problems)} rules of its format")
