/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * What is told of prefetched pages, and when.
 */
#include <glib.h>
#include <string.h>
#include "prefetched.h"

#define GROUP 7u
#define PAGES 0xffull

static void assert_judged(MemxJudged judged, uint64_t used,
                          uint64_t untouched)
{
    g_assert_cmphex(judged.used, ==, used);
    g_assert_cmphex(judged.untouched, ==, untouched);
    if (used | untouched) {
        g_assert_cmpint(judged.direction, ==, -1);
    }
}

static void came(MemxPrefetched *t, bool idle)
{
    memset(t, 0, sizeof(*t));
    memx_prefetched_came(t, GROUP, PAGES, -1, idle);
}

static MemxJudged look(MemxPrefetched *t, uint64_t touched, uint64_t blind)
{
    memx_prefetched_look(t, GROUP);
    return memx_prefetched_looked(t, GROUP, UINT64_MAX, touched, blind, true);
}

/* What isn't touched is given a whole period; all are told together. */
static void test_idle(void)
{
    MemxPrefetched t;

    came(&t, true);
    assert_judged(look(&t, 0x0f, 0), 0, 0);
    assert_judged(look(&t, 0x10, 0), 0x1f, 0xe0);
    assert_judged(look(&t, UINT64_MAX, 0), 0, 0);
}

/* Pages that read as touched when they come tell nothing the first time. */
static void test_copied(void)
{
    MemxPrefetched t;

    came(&t, false);
    assert_judged(look(&t, PAGES, 0), 0, 0);
    assert_judged(look(&t, 0x03, 0), 0x03, 0xfc);
}

/* Nor do those that nobody watched; but one that was touched before was. */
static void test_blind(void)
{
    MemxPrefetched t;

    came(&t, false);
    assert_judged(look(&t, PAGES, 0), 0, 0);
    assert_judged(look(&t, 0x01, 0xf0), 0x01, 0x0e);
    assert_judged(look(&t, UINT64_MAX, 0), 0, 0);
    came(&t, true);
    assert_judged(look(&t, 0x80, 0), 0, 0);
    assert_judged(look(&t, 0x01, 0xf0), 0x81, 0x0e);
}

/* A look out of turn may come a moment later: it ends nothing. */
static void test_out_of_turn(void)
{
    MemxPrefetched t;

    came(&t, true);
    assert_judged(look(&t, 0, 0), 0, 0);
    memx_prefetched_look(&t, GROUP);
    assert_judged(memx_prefetched_looked(&t, GROUP, UINT64_MAX, 0x01, 0,
                                         false), 0, 0);
    assert_judged(look(&t, 0, 0), 0x01, 0xfe);
}

/* What is gone nobody knows, unless it was asked for before it went. */
static void test_left(void)
{
    MemxPrefetched t;

    came(&t, true);
    g_assert_true(memx_prefetched_asks(&t, GROUP));
    g_assert_false(memx_prefetched_asks(&t, GROUP + MEMX_PREFETCHED));
    assert_judged(memx_prefetched_left(&t, GROUP, 0x0f, 0x81, 0x87),
                  0x01, 0x06);
    memx_prefetched_look(&t, GROUP);
    assert_judged(memx_prefetched_looked(&t, GROUP, 0x7f, 0, 0, true), 0, 0);
    assert_judged(look(&t, 0, 0), 0, 0x70);
    g_assert_false(memx_prefetched_asks(&t, GROUP));
    came(&t, true);
    assert_judged(look(&t, 0x10, 0), 0, 0);
    assert_judged(memx_prefetched_left(&t, GROUP, 0xff, 0x01, 0x03),
                  0x11, 0x02);
}

/* The touches are the look's that is under way, or that was cut. */
static void test_left_meanwhile(void)
{
    MemxPrefetched t;

    came(&t, true);
    memx_prefetched_look(&t, GROUP);
    g_assert_false(memx_prefetched_asks(&t, GROUP));
    assert_judged(memx_prefetched_left(&t, GROUP, 0x0f, 0, UINT64_MAX), 0, 0);
    memx_prefetched_skipped(&t, GROUP);
    g_assert_true(memx_prefetched_asks(&t, GROUP));
    assert_judged(memx_prefetched_left(&t, GROUP, 0xff, 0x10, UINT64_MAX),
                  0x10, 0xe0);
    came(&t, false);
    g_assert_false(memx_prefetched_asks(&t, GROUP));
    assert_judged(memx_prefetched_left(&t, GROUP, 0xff, 0xff, UINT64_MAX),
                  0, 0);
}

/* More of a group begin anew; another one takes the place. */
static void test_more(void)
{
    MemxPrefetched t;

    came(&t, true);
    assert_judged(look(&t, 0, 0), 0, 0);
    memx_prefetched_came(&t, GROUP, 0xf00, -1, false);
    assert_judged(look(&t, 0xfff, 0), 0, 0);
    assert_judged(look(&t, 0x100, 0), 0x100, 0xeff);
    came(&t, true);
    memx_prefetched_came(&t, GROUP + MEMX_PREFETCHED, 0x1, -1, true);
    assert_judged(look(&t, PAGES, 0), 0, 0);
}

int main(int argc, char **argv)
{
    g_test_init(&argc, &argv, NULL);
    g_test_add_func("/prefetched/idle", test_idle);
    g_test_add_func("/prefetched/copied", test_copied);
    g_test_add_func("/prefetched/blind", test_blind);
    g_test_add_func("/prefetched/out-of-turn", test_out_of_turn);
    g_test_add_func("/prefetched/left", test_left);
    g_test_add_func("/prefetched/left-meanwhile", test_left_meanwhile);
    g_test_add_func("/prefetched/more", test_more);
    return g_test_run();
}
