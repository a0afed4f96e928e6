"""A lock among the processes of one machine, for exports of NBD, which have none (P17)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from formats.devices.file import FileDevice
from formats.errors import DeviceBusyError, DeviceError
from formats.logs import LateLogger

if TYPE_CHECKING:
    from pathlib import Path

_log = LateLogger(__name__)


class HostLock:
    """The lock of an empty file that stands for an export."""

    def __init__(self, path: Path | None) -> None:
        """Use the file at ``path``, in the runtime directory (O2); None locks nothing."""
        self._path = path
        self._held: FileDevice | None = None

    def acquire(self, what: str) -> None:
        """Take it, if it is not held already.

        Args:
            what: What it stands for, for messages.

        Raises:
            DeviceBusyError: Another process of this machine holds it.
        """
        if self._path is None or self._held is not None:
            return
        from blobstore.image.owners import make_runtime_directory  # noqa: PLC0415  not to read

        try:
            make_runtime_directory(self._path.parent)
            self._path.touch(0o600)
            self._held = FileDevice(self._path, read_only=False)
        except DeviceBusyError:
            raise DeviceBusyError(
                f"{what} is in use: another process of this machine writes to it [P17]"
            ) from None
        except (OSError, DeviceError) as error:
            _log.warning("nothing keeps other processes of this machine from %s: %s", what, error)

    def release(self) -> None:
        """Give it up. No error if it is not held."""
        held, self._held = self._held, None
        if held is not None:
            held.close()
