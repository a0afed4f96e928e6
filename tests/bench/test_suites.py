"""The benchmarks run, with sizes that measure nothing, and say what they compared."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

from luks.crypto.fast import bulk
from tests.bench import __main__ as command
from tests.bench import crossover
from tests.bench.machine import describe
from tests.bench.measuring import ROOT, Cell, measure, process, quotient, quotient_of_sums
from tests.bench.peers import MissingPeerError, PeerDirectory, program
from tests.bench.report import HEADINGS, Comparison, Report, table
from tests.bench.setting import Setting
from tests.support import foreign

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.bench.measuring import Figures


@pytest.mark.parametrize("name", command.SUITES)
def test_suites_measure_everything_that_is_installed(name: str, tmp_path: Path) -> None:
    for needed in ("cryptsetup", "qemu-img"):
        assert foreign.program(needed)
    peers = PeerDirectory(tmp_path / "peers", install=False)
    report = command.SUITES[name](Setting("tiny", tmp_path, tmp_path, peers))
    assert report.name == name
    compared = {one.against: one.measured for one in report.comparisons}
    assert {against for against, ratio in compared.items() if ratio is None} == set(report.left_out)
    assert all(ratio > 0 for ratio in compared.values() if ratio is not None)
    assert not report.left_out.keys() & {"cryptsetup", "qemu-img convert"}
    for cells in report.medians.values():
        assert len(cells) > 1 or report.left_out  # without its peers, one is alone
        assert all(figure >= 0 for figures in cells.values() for figure in figures.values())
    assert json.loads(json.dumps(report.to_json()))["name"] == name
    assert [path.name for path in tmp_path.iterdir() if path.name != "peers"] == []


@pytest.mark.parametrize("name", crossover.TABLES)
def test_cross_overs_are_measured_for_each_table(name: str) -> None:
    ((found, measured),) = crossover.run([name], most=2)
    assert found == name
    table = getattr(bulk, name)
    for field, values in measured._asdict().items():
        assert values.keys() <= set(crossover.SECTOR_SIZES)
        assert str(dict(getattr(table, field))) in crossover.describe(name, measured)
    assert all(1 <= count <= 2 for count in measured.encrypt.values())
    assert str(measured.encrypt) in crossover.describe(name, measured)


def recorder(name: str, log: list[str], figures: list[float]) -> Cell:
    """A cell that says what is called, and returns one figure after the other."""
    left = iter(figures)

    def note(what: str, figure: float = 0) -> float:
        log.append(f"{what} {name}")
        return figure

    return Cell(
        name,
        lambda: {"seconds": note("run", next(left))},
        prepare=lambda: note("prepare"),
        spoil=lambda: note("spoil"),
        check=lambda: note("check"),
    )


def test_cells_take_turns_and_the_warm_up_does_not_count() -> None:
    log: list[str] = []
    cells = [recorder("a", log, [9, 1, 2]), recorder("b", log, [9, 3, 4])]
    assert measure(cells, 2) == {
        "a": [{"seconds": 1}, {"seconds": 2}],
        "b": [{"seconds": 3}, {"seconds": 4}],
    }
    warm_up = [f"{what} {name}" for name in "ab" for what in ("spoil", "prepare", "run", "check")]
    rounds = [f"{what} {name}" for name in "abba" for what in ("prepare", "run")]
    assert log == warm_up + rounds


def test_ratios_are_of_the_same_round() -> None:
    runs: dict[str, list[Figures]] = {
        "a": [{"seconds": 1}, {"seconds": 10}, {"seconds": 4}],
        "b": [{"seconds": 2}, {"seconds": 40}, {"seconds": 2}],
    }
    assert quotient(runs, "b", "a") == 2
    assert quotient_of_sums(runs, "a", "b", "seconds") == 15 / 44


def test_programs_that_fail_are_no_measurement() -> None:
    with pytest.raises(RuntimeError, match="failed with 3: oh no"):
        process(["sh", "-c", "echo oh no >&2; exit 3"])()


@pytest.mark.parametrize(
    ("measured", "least", "most", "met", "asked"),
    [
        (1.0, 1.0, None, True, "at least 1"),
        (0.99, 1.0, None, False, "at least 1"),
        (6.0, None, 6.0, True, "at most 6"),
        (6.1, None, 6.0, False, "at most 6"),
        (6.1, None, None, None, "-"),
        (None, None, 6.0, None, "at most 6"),
    ],
)
def test_what_is_asked_is_met_or_not(
    measured: float | None, least: float | None, most: float | None, met: bool | None, asked: str
) -> None:
    line = Comparison("put", "SQLite", measured, least, most)
    assert line.met is met
    assert line.row()[2] == asked
    assert line.row()[4] == {None: "", True: "yes", False: "no"}[met]


def test_tables_are_aligned_markdown() -> None:
    text = table([Comparison("memory", "-", 12.3, most=150, unit="MiB")])
    head, rule, line = text.splitlines()
    assert [field.strip() for field in head.strip("|").split("|")] == list(HEADINGS)
    assert set(rule) == {"|", "-"}
    assert len(head) == len(rule) == len(line)
    assert "at most 150 MiB" in line
    assert "12 MiB" in line


def test_what_is_not_installed_is_named() -> None:
    report = Report("none")
    with report.optional("a peer"):
        program("no-such-program", "no-such-package")
    assert report.left_out == {
        "a peer": "no-such-program is not installed (Debian package no-such-package)"
    }
    assert "left out: a peer: no-such-program" in report.details()


def test_sources_that_do_not_compile_are_left_out(tmp_path: Path) -> None:
    source = tmp_path / "broken.c"
    source.write_text("#include <no/such/header.h>\n")
    with pytest.raises(MissingPeerError, match=r"no/such/header\.h|gcc is not installed"):
        PeerDirectory(tmp_path).library(source)


def test_the_command_prints_a_table_and_writes_json(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def missing(_: Setting) -> Report:
        raise MissingPeerError("cryptsetup is not installed")

    def suite(setting: Setting) -> Report:
        report = Report("engine", versions={"OpenSSL": "3.5.0"})
        report.compare(setting.scale, "nothing", 2.0, least=1.0)
        return report

    suites: dict[str, Callable[[Setting], Report]] = {"engine": suite, "kdfs": missing}
    monkeypatch.setattr(command, "SUITES", suites)
    file = tmp_path / "result.json"
    command.main(["--quick", "--json", str(file), "--dir", str(tmp_path)])
    result: dict[str, Any] = json.loads(file.read_text())
    machine = describe(tmp_path)
    assert result["machine"] == machine
    assert result["suites"]["engine"]["comparisons"][0]["met"] is True
    assert result["suites"]["kdfs"]["left_out"] == {"kdfs": "cryptsetup is not installed"}
    printed = capsys.readouterr().out
    assert "left out: kdfs: cryptsetup is not installed" in printed
    assert printed.endswith("\nwith OpenSSL 3.5.0\n")
    assert printed.startswith(machine)
    assert "| quick | nothing | at least 1 | 2        | yes |" in printed


def test_the_documentation_has_all_suites() -> None:
    text = (ROOT / "docs" / "benchmarks.md").read_text()
    for name in command.SUITES:
        assert f"| `{name}` |" in text
