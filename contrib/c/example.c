/* A counter that survives: what a device does with its state. `example IMAGE [SECTION]` */
#include "blobstore.h"
#include <stdio.h>
#include <string.h>

static int explain(const struct blobstore *s) {
    fprintf(stderr, "%s: %s\n", s->error_class[0] ? s->error_class : "error", s->message);
    return s->exit_code;
}

int main(int count, char **words) {
    const char *name = count > 2 ? words[2] : "counter";
    struct blobstore store;
    struct blobstore_section section;
    uint64_t state = 0, generation;
    size_t size;
    int result;

    if (count < 2) return 2;
    result = blobstore_open(&store, words[1], NULL, 30000);
    if (result == 0) result = blobstore_register(&store, name, sizeof state, "blob", &section);
    if (result != 0) return explain(&store);
    do {
        result = blobstore_get(&store, name, &state, sizeof state, &size, &generation);
        /* Nothing else permits new state: any other error would overwrite what is there. */
        if (result == BLOBSTORE_UNWRITTEN) {
            state = 0;
            generation = section.generation;
        } else if (result != 0) return explain(&store);
        state++;
        result = blobstore_put(&store, name, &state, sizeof state, generation, NULL);
    } while (result == BLOBSTORE_MISMATCH); /* another process was faster */
    if (result != 0) return explain(&store);
    printf("%llu\n", (unsigned long long)state);
    blobstore_close(&store);
    return 0;
}
