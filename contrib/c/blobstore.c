#define _GNU_SOURCE /* struct ucred */
#include "blobstore.h"
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>
#define BLANK " \t\r\n"
#define DIGITS "0123456789abcdefABCDEF"
#define PLAIN "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_~"
#define TRY(call) do { int failed = (call); if (failed != 0) return failed; } while (0)

/* Where the body of a reply goes. */
struct body { char *data; size_t size, capacity; };
struct reply { int status; bool chunked, closes, sized, tagged; uint64_t size, generation; };

static void hang_up(struct blobstore *s) {
    if (s->fd >= 0) close(s->fd);
    s->fd = -1;
    s->start = s->end = 0;
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

/* Fail because of errno; 0 is the end of the connection. */
static int lost(struct blobstore *s) {
    return fail(s, BLOBSTORE_LOST, errno == 0 ? "the owner ended the connection"
                                   : errno == EAGAIN ? "the owner took too long"
                                   : strerror(errno));
}

static long long now(void) { /* in milliseconds */
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec * 1000LL + t.tv_nsec / 1000000;
}

/* Let the socket wait no longer than the time that this call has left. */
static bool hurry(struct blobstore *s, int option) {
    if (s->timeout_ms <= 0) return true;
    long long left = s->deadline - now();
    struct timeval most = {left / 1000, left % 1000 * 1000};
    errno = EAGAIN;
    return left > 0 && setsockopt(s->fd, SOL_SOCKET, option, &most, sizeof most) == 0;
}

static int dial(struct blobstore *s) {
    struct sockaddr_un to = {.sun_family = AF_UNIX};
    struct ucred peer;
    socklen_t size = sizeof peer;
    uid_t own = geteuid();
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
    if (s->found && own != 0 && peer.uid != 0 && peer.uid != own)
        return fail(s, BLOBSTORE_UNTRUSTED, "another user listens there [O5]");
    return 0;
}

static int receive(struct blobstore *s, char *to, size_t size) {
    for (size_t count; size > 0; s->start += count, to += count, size -= count) {
        count = s->end - s->start < size ? s->end - s->start : size;
        if (count > 0) memcpy(to, s->buffer + s->start, count);
        if (count > 0) continue;
        ssize_t got = hurry(s, SO_RCVTIMEO) ? recv(s->fd, s->buffer, sizeof s->buffer, 0) : -1;
        if (got == 0) errno = 0;
        if (got == 0 || (got < 0 && errno != EINTR)) return lost(s);
        s->start = 0;
        s->end = got > 0 ? (size_t)got : 0;
    }
    return 0;
}

/* Read a line without the blanks at its end. */
static int read_line(struct blobstore *s, char *line, size_t capacity) {
    for (size_t n = 0; n < capacity; n++) {
        TRY(receive(s, line + n, 1));
        if (line[n] != '\n') continue;
        while (n > 0 && strchr(BLANK, line[n - 1]) != NULL) n--;
        line[n] = '\0';
        return 0;
    }
    return bad(s, "a line of the reply is too long");
}

/* Read a number that ends where the text does, or with one of `ends`. */
static bool number(const char *text, int base, const char *ends, uint64_t *value) {
    size_t length = strspn(text, DIGITS);
    char *end;
    errno = 0;
    *value = strtoull(text, &end, base);
    return length > 0 && end == text + length && errno == 0 && strchr(ends, *end) != NULL;
}

static int read_head(struct blobstore *s, struct reply *r) {
    char line[2048], *value;
    uint64_t status;
    bool good = true;
    memset(r, 0, sizeof *r);
    TRY(read_line(s, line, sizeof line));
    if (strncmp(line, "HTTP/1.1 ", 9) != 0 || !number(line + 9, 10, " ", &status) || status > 599)
        return bad(s, "the reply is not HTTP/1.1");
    r->status = (int)status;
    for (int count = 0; count < 100 && good; count++) {
        TRY(read_line(s, line, sizeof line));
        if (line[0] == '\0') return 0;
        if ((value = strchr(line, ':')) == NULL) break;
        *value++ = '\0';
        value += strspn(value, BLANK);
        if (strcasecmp(line, "content-length") == 0)
            good = !r->sized && (r->sized = number(value, 10, BLANK, &r->size));
        else if (strcasecmp(line, "transfer-encoding") == 0)
            good = r->chunked = strcasecmp(value, "chunked") == 0;
        else if (strcasecmp(line, "connection") == 0)
            r->closes = r->closes || strcasecmp(value, "close") == 0;
        else if (strcasecmp(line, "etag") == 0)
            good = r->tagged = value[0] == '"' && number(value + 1, 10, "\"", &r->generation);
    }
    return bad(s, "the reply has a header that is not valid, or too many");
}

static int read_body(struct blobstore *s, const struct reply *r, struct body *b) {
    char line[256];
    uint64_t size = r->size;
    if (r->status == 204) return 0;
    if (r->sized == r->chunked) return bad(s, "the reply does not say where it ends");
    do {
        if (r->chunked) TRY(read_line(s, line, sizeof line));
        if (r->chunked && !number(line, 16, "; \t", &size)) return bad(s, "a chunk has no size");
        if (size > b->capacity - b->size)
            return fail(s, BLOBSTORE_TOO_LARGE, "there is not enough room for the reply");
        TRY(receive(s, b->data + b->size, size));
        b->size += size;
        if (r->chunked) TRY(read_line(s, line, sizeof line));
        if (r->chunked && line[0] != '\0') return bad(s, "a chunk does not end where it should");
    } while (r->chunked && size > 0);
    return 0;
}

/* Return the code unit that \uXXXX stands for, or 0 if this is something else. */
static unsigned unit(const char *at) {
    if (at[0] != '\\' || at[1] != 'u' || strspn(at + 2, DIGITS) < 4) return 0;
    unsigned found = (unsigned)strtoul((char[]){at[2], at[3], at[4], at[5], '\0'}, NULL, 16);
    return found > 0 ? found : 0xFFFD;
}

/* Decode a JSON string, as many characters as fit; return what follows its end, or NULL. */
static const char *string(const char *at, char *out, size_t capacity) {
    static const char from[] = "\"\\/bfnrt", to[] = "\"\\/\b\f\n\r\t";
    static const unsigned lead[] = {0, 0xC0, 0xE0, 0xF0};
    while ((unsigned char)*at >= ' ' && *at != '"') {
        unsigned c = (unsigned char)*at++, more = 0; /* more bytes of this character */
        const char *escape = c == '\\' && *at != '\0' ? strchr(from, *at) : NULL;
        if (escape != NULL) {
            c = (unsigned char)to[escape - from];
            at++;
        } else if (c == '\\') {
            if ((c = unit(at - 1)) == 0) return NULL;
            unsigned low = unit(at += 5);
            if (c >> 10 == 0xD800 >> 10 && low >> 10 == 0xDC00 >> 10) {
                c = 0x10000 + ((c & 0x3FF) << 10) + (low & 0x3FF);
                at += 6;
            } else if (c >> 11 == 0xD800 >> 11) c = 0xFFFD; /* half of a pair */
            more = c < 0x80 ? 0 : c < 0x800 ? 1 : c < 0x10000 ? 2 : 3;
        }
        /* Bytes 0x80 to 0xBF continue a character, and were counted with its first byte. */
        if (capacity < (c < 0xC0 && more == 0 ? 2 : 5)) capacity = 0;
        if (capacity == 0) continue; /* it is full */
        *out++ = (char)(lead[more] | c >> 6 * more);
        capacity -= 1 + more;
        while (more-- > 0) *out++ = (char)(0x80 | (c >> 6 * more & 0x3F));
    }
    *out = '\0';
    return *at == '"' ? at + 1 : NULL;
}

/* Find a member of a JSON object; copy its string, or the word or number that it is. */
static bool member(const char *at, const char *name, char *out, size_t capacity) {
    int depth = 0;
    while (*at != '\0') {
        depth += (*at == '{' || *at == '[') - (*at == '}' || *at == ']');
        if (*at++ != '"') continue;
        if ((at = string(at, out, capacity)) == NULL) return false;
        const char *value = at + strspn(at, BLANK);
        if (depth != 1 || *value != ':' || strcmp(out, name) != 0) continue;
        value += 1 + strspn(value + 1, BLANK);
        if (*value == '"') return string(value + 1, out, capacity) != NULL;
        snprintf(out, capacity, "%.*s", (int)strcspn(value, BLANK ",}]"), value);
        return true;
    }
    return false;
}

static bool member_number(const char *document, const char *name, uint64_t *value) {
    char text[24];
    return member(document, name, text, sizeof text) && number(text, 10, "", value);
}

static int refused(struct blobstore *s, int status, const char *document) {
    uint64_t exit_code;
    if (status < 400 || !member_number(document, "exit_code", &exit_code) || exit_code < 1 ||
        exit_code > 255 || !member(document, "class", s->error_class, sizeof s->error_class) ||
        !member(document, "detail", s->message, sizeof s->message))
        return bad(s, "the reply does not say why the owner refuses");
    return s->exit_code = (int)exit_code;
}

static int send_all(struct blobstore *s, struct iovec *parts) {
    struct msghdr message = {.msg_iov = parts, .msg_iovlen = 2};
    while (parts[0].iov_len + parts[1].iov_len > 0) {
        ssize_t count = hurry(s, SO_SNDTIMEO) ? sendmsg(s->fd, &message, MSG_NOSIGNAL) : -1;
        if (count < 0 && errno == EINTR) continue;
        if (count < 0 && (errno == EPIPE || errno == ECONNRESET)) return 0; /* a reply says why */
        if (count < 0) return lost(s);
        for (struct iovec *part = parts; part < parts + 2; part++) {
            size_t n = (size_t)count < part->iov_len ? (size_t)count : part->iov_len;
            part->iov_base = (char *)part->iov_base + n;
            part->iov_len -= n;
            count -= (ssize_t)n;
        }
    }
    s->sent = true;
    return 0;
}

/* Send a request for a section; read the reply into `b`, unless it is an error. */
static int ask(struct blobstore *s, const char *method, const char *name, const char *action,
               uint64_t if_match, const void *content, size_t size, struct reply *r,
               struct body *b) {
    char path[3000] = "", match[40] = "", head[4000], document[8192] = "";
    struct body problem = {document, 0, sizeof document - 1};
    size_t n = 0;
    int replies = 0;
    s->deadline = now() + s->timeout_ms;
    s->sent = s->maybe_done = false;
    s->changes = strcmp(method, "GET") != 0;
    for (const char *c = name; *c != '\0'; c++) {
        if (n + 4 > sizeof path) return fail(s, BLOBSTORE_USAGE, "the name is too long");
        n += (size_t)sprintf(path + n, strchr(PLAIN, *c) ? "%c" : "%%%02X", (unsigned char)*c);
    }
    if (if_match != BLOBSTORE_ANY)
        sprintf(match, "If-Match: \"%llu\"\r\n", (unsigned long long)if_match);
    n = (size_t)sprintf(head, "%s /v1/sections/%s%s HTTP/1.1\r\nHost: localhost\r\n"
                        "Content-Length: %zu\r\n%s\r\n", method, path, action, size, match);
    /* The owner ends connections that are silent for a minute. */
    if (s->fd < 0 || s->start < s->end ||
        recv(s->fd, s->buffer, 1, MSG_PEEK | MSG_DONTWAIT) >= 0 || errno != EAGAIN) TRY(dial(s));
    TRY(send_all(s, (struct iovec[]){{head, n}, {(void *)content, size}}));
    do TRY(read_head(s, r));
    while (r->status / 100 == 1 && ++replies < 10); /* 100 Continue, for instance */
    bool good = r->status == 200 || r->status == 204;
    TRY(read_body(s, r, good ? b : &problem));
    if (good && !s->sent) return bad(s, "the reply came before the whole request was sent");
    if (r->closes || !s->sent) hang_up(s);
    return good ? 0 : refused(s, r->status, document);
}

static int describe(struct blobstore *s, const char *method, const char *name, const char *action,
                    const char *content, struct blobstore_section *section) {
    char document[8192] = "";
    struct body body = {document, 0, sizeof document - 1};
    struct reply r;
    TRY(ask(s, method, name, action, BLOBSTORE_ANY, content, strlen(content), &r, &body));
    section->written = member_number(document, "size", &section->size);
    if (!section->written) section->size = 0;
    return member_number(document, "max_size", &section->max_size) &&
           member_number(document, "generation", &section->generation)
           ? 0 : bad(s, "the reply does not describe a section");
}

int blobstore_open(struct blobstore *s, const char *image, const char *path, int timeout_ms) {
    const char *place = getenv("BLOBSTORE_RUNTIME_DIR"), *more = "";
    struct stat found;
    int size;
    *s = (struct blobstore){.fd = -1, .timeout_ms = timeout_ms, .found = path == NULL};
    s->deadline = now() + timeout_ms;
    if (place == NULL || place[0] == '\0') {
        place = geteuid() == 0 ? "/run" : getenv("XDG_RUNTIME_DIR");
        more = "/blobstore";
    }
    if (path != NULL) size = snprintf(s->path, sizeof s->path, "%s", path);
    else if (stat(image, &found) != 0) return fail(s, BLOBSTORE_NO_OWNER, strerror(errno));
    else if (place == NULL || place[0] == '\0')
        return fail(s, BLOBSTORE_NO_OWNER, "there is no runtime directory [O2]");
    else size = snprintf(s->path, sizeof s->path, "%s%s/%llu-%llu.sock", place, more,
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
    struct body body = {buffer, 0, capacity};
    struct reply r;
    TRY(ask(s, "GET", name, "", BLOBSTORE_ANY, NULL, 0, &r, &body));
    if (!r.tagged) return bad(s, "the reply has no generation");
    if (generation != NULL) *generation = r.generation;
    *size = body.size;
    return 0;
}

int blobstore_put(struct blobstore *s, const char *name, const void *blob, size_t size,
                  uint64_t if_match, uint64_t *generation) {
    struct body none = {NULL, 0, 0};
    struct reply r;
    TRY(ask(s, "PUT", name, "", if_match, blob, size, &r, &none));
    if (!r.tagged) return bad(s, "the reply has no generation");
    if (generation != NULL) *generation = r.generation;
    return 0;
}

int blobstore_register(struct blobstore *s, const char *name, uint64_t max_size, const char *kind,
                       struct blobstore_section *section) {
    char wanted[100];
    int size = snprintf(wanted, sizeof wanted, "{\"max_size\": %llu, \"kind\": \"%s\"}",
                        (unsigned long long)max_size, kind);
    if (size >= (int)sizeof wanted) return fail(s, BLOBSTORE_USAGE, "there is no such kind");
    return describe(s, "POST", name, "/register", wanted, section);
}

int blobstore_info(struct blobstore *s, const char *name, struct blobstore_section *section) {
    return describe(s, "GET", name, "/info", "", section);
}

int blobstore_delete(struct blobstore *s, const char *name, uint64_t if_match) {
    struct body none = {NULL, 0, 0};
    struct reply r;
    return ask(s, "DELETE", name, "", if_match, NULL, 0, &r, &none);
}
