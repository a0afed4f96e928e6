"""Unlocking with real key derivations, next to cryptsetup: the CPU time of whole processes.

    python -m tests.bench.kdf_peers

Each volume is unlocked by both in turn, and medians are compared: user and system
time, and the time that passes. Targets: 0.9 times cryptsetup's CPU time for
PBKDF2, 1.1 times for Argon2id.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).resolve().parents[2]
#: cryptsetup's options for the keyslot, and the most CPU time, relative to its own.
VOLUMES = {
    "PBKDF2-SHA-256, 1,000,000 iterations": (
        "--pbkdf pbkdf2 --hash sha256 --pbkdf-force-iterations 1000000",
        0.9,
    ),
    "PBKDF2-SHA-512, 1,000,000 iterations": (
        "--pbkdf pbkdf2 --hash sha512 --pbkdf-force-iterations 1000000",
        0.9,
    ),
    "Argon2id, 1 GiB, 4 passes, 4 lanes": (
        "--pbkdf argon2id --pbkdf-memory 1048576 --pbkdf-parallel 4 --pbkdf-force-iterations 4",
        1.1,
    ),
}
OPEN = "import luks, sys\nluks.open(sys.argv[1], luks.Secret.from_file(sys.argv[2])).close()"


class Spent(NamedTuple):
    """Seconds of one process."""

    cpu: float
    wall: float


def run(command: list[str]) -> Spent:
    """Run a command that must succeed."""
    started = time.perf_counter()
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    wall = time.perf_counter() - started
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"{command[0]} failed with {process.returncode}")
    return Spent(usage.ru_utime + usage.ru_stime, wall)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument("--only", default="", help="volumes whose name contains this")
    options = parser.parse_args()
    results = []
    with tempfile.TemporaryDirectory() as directory:
        key = Path(directory, "key")
        key.write_bytes(b"benchmark")
        for name, (kdf, limit) in VOLUMES.items():
            if options.only not in name:
                continue
            image = Path(directory, "image")
            image.write_bytes(bytes(32 << 20))
            make = ["cryptsetup", "luksFormat", "--batch-mode", "--type", "luks2", *kdf.split()]
            run([*make, str(image), str(key)])
            test = ["cryptsetup", "open", "--test-passphrase", "--key-file", str(key), str(image)]
            ours = [sys.executable, "-c", OPEN, str(image), str(key)]
            spent: dict[str, list[Spent]] = {"luks": [], "cryptsetup": []}
            for _ in range(options.rounds):
                spent["luks"].append(run(ours))
                spent["cryptsetup"].append(run(test))
            result: dict[str, Any] = {"volume": name, "limit": limit}
            for field in Spent._fields:
                medians = {
                    who: statistics.median(getattr(one, field) for one in runs)
                    for who, runs in spent.items()
                }
                result[field] = {**medians, "ratio": medians["luks"] / medians["cryptsetup"]}
            results.append(result)
            if not options.json:
                print(name)
                for field in Spent._fields:
                    at = result[field]
                    print(
                        f"  {field:4}  luks {at['luks']:6.3f} s   cryptsetup"
                        f" {at['cryptsetup']:6.3f} s   ratio {at['ratio']:.2f}",
                        f"(at most {limit})" if field == "cpu" else "",
                    )
    if options.json:
        print(json.dumps(results, indent=2))


if __name__ == "__main__":
    main()
