"""Types of arguments, and groups of options, that several verbs share."""

from __future__ import annotations

import functools
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import click

import blobstore

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    Command = Callable[..., Any]


class SizeType(click.ParamType[int]):
    """A number of bytes, perhaps with a unit."""

    name = "size"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        try:
            return blobstore.parse_size(value)
        except ValueError as error:
            self.fail(str(error), param, ctx)


class ImageType(click.Path):
    """Where an image lies: a path, or the text of a place on another machine (P10)."""

    def __init__(self) -> None:
        super().__init__(path_type=Path)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        try:
            place = blobstore.place_of(value)
        except ValueError as error:
            self.fail(str(error), param, ctx)
        return super().convert(value, param, ctx) if isinstance(place, Path) else place


#: An image, or a detached LUKS header, wherever it lies.
IMAGE = ImageType()


class DigestType(click.ParamType["blobstore.StateDigest"]):
    """A digest as `blobstore info` shows it."""

    name = "digest"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> blobstore.StateDigest:
        try:
            return blobstore.StateDigest.parse(value)
        except ValueError as error:
            self.fail(str(error), param, ctx)


class SettingType(click.ParamType[tuple[str, str]]):
    """The name of a field and its value, ``NAME=VALUE``."""

    name = "setting"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[str, str]:
        name, equals, text = value.partition("=")
        if not (name and equals):
            self.fail(f"{value!r} is not NAME=VALUE", param, ctx)
        return name, text


class ParsedType(click.ParamType[Any]):
    """What a function understands that raises `ValueError` otherwise."""

    def __init__(self, name: str, parse: Callable[[str], Any]) -> None:
        self.name, self._parse = name, parse

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        try:
            return self._parse(value) if isinstance(value, str) else value
        except ValueError as error:
            self.fail(str(error), param, ctx)


layout_option = click.option(
    "--layout",
    "layouts",
    type=click.Path(path_type=Path),
    multiple=True,
    metavar="FILE",
    help="A layout that declares a type of sections. Several times.",
)


def codec_of(
    type_: str | None, layouts: Sequence[blobstore.DeclaredCodec]
) -> str | blobstore.DeclaredCodec | None:
    """Return the layout that declares a type, or else the type itself."""
    return next((layout for layout in layouts if layout.name == type_), type_)


def schema_option(schema: Callable[[], Mapping[str, Any]], of: str) -> Callable[[Command], Command]:
    """Return what adds ``--schema`` to a command: it prints a JSON Schema and ends.

    Args:
        schema: Returns it.
        of: What it describes, for the help.
    """

    def print_schema(context: click.Context, _parameter: click.Parameter, value: bool) -> None:
        if value and not context.resilient_parsing:
            click.echo(json.dumps(schema(), indent=2, ensure_ascii=False))
            context.exit()

    return click.option(
        "--schema",
        is_flag=True,
        expose_value=False,
        is_eager=True,
        callback=print_schema,
        help=f"Print the JSON Schema of {of}, and end.",
    )


class Option(NamedTuple):
    """An option of a group: what it is called, and what `click.option` is told of it.

    Attributes:
        name: Such as ``--name``, or ``-n,--name``.
        attributes: Keywords of `click.option`.
    """

    name: str
    attributes: Mapping[str, Any]


def option(name: str, **attributes: Any) -> Option:
    """Return an option of a group."""
    return Option(name, attributes)


class Group(NamedTuple):
    """Options that say one thing together.

    Attributes:
        make: Makes a value of what the options say, which it gets by keyword.
        members: Keyword to an option, or to a group whose value it is; in the order of
            the help.
    """

    make: Callable[..., Any]
    members: Mapping[str, Option | Group]


def taking(parameter: str, group: Group) -> Callable[[Command], Command]:
    """Return what adds the options of a group to a command.

    Args:
        parameter: As what the command gets the value that the group makes.
        group: Its options.
    """

    def decorate(function: Command) -> Command:
        @functools.wraps(function)
        def wrapped(**arguments: Any) -> Any:
            said = {name: arguments.pop(name) for name, _ in _options(parameter, group)}
            return function(**arguments, **{parameter: _value(parameter, group, said)})

        command: Command = wrapped
        for name, (text, attributes) in reversed(list(_options(parameter, group))):
            command = click.option(*text.split(","), name, **attributes)(command)
        return command

    return decorate


def _options(prefix: str, group: Group) -> Iterator[tuple[str, Option]]:
    """Yield all options below a group, and the names by which click keeps their values."""
    for keyword, member in group.members.items():
        name = f"{prefix}_{keyword}"
        if isinstance(member, Group):
            yield from _options(name, member)
        else:
            yield name, member


def _value(prefix: str, group: Group, said: Mapping[str, Any]) -> Any:
    """Return what a group makes of what its options say."""
    values = {}
    for keyword, member in group.members.items():
        name = f"{prefix}_{keyword}"
        values[keyword] = _value(name, member, said) if isinstance(member, Group) else said[name]
    return group.make(**values)
