"""What makes a program a service: its log, its user, its process id (V61 to V63)."""

from __future__ import annotations

import os
import sys
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Final, NamedTuple

from blobstore.cli.types import Group, ParsedType, option, taking
from blobstore.vtpm import swtpm_options
from formats.errors import DeviceError, device_error
from formats.logs import configure_with

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pwd import struct_passwd

    from blobstore.vtpm.swtpm_options import LogOptions

# As in `logging`: errors, warnings, what happens; then requests.
_LEVELS: Final = (40, 30, 20, 10)
STDERR: Final = 2
#: From this level of swtpm's on, libtpms logs, too.
_LIBTPMS_LEVEL: Final = 5


def set_up_log(options: LogOptions) -> None:
    """Let the log go where ``--log`` says, and nowhere else.

    Raises:
        DeviceError: The file cannot be opened, or the descriptor not written to.
    """
    import logging  # noqa: PLC0415, TID251  only if there is something to set up

    from formats.patient_log import PatientHandler  # noqa: PLC0415  likewise

    # A full log must not stop a TPM, nor print tracebacks.
    logging.raiseExceptions = False
    root = logging.getLogger()
    if options.silent:
        handler: logging.Handler = logging.NullHandler()
    elif options.file is not None:
        how = os.O_WRONLY | os.O_CREAT | os.O_APPEND | (os.O_TRUNC if options.truncate else 0)
        try:
            handler = PatientHandler(os.open(options.file, how, 0o666))
        except OSError as error:
            raise device_error(error, f"cannot open log {options.file}") from error
    elif options.descriptor is not None:
        try:
            os.fstat(options.descriptor)
        except OSError as error:
            place = f"descriptor {options.descriptor}"
            raise DeviceError(f"cannot log to {place}: {error.strerror}") from error
        handler = PatientHandler(options.descriptor)
    else:
        handler = PatientHandler(STDERR)
    handler.setFormatter(logging.Formatter(f"{options.prefix}blobstore: %(message)s"))
    root.handlers[:] = [handler]
    level = options.level
    root.setLevel(_LEVELS[min(level, len(_LEVELS) - 1)])
    if level >= _LIBTPMS_LEVEL and isinstance(handler, PatientHandler):
        from blobstore.vtpm import log_libtpms  # noqa: PLC0415  only for its log

        log_libtpms(handler.fileno(), level - _LIBTPMS_LEVEL + 1, options.prefix)


def log_to(run: RunOptions, *, quiet: bool) -> None:
    """Let the log of a service go where ``--log`` says; else to stderr, with what happens (O5).

    Raises:
        DeviceError: As `set_up_log`.
    """
    if run.log is not None:
        set_up_log(run.log)
    else:
        configure_with(lambda: _configure(quiet=quiet))


def _configure(*, quiet: bool) -> None:
    import logging  # noqa: PLC0415, TID251  only if there is something to say

    from formats.patient_log import PatientHandler  # noqa: PLC0415  likewise

    level = logging.ERROR if quiet else logging.INFO
    handlers = [PatientHandler(STDERR)]
    logging.basicConfig(level=level, format="blobstore: %(message)s", handlers=handlers)


def confine(root: Path | None, user: str | None) -> None:
    """Have another root directory, and the rights of a user, if they are given (V94, V106).

    Everything is imported and loaded before: afterwards the files may not be readable.

    Args:
        root: The directory. All paths are looked for in it afterwards.
        user: A name or a number, which is looked up before.

    Raises:
        ValueError: There is no such user.
        DeviceError: It is not permitted, or there is no such directory.
    """
    found = None if user is None else _user(user)
    if root is not None or (found is not None and found.pw_uid != os.geteuid()):
        from blobstore.cli.preloading import import_everything  # noqa: PLC0415  only here

        import_everything()
    if root is not None:
        from blobstore.cli.preloading import load_libraries  # noqa: PLC0415  only here

        load_libraries()
        try:
            os.chroot(root)
            os.chdir("/")
        except OSError as error:
            raise device_error(error, f"cannot have {root} as the root directory") from error
    if found is not None:
        _become(found)


def _user(name: str) -> struct_passwd:
    import pwd  # noqa: PLC0415  absent on Windows

    try:
        return pwd.getpwuid(int(name)) if name.isdecimal() else pwd.getpwnam(name)
    except KeyError as error:
        raise ValueError(f"there is no user {name!r}") from error


def _become(user: struct_passwd) -> None:
    try:
        os.initgroups(user.pw_name, user.pw_gid)
        os.setgid(user.pw_gid)
        os.setuid(user.pw_uid)
    except OSError as error:
        raise DeviceError(f"cannot run as {user.pw_name}: {error.strerror}") from error


def fork_into_background() -> Callable[[], None]:
    """Continue in a child; the process that was started waits until that is ready, and ends.

    With success; or as the child ends, if it ends before that: so its parent sees what
    failed. A store does not survive a fork (C64), so this comes before one
    is opened, and where there is one thread. The child keeps the terminal until it is
    ready, to ask for a passphrase.

    Returns:
        What the child calls when it is ready: it lets go of the terminal, and of who
        started it.

    Raises:
        DeviceError: It cannot be done.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    try:
        started = os.getpid()
        reading, writing = os.pipe()
        child = os.fork()
    except OSError as error:
        raise DeviceError(f"cannot go into the background: {error.strerror}") from error
    if child:
        os.close(writing)
        if os.read(reading, 1):
            os._exit(0)
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        os._exit(code if code >= 0 else 128 - code)
    os.close(reading)
    # What a service manager says of the process that was started holds for this one.
    for name in ("LISTEN_PID", "WATCHDOG_PID"):
        if os.environ.get(name) == str(started):
            os.environ[name] = str(os.getpid())

    def ready() -> None:
        try:
            os.setsid()
            null = os.open(os.devnull, os.O_RDWR)
            for descriptor in (0, 1, 2):
                os.dup2(null, descriptor)
            os.close(null)
            os.write(writing, b"\0")
            os.close(writing)
        except OSError as error:
            raise device_error(error, "cannot go into the background") from error

    return ready


class PidFile:
    """Where the number of this process is written; the file goes with the process."""

    def __init__(self, place: Path | int) -> None:
        """Write it now.

        Raises:
            DeviceError: It cannot be written.
        """
        self._path = place if isinstance(place, Path) else None
        self._process = os.getpid()
        self._text = text = f"{os.getpid()}\n".encode()
        try:
            if isinstance(place, Path):
                place.write_bytes(text)  # in place: swtpm_setup has the file open
            else:
                os.write(place, text)
                os.close(place)
        except OSError as error:
            raise device_error(error, "cannot write the process id") from error

    def remove(self) -> None:
        """Remove the file; a device or pipe, which root could, is not removed.

        Nor is one in which the process that replaced this one has written its number.
        """
        if self._path is None or self._process != os.getpid():
            return
        with suppress(OSError):
            if self._path.is_file() and self._path.read_bytes() == self._text:
                self._path.unlink()


class RunOptions(NamedTuple):
    """What the options of `options` say: how a process runs that serves others.

    Attributes:
        daemon: Whether it goes into the background when all is ready.
        pid: Where its number is written.
        log: Where its log goes.
    """

    daemon: bool
    pid: Path | int | None
    log: LogOptions | None

    def begin(self) -> Callable[[], None]:
        """Go into the background, if that is wanted; return what to call when ready."""
        return fork_into_background() if self.daemon else lambda: None

    @contextmanager
    def pid_file(self) -> Iterator[None]:
        """Have the number of this process where it is wanted in the block."""
        file = None if self.pid is None else PidFile(self.pid)
        try:
            yield
        finally:
            if file is not None:
                file.remove()


#: Adds ``--daemon``, ``--pid`` and ``--log`` to a command, which gets them as ``run``.
options: Final = taking(
    "run",
    Group(
        RunOptions,
        {
            "daemon": option(
                "-d,--daemon", is_flag=True, help="Go into the background when all is ready."
            ),
            "pid": option(
                "--pid",
                type=ParsedType("pid", swtpm_options.parse_pid),
                metavar="file=FILE|fd=N",
                help="Write the process id there.",
            ),
            "log": option(
                "--log",
                type=ParsedType("log", swtpm_options.parse_log),
                metavar="file=FILE|fd=N[,level=N][,prefix=TEXT][,truncate]",
                help="Log there; - is nowhere. Level 2 is what happens, 3 all requests, 5"
                " libtpms, too.",
            ),
        },
    ),
)
