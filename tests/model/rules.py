"""The rules of `spec/container.md` that can be turned off, one by one, to see what each is for.

Each switch names its rule and says in a line what goes wrong without it. `proofs.py` has for each
a scenario that fails with it off, and does not fail with it on. A rule without a switch is either
no choice at all, or one whose absence nothing here notices:

- C40, both totals must be equal, and C44, members must agree and not be too many: these catch
  nothing that the root (C48) does not catch as well, as long as no attacker can forge;
- C47, no two extents of a section are equally new: likewise;
- C52, all bytes of void records are written, not only their heads: what lies in free space has no
  blob, so that an older head in a record makes more sections corrupt when damage uncovers it, and
  nothing worse;
- C52, an extent never takes a whole free item: its first record is void, so that its head could as
  well take the place of the free item's;
- C61, nothing is written with a damaged head in the store: histories end with the damage.

One switch asks for more than the specification does: `moved_blob_stays`, by which a commit that
moves a section leaves its blob as it is. What can happen otherwise is named in section 7.
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
    durable_decides: bool = _rule(
        "C34", "after a close, damage still looks like a torn commit, even of what was long durable"
    )
    free_items_decide: bool = _rule("C35", "what a free item attests is still in doubt")

    # ----------------------------------------------------------------- reading

    newest_header_counts: bool = _rule(
        "C40", "a close of which only the second copy was written counts for nothing"
    )
    void_counts_nothing: bool = _rule("C42", "a void record is taken for the newest copy")
    missing_record_is_corrupt: bool = _rule(
        "C43, C47", "the older copy answers for a newer one whose head is damaged"
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
    only_overwritten_is_no_orphan: bool = _rule(
        "C44", "a torn resize of a section of one copy is not rolled back, and loses its blob"
    )
    decided_is_final: bool = _rule("C45", "damage is answered with the older blob")
    void_extents_are_left_over: bool = _rule(
        "C46", "an interrupted create leaves a section that was never made"
    )
    newest_extent_counts: bool = _rule("C47", "an interrupted resize gives the older extent")
    damage_may_hide_what_is_newer: bool = _rule(
        "C67",
        "with the head of a free item lost, what was committed before a close can be set back",
    )
    root_is_compared: bool = _rule("C48", "a section set back to an older state is not noticed")
    headers_attest: bool = _rule(
        "C48", "the newest commit can be set back although the store was closed since"
    )
    free_items_attest: bool = _rule(
        "C48", "what was committed before the container grew can be set back"
    )
    void_attests_prev: bool = _rule(
        "C48", "a commit of several sections can be set back together with the one before it"
    )

    # ----------------------------------------------------------------- writing

    flush_is_never_repeated_alone: bool = _rule(
        "C51", "what a failed flush dropped is acknowledged"
    )
    failed_write_keeps_to_its_copy: bool = _rule("C51", "both copies of a section are torn")
    space_is_void_first: bool = _rule(
        "C14, C52", "what a create cut short left in a free item with a damaged head shows"
    )
    void_is_flushed_before_it_shows: bool = _rule("C52", "a free item ends where no record begins")
    space_is_taken_before_commit: bool = _rule(
        "C52", "a commit cut short leaves in a free item what shows if the item's head is damaged"
    )
    durable_follows_create: bool = _rule(
        "C52", "a free item set back hides a section, and all commits to it"
    )
    tombstone_comes_first: bool = _rule("C53", "the rest of a deleted section contradicts D")
    moved_blob_stays: bool = _rule(
        "C55", "the blob in the old extent answers when the head of the new one is damaged"
    )
    durable_precedes_release: bool = _rule(
        "C53, C55", "a commit in doubt is rolled back to what was released"
    )
    records_are_void_before_they_are_free: bool = _rule(
        "C56", "an old extent is back when the head of the free item over it is damaged"
    )
    newest_is_void_last: bool = _rule(
        "C56", "an old extent has its older blob when damage hides the new one"
    )
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
    durable_is_in_both_copies: bool = _rule("C58", "D goes back when one header copy goes bad")
    close_waits_for_items: bool = _rule("C58", "D says durable of what is not")
    old_headers_are_zeroed_first: bool = _rule("C59", "an old header stands over new items")
    headers_come_last: bool = _rule("C59", "a new header stands over old items")

    # ---------------------------------------------------------- recovery, windows

    recovery_comes_first: bool = _rule("C60", "two commits are in doubt, and only one is decided")
    recovery_flushes_first: bool = _rule(
        "C60", "what a writer saw, and built on, was only in a volatile cache"
    )
    clean_stores_are_flushed_too: bool = _rule(
        "C60", "D goes back if it was only in a volatile cache, and a header copy goes bad"
    )
    orphans_are_voided: bool = _rule("C60", "what was rolled back is decided by the next commit")
    left_over_orphans_are_voided: bool = _rule(
        "C60", "D decides a resize that was rolled back, before its extent is released"
    )
    void_keeps_generation: bool = _rule(
        "C60", "the commit before the one rolled back is in doubt again"
    )
    void_keeps_prev: bool = _rule("C60", "a void record attests a root that never was")
    orphans_are_voided_before_durable: bool = _rule("C60", "D decides what was rolled back")
    recovery_writes_durable: bool = _rule(
        "C60", "a free item set back hides a section, and all commits to it"
    )
    recovery_writes_durable_before_release: bool = _rule(
        "C60", "a commit in doubt is rolled back to what was released"
    )
    left_over_is_released: bool = _rule("C60", "the old extent is back when the new one is deleted")
    header_copies_are_made_equal: bool = _rule(
        "C60", "the only sound header copy is overwritten, and torn"
    )
    window_verifies_older_copy: bool = _rule(
        "C62", "a window is built on blocks that never reached the medium"
    )

    @property
    def recovery_finishes(self) -> bool:
        """Whether recovery leaves nothing to recover."""
        return self.recovery_comes_first and self.orphans_are_voided and self.left_over_is_released

    def without(self, *names: str) -> Rules:
        """Return the rules with some turned off."""
        return replace(self, **dict.fromkeys(names, False))


#: All rules in force.
ALL = Rules()

#: What each switch is for: its rule, and what goes wrong without it.
SWITCHES: dict[str, tuple[str, str]] = {
    switch.name: (switch.metadata["rule"], switch.metadata["otherwise"]) for switch in fields(Rules)
}
