"""Side-by-side benchmarks: python -m tests.bench; docs/benchmarks.md says what they mean."""

from __future__ import annotations

import argparse
import json
import os
from pathlib import Path
from typing import TYPE_CHECKING

from tests.bench import (
    crossover,
    engine,
    images,
    kdfs,
    mounted_files,
    owner_puts,
    puts,
    remote,
    startup,
)
from tests.bench.machine import describe
from tests.bench.peers import MissingPeerError, PeerDirectory
from tests.bench.report import Report, table
from tests.bench.setting import Setting

if TYPE_CHECKING:
    from collections.abc import Callable

SUITES: dict[str, Callable[[Setting], Report]] = {
    "images": images.run,
    "engine": engine.run,
    "puts": puts.run,
    "owner": owner_puts.run,
    "remote": remote.run,
    "mount": mounted_files.run,
    "startup": startup.run,
    "kdfs": kdfs.run,
}
# Nobody else may put programs there.
_CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "blobstore-bench"
_IN_MEMORY = Path("/dev/shm")
_ON_DISK = Path("/var/tmp")


def main(arguments: list[str] | None = None) -> None:
    """Measure and print."""
    options = _parser().parse_args(arguments)
    if options.crossover:
        for name, measured in crossover.run():
            print(crossover.describe(name, measured), flush=True)
        return
    setting = Setting(
        scale="quick" if options.quick else "full",
        memory=options.memory,
        disk=options.dir,
        peers=PeerDirectory(options.peers, install=not options.offline),
    )
    machine = describe(options.dir)
    print(machine)
    reports = []
    for name in options.only or SUITES:
        try:
            report = SUITES[name](setting)
        except MissingPeerError as error:
            report = Report(name, left_out={name: str(error)})
        print(f"\n# {name}\n{report.details()}", flush=True)
        reports.append(report)
    print(f"\n{table([line for report in reports for line in report.comparisons])}")
    versions = {name: number for report in reports for name, number in report.versions.items()}
    print(f"\nwith {', '.join(' '.join(one) for one in versions.items())}")
    if options.json:
        found = {report.name: report.to_json() for report in reports}
        result = {"machine": machine, "scale": setting.scale, "suites": found}
        options.json.write_text(json.dumps(result, indent=2) + "\n")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m tests.bench", description=__doc__)
    parser.add_argument(
        "--only", choices=SUITES, action="append", help="measure only this; repeatable"
    )
    parser.add_argument("--quick", action="store_true", help="smaller and fewer; not to be quoted")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write everything there as well")
    parser.add_argument(
        "--dir",
        type=Path,
        default=_ON_DISK,
        help="put durably here; must be on a real disk  [default: %(default)s]",
    )
    parser.add_argument(
        "--memory",
        type=Path,
        default=_IN_MEMORY if _IN_MEMORY.is_dir() else _ON_DISK,
        metavar="DIR",
        help="keep images here, 9 GiB; best in memory  [default: %(default)s]",
    )
    parser.add_argument(
        "--peers",
        type=Path,
        default=_CACHE,
        metavar="DIR",
        help="install packages to compare with here  [default: %(default)s]",
    )
    parser.add_argument("--offline", action="store_true", help="install nothing from PyPI")
    parser.add_argument(
        "--crossover",
        action="store_true",
        help="measure the tables of luks/crypto/fast/bulk.py instead",
    )
    return parser


if __name__ == "__main__":
    main()
