"""A mounted directory: a thread that answers what the kernel asks (M54)."""

from __future__ import annotations

import errno
import os
import select
import threading
from typing import TYPE_CHECKING, Final

from formats.fuse.messages import REQUEST_SIZE
from formats.signals import Waker

if TYPE_CHECKING:
    from collections.abc import Callable

    from blobstore.mount.dispatcher import Dispatcher

#: What the kernel answers when a directory was unmounted: in order, or by force.
_UNMOUNTED: Final = (errno.ENODEV, errno.ECONNABORTED)


class Session:
    """A mounted directory: a thread that answers what the kernel asks.

    Attributes:
        dispatcher: What answers.
        descriptor: Of ``/dev/fuse``.
        is_over: Whether it was unmounted, or is another process's.
    """

    def __init__(
        self,
        dispatcher: Dispatcher,
        descriptor: int,
        ended: Callable[[BaseException | None], None],
    ) -> None:
        """Have a directory that is answered from `go_on` on.

        Args:
            dispatcher: What answers.
            descriptor: Of ``/dev/fuse``, mounted; this closes it.
            ended: Called in the thread when the directory was unmounted, with what ended the
                thread if something else did. Not after `stop`, `pause` or `leave`.
        """
        self.dispatcher = dispatcher
        self.descriptor = descriptor
        self._ended = ended
        self._waker = Waker()
        self._pausing = False
        self.is_over = False
        os.set_blocking(descriptor, False)
        self._thread: threading.Thread | None = None

    def go_on(self) -> None:
        """Begin to answer, at first or after `pause`."""
        if self._thread is None and not self.is_over:
            self._waker.clear()
            self._pausing = False
            self._thread = threading.Thread(target=self._run, name="blobstore mount", daemon=True)
            self._thread.start()

    def pause(self) -> None:
        """Answer no more after the request in progress: the kernel keeps the others (M60)."""
        self._pausing = True
        self._waker.wake()
        if self._thread is not None and threading.current_thread() is not self._thread:
            self._thread.join()
            self._thread = None

    def stop(self) -> None:
        """Answer no more; programs that have files open get errors from then on."""
        self.pause()
        if threading.current_thread() is not self._thread:
            self._close()

    def leave(self) -> None:
        """Let go, after `pause`, of what another process answers from now on."""
        self.is_over = True
        os.close(self.descriptor)
        self._waker.close()

    def _close(self) -> None:
        if not self.is_over:
            self.leave()
            self.dispatcher.close()

    def _run(self) -> None:
        failed: BaseException | None = None
        try:
            self._serve()
        except BaseException as error:  # noqa: BLE001  the main thread raises it
            failed = error
        if not self._pausing or failed is not None:
            self._close()
            self._ended(failed)

    def _serve(self) -> None:
        poll = select.poll()
        poll.register(self.descriptor, select.POLLIN)
        poll.register(self._waker, select.POLLIN)
        buffer = bytearray(REQUEST_SIZE)
        view = memoryview(buffer)
        while not self._pausing:
            try:
                size = os.readv(self.descriptor, [buffer])
            except BlockingIOError:
                poll.poll()
                continue
            except OSError as error:
                if error.errno in _UNMOUNTED:
                    return
                if error.errno in (errno.ENOENT, errno.EINTR):  # the request was withdrawn
                    continue
                raise
            reply = self.dispatcher.answer(view[:size])
            if reply is not None:
                self._reply(reply)

    def _reply(self, reply: bytes) -> None:
        try:
            os.write(self.descriptor, reply)
        except OSError as error:
            # The program does not wait any more, or the directory was unmounted.
            if error.errno not in (errno.ENOENT, *_UNMOUNTED):
                raise
