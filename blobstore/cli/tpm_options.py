"""One TPM of `blobstore serve` as one text: swtpm's options, separated by commas (V71)."""

from __future__ import annotations

import re
from typing import Any, Final

import click

from blobstore import owner

_VALUED: Final = ("ctrl", "server", "name", "flags", "locality", "migration-key")
_VERSIONS: Final = {"tpm2": "2.0", "tpm1.2": "1.2", "tpm12": "1.2"}
# Where an option begins: at the start and after a comma; its value has commas, too.
_OPTION: Final = re.compile(
    rf"(?:^|,)(?:({'|'.join(_VALUED)})=|({'|'.join(map(re.escape, _VERSIONS))})(?=,|$))"
)


def parse_tpm(text: str) -> owner.TpmFront:
    """Return the TPM that ``--tpm`` describes.

    Raises:
        ValueError: It is not one.
    """
    said: dict[str, str] = {}
    end = 0
    starts = list(_OPTION.finditer(text))
    for match, following in zip(starts, [*starts[1:], None], strict=True):
        if match.start() != end:
            break
        end = len(text) if following is None else following.start()
        key = (match[1] or "version").replace("-", "_")
        value = _VERSIONS[match[2]] if match[2] else text[match.end() : end]
        if key in said:
            raise ValueError(f"{match[1] or 'version'} is there twice")
        said[key] = value
        if match[2] and match.end() != end:
            break
    if not said or end != len(text):
        known = ", ".join((*_VALUED, *_VERSIONS))
        raise ValueError(f"a TPM is described by {known}, and what swtpm takes for these")
    return owner.TpmFront(**said)


class TpmType(click.ParamType[owner.TpmFront]):
    """An option that `parse_tpm` understands."""

    name = "tpm"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> owner.TpmFront:
        try:
            return value if isinstance(value, owner.TpmFront) else parse_tpm(str(value))
        except ValueError as error:
            self.fail(str(error), param, ctx)
