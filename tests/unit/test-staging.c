/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Staging's books: slots, the hash that finds them, runs of pages.
 */
#include <glib.h>
#include "staging.h"

#define SLOTS 24

static void test_runs_against_bits(void)
{
    for (unsigned i = 0; i < 20000; i++) {
        uint64_t mask = (uint64_t)g_test_rand_int() << 32 | g_test_rand_int();
        uint64_t left, seen = 0;
        unsigned first, n, end = 0;

        switch (i) {
        case 0: mask = 0; break;
        case 1: mask = UINT64_MAX; break;
        case 2: mask = 1ull << 63; break;
        case 3: mask = UINT64_MAX << 1; break;
        case 4: mask = UINT64_MAX >> 1; break;
        default: mask |= i % 2 ? mask << 3 : 0;
        }
        left = mask;
        while (memx_next_run(&left, &first, &n)) {
            uint64_t run = memx_run_mask(first, n);

            g_assert_cmpuint(n, >, 0);
            g_assert_cmpuint(first + n, <=, 64);
            /* In order, and with a gap: a run is as long as can be. */
            g_assert_true(!seen || first > end);
            g_assert_cmphex(run & mask, ==, run);
            g_assert_cmphex(run & seen, ==, 0);
            seen |= run;
            end = first + n;
        }
        g_assert_cmphex(seen, ==, mask);
    }
}

static void test_iov_names_the_pages(void)
{
    MemxStaging st;
    MemxSlot *slot;

    g_assert_true(memx_staging_init(&st, SLOTS));
    slot = &st.slot[3];
    g_assert_cmpint(memx_slot_iov(slot, 0), ==, 0);
    g_assert_cmpint(memx_slot_iov(slot, 0x8000000000000006ull), ==, 2);
    g_assert_true(slot->iov[0].iov_base == slot->base + MEMX_PAGE_BYTES);
    g_assert_cmpuint(slot->iov[0].iov_len, ==, 2 * MEMX_PAGE_BYTES);
    g_assert_true(slot->iov[1].iov_base == slot->base + 63 * MEMX_PAGE_BYTES);
    g_assert_cmpuint(slot->iov[1].iov_len, ==, MEMX_PAGE_BYTES);
    /* The most there can be. */
    g_assert_cmpint(memx_slot_iov(slot, 0x5555555555555555ull), ==, 32);
    g_assert_cmpint(memx_slot_iov(slot, UINT64_MAX), ==, 1);
    memx_staging_destroy(&st);
}

static void test_each_way_leaves_slots_to_the_other(void)
{
    MemxStaging st;
    unsigned out = 0, in = 0;

    g_assert_true(memx_staging_init(&st, SLOTS));
    while (memx_staging_take(&st, out, true)) {
        out++;
    }
    while (memx_staging_take(&st, in, false)) {
        in++;
    }
    g_assert_cmpuint(out, ==, SLOTS - SLOTS / 3);
    g_assert_cmpuint(in, ==, SLOTS / 3);
    g_assert_cmpuint(st.n_free, ==, 0);
    memx_staging_destroy(&st);
}

/* Frames that are there already serve what comes in; what goes out takes a
 * slot whose frames need not be given up. */
static void test_frames_decide_which_slot(void)
{
    MemxStaging st;
    MemxSlot *in, *out;

    g_assert_true(memx_staging_init(&st, SLOTS));
    for (unsigned i = 0; i < SLOTS; i++) {
        st.slot[i].frames = i == 7 ? UINT64_MAX : i == 9 ? 0 : 0xff;
        st.free_frames += memx_mask_pages(st.slot[i].frames);
    }
    out = memx_staging_take(&st, 100, true);
    in = memx_staging_take(&st, 100, false);
    g_assert_true(out == &st.slot[9]);
    g_assert_true(in == &st.slot[7]);
    /* The same group on its way out and in: each finds its own. */
    g_assert_true(memx_staging_find(&st, 100, true) == out);
    g_assert_true(memx_staging_find(&st, 100, false) == in);
    memx_staging_destroy(&st);
}

static uint64_t free_frames(const MemxStaging *st)
{
    uint64_t n = 0;

    for (unsigned i = 0; i < SLOTS; i++) {
        if (st->slot[i].state == MEMX_SLOT_FREE) {
            n += memx_mask_pages(st->slot[i].frames);
        }
    }
    return n;
}

static void test_against_model(void)
{
    enum { GROUPS = 64 };
    MemxSlot *model[GROUPS][2] = { { NULL } };
    MemxSlot *held = NULL;
    MemxStaging st;
    unsigned taken = 0;

    g_assert_true(memx_staging_init(&st, SLOTS));
    for (unsigned i = 0; i < 50000; i++) {
        /* Far apart, so that hash lists are shared now and then. */
        unsigned g = g_test_rand_int_range(0, GROUPS);
        bool out = g_test_rand_bit();
        MemxSlot **slot = &model[g][out];

        if (*slot) {
            (*slot)->frames = (uint64_t)g_test_rand_int() << i % 32;
            memx_staging_put(&st, *slot);
            *slot = NULL;
            taken--;
        } else {
            *slot = memx_staging_take(&st, g * 1000003ull, out);
            taken += *slot != NULL;
        }
        if (!held && st.slot[g % SLOTS].state == MEMX_SLOT_FREE) {
            held = &st.slot[g % SLOTS];
            memx_staging_take_slot(&st, held);
            g_assert_cmpint(held->state, ==, MEMX_SLOT_HELD);
        } else if (held && g % 4 == 0) {
            held->frames = 0;
            memx_staging_put_slot(&st, held);
            held = NULL;
        }
        for (g = 0; g < GROUPS; g++) {
            g_assert_true(memx_staging_find(&st, g * 1000003ull, true) ==
                          model[g][true]);
            g_assert_true(memx_staging_find(&st, g * 1000003ull, false) ==
                          model[g][false]);
        }
        g_assert_cmpuint(st.n_free + taken + (held != NULL), ==, SLOTS);
        g_assert_cmpuint(st.n_out + st.n_in, ==, taken);
        g_assert_cmpuint(st.free_frames, ==, free_frames(&st));
    }
    memx_staging_destroy(&st);
}

int main(int argc, char **argv)
{
    g_test_init(&argc, &argv, NULL);
    g_test_add_func("/staging/runs-against-bits", test_runs_against_bits);
    g_test_add_func("/staging/iov-names-the-pages", test_iov_names_the_pages);
    g_test_add_func("/staging/each-way-leaves-slots-to-the-other",
                    test_each_way_leaves_slots_to_the_other);
    g_test_add_func("/staging/frames-decide-which-slot",
                    test_frames_decide_which_slot);
    g_test_add_func("/staging/against-model", test_against_model);
    return g_test_run();
}
