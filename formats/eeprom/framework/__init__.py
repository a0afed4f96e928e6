"""What all EEPROM formats get from their models: checks, plain data, schema, paths.

A format declares a frozen dataclass whose annotations carry the limits of its fields.
This room makes the rest of that declaration, once for all formats (spec/decisions/0014):
plain data for manifests and JSON, checks with the place of the mistake, a JSON Schema,
and names of single fields for the command line. Plain data and annotations are walked
through together, so that each error knows its place; msgspec checks the single values.
It makes the schema too, and for that it sees each model through a *mirror*, a struct
with names in kebab-case that forbids unknown keys.

What must not happen here:

- No format and no part is known here. `registry` holds the names of their modules as
  text, and imports one when it is asked for it.
- No message of msgspec reaches a user, and none is read here: each error says the field,
  in the spelling of manifests, what its value is, and what would be right.
- A model is checked before it is encoded, however it was made; `fields.validate` is the
  only place that does so.

Begin with `codec`: the protocol of a codec, its report of problems, strict and tolerant.
Then `fields` (models to plain data and back), `reading` (the way back, where it checks),
`annotations` (what a model declares), `limits` (types that models share), `octet_text`
(bytes as people write them), `paths` (naming one field), `schema` with `mirror`, and
`registry`.
"""
