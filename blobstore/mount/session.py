"""A mounted directory: a thread that answers what the kernel asks (M54)."""

from __future__ import annotations

import errno
import os
import select
import threading
from typing import TYPE_CHECKING, Final

from blobstore.mount.dispatcher import Dispatcher
from formats.fuse.messages import REQUEST_SIZE
from formats.signals import Waker

if TYPE_CHECKING:
    from collections.abc import Callable

    from blobstore.mount.tree import Tree

#: What the kernel answers when a directory was unmounted: in order, or by force.
_UNMOUNTED: Final = (errno.ENODEV, errno.ECONNABORTED)


class Session:
    """A mounted directory: a thread that answers what the kernel asks."""

    def __init__(
        self, tree: Tree, descriptor: int, ended: Callable[[BaseException | None], None]
    ) -> None:
        """Begin to answer.

        Args:
            tree: The directory.
            descriptor: Of ``/dev/fuse``, mounted; this closes it.
            ended: Called in the thread when the directory was unmounted, with what ended the
                thread if something else did. Not after `stop`.
        """
        self._dispatcher = Dispatcher(tree)
        self._descriptor = descriptor
        self._ended = ended
        self._waker = Waker()
        self._stopping = False
        os.set_blocking(descriptor, False)
        self._thread = threading.Thread(target=self._run, name="blobstore mount", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Answer no more; programs that have files open get errors from then on."""
        self._stopping = True
        self._waker.wake()
        if threading.current_thread() is not self._thread:
            self._thread.join()

    def _run(self) -> None:
        failed: BaseException | None = None
        try:
            self._serve()
        except BaseException as error:  # noqa: BLE001  the main thread raises it
            failed = error
        finally:
            os.close(self._descriptor)
            self._dispatcher.close()
            self._waker.close()
        if not self._stopping or failed is not None:
            self._ended(failed)

    def _serve(self) -> None:
        poll = select.poll()
        poll.register(self._descriptor, select.POLLIN)
        poll.register(self._waker, select.POLLIN)
        buffer = bytearray(REQUEST_SIZE)
        view = memoryview(buffer)
        while not self._stopping:
            try:
                size = os.readv(self._descriptor, [buffer])
            except BlockingIOError:
                poll.poll()
                continue
            except OSError as error:
                if error.errno in _UNMOUNTED:
                    return
                if error.errno in (errno.ENOENT, errno.EINTR):  # the request was withdrawn
                    continue
                raise
            reply = self._dispatcher.answer(view[:size])
            if reply is not None:
                self._reply(reply)

    def _reply(self, reply: bytes) -> None:
        try:
            os.write(self._descriptor, reply)
        except OSError as error:
            # The program does not wait any more, or the directory was unmounted.
            if error.errno not in (errno.ENOENT, *_UNMOUNTED):
                raise
