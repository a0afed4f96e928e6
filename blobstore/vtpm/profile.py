"""Profiles of a new TPM 2.0: which algorithms and commands it has (V100 to V102).

libtpms has them since 0.10, and decides what they mean; here is only where one comes from.
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from formats.errors import ArgumentError, device_error
from formats.state.swtpm import TpmVersion
from luks import PolicyError

if TYPE_CHECKING:
    from pathlib import Path

#: Bytes of the longest profile that is read; libtpms's own have less than 2000.
_MAX_SIZE: Final = 64 << 10


@dataclass(frozen=True, slots=True, kw_only=True)
class ProfileSource:
    """Where the profile of a new TPM is, of ``--profile``. One of these is given.

    Attributes:
        text: The profile itself, in libtpms's JSON.
        file: A file with it.
        descriptor: A descriptor to read it from, which is closed then.
    """

    text: str | None = None
    file: Path | None = None
    descriptor: int | None = None

    @classmethod
    def named(cls, name: str) -> ProfileSource:
        """Return one of libtpms's own."""
        return cls(text=json.dumps({"Name": name}))

    def read(self) -> str:
        """Return the profile, without white space around it.

        Raises:
            DeviceError: It cannot be read.
            ArgumentError: It is too long, or not a text.
        """
        if self.text is not None:
            return self.text.strip()
        where: Path | int | None = self.file if self.descriptor is None else self.descriptor
        if where is None:
            raise ArgumentError("a profile is a text, a file or a descriptor")
        try:
            with open(where, "rb") as file:  # noqa: PTH123  may be a descriptor
                content = file.read(_MAX_SIZE + 1)
        except OSError as error:
            place = os.fspath(where) if not isinstance(where, int) else f"descriptor {where}"
            raise device_error(error, f"cannot read the profile in {place}") from error
        if len(content) > _MAX_SIZE or b"\0" in content:
            raise ArgumentError(f"a profile is a text of at most {_MAX_SIZE} bytes [V100]")
        try:
            return content.decode().strip()
        except UnicodeDecodeError as error:
            raise ArgumentError("the profile is not UTF-8 [V100]") from error


def require_new(version: TpmVersion, existing: TpmVersion | None) -> None:
    """Refuse to choose a profile, unless a TPM 2.0 is to be made.

    Args:
        version: Of the TPM that is to run.
        existing: Of the TPM that there is.

    Raises:
        PolicyError: There is one.
        ArgumentError: It is a TPM 1.2.
    """
    if version is not TpmVersion.TPM_2:
        raise ArgumentError(f"a TPM {version} has no profile [V100]")
    if existing is not None:
        raise PolicyError(
            "the image has a TPM, and a profile is chosen when one is made [V100]",
            hint="leave --profile out",
        )


def profile_refused() -> ArgumentError:
    """Return the error for a profile that libtpms does not take."""
    return ArgumentError(
        "libtpms refuses the profile of the TPM: --print-profiles shows those that there are, and "
        "--log level=5 says what is wrong [V100]"
    )
