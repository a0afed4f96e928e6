"""What a front is: an entry of the configuration, and what runs because of it (O124).

To add one, write a module with a frozen `msgspec.Struct` that satisfies `FrontConfig`,
whose fields are the keys of its table, and list it in `ServeConfig` (`config`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, Final, Protocol, runtime_checkable

import msgspec

from blobstore.owner.owner import Front
from blobstore.sockets.addresses import UnixAddress, parse_address
from formats.errors import ArgumentError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from blobstore.image.place import Place
    from blobstore.owner.owner import Owner
    from blobstore.sockets.addresses import Address
    from blobstore.sockets.listening import Listener

#: What a mode of a socket can be.
ANY_MODE: Final = 0o777
#: Private to the user of the process (O5).
DEFAULT_MODE: Final = 0o600

Mode = Annotated[int, msgspec.Meta(ge=0, le=ANY_MODE)]


class RunningFront(Front, Protocol):
    """What runs because of an entry. It is known to its owner while it runs."""

    def stop(self) -> None:
        """End its connections after the requests in progress; not the listening sockets.

        It takes a bounded time, whatever clients do. If it waits (`suspend`), they are not
        answered.
        """


class Passed(msgspec.Struct):
    """A front whose devices run, on its way from one owner to the next (O150).

    Attributes:
        front: Its name.
        kind: What the other attributes are, with a version (`PassingConfig.kind`).
        said: What the next owner has to know of it.
        descriptors: What the devices are reached by.
    """

    front: str
    kind: str
    said: dict[str, Any]
    descriptors: list[int]


@runtime_checkable
class PassingFront(RunningFront, Protocol):
    """A front whose devices may run on under the next owner."""

    def pass_on(self) -> Passed | None:
        """Return what the next owner goes on with, after `suspend`; None if there is nothing.

        Descriptors stay this process's. From then on `stop` leaves the devices to the other
        process, unless `resume` comes before.
        """

    def withhold(self) -> None:
        """Have the devices end with this process: the next owner does not go on with them.

        Called in place of `pass_on`, or after it; `resume` may still come.
        """


@runtime_checkable
class RereadingFront(RunningFront, Protocol):
    """A front that uses files which its entry names, such as certificates."""

    def reread(self) -> Callable[[], None]:
        """Read them again; return what has them used from then on.

        Raises:
            StorageError: They cannot be read, or used; nothing changed.
        """


class FrontConfig(Protocol):
    """An entry of the configuration: frozen, and equal to one that says the same."""

    @property
    def name(self) -> str:
        """What it is called: in messages, and by systemd if it has one socket only."""

    @property
    def socket_names(self) -> tuple[str, ...]:
        """What `sockets` and systemd call its sockets; no two fronts have one such name."""

    def sockets(self, image: Place) -> Mapping[str, Address | None]:
        """Return what is listened at, by the names that systemd may give descriptors.

        None says that a descriptor has to be given.

        Args:
            image: Place of the image.

        Raises:
            DeviceError: It cannot be listened there.
        """

    def start(self, owner: Owner, listeners: Mapping[str, Listener]) -> RunningFront:
        """Serve on these sockets, which stay the caller's, and call `Owner.add`.

        Raises:
            StorageError: It cannot be started; nothing of it runs.
        """


@runtime_checkable
class PassingConfig(FrontConfig, Protocol):
    """An entry whose devices may run on under the next owner."""

    @property
    def kind(self) -> str:
        """Say what is passed on, and in which version: another one is not understood."""

    def start_passed(
        self, owner: Owner, listeners: Mapping[str, Listener], passed: Passed
    ) -> RunningFront | None:
        """Go on with what another process passed on, from `resume` on; else like `start`.

        Args:
            owner: As for `start`.
            listeners: Likewise; all of them are those that the other process had.
            passed: What it passed on. Its descriptors are taken, if this goes on with it.

        Returns:
            None if it is not what this entry says.

        Raises:
            StorageError: As `start`; the devices stay with the other process.
        """


def socket_address(text: str, mode: int, group: str | int | None, what: str) -> Address:
    """Return the address of a socket, as an entry describes it.

    Args:
        text: A path, or ``HOST:PORT``.
        mode: Of the file of a Unix socket.
        group: Name or number of its group; None leaves that as it is.
        what: The key, for messages.

    Raises:
        ArgumentError: It does not describe one.
    """
    if not 0 <= mode <= ANY_MODE:
        raise ArgumentError(f"mode must be 0 to 0o777, not {mode:#o}")
    address = parse_address(text)
    if not isinstance(address, UnixAddress):
        if (mode, group) != (DEFAULT_MODE, None):
            raise ArgumentError(f"{what} is a port, which has neither mode nor group")
        return address
    return UnixAddress(address.path, mode, group=-1 if group is None else _group(group))


def _group(group: str | int) -> int:
    """Return the number of a group."""
    import grp  # noqa: PLC0415  absent on Windows

    if isinstance(group, int) or group.isdecimal():
        return int(group)
    try:
        return grp.getgrnam(group).gr_gid
    except KeyError as error:
        raise ArgumentError(f"there is no group {group!r}") from error
