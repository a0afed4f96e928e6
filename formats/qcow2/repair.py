"""Repairing images: freeing leaks, and correcting counts and flags.

Lost data cannot be recovered. If the file was cut off, a repair makes it longer, and the
lost part reads as zeros; if it would read as anything else, nothing is repaired (Q25). A
table that refers to an impossible place stays as it is, and the image stays marked as
corrupt.
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
from formats.qcow2.snapshot_table import completed, read_snapshots

if TYPE_CHECKING:
    from formats.devices.device import BlockDevice
    from formats.qcow2.header import Qcow2Header
    from formats.qcow2.report import CheckReport

_log = LateLogger(__name__)


def repair(device: BlockDevice, *, leaks_only: bool) -> CheckReport:
    """Repair what is possible, all at once or not at all (Q10, Q20, Q25).

    Args:
        device: Holds the image, which no other code has open.
        leaks_only: Only free unused clusters that count as used; otherwise rebuild all
            counts and flags, and unmark the image if no error is left.

    Returns:
        The remaining errors, and how many were repaired.

    Raises:
        FormatError, UnsupportedError: The header, or the snapshot table, is not sound
            enough to say what belongs to the image.
        DeviceError: It failed; the image is unchanged, or completely repaired.
    """
    checker = Checker(device)
    return _repair(checker, checker.run(), leaks_only=leaks_only)


def repair_counts(device: BlockDevice) -> None:
    """Rebuild the counts that the last writer deferred, if nothing else is wrong (Q5).

    Args:
        device: Holds an image that is marked as dirty and is about to be written.

    Raises:
        CorruptImageError: There are other errors; nothing changed.
        StorageError: As `repair`.
    """
    checker = Checker(device)
    report = checker.run()
    if report.damage:
        raise CorruptImageError(
            f"the qcow2 image was not closed by its last writer, and has {report.damage}"
            " corruptions besides wrong counts: it is not repaired automatically [Q5]",
            hint=f"examine it with blobstore check; {HINT}",
        )
    _log.warning("the image was not closed by its last writer: its refcounts are rebuilt")
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
            return _refused(before, f"{harm} was cut off, and must not read as zeros")
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
    """Rebuild the counts and flags from the clusters in use."""
    host, header = checker.host, checker.header
    lost = checker.lost
    rewrite = Rewrite(host, header, checker.used, lost=lost, limit=lost.window)
    rewrite.drop_refcounts()
    rewrite.release_table(header.l1_offset, header.l1_size * 8)
    if checker.lost_blocks:
        # In a longer file these blocks count everything as free. After a crash in this
        # state no program may write; the mark ensures that, and goes with the switch.
        marked = header.incompatible | features.CORRUPT
        change_header(host, header, incompatible=marked)
        host.flush()
    size = host.size
    try:
        l1 = rewrite.flagged(host.read_table(header.l1_offset, header.l1_size))
        rewrite.finish(
            l1_offset=rewrite.write_new(encode_table(l1)),
            incompatible=header.incompatible,
            snapshots_offset=_completed_snapshots(rewrite, header),
        )
    except TruncatedImageError:
        if host.size == size:
            change_header(host, header)
            host.flush()
        raise


def _completed_snapshots(rewrite: Rewrite, header: Qcow2Header) -> int:
    """Return where a snapshot table is whose entries have what version 3 needs (Q31).

    It is a new one if the old one lacks that.
    """
    old = read_snapshots(rewrite.host, header)
    new = [completed(snapshot, header.size) for snapshot in old]
    if header.version == 2 or new == old:
        return header.snapshots_offset
    return rewrite.write_snapshots(new)


def _free_leaks(checker: Checker) -> None:
    """Lower counts only: to raise those that are too low was not requested."""
    host, header = checker.host, checker.header
    stored = load_counts(host, header, skip_bad=True)
    lost = checker.lost  # it must not become zeros: that was not requested either
    rewrite = Rewrite(host, header, checker.used, lost=lost, limit=lost.first)
    for cluster, use in checker.used.used():
        rewrite.counts[cluster] = min(use, stored[cluster])
    rewrite.drop_refcounts()
    rewrite.finish()


def _reach_lost(checker: Checker) -> None:
    """Extend the image over the lost part, where it was used, with zeros."""
    host, lost = checker.host, checker.lost
    if lost.first is None:
        return
    end = max(lost.end, checker.used.end(lost.reach))
    try:
        host.reach(end << checker.header.cluster_bits)
    except DeviceFullError:
        return  # the lost part stays beyond the end, and reading it is an error
    host.flush()
