/*
 * Runs a fuzz target without libFuzzer: first each file of its corpus, then
 * so many random mutations of them.  The same seed gives the same inputs.
 *
 *     fuzz-NAME CORPUS-DIRECTORY [RUNS [SEED]]
 *     fuzz-NAME FILE
 *
 * An input that makes the target end the process is left in the file
 * "crash-NAME" of the working directory, for the second form.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#include <fcntl.h>
#include <glib.h>
#include <signal.h>
#include <string.h>
#include <unistd.h>
#include "fuzz.h"

#define INPUT_BYTES_MAX 65536

/* What a signal handler needs. */
static const uint8_t *current;
static size_t current_bytes;
static char crash_path[256];

void __asan_on_error(void);

static void save_input(void)
{
    int fd = open(crash_path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0644);

    if (fd >= 0) {
        if (write(fd, current, current_bytes) == (ssize_t)current_bytes) {
            static const char text[] = "the input is in ";

            (void)!write(2, text, sizeof(text) - 1);
            (void)!write(2, crash_path, strlen(crash_path));
            (void)!write(2, "\n", 1);
        }
        close(fd);
    }
}

/* AddressSanitizer's hook. */
void __asan_on_error(void)
{
    save_input();
}

static void on_abort(int number)
{
    save_input();
    signal(SIGABRT, SIG_DFL);
    raise(SIGABRT);
}

/* Exactly as large as it is, so that ASan sees each byte too far. */
static void run(const uint8_t *data, size_t bytes)
{
    uint8_t *exact = g_memdup2(data, bytes);

    current = exact;
    current_bytes = bytes;
    LLVMFuzzerTestOneInput(exact, bytes);
    current_bytes = 0;
    g_free(exact);
}

static GPtrArray *load_corpus(const char *dir_path)
{
    GPtrArray *corpus = g_ptr_array_new_with_free_func(
        (GDestroyNotify)g_byte_array_unref);
    g_autoptr(GError) error = NULL;
    GDir *dir = g_dir_open(dir_path, 0, &error);
    const char *name;
    GList *names = NULL;

    if (!dir) {
        g_error("%s", error->message);
    }
    while ((name = g_dir_read_name(dir))) {
        names = g_list_prepend(names, g_strdup(name));
    }
    g_dir_close(dir);
    /* The file system's order must not matter. */
    names = g_list_sort(names, (GCompareFunc)strcmp);
    for (GList *l = names; l; l = l->next) {
        g_autofree char *path = g_build_filename(dir_path, l->data, NULL);
        gsize bytes;
        char *data;

        if (!g_file_get_contents(path, &data, &bytes, &error)) {
            g_error("%s", error->message);
        }
        g_ptr_array_add(corpus, g_byte_array_new_take((guint8 *)data,
                                                      bytes));
    }
    g_list_free_full(names, g_free);
    if (corpus->len == 0) {
        g_error("%s holds no input", dir_path);
    }
    return corpus;
}

/* One small change somewhere. */
static void mutate(GRand *rand, GByteArray *input, const GByteArray *other)
{
    static const uint64_t interesting[] = {
        0, 1, 2, 3, 16, 63, 64, 65, 127, 128, 255, 256, 1023, 1024, 4095,
        4096, 4097, 65535, 262143, 262144, 262145, 0x7fffffff, 0x80000000,
        0xffffffff, 1ull << 34, 1ull << 40, 1ull << 63, UINT64_MAX,
    };
    guint len = input->len;
    guint at = len ? g_rand_int_range(rand, 0, len) : 0;
    guint n = len ? g_rand_int_range(rand, 1, MIN(len - at, 200) + 1) : 0;
    uint64_t value;

    switch (g_rand_int_range(rand, 0, 7)) {
    case 0: /* a bit */
        if (len) {
            input->data[at] ^= 1 << g_rand_int_range(rand, 0, 8);
        }
        break;
    case 1: /* a byte */
        if (len) {
            input->data[at] = g_rand_int(rand);
        }
        break;
    case 2: /* a number where numbers are */
        value = interesting[g_rand_int_range(rand, 0,
                                             G_N_ELEMENTS(interesting))];
        at &= ~3u;
        if (len > at) {
            size_t width = 2u << g_rand_int_range(rand, 0, 3);

            memcpy(input->data + at, &value, MIN(len - at, width));
        }
        break;
    case 3: /* less */
        if (len) {
            g_byte_array_remove_range(input, at, n);
        }
        break;
    case 4: /* an end */
        g_byte_array_set_size(input, at);
        break;
    case 5: /* the same again */
        if (len && len + n <= INPUT_BYTES_MAX) {
            g_autofree uint8_t *copy = g_memdup2(input->data + at, n);

            g_byte_array_append(input, copy, n);
        }
        break;
    default: /* a piece of another */
        if (other->len && len + other->len <= INPUT_BYTES_MAX) {
            guint from = g_rand_int_range(rand, 0, other->len);

            g_byte_array_append(input, other->data + from,
                                other->len - from);
        }
        break;
    }
}

static void run_mutations(GPtrArray *corpus, long runs, guint32 seed)
{
    GRand *rand = g_rand_new_with_seed(seed);

    for (long i = 0; i < runs; i++) {
        const GByteArray *base =
            corpus->pdata[g_rand_int_range(rand, 0, corpus->len)];
        const GByteArray *other =
            corpus->pdata[g_rand_int_range(rand, 0, corpus->len)];
        g_autoptr(GByteArray) input = g_byte_array_new();
        int changes = g_rand_int_range(rand, 1, 6);

        g_byte_array_append(input, base->data, base->len);
        while (changes--) {
            mutate(rand, input, other);
        }
        run(input->data, input->len);
    }
    g_rand_free(rand);
}

int main(int argc, char **argv)
{
    long runs = argc > 2 ? strtol(argv[2], NULL, 0) : 20000;
    guint32 seed = argc > 3 ? strtoul(argv[3], NULL, 0) : 1;
    g_autofree char *name = g_path_get_basename(argv[0]);

    if (argc < 2) {
        fprintf(stderr, "usage: %s CORPUS-DIRECTORY [RUNS [SEED]]\n"
                "       %s FILE\n", name, name);
        return 2;
    }
    g_snprintf(crash_path, sizeof(crash_path), "crash-%s", name);
    signal(SIGABRT, on_abort);
    if (g_file_test(argv[1], G_FILE_TEST_IS_REGULAR)) {
        g_autofree char *data = NULL;
        gsize bytes;

        if (!g_file_get_contents(argv[1], &data, &bytes, NULL)) {
            g_error("can't read %s", argv[1]);
        }
        run((uint8_t *)data, bytes);
        return 0;
    }

    g_autoptr(GPtrArray) corpus = load_corpus(argv[1]);
    for (guint i = 0; i < corpus->len; i++) {
        GByteArray *input = corpus->pdata[i];

        run(input->data, input->len);
    }
    run_mutations(corpus, runs, seed);
    printf("%s: %u inputs and %ld mutations of them, seed %u\n", name,
           corpus->len, runs, seed);
    return 0;
}
