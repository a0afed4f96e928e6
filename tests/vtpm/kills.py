"""A TPM is killed at random instants of a loop of NV writes, again and again.

    python -m tests.vtpm.kills 300

After each start every value that was acknowledged is there; the one in flight may be.
Every fifth kill meets the program somewhere in its start.
"""

from __future__ import annotations

import itertools
import random
import sys
import tempfile
import threading
import time
from dataclasses import dataclass
from pathlib import Path

from tests.vtpm import commands
from tests.vtpm.support import STARTED, Vtpm, command, key_of, make_image, opened

INDEX, SIZE = 0x1500016, 64


@dataclass
class Tally:
    """What happened.

    Attributes:
        acknowledged: The newest value that a response confirmed.
        writes: How many responses did.
        in_flight: How often a value was there that nobody had confirmed.
        while_starting: How many kills met a TPM that did not serve yet.
    """

    acknowledged: int = 0
    writes: int = 0
    in_flight: int = 0
    while_starting: int = 0


def content(number: int) -> bytes:
    return number.to_bytes(8, "big") + random.Random(number).randbytes(SIZE - 8)


def kill_again_and_again(image: Path, kills: int, seed: int) -> Tally:
    """Run the loop on a new image.

    Raises:
        AssertionError: Something acknowledged was lost, or something else was found.
    """
    generator = random.Random(seed)
    tally = Tally()
    with _started(image) as tpm:
        client = tpm.connect()
        assert commands.code_of(client.send(commands.nv_define(INDEX, SIZE))) == 0
        assert commands.code_of(client.send(commands.nv_write(INDEX, content(0)))) == 0
        client.close()
        assert tpm.end() == 0
    for number in range(kills):
        if number % 5 == 4:
            tally.while_starting += _kill_while_it_starts(image, generator.uniform(0, 0.3))
        else:
            whole = generator.randint(1, 4)
            _kill_while_it_writes(image, whole, generator.uniform(0, 0.02), tally)
    with _started(image) as tpm:
        _check(tpm, tally)
    with opened(image) as store:
        assert store.verify().ok
    return tally


class _started:  # noqa: N801  used like a function
    def __init__(self, image: Path) -> None:
        self._directory = tempfile.TemporaryDirectory(prefix="vtpm-")
        arguments = command(image, "--key-file", key_of(image), *STARTED)
        self.tpm = Vtpm(arguments, Path(self._directory.name))

    def __enter__(self) -> Vtpm:
        self.tpm.wait_until_ready()
        return self.tpm

    def __exit__(self, *_: object) -> None:
        self.tpm.close()
        self._directory.cleanup()


def _check(tpm: Vtpm, tally: Tally) -> None:
    client = tpm.connect()
    found = commands.data_of(client.send(commands.nv_read(INDEX, SIZE)))
    client.close()
    if found != content(tally.acknowledged):
        assert found == content(tally.acknowledged + 1), (tally, found.hex())
        tally.acknowledged += 1
        tally.in_flight += 1


def _kill_while_it_starts(image: Path, after: float) -> bool:
    start = _started(image)
    time.sleep(after)
    served = start.tpm.ctrl.exists()
    start.__exit__()
    return not served


def _kill_while_it_writes(image: Path, whole: int, after: float, tally: Tally) -> None:
    """Kill it so many seconds after so many writes, which a slow machine gets to do, too."""
    with _started(image) as tpm:
        _check(tpm, tally)
        client = tpm.connect()
        killer = threading.Timer(after, tpm.process.kill)
        try:
            for number in itertools.count():
                if number == whole:
                    killer.start()
                response = client.send(commands.nv_write(INDEX, content(tally.acknowledged + 1)))
                if len(response) < 10:
                    break
                assert commands.code_of(response) == 0
                tally.acknowledged += 1
                tally.writes += 1
        except OSError:
            pass  # the TPM is dead
        finally:
            if killer.is_alive():
                killer.join()
            client.close()


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as directory:
        made = make_image(Path(directory, "image"))
        print(kill_again_and_again(made, int(sys.argv[1]), seed=int(time.time())))
