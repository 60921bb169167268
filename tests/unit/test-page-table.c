/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * The network page table: its geometry, its counts per chunk, and the marks
 * of what is to be trimmed.
 */
#include <glib.h>
#include "page-table.h"

#define CHUNK (1 << 20)

static void test_geometry_of_a_cut_region(void)
{
    MemxPageTable t;
    /* Two chunks, a group and five pages. */
    uint64_t pages = 2 * 256 + 64 + 5;

    g_assert_true(memx_page_table_init(&t, pages, CHUNK));
    g_assert_cmpuint(t.n_groups, ==, 10);
    g_assert_cmpuint(t.n_chunks, ==, 3);
    g_assert_cmpuint(t.groups_per_chunk, ==, 4);
    g_assert_cmpuint(1u << t.chunk_shift, ==, 256);
    g_assert_cmpuint(memx_group_end(&t, 1), ==, 8);
    g_assert_cmpuint(memx_group_end(&t, 2), ==, 10);
    g_assert_cmphex(memx_group_mask(&t, 8), ==, UINT64_MAX);
    g_assert_cmphex(memx_group_mask(&t, 9), ==, 0x1f);
    for (uint64_t g = 0; g < t.n_groups; g++) {
        uint32_t c = memx_chunk_of_group(&t, g);

        g_assert_cmpuint(g, >=, memx_group_of_chunk(&t, c));
        g_assert_cmpuint(g, <, memx_group_end(&t, c));
        g_assert_cmpuint(g * 64 >> t.chunk_shift, ==, c);
    }
    memx_page_table_destroy(&t);
}

static void test_smallest_and_largest(void)
{
    MemxPageTable t;

    g_assert_true(memx_page_table_init(&t, 1, MEMX_GROUP_BYTES));
    g_assert_cmpuint(t.n_groups, ==, 1);
    g_assert_cmpuint(t.n_chunks, ==, 1);
    g_assert_cmphex(memx_group_mask(&t, 0), ==, 1);
    memx_page_table_destroy(&t);

    /* 4 TiB in the default chunks; tables take a small part of it. */
    g_assert_true(memx_page_table_init(&t, 1ull << 30, CHUNK));
    g_assert_cmpuint(t.n_chunks, ==, 1 << 22);
    g_assert_cmpuint(memx_page_table_bytes(&t), <=, 384ull << 20);
    memx_page_table_destroy(&t);
    memx_page_table_destroy(&t); /* harmless */
}

static void test_starts_never_written(void)
{
    MemxPageTable t;

    g_assert_true(memx_page_table_init(&t, 1000, CHUNK));
    for (uint64_t g = 0; g < t.n_groups; g++) {
        g_assert_cmphex(t.present[g] | t.stored[g], ==, 0);
    }
    for (uint32_t c = 0; c < t.n_chunks; c++) {
        g_assert_cmpuint(t.chunk[c].server, ==, MEMX_SERVER_NONE);
        g_assert_false(memx_chunk_exclusive(&t.chunk[c]));
    }
    g_assert_cmpuint(memx_trim_take(&t), ==, UINT32_MAX);
    memx_page_table_destroy(&t);
}

static void test_pages_of_a_chunk(void)
{
    MemxPageTable t;

    g_assert_true(memx_page_table_init(&t, 600, CHUNK));
    t.present[3] = 0xff;  /* chunk 0 */
    t.present[4] = 0x1;   /* chunk 1 */
    t.present[7] = 1ull << 63;
    t.stored[8] = 0xf0;   /* chunk 2 */
    g_assert_cmpuint(memx_chunk_present_pages(&t, 0), ==, 8);
    g_assert_cmpuint(memx_chunk_present_pages(&t, 1), ==, 2);
    g_assert_cmpuint(memx_chunk_present_pages(&t, 2), ==, 0);
    g_assert_cmpuint(memx_chunk_stored_pages(&t, 2), ==, 4);
    g_assert_cmpuint(memx_chunk_stored_pages(&t, 1), ==, 0);
    memx_page_table_destroy(&t);
}

static void test_trim_is_idempotent(void)
{
    MemxPageTable t;

    g_assert_true(memx_page_table_init(&t, 256 * 70, CHUNK));
    memx_trim_set(&t, 69);
    memx_trim_set(&t, 69);
    g_assert_cmpuint(t.n_trim, ==, 1);
    g_assert_cmpuint(memx_trim_take(&t), ==, 69);
    g_assert_cmpuint(t.n_trim, ==, 0);
    g_assert_cmpuint(memx_trim_take(&t), ==, UINT32_MAX);
    memx_page_table_destroy(&t);
}

/* Against a plain set; and whatever is marked is taken in one round, so that
 * no chunk is starved by others that are marked again and again. */
static void test_trim_takes_each_in_turn(void)
{
    enum { CHUNKS = 200 };
    bool marked[CHUNKS] = { false };
    MemxPageTable t;
    unsigned n = 0;

    g_assert_true(memx_page_table_init(&t, 256 * CHUNKS, CHUNK));
    for (unsigned i = 0; i < 20000; i++) {
        uint32_t c = g_test_rand_int_range(0, CHUNKS);

        if (g_test_rand_bit()) {
            n += !marked[c];
            marked[c] = true;
            memx_trim_set(&t, c);
        } else {
            c = memx_trim_take(&t);
            g_assert_true((c == UINT32_MAX) == (n == 0));
            if (n) {
                g_assert_true(marked[c]);
                marked[c] = false;
                n--;
            }
        }
        g_assert_cmpuint(t.n_trim, ==, n);
    }
    while (memx_trim_take(&t) != UINT32_MAX) {
        ;
    }
    memx_trim_set(&t, 50);
    for (unsigned i = 0; i < CHUNKS; i++) {
        memx_trim_set(&t, 7);
        if (memx_trim_take(&t) == 50) {
            memx_page_table_destroy(&t);
            return;
        }
    }
    g_error("chunk 50 was never taken");
}

int main(int argc, char **argv)
{
    g_test_init(&argc, &argv, NULL);
    g_test_add_func("/page-table/geometry-of-a-cut-region",
                    test_geometry_of_a_cut_region);
    g_test_add_func("/page-table/smallest-and-largest",
                    test_smallest_and_largest);
    g_test_add_func("/page-table/starts-never-written",
                    test_starts_never_written);
    g_test_add_func("/page-table/pages-of-a-chunk", test_pages_of_a_chunk);
    g_test_add_func("/page-table/trim-is-idempotent",
                    test_trim_is_idempotent);
    g_test_add_func("/page-table/trim-takes-each-in-turn",
                    test_trim_takes_each_in_turn);
    return g_test_run();
}
