"""Types of arguments and options that several verbs share."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from blobstore import Digest


class SizeType(click.ParamType[int]):
    """A number of bytes, perhaps with a unit."""

    name = "size"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        from blobstore.manifests.sizes import parse_size  # noqa: PLC0415  most verbs take none

        try:
            return parse_size(value)
        except ValueError as error:
            self.fail(str(error), param, ctx)


class DigestType(click.ParamType["Digest"]):
    """A digest as `blobstore info` shows it."""

    name = "digest"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> Digest:
        from blobstore import Digest  # noqa: PLC0415  rarely used

        try:
            return Digest.parse(value)
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
