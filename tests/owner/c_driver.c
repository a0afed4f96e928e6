/* Calls contrib/c/blobstore.c as lines on stdin say; tests/support/c_client.py has the other end.
 * Bytes are in hexadecimal, with "-" for none. */
#include "blobstore.h"
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/time.h>

static struct blobstore store;

static void ignore(int number) { (void)number; }

/* Have a signal arrive every so many microseconds. */
static void interrupt(long microseconds) {
    const struct timeval every = {0, microseconds};
    struct sigaction action = {.sa_handler = ignore};
    sigaction(SIGALRM, &action, NULL);
    setitimer(ITIMER_REAL, &(struct itimerval){every, every}, NULL);
}

/* Return the bytes of the next word, in memory of exactly that size, and a NUL if `ends`. */
static char *word(char **line, size_t *size, bool ends) {
    char *from = strsep(line, " ");
    size_t count = strcmp(from, "-") == 0 ? 0 : strlen(from) / 2;
    char *bytes = malloc(count + ends);
    if (bytes == NULL) abort();
    for (size_t n = 0; n < count; n++)
        bytes[n] = (char)strtoul((char[]){from[2 * n], from[2 * n + 1], '\0'}, NULL, 16);
    if (ends) bytes[count] = '\0';
    if (size != NULL) *size = count;
    return bytes;
}

static unsigned long long next(char **line) { return strtoull(strsep(line, " "), NULL, 10); }

static void print(const char *bytes, size_t size) {
    for (size_t n = 0; n < size; n++) printf("%02x", (unsigned char)bytes[n]);
    printf(size > 0 ? " " : "- ");
}

int main(void) {
    char *line = NULL;
    size_t room = 0;
    ssize_t length;
    long interval = 0;
    while ((length = getline(&line, &room, stdin)) > 0) {
        char *rest = line;
        uint64_t generation = 0;
        struct blobstore_section section = {0};
        size_t size = 0;
        char *blob = NULL;
        line[length - 1] = '\0';
        const char *verb = strsep(&rest, " ");
        char *name = word(&rest, NULL, true);
        int result;
        interrupt(interval);
        if (strcmp(verb, "open") == 0) {
            char *path = word(&rest, NULL, true);
            result = blobstore_open(&store, name, path[0] != '\0' ? path : NULL, (int)next(&rest));
            free(path);
        } else if (strcmp(verb, "get") == 0) {
            size_t capacity = next(&rest);
            blob = malloc(capacity);
            result = blobstore_get(&store, name, blob, capacity, &size, &generation);
        } else if (strcmp(verb, "put") == 0) {
            size_t put;
            char *new = word(&rest, &put, false);
            result = blobstore_put(&store, name, new, put, next(&rest), &generation);
            free(new);
        } else if (strcmp(verb, "register") == 0) {
            char *kind = word(&rest, NULL, true);
            result = blobstore_register(&store, name, next(&rest), kind, &section);
            free(kind);
        } else if (strcmp(verb, "info") == 0) {
            result = blobstore_info(&store, name, &section);
        } else if (strcmp(verb, "delete") == 0) {
            result = blobstore_delete(&store, name, next(&rest));
        } else if (strcmp(verb, "interrupt") == 0) { /* during each call from now on */
            interval = (long)next(&rest);
            result = 0;
        } else {
            blobstore_close(&store);
            result = 0;
        }
        interrupt(0);
        printf("%d %d %d ", result, store.exit_code, store.maybe_done);
        print(store.error_class, strlen(store.error_class));
        print(store.message, strlen(store.message));
        print(blob, size);
        printf("%llu %d %llu %llu %llu\n", (unsigned long long)generation, section.written,
               (unsigned long long)section.size, (unsigned long long)section.max_size,
               (unsigned long long)section.generation);
        fflush(stdout);
        free(name);
        free(blob);
    }
    free(line);
    return 0;
}
