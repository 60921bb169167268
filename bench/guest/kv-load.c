/*
 * SPDX-License-Identifier: GPL-2.0-or-later
 *
 * kv-load SOCKET MBYTES [OPERATIONS]
 *
 * Loads a memcached the way memaslap does in the S-memV paper: values of
 * 1 KiB, keys of 64 bytes, nine gets for each set, all keys alike likely.
 * First it stores MBYTES of values, then it prints ten times a second how
 * many operations were answered so far, until it is ended.
 *
 * What is asked for goes out in batches; a batch is answered before the next
 * one is sent.  A value that is not what was stored under its key ends it.
 * With OPERATIONS a second, as even as batches allow: what was missed is made
 * up for a tenth of a second's worth, the rest is lost.
 */
#define _GNU_SOURCE
#include <inttypes.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

enum {
    VALUE_BYTES = 1024,
    BATCH = 16,
    SETS_IN_TEN = 1,
    REPORT_NS = 100000000,
    SECOND_NS = 1000000000,
    LATE_NS = 100000000,
};

/* A key is "k", zeros, and the number, 64 bytes in all. */
#define KEY "k%063" PRIu64

static FILE *to_server, *from_server;

static void __attribute__((noreturn, format(printf, 1, 2)))
die(const char *format, ...)
{
    va_list args;

    va_start(args, format);
    fprintf(stderr, "kv-load: ");
    vfprintf(stderr, format, args);
    fprintf(stderr, "\n");
    va_end(args);
    exit(1);
}

static int64_t now_ns(void)
{
    struct timespec ts;

    clock_gettime(CLOCK_MONOTONIC, &ts);
    return ts.tv_sec * INT64_C(1000000000) + ts.tv_nsec;
}

static uint64_t next_random(uint64_t *state)
{
    /* xorshift64*, Vigna 2016 */
    *state ^= *state >> 12;
    *state ^= *state << 25;
    *state ^= *state >> 27;
    return *state * UINT64_C(2685821657736338717);
}

static void make_value(char *value, uint64_t key)
{
    uint64_t word = (key + 1) * UINT64_C(0x9e3779b97f4a7c15);

    for (size_t i = 0; i < VALUE_BYTES; i += sizeof(word)) {
        memcpy(value + i, &word, sizeof(word));
    }
}

static void connect_or_die(const char *path)
{
    struct sockaddr_un address = { .sun_family = AF_UNIX };
    int fd = socket(AF_UNIX, SOCK_STREAM, 0);

    snprintf(address.sun_path, sizeof(address.sun_path), "%s", path);
    if (fd < 0 || connect(fd, (struct sockaddr *)&address,
                          sizeof(address)) < 0) {
        die("cannot connect to %s", path);
    }
    to_server = fdopen(fd, "w");
    from_server = fdopen(dup(fd), "r");
    if (!to_server || !from_server) {
        die("no memory");
    }
    setvbuf(to_server, NULL, _IOFBF, 1 << 16);
    setvbuf(from_server, NULL, _IOFBF, 1 << 16);
}

static void send_set(uint64_t key, const char *more)
{
    char value[VALUE_BYTES];

    make_value(value, key);
    fprintf(to_server, "set " KEY " 0 0 %d%s\r\n", key, VALUE_BYTES, more);
    fwrite(value, VALUE_BYTES, 1, to_server);
    fputs("\r\n", to_server);
}

static void expect(const char *wanted)
{
    char line[256];

    if (!fgets(line, sizeof(line), from_server)) {
        die("memcached is gone");
    }
    line[strcspn(line, "\r\n")] = '\0';
    if (strcmp(line, wanted) != 0) {
        die("'%s' where '%s' should be", line, wanted);
    }
}

/* Stores all keys; an answer for every thousandth keeps us together. */
static void fill(uint64_t keys)
{
    for (uint64_t key = 0; key < keys; key++) {
        bool last = key % 1000 == 999 || key == keys - 1;

        send_set(key, last ? "" : " noreply");
        if (last) {
            fflush(to_server);
            expect("STORED");
        }
    }
}

static void expect_value(uint64_t key)
{
    char value[VALUE_BYTES], found[VALUE_BYTES + 2], line[128];

    snprintf(line, sizeof(line), "VALUE " KEY " 0 %d", key, VALUE_BYTES);
    expect(line);
    if (fread(found, sizeof(found), 1, from_server) != 1) {
        die("memcached is gone");
    }
    make_value(value, key);
    if (memcmp(value, found, VALUE_BYTES) != 0) {
        die("WRONG VALUE of key %" PRIu64, key);
    }
    expect("END");
}

static void run_batch(uint64_t keys, uint64_t *random)
{
    uint64_t key[BATCH];
    bool is_set[BATCH];

    for (int i = 0; i < BATCH; i++) {
        key[i] = next_random(random) % keys;
        is_set[i] = next_random(random) % 10 < SETS_IN_TEN;
        if (is_set[i]) {
            send_set(key[i], "");
        } else {
            fprintf(to_server, "get " KEY "\r\n", key[i]);
        }
    }
    fflush(to_server);
    for (int i = 0; i < BATCH; i++) {
        if (is_set[i]) {
            expect("STORED");
        } else {
            expect_value(key[i]);
        }
    }
}

/* Until the next batch is due; that is at *due_ns, which goes on by one. */
static void pace(uint64_t operations, int64_t *due_ns)
{
    int64_t now = now_ns();
    int64_t early = *due_ns - now;

    if (early > 0) {
        struct timespec ts = { early / SECOND_NS, early % SECOND_NS };

        nanosleep(&ts, NULL);
    } else if (early < -LATE_NS) {
        *due_ns = now - LATE_NS;
    }
    *due_ns += (int64_t)BATCH * SECOND_NS / (int64_t)operations;
}

int main(int argc, char **argv)
{
    uint64_t keys, random = 88172645463325252, done = 0, operations;
    int64_t due, batch_ns;

    keys = argc == 3 || argc == 4
           ? (strtoull(argv[2], NULL, 10) << 20) / VALUE_BYTES : 0;
    operations = argc == 4 ? strtoull(argv[3], NULL, 10) : 0;
    if (!keys || (argc == 4 && !operations)) {
        fprintf(stderr, "usage: kv-load SOCKET MBYTES [OPERATIONS]\n");
        return 2;
    }
    connect_or_die(argv[1]);
    fill(keys);
    printf("filled %" PRIu64 "\n", keys);
    fflush(stdout);
    batch_ns = now_ns();
    due = batch_ns + REPORT_NS;
    while (1) {
        if (operations) {
            pace(operations, &batch_ns);
        }
        run_batch(keys, &random);
        done += BATCH;
        if (now_ns() >= due) {
            printf("done %" PRIu64 "\n", done);
            fflush(stdout);
            due += REPORT_NS;
        }
    }
}
