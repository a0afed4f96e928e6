"""What `blobstore vtpm` can, in the terms in which swtpm says what it can (V64, V95, V103)."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, Final

from blobstore import __version__
from blobstore.vtpm import abi
from blobstore.vtpm.libtpms import Libtpms
from formats.errors import FormatError
from formats.state.swtpm import Slot, TpmVersion

if TYPE_CHECKING:
    from collections.abc import Iterator

    from blobstore.vtpm.nvram import StoreNvram

#: swtpm's words for what of its abilities is here as well, in its order.
_FEATURES: Final = (
    "tpm-send-command-header",
    "flags-opt-startup",
    "flags-opt-disable-auto-shutdown",
    "ctrl-opt-terminate",
)
_MORE_FEATURES: Final = ("cmdarg-print-states", "cmdarg-chroot", "cmdarg-migration")
_LAST_FEATURES: Final = (
    "cmdarg-print-info",
    "tpmstate-opt-lock",
    "tpmstate-dir-backend-opt-backup",
    "tpmstate-dir-backend-opt-fsync",
    "cmdarg-pcap",
    "systemd-notify",
)
#: Those of a libtpms that has profiles.
_PROFILE_FEATURES: Final = ("cmdarg-profile", "cmdarg-print-profiles")
#: What is said only by a TPM that runs, or of the one that there is.
_OF_A_TPM: Final = abi.Info.ALGORITHMS | abi.Info.COMMANDS | abi.Info.ACTIVE_PROFILE | 0x80


def swtpm_capabilities(
    version: TpmVersion | None, *, keys: tuple[str, ...] = (), places: tuple[str, ...] = ()
) -> dict[str, Any]:
    """Return what swtpm's ``--print-capabilities`` would print.

    Args:
        version: Of the TPM that is asked about; None is a TPM 2.0.
        keys: Words for how the program around this takes keys.
        places: Words for the places of states that it knows.

    Raises:
        UnsupportedError: libtpms is not installed, or too old.
    """
    versions = [f"tpm-{found}" for found in abi.supported_versions()]
    sizes: list[str] = []
    profiles: dict[str, Any] = {}
    if version is not TpmVersion.TPM_12 and f"tpm-{TpmVersion.TPM_2}" in versions:
        sizes = list(_key_sizes())
        if abi.has_profiles(abi.loaded()):
            sizes += _PROFILE_FEATURES
            profiles = _profiles()
    return {
        "type": "swtpm",
        "features": [
            *(*versions, *_FEATURES, *keys, *_MORE_FEATURES, *places, *sizes, *_LAST_FEATURES)
        ],
        "profiles": profiles,
        "version": __version__,
    }


def swtpm_text(value: Any) -> str:
    """Return JSON with the spaces that swtpm's has, which scripts compare as text."""
    if isinstance(value, dict):
        members = ", ".join(f"{json.dumps(key)}: {swtpm_text(of)}" for key, of in value.items())
        return f"{{ {members} }}" if members else "{ }"
    if isinstance(value, list | tuple):
        # Swtpm has no spaces in the objects of a list.
        items = ", ".join(json.dumps(one) for one in value)
        return f"[ {items} ]" if items else "[]"
    return json.dumps(value)


def libtpms_info(version: TpmVersion | None, flags: int, nvram: StoreNvram | None = None) -> str:
    """Return what libtpms says of a kind of TPM, or of a TPM, as JSON (V95, V103).

    Args:
        version: Of the TPM that is asked about; None is a TPM 2.0, or that of ``nvram``.
        flags: What is asked, as the bits of `TPMLIB_GetInfo`.
        nvram: The states of a TPM, which are read and stay as they are. It is started on a
            copy of them, in this process, if flags ask for more than what all have in common.

    Raises:
        UnsupportedError: libtpms is not installed, or too old.
        FormatError, CorruptBlobError, DeviceError, PolicyError: As `StoreNvram.check`.
        ValueError: This process has a TPM already.
    """
    if nvram is not None and flags & _OF_A_TPM:
        stored = nvram.stored_version()
        nvram.check(version or stored or TpmVersion.TPM_2)
        state = nvram.load(Slot.PERMANENT)
        if stored is not None and state is not None:
            return _info_of(stored, flags, state)
    return abi.describe(version or TpmVersion.TPM_2, abi.Info(flags)).decode()


def libtpms_profiles() -> str:
    """Return the profiles that libtpms has for a TPM 2.0, as JSON (V101).

    Raises:
        UnsupportedError: libtpms is not installed, or older than its profiles.
    """
    abi.with_profiles(abi.loaded())
    return abi.describe(TpmVersion.TPM_2, abi.Info.PROFILES).decode()


class _Copy:
    """The states of a TPM that is started to be asked; what it stores is forgotten."""

    def __init__(self, permanent: bytes) -> None:
        self._states = {Slot.PERMANENT: permanent}

    def load(self, slot: Slot) -> bytes | None:
        return self._states.get(slot)

    def store(self, slot: Slot, data: bytes) -> None:
        self._states[slot] = data

    def delete(self, slot: Slot) -> None:
        self._states.pop(slot, None)


def _info_of(version: TpmVersion, flags: int, permanent: bytes) -> str:
    library = Libtpms(version, _Copy(permanent), lambda: 0)
    if result := library.start():
        said = f"libtpms does not start from this state: result {result:#x}"
        raise FormatError(said, rule="V9")
    try:
        return (library.information(flags) or b"{}").decode()
    finally:
        library.stop()


def _key_sizes() -> Iterator[str]:
    said = json.loads(abi.describe(TpmVersion.TPM_2, abi.Info.FEATURES))
    for size in said.get("TPMFeatures", {}).get("RSAKeySizes", ()):
        yield f"rsa-keysize-{size}"


def _profiles() -> dict[str, Any]:
    asked = abi.Info.PROFILES | abi.Info.ALGORITHMS | abi.Info.COMMANDS
    said = json.loads(abi.describe(TpmVersion.TPM_2, asked))
    parts = {"algorithms": "RuntimeAlgorithms", "commands": "RuntimeCommands"}
    return {
        "names": [profile["Name"] for profile in said["AvailableProfiles"]],
        **{
            part: {
                "canbedisabled": said[name]["CanBeDisabled"],
                "implemented": said[name]["Implemented"],
            }
            for part, name in parts.items()
        },
    }
