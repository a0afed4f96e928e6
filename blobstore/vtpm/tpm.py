"""The one TPM of this process: what it does with a command, and with its state (V20 to V44)."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Final

from blobstore.vtpm.behaviour import Behaviour
from blobstore.vtpm.commands import (
    MAX_LOCALITY,
    Command,
    Startup,
    failure,
    is_shutdown,
    response_code,
    shutdown_command,
    startup_command,
    success,
    wrong_locality,
)
from blobstore.vtpm.libtpms import Libtpms, Property, Result
from blobstore.vtpm.profile import profile_refused, require_new
from blobstore.vtpm.transfers import received, sent
from formats.errors import DeviceBusyError, FormatError, StorageError
from formats.logs import LateLogger
from formats.process import OwnedLock, Owner
from formats.state.swtpm import Slot, TpmVersion

if TYPE_CHECKING:
    from collections.abc import Iterator

    from blobstore.vtpm.nvram import StoreNvram

_log = LateLogger(__name__)

_WORST_CASES: Final = {
    Slot.PERMANENT: Property.MAX_NV_SPACE,
    Slot.VOLATILE: Property.MAX_VOLATILE_STATE_SPACE,
    Slot.SAVED: Property.MAX_SAVED_STATE_SPACE,
}

#: Seconds that a TPM has to come between two commands (V78).
REST_TIME: Final = 10.0


def not_at_rest(why: str) -> DeviceBusyError:
    """Return the error for a TPM that does not come to rest in time (V78)."""
    return DeviceBusyError(f"{why} for too long: it is not at rest [V78]", hint="try it again")


class Tpm:
    """A TPM on a store. All methods may be called from any thread; one runs at a time.

    `cancel` alone does not wait for the others. Results are libtpms's (`Result`).
    """

    def __init__(
        self,
        nvram: StoreNvram,
        version: TpmVersion | None = None,
        behaviour: Behaviour | None = None,
    ) -> None:
        """Take the TPM out of the image, or what is to become one; it does not run yet.

        Args:
            nvram: Its states; checked and registered, unless it is incoming: then
                that is done when the image is taken.
            version: Which TPM it is; None is the one that the image has, and
                2.0 for a new one.
            behaviour: See there.

        Raises:
            UnsupportedError: libtpms is not installed, or lacks this version, or profiles.
            ValueError: This process has a TPM already; or the profile is not one.
            PolicyError, FormatError, CorruptBlobError: What the image has is not,
                or no longer, the state of such a TPM (V6, V7); or it has a TPM, whose
                profile was chosen when it was made (V100).
            NoSpaceError, DeviceError: As `Store.register`.
        """
        self.behaviour: Behaviour = behaviour or Behaviour()
        self._nvram = nvram
        # An image that another process writes is not read yet: its directory will do.
        found = nvram.registered_version if self.behaviour.incoming else nvram.stored_version
        self.version: TpmVersion = version or found() or TpmVersion.TPM_2
        self.running: bool = False
        self.locality: int = 0
        self._lock = OwnedLock(Owner("the TPM"))
        self._executing = False
        self._touched = False
        self._given: set[Slot] = set()
        self._refused: set[Slot] = set()
        self._prepared = False
        self._profile = self.behaviour.profile
        if not self.behaviour.incoming:
            nvram.check(self.version)  # before libtpms is asked for: that cannot be undone
        if self._profile is not None:
            require_new(self.version, None if self.behaviour.incoming else found())
        self._library = Libtpms(self.version, nvram, lambda: self.locality)
        if self._profile is not None and self._library.set_profile(self._profile):
            raise profile_refused()
        if not self.behaviour.incoming:
            self._prepare()

    @property
    def largest_command(self) -> int:
        """Bytes of the largest command that a TPM of this kind can take."""
        with self._lock:
            return self._library.property(Property.BUFFER_MAX)

    @property
    def reserved(self) -> dict[str, str]:
        """Names of sections that only this TPM may change, and what others are told (V80)."""
        return dict.fromkeys(self._nvram.sections, "the TPM that this process is")

    @property
    def last_error(self) -> StorageError | None:
        """Why the TPM failed last, as far as its storage is to blame."""
        return self._library.failed

    # ------------------------------------------------------ on and off

    def start(self, *, delete_volatile: bool = False) -> int:
        """Start, as at power on, from the states given or stored (V8 to V10).

        Args:
            delete_volatile: Forget the stored volatile state once it was resumed.

        Raises:
            StorageError: The image cannot be taken or read; the TPM does not run.
        """
        with self._lock:
            self.stop()
            if self._refused:
                _log.error("a state was refused: the TPM does not start without it [V33]")
                return Result.FAIL
            self._nvram.take()
            self._prepare()
            self._nvram.may_be_new = not self.behaviour.incoming or Slot.PERMANENT in self._given
            result = self._choose_profile() or self._library.start()
            if self._library.failed is not None:
                self._library.stop()
                raise self._library.failed
            if result:
                _log.error("libtpms does not start: result %#x", result)
                self._library.stop()
                return result
            if delete_volatile:
                self._nvram.delete(Slot.VOLATILE)
            self._given.clear()
            self._profile = None
            self._touched = False
            self.running = True
            return Result.SUCCESS

    def start_up(self, startup: Startup) -> bool:
        """Send the command that a firmware would; return whether it succeeded.

        Raises:
            ValueError: A TPM of this version has no such startup.
        """
        command = startup_command(self.version, startup)
        return command is None or response_code(self.execute(Command(command))) == 0

    def power_on(self, startup: Startup) -> None:
        """Start without waiting for INIT, and send the command that a firmware would (V9).

        Raises:
            StorageError: As `start`; libtpms does not start, or refuses the command.
            ValueError: A TPM of this version has no such startup.
        """
        if result := self.start():
            said = f"libtpms does not start from this state: result {result:#x}"
            raise FormatError(said, rule="V9")
        if not self.start_up(startup):
            raise self.last_error or FormatError(f"the TPM refuses {startup}", rule="V9")

    def stop(self) -> None:
        """Stop, as at power off; before that shut down what was not (V27)."""
        with self._lock:
            if not self.running:
                return
            if (
                self.behaviour.auto_shutdown
                and self.version is TpmVersion.TPM_2
                and self._touched
                and self._nvram.held
            ):
                self._process(shutdown_command())
            self._library.stop()
            self.running = False

    # -------------------------------------------------------- commands

    def execute(self, command: Command) -> bytes:
        """Execute a command; what it changed is durable when this returns (V11, V20 to V25).

        Raises:
            StorageError: The image was given up and cannot be taken again (V42):
                this TPM must not go on.
        """
        with self._lock:
            if not self.running:
                return failure(self.version)
            if command.locality is not None and self.set_locality(command.locality):
                return wrong_locality(self.version)
            wanted = command.wanted_locality
            if wanted is not None and self.behaviour.allow_set_locality:
                refused = self.set_locality(wanted)
                return wrong_locality(self.version) if refused else success(self.version)
            self._nvram.take()
            self._touched = not is_shutdown(command)
            self._executing = True
            try:
                result, response = self._process(command.body)
            finally:
                self._executing = False
            stored = self._library.failed is None
            if result or not (stored or response_code(response)):
                _log.error("libtpms failed on a command: result %#x", result)
                return failure(self.version)
            _log.debug("command %#x: %#x", command.code or 0, response_code(response) or 0)
            return response

    def cancel(self) -> int:
        """Cancel the command that is being executed, if there is one (V28)."""
        if self.version is TpmVersion.TPM_2 and not self._executing:
            return Result.SUCCESS  # libtpms would remember it, and cancel the next one
        return self._library.cancel()

    def set_locality(self, locality: int) -> int:
        """Set the locality of the commands to come."""
        with self._lock:
            if locality > MAX_LOCALITY:
                return Result.BAD_LOCALITY
            if locality == MAX_LOCALITY and self.behaviour.reject_locality_4:
                return Result.BAD_LOCALITY
            self.locality = locality
            return Result.SUCCESS

    # ------------------------------------------------ dynamic launches

    def established(self) -> tuple[int, bool]:
        """Return whether there was a dynamic launch since that was reset."""
        with self._lock:
            return self._library.established()

    def reset_established(self, locality: int) -> int:
        """Forget that there was one, on behalf of a locality."""
        with self._lock:
            if locality > MAX_LOCALITY:
                return Result.BAD_LOCALITY
            before, self.locality = self.locality, locality
            try:
                return self._library.reset_established()
            finally:
                self.locality = before

    def hash_start(self) -> int:
        """Begin to measure a dynamic launch."""
        with self._lock:
            self._touched = True
            return self._library.hash_start()

    def hash_data(self, data: bytes) -> int:
        """Measure ``data``."""
        with self._lock:
            return self._library.hash_data(data)

    def hash_end(self) -> int:
        """End the measurement."""
        with self._lock:
            return self._library.hash_end()

    # ----------------------------------------------------------- state

    def store_volatile(self) -> int:
        """Store the volatile state, so that the next start resumes here (V15).

        Raises:
            StorageError: It is not stored.
        """
        with self._lock:
            result, state = self._library.volatile_state()
            if not result:
                self._nvram.store(Slot.VOLATILE, state)
                self._touched = False
            return result

    def transfer(self, slot: Slot) -> tuple[int, bytes]:
        """Return a state of the running TPM for another one to go on from (V30, V31, V41).

        Raises:
            StorageError: It cannot be read, or the image not be given up.
        """
        with self._lock:
            result, state = self._state(slot)
            if slot is Slot.SAVED and self.behaviour.release_outgoing:
                self._nvram.give_up()
            if result:
                return result, b""
            return result, sent(state, self.behaviour.migration_key)

    def accept(self, slot: Slot, transfer: bytes) -> int:
        """Take a state to start from, while the TPM does not run (V32, V33)."""
        with self._lock:
            result = self._accept(slot, transfer)
            if result:
                self._refused.add(slot)
            else:
                self._refused.discard(slot)
                self._given.add(slot)
            return result

    def lock_storage(self, retries: int) -> None:
        """Take the image again, as after a migration that failed (V42).

        Raises:
            StorageError: It cannot be taken.
        """
        with self._lock:
            self._nvram.take(retries)

    @contextmanager
    def at_rest(self) -> Iterator[None]:
        """Let what the TPM is asked wait in the block; its store has what it answered (V78).

        Raises:
            DeviceBusyError: It executes a command for too long.
        """
        with self._lock.within(REST_TIME) as at_rest:
            if not at_rest:
                raise not_at_rest("the TPM executes a command")
            yield

    # ----------------------------------------------------- information

    def information(self, flags: int) -> bytes | None:
        """Return what libtpms says of itself, as JSON."""
        with self._lock:
            return self._library.information(flags)

    def set_buffer_size(self, wanted: int) -> tuple[int, int, int]:
        """Set the largest command and response; 0 asks. Return it, least and most, in bytes."""
        with self._lock:
            return self._library.set_buffer_size(wanted)

    # -------------------------------------------------------- internal

    def _prepare(self) -> None:
        if self._prepared:
            return
        self._nvram.check(self.version)
        saved = () if self.version is TpmVersion.TPM_2 else (Slot.SAVED,)
        slots = (Slot.PERMANENT, Slot.VOLATILE, *saved)
        self._nvram.register({s: self._library.property(_WORST_CASES[s]) for s in slots})
        self._prepared = True

    def _state(self, slot: Slot) -> tuple[int, bytes]:
        if slot is Slot.VOLATILE:
            result, state = self._library.volatile_state()
            self._touched = self._touched and bool(result)
            return result, state
        stored = self._nvram.load(slot)
        return (Result.RETRY, b"") if stored is None else (Result.SUCCESS, stored)

    def _accept(self, slot: Slot, transfer: bytes) -> int:
        result, state = received(slot, transfer, self.version, self.behaviour.migration_key)
        if result:
            return result
        result = self._library.set_state(slot, state)
        if result:
            _log.error(
                "libtpms refuses the incoming %s state: result %#x", slot.name.lower(), result
            )
        return result

    def _choose_profile(self) -> int:
        """Say which profile the TPM that is to be made gets; there must not be one (V100)."""
        profile = self._profile
        if profile is None:
            return Result.SUCCESS
        if Slot.PERMANENT in self._given or self._nvram.load(Slot.PERMANENT) is not None:
            _log.error("the TPM exists, and its profile cannot be changed [V100]")
            return Result.FAIL
        return self._library.set_profile(profile)

    def _process(self, command: bytes) -> tuple[int, bytes]:
        """Let libtpms execute a command, and record that, if it is wanted (V104)."""
        capture = self.behaviour.capture
        if capture is None:
            return self._library.process(command)
        capture.command(command)
        result, response = self._library.process(command)
        capture.response(response)
        return result, response
