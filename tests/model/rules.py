"""The rules of `spec/container.md` that can be turned off, one by one, to see what each is for.

Each switch names its rule and says in a line what goes wrong without it. `proofs.py` has for each
a scenario that fails with it off, and does not fail with it on. A rule without a switch is either
no choice at all, or one whose absence nothing here notices:

- C40, both totals must be equal, and C44, members must agree and not be too many: these catch
  nothing that the root (C48) does not catch as well, as long as nobody can forge;
- C60, orphans in left-over extents are voided too: there are none, for what leaves an extent over
  has decided every commit that wrote into it;
- C61, nothing is written with a damaged head in the store: histories end with the damage.
"""

from __future__ import annotations

from dataclasses import dataclass, field, fields, replace


def _rule(number: str, otherwise: str) -> bool:
    """Declare a switch: the rule it belongs to, and what goes wrong if it is off."""
    return field(default=True, metadata={"rule": number, "otherwise": otherwise})


@dataclass(frozen=True, slots=True)
class Rules:
    """Rules in force: all of them, if nothing else is said."""

    # ------------------------------------------------- generations and commits

    void_generations_are_used_up: bool = _rule(
        "C30", "a commit takes the generation of one rolled back, whose void records undo it"
    )
    commits_are_serial: bool = _rule(
        "C31", "the next commit is durable and the last is not: neither old nor new"
    )
    members_are_counted: bool = _rule(
        "C31, C44", "a commit of several sections is half there after a crash"
    )
    older_copy_is_overwritten: bool = _rule("C31, C42", "a torn put tears the only good copy")
    single_copy_commits_alone: bool = _rule(
        "C32", "a commit is rolled back that overwrote the only copy of one of its sections"
    )
    free_item_publishes: bool = _rule(
        "C33, C52", "a section that was never created shows when the free item around it is damaged"
    )
    durable_decides: bool = _rule(
        "C34", "after a close, damage still looks like a torn commit, even of what was long durable"
    )
    free_items_decide: bool = _rule("C35", "what a free item published is taken for unpublished")

    # ----------------------------------------------------------------- reading

    newest_header_counts: bool = _rule(
        "C40", "a close of which only the second copy was written counts for nothing"
    )
    void_counts_nothing: bool = _rule("C42", "a void record is taken for the newest copy")
    missing_record_is_corrupt: bool = _rule(
        "C43, C47", "the older copy answers for a newer one whose head is damaged"
    )
    gap_may_be_a_free_item: bool = _rule(
        "C43", "what a create cut short left in a free item with a damaged head is taken for valid"
    )
    damage_may_hide_names: bool = _rule(
        "C43", "a section whose head is damaged is said not to exist"
    )
    damage_leaves_undecided: bool = _rule(
        "C43, C44", "a commit is rolled back because the head of one of its members is damaged"
    )
    damage_leaves_root_unverified: bool = _rule("C43, C48", "one bad head refuses the whole store")
    members_are_verified: bool = _rule("C44", "a torn blob is taken for a complete commit")
    single_copy_is_no_orphan: bool = _rule(
        "C44",
        "a torn put to a section of one copy is rolled back to nothing: no root attests that",
    )
    decided_is_final: bool = _rule("C45", "damage is answered with the older blob")
    unpublished_is_corrupt: bool = _rule(
        "C46", "a section that was never created shows when the free item around it is damaged"
    )
    newest_extent_counts: bool = _rule("C47", "an interrupted resize gives the older extent")
    root_is_compared: bool = _rule("C48", "a section set back to an older state is not noticed")
    headers_attest: bool = _rule(
        "C48", "the newest commit can be set back although the store was closed since"
    )
    free_items_attest: bool = _rule("C48", "nothing attests what a delete left")
    void_attests_prev: bool = _rule(
        "C48", "a commit of several sections can be set back together with the one before it"
    )

    # ----------------------------------------------------------------- writing

    flush_is_never_repeated_alone: bool = _rule(
        "C51", "what a failed flush dropped is acknowledged"
    )
    failed_write_keeps_to_its_copy: bool = _rule("C51", "both copies of a section are torn")
    whole_record_is_written: bool = _rule(
        "C14", "an older head inside a record with a damaged head is taken for valid"
    )
    records_are_flushed_before_publishing: bool = _rule(
        "C52", "a free item ends where no record begins"
    )
    extent_leaves_a_free_block: bool = _rule("C52, C56", "nothing is left to publish a record by")
    tombstone_comes_first: bool = _rule(
        "C53", "a deleted section is back when the head of the free item over it is damaged"
    )
    old_extent_is_freed_last: bool = _rule("C55", "the section is gone before it is there again")
    merged_free_item_is_new: bool = _rule("C56", "nothing attests what a delete left")
    space_is_reused_after_the_flush: bool = _rule(
        "C56", "records are in the middle of a section that is still there"
    )
    grown_item_comes_first: bool = _rule("C57", "the container reaches to where no item is")
    grown_item_attests: bool = _rule("C57", "the new free item attests a root that never was")
    growing_is_a_new_sequence: bool = _rule("C57", "equally new header copies differ")
    growing_writes_the_first_copy_first: bool = _rule(
        "C57", "the newest header copy disagrees with the outer length"
    )
    growing_writes_both_copies: bool = _rule(
        "C57", "with the first header copy all is lost that lies in the grown space"
    )
    worse_header_copy_is_written_first: bool = _rule(
        "C58", "the only sound header copy is overwritten, and torn"
    )
    header_copies_are_flushed_apart: bool = _rule("C58", "both header copies are torn")
    close_writes_both_copies: bool = _rule("C58", "D goes back when one header copy goes bad")
    close_waits_for_items: bool = _rule("C58", "D says durable of what is not")
    old_headers_are_zeroed_first: bool = _rule("C59", "an old header stands over new items")
    headers_come_last: bool = _rule("C59", "a new header stands over old items")

    # ---------------------------------------------------------- recovery, windows

    recovery_comes_first: bool = _rule("C60", "two commits are in doubt, and only one is decided")
    recovery_flushes_first: bool = _rule(
        "C60", "what a writer saw, and built on, was only in a volatile cache"
    )
    clean_stores_are_flushed_too: bool = _rule(
        "C57, C60", "grown space is used while the second header copy is only in a volatile cache"
    )
    orphans_are_voided: bool = _rule("C60", "what was rolled back is decided by the next commit")
    void_keeps_generation: bool = _rule(
        "C60", "the commit before the one rolled back can be set back"
    )
    void_keeps_prev: bool = _rule("C60", "a void record attests a root that never was")
    left_over_is_freed: bool = _rule("C60", "the old extent is back when the new one is deleted")
    header_copies_are_made_equal: bool = _rule(
        "C60", "the only sound header copy is overwritten, and torn"
    )
    window_verifies_older_copy: bool = _rule(
        "C62", "a window is built on blocks that never reached the medium"
    )

    @property
    def recovery_finishes(self) -> bool:
        """Whether recovery leaves nothing to recover."""
        return self.recovery_comes_first and self.orphans_are_voided and self.left_over_is_freed

    def without(self, *names: str) -> Rules:
        """Return the rules with some turned off."""
        return replace(self, **dict.fromkeys(names, False))


#: All rules in force.
ALL = Rules()

#: What each switch is for: its rule, and what goes wrong without it.
SWITCHES: dict[str, tuple[str, str]] = {
    switch.name: (switch.metadata["rule"], switch.metadata["otherwise"]) for switch in fields(Rules)
}
