"""Manifests: images out of text, and text out of images.

A manifest is a TOML or JSON file that says which image is to be made, which sections
it has and what is in them: the bytes of a file, text, or the fields of an EEPROM
format. `pack` makes the image, `unpack` writes a manifest that packs it again. A
CSV table beside a manifest makes one image for each of its rows.

A manifest passes through three stages, and each has its own kind of error. Text
becomes plain data (it is not TOML, or it has a key twice); plain data becomes a
`Manifest` (a value is not of its type: which key, and what would be right); and a
`Manifest` becomes an image (a file is missing, a blob is too large). Everything that
can be found wrong in the first two is found before anything is made.

What must not happen here:

- No format of an EEPROM is known here by name. `codecs` finds it, in
  `formats.eeprom` or in another distribution, and its model says the rest
  (spec/decisions/0014).
- No image is left half made, and the same manifest and seed always give the same
  bytes (spec/decisions/0015).
- No secret stands in a manifest.
- The files of sections are found from the manifest's directory, whatever the current
  one is; only the image and its header are named from where the command runs.

Begin with `manifest` (what a manifest says) and `loading` (reading it), then `content`
and `sizes`, `settings` (``--set``) and `tables`. `pack` makes images; `rendering` and
`unpack` are the way back. `codecs` and `fields` turn the blobs of EEPROMs into fields
and back, `layouts` adds types that users declare, and `judging` says whether content is of
its type, or of which; `schema` publishes all of it as ``spec/manifest.schema.json``.
"""
