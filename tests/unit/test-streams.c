/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Streams: what readers of several kinds would have fetched ahead for them.
 *
 * A reader is simulated: what was asked for is there when it comes, so only
 * the first page, and what prefetch left out, faults.
 */
#include <glib.h>
#include <stdbool.h>
#include "streams.h"

#define WINDOW_MAX 1024
#define PAGES 65536

typedef struct Reader {
    MemxStreams streams;
    GHashTable *there;      /* pages asked for */
    unsigned faults;
    unsigned asked;         /* pages; */
    unsigned asked_twice;   /* and those that it had been asked for already */
    uint32_t window;        /* of the last fault */
} Reader;

static Reader *reader_new(void)
{
    Reader *reader = g_new0(Reader, 1);

    memx_streams_init(&reader->streams, WINDOW_MAX);
    reader->there = g_hash_table_new(g_direct_hash, g_direct_equal);
    return reader;
}

static void reader_free(Reader *reader)
{
    g_hash_table_unref(reader->there);
    g_free(reader);
}

G_DEFINE_AUTOPTR_CLEANUP_FUNC(Reader, reader_free)

/* Whichever way a stream goes, one page of as many. */
static bool is_marker(uint64_t page, bool backward)
{
    return page % MEMX_STREAM_MARKER_PAGES ==
           (backward ? MEMX_STREAM_MARKER_PAGES - 1 : 0);
}

static void read_page_towards(Reader *reader, uint64_t page, bool markers,
                              bool backward)
{
    uint64_t first, end;
    int direction;

    if (g_hash_table_contains(reader->there, GUINT_TO_POINTER(page + 1)) &&
        !(markers && is_marker(page, backward))) {
        return;
    }
    reader->faults++;
    memx_streams_lost(&reader->streams, page);
    reader->window = memx_streams_fault(&reader->streams, page, &first, &end,
                                        &direction);
    g_assert_cmpuint(first, <=, end);
    g_assert_true(direction == 1 || direction == -1);
    if (first < end) {
        g_assert_true(page < first || page >= end);
    }
    for (uint64_t p = first; p < end; p++) {
        bool fresh = g_hash_table_add(reader->there, GUINT_TO_POINTER(p + 1));

        reader->asked += fresh;
        reader->asked_twice += !fresh;
    }
}

/* Reads @page; pages that are a marker are never there before. */
static void read_page(Reader *reader, uint64_t page, bool markers)
{
    read_page_towards(reader, page, markers, false);
}

static void test_sequential_needs_few_faults(void)
{
    g_autoptr(Reader) reader = reader_new();

    for (uint64_t page = 100; page < PAGES; page++) {
        read_page(reader, page, true);
    }
    /* A fault per marker, and a few until the window is open. */
    g_assert_cmpuint(reader->faults, <=,
                     PAGES / MEMX_STREAM_MARKER_PAGES + 16);
    g_assert_cmpuint(reader->window, ==, WINDOW_MAX);
    g_assert_cmpuint(reader->asked, <=, PAGES + WINDOW_MAX);
    g_assert_cmpuint(reader->asked_twice, <=, 2 * WINDOW_MAX);
}

static void test_backward_needs_few_faults(void)
{
    g_autoptr(Reader) reader = reader_new();

    for (uint64_t page = PAGES; page-- > 0; ) {
        read_page_towards(reader, page, true, true);
    }
    g_assert_cmpuint(reader->faults, <=,
                     PAGES / MEMX_STREAM_MARKER_PAGES + 16);
    g_assert_cmpuint(reader->asked_twice, <=, 2 * WINDOW_MAX);
    g_assert_cmpuint(reader->asked, <=, PAGES);
}

/* What was fetched too early, and is gone again, is asked for again. */
static void read_with_losses(bool backward)
{
    g_autoptr(Reader) reader = reader_new();
    unsigned losses = 0;

    for (uint64_t i = 0; i < PAGES; i++) {
        if (i % 5000 == 4999) {
            g_hash_table_remove_all(reader->there);
            losses++;
        }
        read_page_towards(reader, backward ? PAGES - i : PAGES + i, true,
                          backward);
    }
    g_assert_cmpuint(reader->faults, <=, PAGES / MEMX_STREAM_MARKER_PAGES +
                     16 + 2 * losses);
    g_assert_cmpuint(reader->asked, <=, PAGES + (losses + 1) * WINDOW_MAX);
}

static void test_lost_is_asked_for_again(void)
{
    read_with_losses(false);
    read_with_losses(true);
}

static void test_random_asks_for_nothing(void)
{
    g_autoptr(Reader) reader = reader_new();
    unsigned faults = 20000;

    for (unsigned i = 0; i < faults; i++) {
        uint64_t first, end;
        int direction;

        /* 2^44 pages: neighbours are no chance. */
        uint64_t page = (uint64_t)g_test_rand_int() << 12 |
                        (g_test_rand_int() & 0xfff);

        memx_streams_fault(&reader->streams, page, &first, &end, &direction);
        reader->asked += end - first;
    }
    g_assert_cmpuint(reader->asked, <, faults / 100);
}

static void test_several_readers_at_once(void)
{
    enum { READERS = 8 };
    g_autoptr(Reader) reader = reader_new();
    uint64_t at[READERS];
    unsigned steps = 4096;

    for (unsigned i = 0; i < READERS; i++) {
        at[i] = i * PAGES;
    }
    for (unsigned i = 0; i < READERS * steps; i++) {
        unsigned r = g_test_rand_int_range(0, READERS);

        read_page(reader, at[r]++, true);
    }
    g_assert_cmpuint(reader->faults, <=, READERS *
                     (2 * steps / MEMX_STREAM_MARKER_PAGES + 20));
}

static void test_window_grows_by_doubling(void)
{
    MemxStreams s;
    uint64_t first, end, page = 1000;
    uint32_t window, last = 0;
    int direction;

    memx_streams_init(&s, WINDOW_MAX);
    window = memx_streams_fault(&s, page, &first, &end, &direction);
    g_assert_cmpuint(window, ==, 0);
    g_assert_cmpuint(first, ==, end);
    for (unsigned i = 0; i < 20; i++) {
        window = memx_streams_fault(&s, ++page, &first, &end, &direction);
        g_assert_cmpint(direction, ==, 1);
        g_assert_cmpuint(window, <=, WINDOW_MAX);
        if (last) {
            g_assert_cmpuint(window, ==, MIN(2 * last, WINDOW_MAX));
        }
        last = window;
    }
    g_assert_cmpuint(last, ==, WINDOW_MAX);
}

/* Backward at the start of the region: no page below 0. */
static void test_backward_stops_at_zero(void)
{
    MemxStreams s;
    uint64_t first, end;
    int direction;

    memx_streams_init(&s, WINDOW_MAX);
    for (uint64_t page = 40; page > 0; page--) {
        memx_streams_fault(&s, page, &first, &end, &direction);
        g_assert_cmpuint(first, <=, 41);
        g_assert_cmpuint(end, <=, 41);
    }
}

/* The same page again and again, by several threads, is no stream. */
static void test_same_page_is_no_stream(void)
{
    MemxStreams s;
    uint64_t first, end;
    int direction;

    memx_streams_init(&s, WINDOW_MAX);
    for (unsigned i = 0; i < 100; i++) {
        memx_streams_fault(&s, 5000, &first, &end, &direction);
        g_assert_cmpuint(first, ==, end);
    }
}

/* Of what is fetched ahead in one direction too little is used. */
static void test_judged(void)
{
    MemxStreams s;
    uint64_t page = 1000, first, end;
    uint32_t window = 0;
    int direction;

    memx_streams_init(&s, WINDOW_MAX);
    for (unsigned i = 0; i < 40; i++) {
        memx_streams_judge(&s, 1, 100, 10);
    }
    for (unsigned i = 0; i < 100; i++) {
        window = memx_streams_fault(&s, ++page, &first, &end, &direction);
    }
    g_assert_cmpuint(window, <, WINDOW_MAX / 8);
    g_assert_cmpuint(window, >, 0);
    page = 50000; /* backward nothing was said against it */
    for (unsigned i = 0; i < 100; i++) {
        window = memx_streams_fault(&s, --page, &first, &end, &direction);
    }
    g_assert_cmpint(direction, ==, -1);
    g_assert_cmpuint(window, ==, WINDOW_MAX);
    /* It is forgiven. */
    for (unsigned i = 0; i < 100; i++) {
        memx_streams_judge(&s, 1, 100, 90);
    }
    page = 20000;
    for (unsigned i = 0; i < 100; i++) {
        window = memx_streams_fault(&s, ++page, &first, &end, &direction);
    }
    g_assert_cmpuint(window, ==, WINDOW_MAX);
}

int main(int argc, char **argv)
{
    g_test_init(&argc, &argv, NULL);
    g_test_add_func("/streams/sequential-needs-few-faults",
                    test_sequential_needs_few_faults);
    g_test_add_func("/streams/backward-needs-few-faults",
                    test_backward_needs_few_faults);
    g_test_add_func("/streams/lost-is-asked-for-again",
                    test_lost_is_asked_for_again);
    g_test_add_func("/streams/random-asks-for-nothing",
                    test_random_asks_for_nothing);
    g_test_add_func("/streams/several-readers-at-once",
                    test_several_readers_at_once);
    g_test_add_func("/streams/window-grows-by-doubling",
                    test_window_grows_by_doubling);
    g_test_add_func("/streams/backward-stops-at-zero",
                    test_backward_stops_at_zero);
    g_test_add_func("/streams/same-page-is-no-stream",
                    test_same_page_is_no_stream);
    g_test_add_func("/streams/judged", test_judged);
    return g_test_run();
}
