"""What an open store consists of, and what each of its methods asks before it begins."""

from __future__ import annotations

from abc import abstractmethod
from contextlib import ExitStack
from typing import TYPE_CHECKING, Self, TypeVar

from blobstore.container.durable import interrupt_first
from blobstore.container.open_container import is_settled, open_container
from blobstore.store.lookup import Lookup
from formats.errors import (
    DeviceBusyError,
    ForkedProcessError,
    ReadOnlyError,
    StorageError,
    UnsupportedError,
)
from formats.logs import LateLogger
from formats.process import Owned, OwnedLock, Owner

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import TracebackType

    from blobstore.container.open_container import OpenContainer
    from blobstore.image.image import Image, ImageLock
    from blobstore.image.layers import Layers
    from blobstore.store.news import News
    from blobstore.store.transaction import Transaction
    from formats.container.model import ContainerHeader
    from formats.devices.device import Device

_log = LateLogger(__name__)

_Result = TypeVar("_Result")


def _no_block() -> object:
    return None


class Closing(Owned):
    """Base of what the end of a ``with`` block closes. An interrupt that ends it goes on."""

    @abstractmethod
    def close(self) -> None: ...

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        with interrupt_first(error):
            self.close()


class Session:
    """The state of one `blobstore.Store`, which all its methods share.

    Attributes:
        lookup: Finds the sections in the open container; knows the open windows. Another
            one after a repair, when the image was taken over, and whenever it is read again.
        lock: Guards all of this between threads, and refuses children of a fork (C64).
        image: What the container lies in, if it is known.
        image_lock: The lock that `Store.release` and `Store.take_over` deal with, if any.
        layers: What is open of the image, if it is known.
        read_only: Whether writing is refused for good.
        released: Whether it is refused until the image is taken over.
        unlocked: Whether others may write to the image, so that it has to hold still
            while it is read (C66).
        require_protection: Refuses the header of a container that is less protected than
            the store's user has reason to believe (C25).
        resources: Closed with the store.
        closed: Whether the store was closed.
        news: Wakes those who wait for commits; None if no one ever did.
        out_of_step: Whether the image may have been set back without memory having followed.
        header_lock: Held by the thread that changes a LUKS header in the disk.
        header_writes: How often this process wrote to such a header.
    """

    lookup: Lookup

    def __init__(
        self,
        container: OpenContainer,
        image: Image | None,
        *,
        image_lock: ImageLock | None,
        layers: Layers | None,
        read_only: bool,
        released: bool,
        unlocked: bool,
        require_protection: Callable[[ContainerHeader], None],
        resources: ExitStack,
    ) -> None:
        self.lock: OwnedLock = OwnedLock(Owner("the store"))
        self.news: News | None = None
        self.use(container)
        self.image = image
        self.image_lock = image_lock
        self.layers = layers
        self.read_only = read_only
        self.released = released
        self.unlocked = unlocked
        self.require_protection = require_protection
        self.resources = resources
        self.closed: bool = False
        self.out_of_step = False
        self.header_lock = OwnedLock(self.lock.owner)
        self.header_writes = 0
        self.transaction: Transaction | None = None
        self.transaction_block: Callable[[], object] = _no_block
        self._at_one_moment = False

    @property
    def container(self) -> OpenContainer:
        """The open container: that of ``lookup``, so that they never differ (C63)."""
        return self.lookup.container

    def use(self, container: OpenContainer, windows: dict[str, Device] | None = None) -> None:
        """Serve this container from now on; no windows are open but these."""
        if self.news is not None:
            self.news.follow(container)
        self.lookup = Lookup(container, windows)

    # ------------------------------------------------------ what methods ask

    def require_open(self) -> None:
        """Refuse a store that was closed, and finish a step that was cut short (C63)."""
        if self.closed:
            raise ValueError("this store was closed")
        if self.out_of_step:
            self.follow_image()
        self.container.writer.settle()

    def follow_image(self) -> None:
        """Take the store as the image has it now, where a snapshot was being applied.

        Raises:
            PolicyError: It is less protected than it should be.
            StorageError: It cannot be read, or put in order; the next call tries again.
        """
        from blobstore.container.protection import finish_change  # noqa: PLC0415  hardly ever needed
        from blobstore.container.recovery import recover  # noqa: PLC0415  likewise

        known = self.container
        if self.layers is not None and self.layers.volume is not None:
            self.layers.volume.follow_image()
        if not self.read_only and known.writable:
            finish_change(known.device)
        container = open_container(known.device, allow_damaged=known.allow_damaged)
        self.require_protection(container.header)
        if container.writable:
            recover(container)
        self.use(container)
        self.out_of_step = False

    def require_writable(self) -> None:
        """Refuse to write to a store that must not be written now.

        Raises:
            ValueError: It was closed, or a transaction is under way in this thread.
            ReadOnlyError, UnsupportedError: It must not be written at all.
        """
        self.require_open()
        if self.transaction is not None and self._is_in_transaction():
            raise ValueError("a transaction is under way: make changes through it")
        if self.released:
            raise ReadOnlyError("the image was released: take it over before writing")
        if self.read_only:
            raise ReadOnlyError("the store is open for reading only")
        if not self.container.writable:
            raise UnsupportedError(
                "the container has features without which it must not be written [C15]",
                feature="unknown read-only-compatible features",
            )

    def require_still(self) -> None:
        """Refuse what needs an image that is encrypted in one way, while that is changed (O215).

        Raises:
            DeviceBusyError: It is being re-encrypted, encrypted or decrypted here.
        """
        if self.layers is not None and self.layers.moving is not None:
            raise DeviceBusyError(
                "the image is being re-encrypted by this process [O215]",
                hint="try again when that is finished",
            )

    def require_alone(self) -> None:
        """Refuse to rearrange a store that must not be written, or has open windows."""
        self.require_writable()
        self.require_no_windows()

    def require_no_windows(self) -> None:
        if self.lookup.windows:
            raise ValueError("close the windows of the store first")

    def _is_in_transaction(self) -> bool:
        """Say whether a transaction is under way in this thread.

        Others wait for the lock. One that an interrupt cut off before it could
        say that it has ended is over when its block is gone.
        """
        transaction = self.transaction
        return bool(transaction and not transaction.ended and self.transaction_block())

    # --------------------------------------------------------- reading again

    def at_one_moment(
        self, read: Callable[[], _Result], settled: Callable[[_Result], bool] = lambda _: True
    ) -> _Result:
        """Return what ``read`` returns; as `Store.at_one_moment`."""
        with self.lock:
            self.require_open()
            if not self.unlocked or self.image_lock is None or self._at_one_moment:
                return read()
            self._at_one_moment = True
            try:
                result = read()
                if settled(result):
                    return result
            except ForkedProcessError:
                raise
            except StorageError as error:
                _log.debug("read again because it may be changing: %s", error)
            finally:
                self._at_one_moment = False
            return self._read_anew(self.image_lock, read, settled)

    def _read_anew(
        self, image: ImageLock, read: Callable[[], _Result], settled: Callable[[_Result], bool]
    ) -> _Result:
        def attempt() -> tuple[OpenContainer, _Result]:
            known, windows = self.container, self.lookup.windows
            container = open_container(known.device, allow_damaged=known.allow_damaged)
            self.use(container, windows)
            return container, read()

        self._at_one_moment = True
        try:
            _, result = image.read_anew(
                attempt, lambda found: is_settled(found[0]) and settled(found[1])
            )
        finally:
            self._at_one_moment = False
        return result

    # ---------------------------------------------------------------- end

    def close(self) -> None:
        """Close all windows, record that everything is durable, let go of the image."""
        if self.lock.owner.is_other:
            return  # all this is the parent's to do
        with self.lock:
            try:
                if not self.closed:
                    if self.transaction is not None:
                        self.transaction.abandon()
                    with ExitStack() as ending:
                        ending.callback(self._record_durable)
                        for window in list(self.lookup.windows.values()):
                            ending.callback(window.close)
            finally:
                self.closed = True
                if self.news is not None:
                    self.news.tell()
                self.resources.close()

    def _record_durable(self) -> None:
        unknown = self.released or self.out_of_step
        if not (self.read_only or unknown) and self.container.writable:
            from blobstore.container.recovery import close  # noqa: PLC0415  a get does not need it

            close(self.container)
