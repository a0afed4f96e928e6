"""What `blobstore vtpm` can, in the terms in which swtpm says what it can (V64, V95)."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, Final

from blobstore import __version__
from blobstore.vtpm import abi
from formats.state.swtpm import TpmVersion

if TYPE_CHECKING:
    from collections.abc import Iterator

#: swtpm's words for what of its abilities is here as well.
_FEATURES: Final = (
    "tpm-send-command-header",
    "flags-opt-startup",
    "flags-opt-disable-auto-shutdown",
    "ctrl-opt-terminate",
    "cmdarg-migration",
    "cmdarg-print-states",
)


def swtpm_capabilities(version: TpmVersion | None, *more: str) -> dict[str, Any]:
    """Return what swtpm's ``--print-capabilities`` would print.

    Args:
        version: Of the TPM that is asked about; None is a TPM 2.0.
        more: Words for what the program around this can.

    Raises:
        UnsupportedError: libtpms is not installed, or too old.
    """
    versions = [f"tpm-{found}" for found in abi.supported_versions()]
    sizes: list[str] = []
    if version is not TpmVersion.TPM_12 and f"tpm-{TpmVersion.TPM_2}" in versions:
        sizes = list(_key_sizes())
    return {
        "type": "swtpm",
        "features": [*versions, *_FEATURES, *more, *sizes],
        "version": __version__,
    }


def libtpms_info(version: TpmVersion | None, flags: int) -> str:
    """Return what libtpms says of a kind of TPM, as JSON (V95).

    Args:
        version: Of the TPM that is asked about; None is a TPM 2.0.
        flags: What is asked, as the bits of `TPMLIB_GetInfo`.

    Raises:
        UnsupportedError: libtpms is not installed, or too old.
    """
    return abi.describe(version or TpmVersion.TPM_2, abi.Info(flags)).decode()


def _key_sizes() -> Iterator[str]:
    said = json.loads(abi.describe(TpmVersion.TPM_2, abi.Info.FEATURES))
    for size in said.get("TPMFeatures", {}).get("RSAKeySizes", ()):
        yield f"rsa-keysize-{size}"
