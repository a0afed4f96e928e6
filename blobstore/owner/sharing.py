"""Owning an image beside another task: the store at the image's entry (O3, V79)."""

from __future__ import annotations

import threading
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Final

from blobstore.image.place import entry_of
from blobstore.owner.listening import listening
from blobstore.owner.server import OwnerServer
from formats.errors import StorageError
from formats.logs import LateLogger
from luks.errors import PolicyError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from blobstore.owner.connection import Limits
    from blobstore.owner.owner import Owner
    from blobstore.vtpm.tpm import Tpm

_log = LateLogger(__name__)

#: Seconds that clients have to take their last replies (V59, V79).
_GRACE: Final = 2.0


class Sharing:
    """Serves what a process owns, in threads, at the entry of its image.

    If the entry cannot be made, that is logged, and nothing is served. `start` and `stop`
    may be called again and again, by any thread, one at a time.
    """

    def __init__(self, owner: Owner, *, limits: Limits | None = None) -> None:
        """Be ready to start.

        Args:
            owner: Its store is open, and its image locked, from `start` to `stop`.
            limits: What clients may ask for.
        """
        self._owner, self._limits = owner, limits
        self._serving = ExitStack()

    def start(self) -> None:
        """Serve from now on."""
        image = self._owner.image
        self.stop()
        if entry_of(image) is None:
            _log.info("%s has no entry: there is no runtime directory [O2]", image)
            return
        with ExitStack() as serving:
            try:
                listener = serving.enter_context(listening(image))
            except StorageError as error:
                _log.warning("%s has no entry, and others cannot find it: %s", image, error)
                return
            server = OwnerServer(self._owner, listener, limits=self._limits, grace=_GRACE)
            serving.callback(server.close)
            thread = threading.Thread(target=self._run, args=(server,), name="owner", daemon=True)
            thread.start()
            serving.callback(thread.join)
            serving.callback(server.stop)
            self._serving = serving.pop_all()

    def _run(self, server: OwnerServer) -> None:
        try:
            server.run()
        except StorageError as error:
            _log.error("what clients wrote to windows is not in the image: %s", error)

    def stop(self) -> None:
        """Remove the entry, after the requests that were received; twice is fine."""
        self._serving.close()


class OnlyTpm:
    """The TPM of `blobstore vtpm` as a front: it gives the image up by itself (V41)."""

    def __init__(self, tpm: Tpm) -> None:
        """Be the front of a TPM in this process."""
        self._tpm = tpm

    @property
    def reserved(self) -> Mapping[str, str]:
        """Names of its sections (V80)."""
        return self._tpm.reserved

    @contextmanager
    def at_rest(self) -> Iterator[None]:
        """Keep it between two commands in the block (V78)."""
        with self._tpm.at_rest():
            yield

    def suspend(self, *, waiting: bool) -> None:
        """Refuse: that is for the TPM's own channel to say.

        Raises:
            PolicyError: Always.
        """
        del waiting
        raise PolicyError(
            "the image belongs to a TPM, which gives it up when its state was fetched [V41]",
            hint="migrate the machine, or serve the image with blobstore serve --tpm",
        )

    def resume(self) -> None:
        """Do nothing: it never let go."""
