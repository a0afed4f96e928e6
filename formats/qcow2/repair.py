"""Repairing images: leaks are freed, and counts and flags made to say what is used.

What was lost of the data nothing here can bring back. What the file was cut off from reads
as zeros after a repair, for then it is longer; where it would read as anything else, nothing
is repaired (Q25). A table that refers to what cannot be stays as it is, and the image stays
marked.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from formats.errors import CorruptImageError, DeviceFullError, TruncatedImageError
from formats.logs import LateLogger
from formats.qcow2 import features
from formats.qcow2.check import Checker, check
from formats.qcow2.header import read_header
from formats.qcow2.host import encode_table
from formats.qcow2.lost import HINT
from formats.qcow2.metadata import change_header
from formats.qcow2.rewrite import Rewrite, load_counts

if TYPE_CHECKING:
    from formats.devices.device import BlockDevice
    from formats.qcow2.report import CheckReport

_log = LateLogger(__name__)


def repair(device: BlockDevice, *, leaks_only: bool) -> CheckReport:
    """Put right what can be, all at once or not at all (Q10, Q20, Q25).

    Args:
        device: Holds the image, which nobody has open.
        leaks_only: Only free what counts as used and is not; otherwise make all
            counts and flags anew, and unmark the image if nothing is wrong any more.

    Returns:
        What is still wrong, and how much was put right.

    Raises:
        FormatError, UnsupportedError: The header, or the snapshot table, is not sound
            enough to say what belongs to the image.
        DeviceError: It failed; the image is as it was, or as it is to be.
    """
    checker = Checker(device)
    return _repair(checker, checker.run(), leaks_only=leaks_only)


def repair_counts(device: BlockDevice) -> None:
    """Make counts anew that its last writer left for later, if nothing else is wrong (Q5).

    Args:
        device: Holds an image that is marked as dirty, and is to be written.

    Raises:
        CorruptImageError: More is wrong; nothing changed.
        StorageError: As `repair`.
    """
    checker = Checker(device)
    report = checker.run()
    if report.damage:
        raise CorruptImageError(
            f"the qcow2 image was not closed by its last writer, and has {report.damage}"
            " corruptions that are more than wrong counts: it is not repaired unasked [Q5]",
            hint=f"look at it with blobstore check; {HINT}",
        )
    _log.warning("the image was not closed by its last writer: its refcounts are made anew")
    _repair(checker, report, leaks_only=False)


def _repair(checker: Checker, before: CheckReport, *, leaks_only: bool) -> CheckReport:
    host, header = checker.host, checker.header
    marked = header.incompatible & (features.DIRTY | features.CORRUPT)
    if leaks_only:
        if not before.leaks or checker.bad_blocks:
            return before
    elif before.ok and not marked:
        return before
    if not before.ok:
        harm = checker.lost.harm
        if checker.lost_blocks and header.version == 2:
            harm = harm or "counts of clusters"  # see below
        if harm is not None:
            return _refused(before, f"{harm} was cut off, and would not read as zeros")
        _log.warning(
            "repairing the image: %d corruptions, %d leaks", before.corruptions, before.leaks
        )
        try:
            if leaks_only and before.corruptions:
                _free_leaks(checker)
            else:
                _make_anew(checker)
        except TruncatedImageError as error:
            return _refused(before, str(error))
        if not leaks_only:
            _reach_lost(checker)
    after = check(host.device)
    if marked and not leaks_only and not after.corruptions:
        header = read_header(host.device)
        change_header(host, header, incompatible=header.incompatible & ~marked)
        host.flush()
    after.corruptions_fixed = max(0, before.corruptions - after.corruptions)
    after.leaks_fixed = max(0, before.leaks - after.leaks)
    return after


def _refused(report: CheckReport, reason: str) -> CheckReport:
    report.findings.insert(0, f"not repaired: {reason}")
    return report


def _make_anew(checker: Checker) -> None:
    """Make counts and flags say what is used."""
    host, header = checker.host, checker.header
    lost = checker.lost
    rewrite = Rewrite(host, header, checker.used, lost=lost, limit=lost.window)
    rewrite.drop_refcounts()
    rewrite.release_table(header.l1_offset, header.l1_size * 8)
    if checker.lost_blocks:
        # In a longer file these count everything as free. Whoever finds it so, after a
        # crash, must not write; the mark goes with the switch to new ones.
        marked = header.incompatible | features.CORRUPT
        change_header(host, header, incompatible=marked)
        host.flush()
    size = host.size
    try:
        l1 = rewrite.flagged(host.read_table(header.l1_offset, header.l1_size))
        rewrite.finish(
            l1_offset=rewrite.write_new(encode_table(l1)), incompatible=header.incompatible
        )
    except TruncatedImageError:
        if host.size == size:
            change_header(host, header)
            host.flush()
        raise


def _free_leaks(checker: Checker) -> None:
    """Lower counts only: what counts too little was not asked for."""
    host, header = checker.host, checker.header
    stored = load_counts(host, header, skip_bad=True)
    lost = checker.lost  # which is not to become zeros: that was not asked for either
    rewrite = Rewrite(host, header, checker.used, lost=lost, limit=lost.first)
    for cluster, use in checker.used.used():
        rewrite.counts[cluster] = min(use, stored[cluster])
    rewrite.drop_refcounts()
    rewrite.finish()


def _reach_lost(checker: Checker) -> None:
    """Make what was cut off a part of the image again, where it was used: zeros."""
    host, lost = checker.host, checker.lost
    if lost.first is None:
        return
    end = max(lost.end, checker.used.end(lost.reach))
    try:
        host.reach(end << checker.header.cluster_bits)
    except DeviceFullError:
        return  # it stays beyond the end, and says so when it is read
    host.flush()
