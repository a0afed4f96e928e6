"""One TPM of `blobstore serve` as one text: swtpm's options, separated by commas (V71)."""

from __future__ import annotations

import re
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Final

import click

from blobstore import owner, vtpm
from blobstore.cli import swtpm_options as options
from blobstore.cli.state_key import KeyType, NamedKey

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

_VALUED: Final = ("ctrl", "server", "name", "flags", "locality", "migration-key")
_VERSIONS: Final = {
    "tpm2": vtpm.TpmVersion.TPM_2,
    "tpm1.2": vtpm.TpmVersion.TPM_12,
    "tpm12": vtpm.TpmVersion.TPM_12,
}
# Where an option begins: at the start and after a comma; its value has commas, too.
_OPTION: Final = re.compile(
    rf"(?:^|,)(?:({'|'.join(_VALUED)})=|({'|'.join(map(re.escape, _VERSIONS))})(?=,|$))"
)


@dataclass(frozen=True)
class NamedTpm:
    """A TPM as it was asked for; where its key is, and not yet the key itself."""

    options: owner.TpmOptions
    migration_key: NamedKey | None = None


def parse_tpm(text: str) -> NamedTpm:
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
        key, value = match[1] or "version", match[2] or text[match.end() : end]
        if key in said:
            raise ValueError(f"{key} is there twice")
        said[key] = value
        if match[2] and match.end() != end:
            break
    if not said or end != len(text):
        known = ", ".join((*_VALUED, *_VERSIONS))
        raise ValueError(f"a TPM is described by {known}, and what swtpm takes for these")
    return _tpm(said)


def _tpm(said: dict[str, str]) -> NamedTpm:
    flags = options.parse_flags(said["flags"]) if "flags" in said else options.Flags()
    locality = options.parse_locality(said["locality"]) if "locality" in said else set()
    key = said.get("migration-key")
    behaviour = vtpm.Behaviour(
        reject_locality_4="reject-locality-4" in locality,
        allow_set_locality="allow-set-locality" in locality,
        auto_shutdown=flags.auto_shutdown,
    )
    made = owner.TpmOptions(
        name=said.get("name", "tpm"),
        ctrl=options.parse_control(said["ctrl"]) if "ctrl" in said else None,
        data=options.parse_server(said["server"]) if "server" in said else None,
        version=_VERSIONS[said["version"]] if "version" in said else None,
        behaviour=behaviour,
        needs_init=flags.needs_init,
        startup=flags.startup,
    )
    return NamedTpm(made, None if key is None else KeyType().convert(key, None, None))


class TpmType(click.ParamType[NamedTpm]):
    """An option that `parse_tpm` understands."""

    name = "tpm"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> NamedTpm:
        try:
            return value if isinstance(value, NamedTpm) else parse_tpm(str(value))
        except ValueError as error:
            self.fail(str(error), param, ctx)


@contextmanager
def with_keys(tpms: Iterable[NamedTpm]) -> Iterator[list[owner.TpmOptions]]:
    """Yield the TPMs with their keys, which are wiped at the end."""
    with ExitStack() as keys:
        yield [
            one.options
            if one.migration_key is None
            else replace(
                one.options,
                behaviour=replace(
                    one.options.behaviour,
                    migration_key=keys.enter_context(one.migration_key.read()),
                ),
            )
            for one in tpms
        ]
