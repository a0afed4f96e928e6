"""Layouts that people declare: an EEPROM's fields as data, and one engine for all of them (E-LAY).

A layout is a TOML file, or a table in a manifest. `declaration` says what may stand in it;
`loading` reads it. It becomes what a format in code is (`formats.eeprom.framework.codec.Codec`):
a frozen dataclass whose annotations carry the limits, made at run time, and bytes to and from
that. So manifests, tables, ``show``, ``edit``, ``unpack``, errors and schema need to know nothing
of layouts.

Between bytes and values stands the library construct, because a layout is data: every field is
a `construct.Construct`. `values` has those of single values, `lists` those of arrays and of
types with lengths and values, and `records` the one of fields at their places, with lengths,
counts and checksums that it computes. `compiling` makes all of this of a declaration, and
`codec` is the outside.

What must not happen here:

- Importing construct takes as long as unlocking an image. Nothing on the way to a blob imports
  this room; `formats.eeprom.framework.registry` names it as text.
- No exception of construct leaves this room.
- A layout from a stranger is data: it reads no files, runs nothing, and takes time in proportion
  to its own size and to the bytes it reads. Patterns are those of the declaration's author.

Begin with `declaration`, then `codec` and `compiling`. `streams` is what the constructs share
while they read and write, `algorithms` the checksums. The folder ``shipped`` has the layouts
that come with the project, each with its source.
"""
