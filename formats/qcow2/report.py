"""The result of checking an image."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final

#: Findings that are described one by one; all are counted.
_MOST_FINDINGS: Final = 1000


@dataclass
class CheckReport:
    """The findings in an image; true if nothing is wrong.

    Attributes:
        image_end_offset: Offset at which the last cluster ends that is used, or counts as used.
        total_clusters: Clusters of the disk.
        allocated_clusters: Clusters of the disk that are in the image.
        fragmented_clusters: Those of them that do not follow their neighbour.
        compressed_clusters: Those of them that are compressed.
        corruptions: Contradictions that endanger data.
        damage: Those of them that are not just a wrong count, or a flag that depends on one.
        leaks: Clusters that count as used more often than they are.
        corruptions_fixed: Corruptions that a repair corrected.
        leaks_fixed: Leaks that a repair freed.
        findings: A sentence for each, up to a thousand.
    """

    image_end_offset: int = 0
    total_clusters: int = 0
    allocated_clusters: int = 0
    fragmented_clusters: int = 0
    compressed_clusters: int = 0
    corruptions: int = 0
    damage: int = 0
    leaks: int = 0
    corruptions_fixed: int = 0
    leaks_fixed: int = 0
    findings: list[str] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        """Whether nothing is wrong."""
        return not (self.corruptions or self.leaks)

    def __bool__(self) -> bool:
        return self.ok

    def corrupt(self, message: str, times: int = 1) -> None:
        """Note a corruption that is not just a wrong count, and how often it occurs."""
        self.damage += times
        self.miscount(message, times)

    def miscount(self, message: str, times: int = 1) -> None:
        """Note a count that is too low, or a flag that contradicts a count."""
        self.corruptions += times
        self._tell(f"corrupt: {message}")

    def leak(self, message: str) -> None:
        """Note a leak."""
        self.leaks += 1
        self._tell(f"leaked: {message}")

    def _tell(self, message: str) -> None:
        if len(self.findings) < _MOST_FINDINGS:
            self.findings.append(message)
