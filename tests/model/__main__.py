"""Explore by hand, further than the tests do: `python -m tests.model --help`."""

from __future__ import annotations

import argparse
import sys
import time
from dataclasses import replace

from tests.model.explore import explore
from tests.model.plans import PLANS
from tests.model.proofs import PROOFS
from tests.model.rules import ALL, SWITCHES
from tests.model.scenarios import FAMILIES
from tests.model.siege import besiege


def main() -> int:
    """Run what the command line asks for; 1 if something failed."""
    options = _parser().parse_args()
    if options.rules:
        return _show_rules()
    if options.attacks:
        return _attack(options.attacks)
    failed = False
    for name in options.family or FAMILIES:
        scenario = FAMILIES[name]
        given = {
            "operations": options.operations,
            "crashes": options.crashes,
            "bad_headers": options.bad_headers,
            "damage": options.damage,
            "replay": options.replay,
            "kills": options.kills,
            "limit": options.limit,
        }
        scenario = replace(
            scenario,
            rules=ALL.without(*options.without),
            **{key: value for key, value in given.items() if value is not None},
        )
        begun = time.process_time()
        outcome = explore(scenario, failures=options.failures)
        spent = time.process_time() - begun
        ended = "to the end" if outcome.complete else "not to the end"
        print(f"{name}: {scenario.operations} operations, {scenario.crashes} crashes, {ended}")
        print(f"    {spent:.0f} s, {len(outcome.failures)} failures")
        for what, count in sorted(outcome.counts.items()):
            print(f"    {count:>12,} {what}")
        for failure in outcome.failures:
            print(f"    {failure}")
        sys.stdout.flush()
        failed |= bool(outcome.failures)
    return int(failed)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m tests.model",
        description="Explore the model of the commit protocol. What is not given is the family's.",
    )
    parser.add_argument("--rules", action="store_true", help="show what goes wrong without each")
    parser.add_argument(
        "--attacks",
        type=int,
        metavar="N",
        help="damage with replay, N times as many disks and images as the tests have",
    )
    parser.add_argument("--family", action="append", choices=FAMILIES, help="default: all")
    parser.add_argument("--operations", type=int)
    parser.add_argument("--crashes", type=int, help="power cuts and kills")
    parser.add_argument("--bad-headers", type=int)
    for name in ("kills", "damage", "replay"):
        parser.add_argument(f"--{name}", action=argparse.BooleanOptionalAction, default=None)
    parser.add_argument("--limit", type=int, help="states to visit at most")
    parser.add_argument("--failures", type=int, default=10, help="stop at so many")
    parser.add_argument("--without", action="append", choices=SWITCHES, default=[], metavar="RULE")
    return parser


def _attack(times: int) -> int:
    """Attack further than the tests do; show what is not detected, and the shortest of each."""
    failed = False
    for name, (plan, exposures) in PLANS.items():
        begun = time.process_time()
        further = replace(
            plan,
            disks=times * plan.disks,
            all_images=times * plan.all_images,
            several_parts=times * plan.several_parts,
        )
        findings = besiege(further)
        print(f"{name}: {time.process_time() - begun:.0f} s")
        for what, count in sorted(findings.counts.items()):
            print(f"    {count:>12,} {what}")
        for exposure, example in findings.examples.items():
            print(f"    {exposure.value}: {example}")
        for pin, example in findings.unpinned.items():
            print(f"    not found by a pinned {pin}: {example}")
        for example in findings.unexplained:
            print(f"    UNEXPLAINED: {example}")
        sys.stdout.flush()
        failed |= bool(findings.unexplained) or not exposures <= set(findings.examples)
    return int(failed)


def _show_rules() -> int:
    for rule, proof in PROOFS.items():
        number, otherwise = SWITCHES[rule]
        rules = ALL.without(rule, *proof.besides)
        failures = explore(replace(proof.scenario, rules=rules), failures=1).failures
        print(f"{rule} [{number}]: {otherwise}")
        print(f"    {failures[0] if failures else 'NOTHING FAILS'}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
