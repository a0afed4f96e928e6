"""The key of encrypted TPM state on the command line, spelled as swtpm's ``--key``."""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from blobstore import StateKey
from luks import Secret

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

_SOURCES = ("file", "fd", "pwdfile", "pwdfd")


@dataclass(frozen=True)
class NamedKey:
    """Where a key is, and what is made of it; the key itself is never in it.

    Attributes:
        place: File name or descriptor.
        is_descriptor: Which of the two.
        source: As in `StateKey`.
        mode: As in `StateKey`.
    """

    place: str
    is_descriptor: bool
    source: str
    mode: str | None

    def _secret(self) -> Secret:
        if self.is_descriptor:
            return Secret.from_fd(int(self.place))
        return Secret.from_file(Path(self.place))

    @contextmanager
    def read(self) -> Iterator[StateKey]:
        """Yield the key; its secret is wiped at the end."""
        with self._secret() as secret:
            yield StateKey(secret, self.source, self.mode)


@contextmanager
def state_key(named: NamedKey | None) -> Iterator[StateKey | None]:
    """Yield the key that is named, or None."""
    if named is None:
        yield None
        return
    with named.read() as key:
        yield key


class KeyType(click.ParamType[NamedKey]):
    """``file=FILE[,mode=MODE][,format=FORMAT]`` or ``pwdfile=FILE[,mode=MODE][,kdf=KDF]``."""

    name = "swtpm-key"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> NamedKey:
        options: dict[str, str] = {}
        for part in str(value).split(","):
            key, separator, text = part.partition("=")
            if not separator or not text or key in options:
                self.fail(f"{part!r} is not what swtpm's --key takes", param, ctx)
            options[key] = text
        sources = [key for key in _SOURCES if key in options]
        if len(sources) != 1:
            self.fail(f"name one of {', '.join(_SOURCES)}", param, ctx)
        source, place = sources[0], options.pop(sources[0])
        is_descriptor = source.endswith("fd")
        if is_descriptor and not place.isdecimal():
            self.fail(f"{place!r} is not a file descriptor", param, ctx)
        mode = options.pop("mode", None)
        if source.startswith("pwd"):
            made_of, known = options.pop("kdf", StateKey.DERIVATIONS[0]), StateKey.DERIVATIONS
        else:
            made_of, known = options.pop("format", StateKey.FORMATS[0]), StateKey.FORMATS
        if made_of not in known:
            self.fail(f"{made_of!r} is not one of {', '.join(known)}", param, ctx)
        if mode is not None and mode not in StateKey.MODES:
            self.fail(f"{mode!r} is not one of {', '.join(StateKey.MODES)}", param, ctx)
        if options:
            self.fail(f"{', '.join(options)} does not go with {source}", param, ctx)
        return NamedKey(place, is_descriptor, made_of, mode)


def swtpm_key_option(function: Callable[..., Any]) -> Callable[..., Any]:
    """Add the option ``--swtpm-key``; the function gets it as ``swtpm_key``."""
    option = click.option(
        "--swtpm-key",
        type=KeyType(),
        metavar="SPEC",
        help="Key of encrypted TPM state, as swtpm's --key takes it: "
        "file=FILE[,format=hex|binary] or pwdfile=FILE[,kdf=pbkdf2|sha512], and "
        "[,mode=aes-cbc|aes-256-cbc]; fd and pwdfd for descriptors.",
    )
    return option(function)
