"""Repairing images: leaks are freed, and counts and flags made to say what is used.

What was lost of the data nothing here can bring back; a table that refers to what
cannot be stays as it is, and the image stays marked.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from formats.logs import LateLogger
from formats.qcow2 import features
from formats.qcow2.check import Checker, check
from formats.qcow2.header import read_header
from formats.qcow2.host import encode_table
from formats.qcow2.metadata import change_header
from formats.qcow2.rewrite import Rewrite, load_counts

if TYPE_CHECKING:
    from formats.device import BlockDevice
    from formats.qcow2.check import Report

_log = LateLogger(__name__)


def repair(device: BlockDevice, *, leaks_only: bool) -> Report:
    """Put right what can be, all at once or not at all (Q10, Q20).

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
    before = checker.run()
    header = checker.header
    marked = header.incompatible & (features.DIRTY | features.CORRUPT)
    if leaks_only:
        if not before.leaks or checker.bad_blocks:
            return before
    elif before.ok and not marked:
        return before
    if not before.ok:
        _log.warning(
            "repairing the image: %d corruptions, %d leaks", before.corruptions, before.leaks
        )
        if leaks_only and before.corruptions:
            _free_leaks(checker)
        else:
            _make_anew(checker)
    after = check(device)
    if marked and not leaks_only and not after.corruptions:
        host, header = checker.host, read_header(device)
        change_header(host, header, incompatible=header.incompatible & ~marked)
        host.flush()
    after.corruptions_fixed = max(0, before.corruptions - after.corruptions)
    after.leaks_fixed = max(0, before.leaks - after.leaks)
    return after


def _make_anew(checker: Checker) -> None:
    """Make counts and flags say what is used."""
    host, header = checker.host, checker.header
    rewrite = Rewrite(host, header, checker.used, tolerant=True)
    rewrite.drop_refcounts()
    rewrite.release_table(header.l1_offset, header.l1_size * 8)
    l1 = rewrite.flagged(host.read_table(header.l1_offset, header.l1_size))
    rewrite.finish(l1_offset=rewrite.write_new(encode_table(l1)))


def _free_leaks(checker: Checker) -> None:
    """Lower counts only: what counts too little was not asked for."""
    host, header = checker.host, checker.header
    stored = load_counts(host, header, skip_bad=True)
    rewrite = Rewrite(host, header, checker.used, tolerant=True)
    for cluster, use in checker.used.used():
        rewrite.counts[cluster] = min(use, stored[cluster])
    rewrite.drop_refcounts()
    rewrite.finish()
