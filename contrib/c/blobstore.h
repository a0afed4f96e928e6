/* A client of `blobstore serve` in C99, for Linux; README.md explains it. O2, O34 and so on are
 * rules of spec/owner.md. A handle is for one thread at a time; handles share nothing. */
#pragma once
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* Functions return 0; or the exit code of the owner's error, 1 to 255 (README.md of blobstore
 * lists them); or less than 0, if there was no reply that says more. */
enum {
    BLOBSTORE_USAGE = -1,     /* an argument is not valid */
    BLOBSTORE_NO_OWNER = -2,  /* no process serves the image */
    BLOBSTORE_UNTRUSTED = -3, /* the process that does belongs to another user (O5) */
    BLOBSTORE_LOST = -4,      /* the owner went away, or took too long */
    BLOBSTORE_BAD_REPLY = -5, /* what answers is not an owner */
    BLOBSTORE_TOO_LARGE = -6, /* the reply has more bytes than the caller has room for */
    BLOBSTORE_NO_SECTION = 61,
    BLOBSTORE_UNWRITTEN = 62, /* registered, never written: only this permits new state */
    BLOBSTORE_MISMATCH = 78   /* the section is at another generation than `if_match` */
};
#define BLOBSTORE_ANY UINT64_MAX /* for `if_match`: whatever the generation is */

struct blobstore {
    /* Of the last error: */
    bool maybe_done;      /* the change may have been made: look before you ask again (O34) */
    int exit_code;        /* that a program may end with */
    char error_class[48]; /* such as "CorruptBlobError"; empty if the owner did not reply */
    char message[800];    /* in UTF-8 */
    /* Internal: */
    bool found, changes, sent;
    int fd, timeout_ms;
    long long deadline;
    char path[108], buffer[8192];
};
struct blobstore_section {
    bool written;
    uint64_t size, max_size, generation; /* the size is 0 if it was never written */
};

/* Connect to the socket `path`, which the caller trusts; or if that is NULL, find the owner of an
 * image (O2, O3). `timeout_ms` is for each call as a whole; 0 waits for ever. */
int blobstore_open(struct blobstore *s, const char *image, const char *path, int timeout_ms);
void blobstore_close(struct blobstore *s);
/* Get a blob into `buffer`, which needs the section's `max_size`. */
int blobstore_get(struct blobstore *s, const char *name, void *buffer, size_t capacity,
                  size_t *size, uint64_t *generation);
/* Replace a blob. It is durable on return. `generation`, which may be NULL, is the new one. */
int blobstore_put(struct blobstore *s, const char *name, const void *blob, size_t size,
                  uint64_t if_match, uint64_t *generation);
/* See that a section exists and holds `max_size` bytes; `kind` is "blob" or "window". */
int blobstore_register(struct blobstore *s, const char *name, uint64_t max_size, const char *kind,
                       struct blobstore_section *section);
int blobstore_info(struct blobstore *s, const char *name, struct blobstore_section *section);
int blobstore_delete(struct blobstore *s, const char *name, uint64_t if_match);
