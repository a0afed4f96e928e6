#define _GNU_SOURCE /* struct ucred, memmem, strcasestr */
#include "blobstore.h"
#include <ctype.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>
#define PLAIN "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_~"
#define TRY(call) do { int failed = (call); if (failed != 0) return failed; } while (0)

/* A request for a section, and where the body of its reply goes. */
struct call {
    const char *method, *name, *action, *content;
    size_t size;
    char *body;
    size_t capacity, got;
};

static void hang_up(struct blobstore *s) {
    if (s->fd >= 0) close(s->fd);
    s->fd = -1;
}

static int fail(struct blobstore *s, int code, const char *why) {
    s->maybe_done = s->changes && s->sent;
    s->exit_code = code == BLOBSTORE_USAGE ? 2 : code == BLOBSTORE_BAD_REPLY ? 30 : 20;
    s->error_class[0] = '\0';
    snprintf(s->message, sizeof s->message, "%s: %s%s", s->path[0] ? s->path : "blobstore", why,
             s->maybe_done ? "; the change may have been made" : "");
    hang_up(s); /* the rest of a reply may still come */
    return code;
}

static int bad(struct blobstore *s, const char *why) { return fail(s, BLOBSTORE_BAD_REPLY, why); }

/* Let the socket wait no longer than the time that is left of the call, which begins here. */
static bool hurry(struct blobstore *s, int option) {
    struct timespec t;
    if (s->timeout_ms <= 0) return true;
    clock_gettime(CLOCK_MONOTONIC, &t);
    long long now = t.tv_sec * 1000LL + t.tv_nsec / 1000000;
    if (s->deadline == 0) s->deadline = now + s->timeout_ms;
    struct timeval left = {(s->deadline - now) / 1000, (s->deadline - now) % 1000 * 1000};
    errno = EAGAIN;
    return now < s->deadline && setsockopt(s->fd, SOL_SOCKET, option, &left, sizeof left) == 0;
}

static int dial(struct blobstore *s) {
    struct sockaddr_un to = {.sun_family = AF_UNIX};
    struct ucred peer;
    socklen_t size = sizeof peer;
    int done = -1;
    hang_up(s);
    if (s->path[0] == '\0') return fail(s, BLOBSTORE_USAGE, "this handle is not open");
    memcpy(to.sun_path, s->path, sizeof to.sun_path);
    s->fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    do if (s->fd >= 0 && hurry(s, SO_SNDTIMEO))
        done = connect(s->fd, (struct sockaddr *)&to, sizeof to);
    while (done != 0 && errno == EINTR);
    if (done != 0 || getsockopt(s->fd, SOL_SOCKET, SO_PEERCRED, &peer, &size) != 0)
        return fail(s, BLOBSTORE_NO_OWNER, strerror(errno));
    if (s->found && geteuid() != 0 && peer.uid != 0 && peer.uid != geteuid())
        return fail(s, BLOBSTORE_UNTRUSTED, "another user listens there [O5]");
    return 0;
}

/* Send some bytes, with MSG_NOSIGNAL, or receive some. None are sent if the owner takes no more. */
static int pass(struct blobstore *s, int flags, void *data, size_t size, size_t *count) {
    bool out = flags == MSG_NOSIGNAL;
    ssize_t n = -1;
    do if (hurry(s, out ? SO_SNDTIMEO : SO_RCVTIMEO))
        n = out ? send(s->fd, data, size, flags) : recv(s->fd, data, size, flags);
    while (n < 0 && errno == EINTR);
    *count = n > 0 ? (size_t)n : 0;
    if (n > 0 || (out && (errno == EPIPE || errno == ECONNRESET))) return 0;
    if (n == 0) return fail(s, BLOBSTORE_LOST, "the owner ended the connection");
    return fail(s, BLOBSTORE_LOST, errno == EAGAIN ? "the owner took too long" : strerror(errno));
}

static int send_all(struct blobstore *s, const char *data, size_t size) {
    s->sent = false;
    for (size_t count = 1; size > 0 && count > 0; data += count, size -= count)
        TRY(pass(s, MSG_NOSIGNAL, (void *)data, size, &count));
    s->sent = size == 0;
    return 0;
}

/* Find a field of the reply's head by LF, name and ":"; NULL if it is not there once. */
static const char *field(const struct blobstore *s, const char *name) {
    const char *found = strcasestr(s->buffer, name);
    if (found == NULL || strcasestr(found + 1, name) != NULL) return NULL;
    return found + strlen(name) + strspn(found + strlen(name), " \t");
}

/* Read a number and the character `end`; return what follows, or NULL. */
static const char *number(const char *text, char end, uint64_t *value) {
    char *rest;
    if (text == NULL || !isdigit((unsigned char)*text)) return NULL;
    errno = 0;
    *value = strtoull(text, &rest, 10);
    return errno == 0 && *rest == end ? rest + 1 : NULL;
}

/* Receive the head of a reply, and nothing after it, as a text in the buffer. */
static int read_head(struct blobstore *s, int *status) {
    char *last = NULL;
    for (size_t size = 0, count; last == NULL; size += count) {
        if (size == sizeof s->buffer) return bad(s, "the head of the reply is too long");
        TRY(pass(s, MSG_PEEK, s->buffer + size, sizeof s->buffer - size, &count));
        last = memmem(s->buffer, size + count, "\r\n\r\n", 4);
        if (last != NULL) count = (size_t)(last + 4 - s->buffer) - size;
        TRY(pass(s, 0, s->buffer + size, count, &count));
    }
    last[2] = '\0'; /* each field ends with CR and LF */
    return sscanf(s->buffer, "HTTP/1.1 %3d ", status) == 1 ? 0 : bad(s, "this is not HTTP/1.1");
}

static int read_body(struct blobstore *s, struct call *c) {
    uint64_t size;
    if (field(s, "\nTransfer-Encoding:") || !number(field(s, "\nContent-Length:"), '\r', &size))
        return bad(s, "the reply does not say where it ends");
    if (size > c->capacity)
        return fail(s, BLOBSTORE_TOO_LARGE, "there is not enough room for the reply");
    for (size_t count; c->got < size; c->got += count)
        TRY(pass(s, 0, c->body + c->got, size - c->got, &count));
    return 0;
}

/* Return the error that a reply tells (O151). */
static int refused(struct blobstore *s) {
    const char *said = field(s, "\nBlobstore-Error:");
    if (said == NULL || sscanf(said, "%3d%*1[ ]%47[^ \r]%*1[ ]%799[^\r]", &s->exit_code,
                               s->error_class, s->message) < 3 ||
        s->exit_code < 1 || s->exit_code > 255)
        return bad(s, "the reply does not say what is wrong");
    return s->exit_code;
}

/* Send a request, and read its reply; `generation` may be NULL. */
static int ask(struct blobstore *s, struct call *c, uint64_t if_match, uint64_t *generation) {
    char head[4000], json[8192]; /* of which nothing is used that the head has (O151) */
    size_t n = (size_t)sprintf(head, "%s /v1/sections/", c->method);
    int status, replies = 0;
    s->deadline = 0;
    s->sent = s->maybe_done = false;
    s->changes = strcmp(c->method, "GET") != 0;
    for (const char *name = c->name; *name != '\0'; name++) {
        if (n > 3000) return fail(s, BLOBSTORE_USAGE, "the name is too long");
        n += (size_t)sprintf(head + n, strchr(PLAIN, *name) ? "%c" : "%%%02X", *name & 0xFF);
    }
    n += (size_t)sprintf(head + n, "%s HTTP/1.1\r\nHost: localhost\r\n", c->action);
    if (if_match != BLOBSTORE_ANY)
        n += (size_t)sprintf(head + n, "If-Match: \"%llu\"\r\n", (unsigned long long)if_match);
    n += (size_t)sprintf(head + n, "Content-Length: %zu\r\n\r\n", c->size);
    /* The owner ends connections that are silent for a minute; what it says unasked is no reply. */
    if (s->fd < 0 || recv(s->fd, s->buffer, 1, MSG_PEEK | MSG_DONTWAIT) >= 0 || errno != EAGAIN)
        TRY(dial(s));
    size_t along = c->size < sizeof head - n ? c->size : 0; /* as one piece, which is faster */
    if (along > 0) memcpy(head + n, c->content, along);
    TRY(send_all(s, head, n + along));
    if (s->sent && along < c->size) TRY(send_all(s, c->content, c->size));
    do TRY(read_head(s, &status));
    while (status / 100 == 1 && ++replies < 10); /* 100 Continue, for instance */
    bool good = status == 200 || status == 204;
    if (!good || c->body == NULL) *c = (struct call){.body = json, .capacity = sizeof json};
    if (status != 204) TRY(read_body(s, c));
    if (good && !s->sent) return bad(s, "the reply came before the whole request was sent");
    const char *after = field(s, "\nConnection:"), *tag = field(s, "\nETag:");
    if (!s->sent || (after != NULL && strncasecmp(after, "close", 5) == 0)) hang_up(s);
    if (!good) return refused(s);
    if (generation != NULL && (tag == NULL || *tag != '"' || !number(tag + 1, '"', generation)))
        return bad(s, "the reply has no generation");
    return 0;
}

/* Send a request whose reply describes the section (O151). */
static int describe(struct blobstore *s, struct call *c, struct blobstore_section *section) {
    TRY(ask(s, c, BLOBSTORE_ANY, &section->generation));
    const char *at = number(field(s, "\nBlobstore-Section:"), ' ', &section->max_size);
    section->written = number(at, '\r', &section->size) != NULL;
    if (!section->written) section->size = 0;
    return section->written || (at != NULL && *at == '-') ? 0 : bad(s, "this is not a section");
}

int blobstore_open(struct blobstore *s, const char *image, const char *path, int timeout_ms) {
    const char *place = getenv("BLOBSTORE_RUNTIME_DIR"), *below = "";
    struct stat found;
    int size;
    *s = (struct blobstore){.fd = -1, .timeout_ms = timeout_ms, .found = path == NULL};
    if (place == NULL || place[0] == '\0') {
        place = geteuid() == 0 ? "/run" : getenv("XDG_RUNTIME_DIR");
        below = "/blobstore";
    }
    if (path != NULL) size = snprintf(s->path, sizeof s->path, "%s", path);
    else if (stat(image, &found) != 0) return fail(s, BLOBSTORE_NO_OWNER, strerror(errno));
    else if (place == NULL || place[0] == '\0')
        return fail(s, BLOBSTORE_NO_OWNER, "there is no runtime directory [O2]");
    else size = snprintf(s->path, sizeof s->path, "%s%s/%llu-%llu.sock", place, below,
                         (unsigned long long)found.st_dev, (unsigned long long)found.st_ino);
    if (size < (int)sizeof s->path) return dial(s);
    s->path[0] = '\0';
    return fail(s, BLOBSTORE_USAGE, "the path of the socket has more than 107 bytes");
}

void blobstore_close(struct blobstore *s) {
    hang_up(s);
    s->path[0] = '\0';
}

int blobstore_get(struct blobstore *s, const char *name, void *buffer, size_t capacity,
                  size_t *size, uint64_t *generation) {
    struct call c = {"GET", name, "", .body = buffer, .capacity = capacity};
    TRY(ask(s, &c, BLOBSTORE_ANY, generation));
    *size = c.got;
    return 0;
}

int blobstore_put(struct blobstore *s, const char *name, const void *blob, size_t size,
                  uint64_t if_match, uint64_t *generation) {
    struct call c = {"PUT", name, "", .content = blob, .size = size};
    return ask(s, &c, if_match, generation);
}

int blobstore_register(struct blobstore *s, const char *name, uint64_t max_size, const char *kind,
                       struct blobstore_section *section) {
    char wanted[100];
    int size = snprintf(wanted, sizeof wanted, "{\"max_size\": %llu, \"kind\": \"%s\"}",
                        (unsigned long long)max_size, kind);
    if (size >= (int)sizeof wanted) return fail(s, BLOBSTORE_USAGE, "there is no such kind");
    struct call c = {"POST", name, "/register", .content = wanted, .size = (size_t)size};
    return describe(s, &c, section);
}

int blobstore_info(struct blobstore *s, const char *name, struct blobstore_section *section) {
    return describe(s, &(struct call){"GET", name, "/info", .size = 0}, section);
}

int blobstore_delete(struct blobstore *s, const char *name, uint64_t if_match) {
    return ask(s, &(struct call){"DELETE", name, "", .size = 0}, if_match, NULL);
}
