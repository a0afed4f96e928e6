"""Repairing damaged heads, as far as something proves what they said (C70 to C77).

A damaged head hides one item: a copy of a section, or free space. While there is
one, the store can be read but not written (C61), because the head may have belonged
to the commit that decides what counts. This room brings back what the head said, and
it does so by proof, not by plausibility. There are two kinds of proof:

- **the head's own check**: half of its 32 bytes is enough to tell whether a candidate
  is what was written (C71);
- **the root**, which every live head attests for the whole store. A guess at a lost
  head is right if with it the sum of all sections has the root that is attested
  (C72, C73).

What neither proves is reported, and given up only if the user names it (C75).

What must not happen here:

- A record that verifies and counts is never overwritten, and a blob that does not
  verify is not repaired: that is a matter for `restore` and for backups.
- Nothing is written before the repaired heads have been read back through an
  `overlay` and found free of contradictions (C70).
- Whatever is written is written in an order that leaves, after a crash at any point,
  damage that can be repaired in the same way (C77).

Begin with `repair`, which writes, `plan`, which says what in which order, and `deciding`,
which fills a plan in. Then read `survey` (what is sound, and what may lie under the
damage), `remains` (what is left of a record without its head), `mending` (proof by the
head's check), `rebuilding` (proof by the root) and `overlay` (trying a repair without
writing it). `known` is what readers use of this room: they go on with heads that are
proved, and write nothing (C67).
"""
