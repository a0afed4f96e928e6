"""A new volume key, cipher or sector size for a payload, in place: re-encryption.

Plain images are encrypted and encrypted ones decrypted the same way. The payload is moved
piece by piece; a piece that is being moved is called the *hot zone*. At every instant the
image can be resumed, by this room or by cryptsetup, whose on-disk scheme LUKS2 uses; the
piece that was being moved when the power failed is restored from what its *resilience*
recorded before: checksums of its old sectors, or a copy of its new bytes. Rules: L150 to
L179 for LUKS2, L210 to L215 for LUKS1.

What must not happen here:

- A sector of the payload is never overwritten before what would restore it is durable,
  unless the user asked for resilience ``none``.
- A re-encryption that was found on an image is continued only on request, and only after
  its digest verified with the key: nothing else in the metadata is authentic
  (CVE-2021-4122).
- Memory never runs ahead of the disk: `Reencryption.volume` reads and writes each byte with
  the key that is durable there.
- Keys that are no longer needed are wiped, in memory and on disk, with the last step.

Begin with `interface`: what every re-encryption can do, and the frozen values that
describe one. `operations` begins, resumes and aborts them. For LUKS2, `plan` says which byte
lies where at every moment, without I/O; `headers` reads a plan from a header and writes how
far it is; `luks2` has the steps, in their order; `resilience` what restores a zone, `ahead`
the threads that prepare the next one, `payload` the device between two steps. `luks2_begin`,
`luks2_encrypt` and `luks2_decrypt` begin, with `record` for what they write, `placing` for a
header that takes the place of plain bytes, and `tidying` for the end. LUKS1 has no
room for any of this: `luks1` and `luks1_begin` use a detached LUKS2 header as its journal.
"""
