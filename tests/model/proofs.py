"""The proofs of single rules: small scenarios that fail with one rule off, and only then.

Where a rule is a second line of defence, the first one is off on both sides of the proof.
"""

from __future__ import annotations

from dataclasses import dataclass

from tests.model.explore import Scenario
from tests.model.headers import close
from tests.model.scenarios import B2, B3, SINGLE, A, B, menu, used_store
from tests.model.transactions import create, delete, put, together
from tests.model.writing import in_turn


@dataclass(frozen=True, slots=True)
class Proof:
    """A scenario that shows what a rule is for; the rules in `besides` are off anyway."""

    scenario: Scenario
    besides: tuple[str, ...] = ()


_ONE = used_store(A)
_TWO = used_store(A, B)
_SINGLE = used_store(A, SINGLE)

_NOTHING_DONE = Scenario(_TWO, {}, operations=0, damage=True)
_PUT = Scenario(_ONE, menu("put A"), operations=1)
_TWO_PUTS = Scenario(_TWO, menu("put A, put B"), operations=2)
_COMMIT = Scenario(_TWO, menu("put A+B"), operations=1)
_SINGLE_PUT = Scenario(_SINGLE, menu("put A+P, put P"), operations=1)
_CREATE = Scenario(used_store(A, free=3), menu("create C"), operations=1)
_CREATE_PUT = Scenario(
    used_store(A, B, free=4), menu("create C, put A, close"), operations=3, damage=True
)
_CREATE_REPLAY = Scenario(used_store(A, free=3), menu("create C, put C"), operations=2, replay=True)
_RESIZE = Scenario(used_store(A, free=5), menu("resize A"), operations=1)
_RESIZE_DAMAGE = Scenario(used_store(A, free=5), menu("resize A"), operations=1, damage=True)
_RESIZE_DELETE = Scenario(used_store(A, free=5), menu("resize A, delete A"), operations=2)
_DELETE = Scenario(_TWO, menu("delete A, delete B"), operations=2)
_GROW = Scenario(used_store(A, room=2), menu("grow 2"), operations=1)
_CLOSE = Scenario(_ONE, menu("put A, close"), operations=3, bad_headers=1)

PROOFS: dict[str, Proof] = {
    "void_generations_are_used_up": Proof(_TWO_PUTS, besides=("recovery_writes_durable",)),
    "commits_are_serial": Proof(
        Scenario(
            _TWO,
            {"put A, put B": in_turn("commits_are_serial", together(put("A")), together(put("B")))},
            operations=1,
        )
    ),
    "members_are_counted": Proof(_COMMIT, besides=("root_is_compared",)),
    "single_copy_commits_alone": Proof(_SINGLE_PUT),
    "durable_decides": Proof(_NOTHING_DONE),
    "free_items_decide": Proof(
        Scenario(used_store(A, free=3), menu("put A, create C"), operations=2, damage=True)
    ),
    "newest_header_counts": Proof(Scenario(_ONE, menu("put A, close"), operations=2, damage=True)),
    "older_copy_is_overwritten": Proof(_PUT),
    "void_counts_nothing": Proof(_TWO_PUTS),
    "newest_extent_counts": Proof(_RESIZE),
    "missing_record_is_corrupt": Proof(_NOTHING_DONE),
    "damage_may_hide_names": Proof(Scenario(_SINGLE, {}, operations=0, damage=True)),
    "damage_leaves_undecided": Proof(Scenario(_TWO, menu("put A+B"), operations=1, damage=True)),
    "damage_leaves_root_unverified": Proof(_NOTHING_DONE),
    "members_are_verified": Proof(_PUT),
    "single_copy_is_no_orphan": Proof(_SINGLE_PUT),
    "moved_blob_stays": Proof(
        Scenario(used_store(A, SINGLE, free=3), menu("resize P anew"), operations=1, damage=True)
    ),
    "only_overwritten_is_no_orphan": Proof(
        Scenario(used_store(A, SINGLE, free=3), menu("resize P"), operations=1)
    ),
    "decided_is_final": Proof(_NOTHING_DONE),
    "void_extents_are_left_over": Proof(_CREATE),
    "root_is_compared": Proof(Scenario(_TWO, menu("put A, put B"), operations=2, replay=True)),
    "headers_attest": Proof(Scenario(_ONE, menu("put A, close"), operations=2, replay=True)),
    "free_items_attest": Proof(
        Scenario(used_store(A, B, room=2), menu("put A, grow 2"), operations=3, replay=True)
    ),
    "void_attests_prev": Proof(Scenario(_TWO, menu("put A, put A+B"), operations=2, replay=True)),
    "flush_is_never_repeated_alone": Proof(_PUT),
    "failed_write_keeps_to_its_copy": Proof(_PUT),
    "space_is_void_first": Proof(_CREATE_PUT),
    "void_is_flushed_before_it_shows": Proof(_CREATE),
    "space_is_taken_before_commit": Proof(_CREATE_PUT),
    "durable_follows_create": Proof(_CREATE_REPLAY),
    "tombstone_comes_first": Proof(_DELETE),
    "durable_precedes_release": Proof(_RESIZE_DAMAGE),
    "records_are_void_before_they_are_free": Proof(
        Scenario(
            used_store(A, SINGLE, free=3),
            menu("delete A, resize P, delete P"),
            operations=3,
            crashes=1,
            damage=True,
        )
    ),
    "newest_is_void_last": Proof(_RESIZE_DAMAGE),
    "space_is_reused_after_the_flush": Proof(
        Scenario(
            used_store(A, B2),
            {
                "delete B, create C": in_turn(
                    "space_is_reused_after_the_flush",
                    together(delete("B")),
                    together(create("C")),
                    flushed=4,
                )
            },
            operations=1,
        )
    ),
    "grown_item_comes_first": Proof(_GROW),
    "grown_item_attests": Proof(_GROW),
    "growing_is_a_new_sequence": Proof(_GROW),
    "growing_writes_the_first_copy_first": Proof(_GROW),
    "growing_writes_both_copies": Proof(
        Scenario(
            used_store(A, free=1, room=4),
            menu("grow 4, create C"),
            operations=2,
            bad_headers=1,
        )
    ),
    "header_copies_are_flushed_apart": Proof(_CLOSE),
    "worse_header_copy_is_written_first": Proof(
        Scenario(_ONE, menu("put A, close"), operations=2, bad_headers=1)
    ),
    "durable_is_in_both_copies": Proof(_CLOSE),
    "close_waits_for_items": Proof(
        Scenario(
            _ONE,
            {"put A, close": in_turn("close_waits_for_items", together(put("A")), close)},
            operations=1,
        )
    ),
    "recovery_comes_first": Proof(Scenario(_TWO, menu("put A, put A+B, close"), operations=2)),
    "recovery_flushes_first": Proof(_TWO_PUTS),
    "clean_stores_are_flushed_too": Proof(
        Scenario(_ONE, menu("put A, close"), operations=3, bad_headers=1)
    ),
    "orphans_are_voided": Proof(_TWO_PUTS),
    "left_over_orphans_are_voided": Proof(_RESIZE),
    "void_keeps_generation": Proof(Scenario(_ONE, menu("put A"), operations=2, damage=True)),
    "void_keeps_prev": Proof(_PUT),
    "orphans_are_voided_before_durable": Proof(_TWO_PUTS),
    "recovery_writes_durable": Proof(_CREATE_REPLAY),
    "recovery_writes_durable_before_release": Proof(_RESIZE_DAMAGE),
    "left_over_is_released": Proof(_RESIZE_DELETE),
    "header_copies_are_made_equal": Proof(
        Scenario(used_store(A, room=2), menu("grow 2, close"), operations=2, bad_headers=1)
    ),
    "window_verifies_older_copy": Proof(Scenario(used_store(B3), menu("window B"), operations=2)),
}
