/*
 * SPDX-License-Identifier: GPL-2.0-or-later
 *
 * gendata BYTES [LINE-LENGTH [SEED]]
 *
 * Writes BYTES of text in lines of LINE-LENGTH characters, the same for the
 * same arguments on every machine: data for sort, whose result the host
 * computes for itself and compares by checksum.
 */
#include <inttypes.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static uint64_t next_random(uint64_t *state)
{
    /* xorshift64*, Vigna 2016 */
    *state ^= *state >> 12;
    *state ^= *state << 25;
    *state ^= *state >> 27;
    return *state * UINT64_C(2685821657736338717);
}

enum { LINE_MAX_BYTES = 4095, KEY_BYTES = 20, FILLER_BYTES = 1 << 16 };

static char filler[FILLER_BYTES + LINE_MAX_BYTES];

static void random_letters(char *text, size_t length, uint64_t *state)
{
    static const char letters[] =
        "0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ+-";
    size_t pos = 0;

    while (pos < length) {
        uint64_t bits = next_random(state) >> 4;

        for (int i = 0; i < 10 && pos < length; i++, bits >>= 6) {
            text[pos++] = letters[bits & 63];
        }
    }
}

/* A random key, and some part of a text as long as 16 pages: cheap to make,
 * also where the CPU is emulated, and yet no two pages alike. */
static void make_line(char *line, size_t length, uint64_t *state)
{
    size_t key = length < KEY_BYTES ? length : KEY_BYTES;

    random_letters(line, key, state);
    memcpy(line + key, filler + next_random(state) % FILLER_BYTES,
           length - key);
    line[length] = '\n';
}

static bool parse(const char *text, uint64_t low, uint64_t high,
                  uint64_t *value)
{
    char *end;

    *value = strtoull(text, &end, 10);
    return *text >= '0' && *text <= '9' && *end == '\0' &&
           *value >= low && *value <= high;
}

int main(int argc, char **argv)
{
    uint64_t bytes, length = 99, state = 1;
    char line[LINE_MAX_BYTES + 1];

    if (argc < 2 || argc > 4 || !parse(argv[1], 1, UINT64_MAX, &bytes) ||
        (argc > 2 && !parse(argv[2], 1, LINE_MAX_BYTES, &length)) ||
        (argc > 3 && !parse(argv[3], 1, UINT64_MAX, &state))) {
        fprintf(stderr, "usage: gendata BYTES [LINE-LENGTH [SEED]]\n");
        return 2;
    }
    random_letters(filler, sizeof(filler), &state);
    for (uint64_t done = 0; done < bytes; done += length + 1) {
        make_line(line, length, &state);
        if (fwrite(line, length + 1, 1, stdout) != 1) {
            perror("gendata: standard output");
            return 1;
        }
    }
    if (fflush(stdout) != 0) {
        perror("gendata: standard output");
        return 1;
    }
    return 0;
}
