"""A machine whose firmware and TPM live in one image is killed at random instants, again and again.

    python -m tests.owner.machines 100

Its owner is killed, or QEMU, or both at once. The program in the machine
(`tests.owner.guest`) writes a UEFI variable and an NV index, and says which numbers were
confirmed. At each later start both are there: at least what was confirmed last, at most the
one in flight, and never anything else. QEMU does not flush its flash: with its default cache,
a variable is durable within a second, so when the owner dies then, an older one may be there.
With `cache=writethrough` it is durable when it is confirmed, and firmware starts slower.
"""

from __future__ import annotations

import random
import re
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Final

import blobstore
import luks
from tests.owner.guest import build_writer
from tests.support.foreign import program, system_file
from tests.support.owners import OwnerProcess

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

CODE, VARS = "/usr/share/OVMF/OVMF_CODE_4M.fd", "/usr/share/OVMF/OVMF_VARS_4M.fd"
SECRET = b"passphrase of the machine"
VARIABLES = "uefi-variables"
_LINE: Final = re.compile(rb"@(VAR|NV|V|N|VFAIL|NFAIL|NVCODE|DEFINE) (\w+)\r\n")
#: Seconds for a step: firmware that compacts its variables writes each byte of them, one by one.
_PATIENCE: Final = 1800


def make_machine(directory: Path) -> Path:
    """Make an image with the variables of OVMF, and a key file beside it."""
    image = directory / "machine.img"
    template = system_file(VARS).read_bytes()
    (directory / "key").write_bytes(SECRET)
    cheap = luks.Pbkdf2("sha256", 1000)
    with blobstore.create(image, {}, SECRET, kdf=cheap, free=4 << 20) as store:
        store.register(VARIABLES, len(template), "window")
        store.put(VARIABLES, template)
    return image


class Owning:
    """The owner of a machine's image: `blobstore serve` with its flash and its TPM."""

    def __init__(self, image: Path, sockets: Path, *options: object) -> None:
        self.nbd, self.ctrl = sockets / "nbd.sock", sockets / "tpm.ctrl"
        self.process = OwnerProcess(
            image,
            sockets / "run",
            *("--key-file", image.with_name("key"), "--nbd", self.nbd),
            *("--tpm", f"ctrl=type=unixio,path={self.ctrl}"),
            *options,
        )

    def kill(self) -> None:
        self.process.process.kill()
        self.process.process.communicate()


class Qemu:
    """A machine that runs the writer."""

    def __init__(
        self,
        owning: Owning,
        directory: Path,
        application: Path,
        *,
        through: bool = True,
        reconnects: bool = False,
    ) -> None:
        self.serial, self.log = directory / "serial", directory / "qemu.log"
        self.serial.unlink(missing_ok=True)
        flash = f"file=nbd+unix:///{VARIABLES}?socket={owning.nbd}"
        if reconnects:
            flash = f"file.driver=nbd,file.export={VARIABLES},file.reconnect-delay=60"
            flash += f",file.server.type=unix,file.server.path={owning.nbd}"
        if through:
            flash += ",cache=writethrough"
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                [
                    *(program("qemu-system-x86_64"), "-accel", "tcg", "-cpu", "max", "-m", "256"),
                    *("-machine", "q35,smm=off", "-nodefaults", "-display", "none"),
                    *("-drive", f"if=pflash,format=raw,readonly=on,file={system_file(CODE)}"),
                    *("-drive", f"if=pflash,format=raw,{flash}"),
                    *("-chardev", f"socket,id=tpm,path={owning.ctrl}"),
                    *("-tpmdev", "emulator,id=tpm0,chardev=tpm"),
                    *("-device", "tpm-crb,tpmdev=tpm0"),
                    *("-serial", f"file:{self.serial}", "-kernel", str(application)),
                ],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )

    def said(self) -> list[tuple[str, str]]:
        """What the program has said: words and their values."""
        text = self.serial.read_bytes() if self.serial.exists() else b""
        return [(word.decode(), value.decode()) for word, value in _LINE.findall(text)]

    def wait(self, condition: Callable[[], bool]) -> None:
        deadline = time.monotonic() + _PATIENCE
        while not condition():
            assert self.process.poll() is None, (self.said()[-5:], self.log.read_text())
            assert time.monotonic() < deadline, self.said()[-5:]
            time.sleep(0.02)

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()


@dataclass
class Range:
    """What may be found of one number: confirmed, and the largest that may be there."""

    least: int = 0
    most: int = 0

    def check(self, found: str, what: str) -> None:
        value = 0 if found == "none" else int(found)  # "torn" is not a number
        assert self.least <= value <= self.most, (what, found, self)
        self.least = self.most = value


@dataclass
class Tally:
    """What happened: kills of each kind, confirmed writes, and values found in flight."""

    kills: dict[str, int] = field(default_factory=dict)
    boots_cut: int = 0
    confirmed: dict[str, int] = field(default_factory=lambda: {"V": 0, "N": 0})
    in_flight: dict[str, int] = field(default_factory=lambda: {"V": 0, "N": 0})


class Story:
    """One machine through all of its lives."""

    def __init__(self, directory: Path, seed: int) -> None:
        self.image = make_machine(directory)
        self.tally = Tally()
        self._directory = directory
        self._application = build_writer(directory)
        self._random = random.Random(seed)
        self._ranges = {"V": Range(), "N": Range()}
        self._sockets = ExitStack()
        self._owning: Owning | None = None

    def live(self, victims: str, *, through: bool) -> None:
        """Start what does not run, and kill it somewhere.

        Args:
            victims: What is killed.
            through: Each write of the machine's flash is durable when it is confirmed.
        """
        if self._owning is None:
            self._owning = Owning(self.image, self._directory)
        qemu = Qemu(self._owning, self._directory, self._application, through=through)
        try:
            if self._random.random() < 0.2:
                deadline = time.monotonic() + self._random.uniform(0, 20)
                qemu.wait(lambda: time.monotonic() > deadline or self._has_written(qemu))
            else:
                qemu.wait(lambda: self._has_written(qemu))
            time.sleep(self._random.uniform(0, 4))
            sure = qemu.said()
            if victims != "qemu":
                self._owning.kill()
                self._owning = None
            if victims != "owner":
                qemu.kill()
            if victims == "qemu":
                sure = qemu.said()
            else:
                time.sleep(0.2)  # what the machine believes now does not count
        finally:
            qemu.kill()
        if victims != "qemu" and not through:
            sure = [(word, value) for word, value in sure if word != "V"]
        self._judge(sure, qemu.said())
        self.tally.kills[victims] = self.tally.kills.get(victims, 0) + 1
        if self._owning is None:
            with blobstore.open(self.image, SECRET, read_only=True) as store:
                assert store.verify().ok

    def finish(self) -> None:
        """Start it once more, look, and end everything in order."""
        self.live("qemu", through=False)
        assert self._owning is not None
        code, said = self._owning.process.end()
        self._owning = None
        assert code == 0, said
        with blobstore.open(self.image, SECRET) as store:
            assert store.verify().ok

    def close(self) -> None:
        if self._owning is not None:
            self._owning.kill()

    @staticmethod
    def _has_written(qemu: Qemu) -> bool:
        return any(word == "N" for word, _ in qemu.said())

    def _judge(self, sure: list[tuple[str, str]], all_said: list[tuple[str, str]]) -> None:
        found = dict(all_said)
        if "NV" not in found:
            self.tally.boots_cut += 1
            return
        for start, word in (("VAR", "V"), ("NV", "N")):
            known = self._ranges[word]
            least = known.least
            known.check(found[start], start)
            self.tally.in_flight[word] += known.least > least
            confirmed = [int(value) for key, value in sure if key == word]
            tried = [int(value) for key, value in all_said if key == word]
            self.tally.confirmed[word] += len(confirmed)
            known.least = max([known.least, *confirmed])
            known.most = max([known.most, *tried]) + 1


@contextmanager
def story(seed: int) -> Iterator[Story]:
    """Tell one in a directory whose name is short enough for sockets."""
    with tempfile.TemporaryDirectory(prefix="machine-") as directory:
        told = Story(Path(directory), seed)
        try:
            yield told
        finally:
            told.close()


VICTIMS: Final = ("qemu", "owner", "both")

if __name__ == "__main__":
    seed = int(sys.argv[2]) if len(sys.argv) > 2 else int(time.time())
    print("seed", seed, flush=True)
    with story(seed) as machine:
        for number in range(int(sys.argv[1])):
            machine.live(VICTIMS[number % 3], through=number % 2 == 1)
            print(time.strftime("%H:%M:%S"), number + 1, machine.tally, flush=True)
        machine.finish()
        print(machine.tally)
