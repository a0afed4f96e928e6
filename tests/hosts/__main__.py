"""Rounds over all kinds of failures: python -m tests.hosts [ROUNDS [SEED]]."""

from __future__ import annotations

import random
import statistics
import sys
import tempfile
from collections import defaultdict
from pathlib import Path

from tests.hosts.network import two_hosts
from tests.hosts.rounds import EVERYWHERE, FENCED, Round, Scene
from tests.hosts.storage import PLACES, serving


def run(rounds: int, seed: int, directory: Path) -> dict[str, list[Round]]:
    """Run so many rounds; return them by the place of the store."""
    chance = random.Random(seed)
    found: dict[str, list[Round]] = defaultdict(list)
    with two_hosts() as network:
        for number, place in enumerate(PLACES):
            count = (rounds + number) // len(PLACES)
            kinds = FENCED if place == "ceph" else EVERYWHERE
            with serving(place, network, directory) as storage:
                scene = Scene(network, storage, chance)
                scene.make()
                for turn in range(count):
                    found[place].append(kinds[turn % len(kinds)](scene))
                    print(place, found[place][-1], flush=True)
    return found


def report(found: dict[str, list[Round]]) -> str:
    """Return a table of what was found."""
    lines = ["| place | failure | rounds | lost | pause or take-over, s | refused with |"]
    lines.append("|---|---|---|---|---|---|")
    for place, rounds in found.items():
        for kind in sorted({one.kind for one in rounds}):
            these = [one for one in rounds if one.kind == kind]
            times = sorted(
                seconds
                for one in these
                for seconds in [one.take_over if one.pause is None else one.pause]
                if seconds is not None
            )
            figures = f"{times[0]:.2f} / {statistics.median(times):.2f} / {times[-1]:.2f}"
            refusals = "; ".join(sorted({(one.refusal or "").split(":")[0] for one in these}))
            lost = sum(one.lost for one in these)
            lines.append(f"| {place} | {kind} | {len(these)} | {lost} | {figures} | {refusals} |")
    return "\n".join(lines)


def main() -> None:
    rounds, seed = (int(text) for text in (*sys.argv[1:], "60", "1")[:2])
    with tempfile.TemporaryDirectory(prefix="blobstore-hosts-") as directory:
        found = run(rounds, seed, Path(directory))
    print(report(found))
    assert not any(one.lost for rounds_ in found.values() for one in rounds_)


if __name__ == "__main__":
    main()
