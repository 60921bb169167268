/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Chunk history against a naive model: an array of values, and one list of
 * chunks in the order in which they came to their rank.
 */
#include <glib.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include "history.h"

#define CHUNKS 97

typedef struct Model {
    uint8_t value[CHUNKS];
    int often[CHUNKS];
    bool fresh[CHUNKS];
    bool kept[CHUNKS];
    bool listed[CHUNKS];
    unsigned rank[CHUNKS];
    GList *order[MEMX_HISTORY_RANKS];
} Model;

/* A touch is worth seven tenths of one in the period after it; on top comes how
 * often. */
static unsigned worth(const Model *m, uint32_t c)
{
    double sum = m->often[c] * 10 + (m->fresh[c] ? round(65536 * 0.7) : 0);

    if (m->kept[c]) {
        return 255;
    }
    for (unsigned age = 0; age < 8; age++) {
        sum += m->value[c] & 0x80 >> age ? round(65536 * pow(0.7, age)) : 0;
    }
    return floor(sum / 4096);
}

static void model_remove(Model *m, uint32_t c)
{
    GList **list = &m->order[m->rank[c]];

    *list = g_list_remove(*list, GUINT_TO_POINTER(c));
}

/* Last among its equals, even if it was there already (@again). */
static void model_place(Model *m, uint32_t c, bool again)
{
    if (m->rank[c] != worth(m, c) || again) {
        model_remove(m, c);
        m->rank[c] = worth(m, c);
        if (m->listed[c]) {
            m->order[m->rank[c]] = g_list_append(m->order[m->rank[c]],
                                                 GUINT_TO_POINTER(c));
        }
    }
}

static void model_set(Model *m, uint32_t c, uint8_t value)
{
    m->value[c] = value;
    model_place(m, c, false);
}

static void model_touch(Model *m, uint32_t c)
{
    m->value[c] |= 0x80;
    m->kept[c] = true;
    model_place(m, c, true);
}

/* A mean of 32 periods; where after so many alike in a row it is improbable,
 * half of what is too much goes. */
static int often_after(int often, uint8_t value)
{
    bool hit = value & 0x80;
    int unlike = hit ? 65535 - often : often, most;
    unsigned run = 1;

    while (run < 8 && (value << run & 0x80) == (hit ? 0x80 : 0)) {
        run++;
    }
    most = round(65535 * (1 - pow(0.05, 1.0 / run)));
    unlike -= unlike / 32;
    unlike -= MAX(unlike - most, 0) / 2;
    return hit ? 65535 - unlike : unlike;
}

/* Chunk after chunk; one whose rank changes comes last among its equals. */
static void model_fold(Model *m, const uint64_t *touched,
                       const uint64_t *left)
{
    for (unsigned c = 0; c < CHUNKS; c++) {
        bool hit = touched[c / 64] >> c % 64 & 1;

        if (!(left[c / 64] >> c % 64 & 1)) {
            m->value[c] = m->value[c] >> 1 | hit << 7;
            m->often[c] = often_after(m->often[c], m->value[c]);
            m->fresh[c] = m->kept[c] = false;
            model_place(m, c, false);
        }
    }
}

static bool model_enter(Model *m, uint32_t c)
{
    bool comes = !m->fresh[c] && !m->kept[c] && !m->listed[c];

    m->fresh[c] = true;
    model_place(m, c, true);
    return comes;
}

static void model_list(Model *m, uint32_t c, bool list)
{
    bool again = list && !m->listed[c];

    if (!list) {
        model_remove(m, c);
    }
    m->listed[c] = list;
    model_place(m, c, again);
}

static void model_evicted(Model *m, uint32_t c)
{
    m->fresh[c] = m->kept[c] = false;
    model_place(m, c, false);
}

/* All chunks from the coldest to the hottest are the model's, in its order. */
static void check(const MemxHistory *h, const Model *m)
{
    uint32_t c = memx_history_victim(h, MEMX_QUEUE_UNPLACED);
    unsigned n = 0;

    for (unsigned i = 0; i < MEMX_HISTORY_RANKS; i++) {
        for (GList *l = m->order[i]; l; l = l->next) {
            g_assert_cmpuint(c, ==, GPOINTER_TO_UINT(l->data));
            g_assert_cmpuint(memx_history_rank(h, c), ==, i);
            c = memx_history_after(h, c);
            n++;
        }
    }
    g_assert_cmpuint(c, ==, MEMX_CHUNK_NONE);
    g_assert_cmpuint(h->n_listed, ==, n);
    g_assert_true(!memcmp(h->value, m->value, CHUNKS));
}

static void test_against_model(void)
{
    g_autofree Model *m = g_new0(Model, 1);
    MemxHistory h;

    g_assert_true(memx_history_init(&h, CHUNKS));
    for (unsigned i = 0; i < 20000; i++) {
        uint32_t c = g_test_rand_int_range(0, CHUNKS);
        unsigned what = g_test_rand_int_range(0, 17);
        uint8_t value = g_test_rand_int_range(0, 256);

        if (what < 5) {
            memx_history_touch(&h, c);
            model_touch(m, c);
        } else if (what < 9) {
            memx_history_list(&h, c);
            model_list(m, c, true);
        } else if (what < 12) {
            memx_history_unlist(&h, c);
            model_list(m, c, false);
        } else if (what < 13) {
            memx_history_requeue(&h, c);
            model_place(m, c, true);
        } else if (what < 14) {
            memx_history_set(&h, c, value);
            model_set(m, c, value);
        } else if (what < 15) {
            g_assert_true(memx_history_enter(&h, c) == model_enter(m, c));
        } else if (what < 16) {
            memx_history_evicted(&h, c);
            model_evicted(m, c);
        } else {
            uint64_t bits[2][CHUNKS / 64 + 1];

            for (unsigned j = 0; j < G_N_ELEMENTS(bits[0]); j++) {
                bits[0][j] = (uint64_t)g_test_rand_int() << 32 |
                             (uint32_t)g_test_rand_int();
                bits[1][j] = bits[0][j] >> 32 & bits[0][j];
            }
            memx_history_fold(&h, 0, CHUNKS, bits[0], bits[1]);
            model_fold(m, bits[0], bits[1]);
        }
        check(&h, m);
    }
    for (unsigned i = 0; i < MEMX_HISTORY_RANKS; i++) {
        g_list_free(m->order[i]);
    }
    memx_history_destroy(&h);
}

/* Both count: how recently, and how often. */
static void test_more_recent_is_hotter(void)
{
    MemxHistory h;

    g_assert_true(memx_history_init(&h, 4));
    for (uint32_t c = 0; c < 4; c++) {
        memx_history_list(&h, c);
    }
    /* 0: often, but not lately; 1: once, lately; 2: never; 3: once, before. */
    memx_history_fold(&h, 0, 4, (uint64_t[]) { 1 }, NULL);
    memx_history_fold(&h, 0, 4, (uint64_t[]) { 9 }, NULL);
    memx_history_fold(&h, 0, 4, (uint64_t[]) { 2 }, NULL);
    g_assert_cmpuint(h.value[0], ==, 0x60);
    g_assert_cmpuint(h.value[1], ==, 0x80);
    g_assert_cmpuint(h.value[3], ==, 0x40);
    g_assert_cmpuint(memx_history_victim(&h, MEMX_QUEUE_UNPLACED), ==, 2);
    g_assert_cmpuint(memx_history_after(&h, 2), ==, 3);
    g_assert_cmpuint(memx_history_after(&h, 3), ==, 1);
    g_assert_cmpuint(memx_history_after(&h, 1), ==, 0);
    memx_history_destroy(&h);
}

static void test_forgets_after_eight_periods(void)
{
    MemxHistory h;

    g_assert_true(memx_history_init(&h, 1));
    memx_history_touch(&h, 0);
    for (unsigned i = 0; i < 7; i++) {
        memx_history_fold(&h, 0, 1, NULL, NULL);
        g_assert_cmpuint(h.value[0], ==, 0x80 >> (i + 1));
    }
    memx_history_fold(&h, 0, 1, NULL, NULL);
    g_assert_cmpuint(h.value[0], ==, 0);
    memx_history_destroy(&h);
}

/* Who is told apart by no history is told apart by how often before. */
static void test_what_was_used_more_often_stays(void)
{
    MemxHistory h;

    g_assert_true(memx_history_init(&h, 2));
    memx_history_list(&h, 0);
    memx_history_list(&h, 1);
    for (unsigned i = 0; i < 32; i++) {
        memx_history_fold(&h, 0, 2, (uint64_t[]) { i % 8 ? 1 : 3 }, NULL);
    }
    for (unsigned i = 0; i < 8; i++) {
        memx_history_fold(&h, 0, 2, NULL, NULL);
    }
    g_assert_cmpuint(h.value[0], ==, h.value[1]);
    g_assert_cmpuint(memx_history_victim(&h, MEMX_QUEUE_UNPLACED), ==, 1);
    memx_history_enter(&h, 1); /* not by coming back once */
    g_assert_cmpuint(memx_history_victim(&h, MEMX_QUEUE_UNPLACED), ==, 1);
    memx_history_destroy(&h);
}

/* The guest has moved its data: what was always in use and is no longer goes
 * before what has taken its place, after half a dozen periods. */
static void test_what_has_moved_is_followed(void)
{
    MemxHistory h;

    g_assert_true(memx_history_init(&h, 2));
    memx_history_list(&h, 0);
    memx_history_list(&h, 1);
    for (unsigned i = 0; i < 200; i++) {
        memx_history_fold(&h, 0, 2, (uint64_t[]) { 1 }, NULL);
    }
    memx_history_fold(&h, 0, 2, (uint64_t[]) { 2 }, NULL);
    g_assert_cmpuint(memx_history_victim(&h, MEMX_QUEUE_UNPLACED), ==, 1);
    for (unsigned i = 1; i < 6; i++) {
        memx_history_fold(&h, 0, 2, (uint64_t[]) { 2 }, NULL);
    }
    g_assert_cmpuint(memx_history_victim(&h, MEMX_QUEUE_UNPLACED), ==, 0);
    memx_history_destroy(&h);
}

/* A sample of all of a chunk is away for a moment: it is as fresh as before. */
static void test_fresh_until_it_is_evicted(void)
{
    MemxHistory h;

    g_assert_true(memx_history_init(&h, 2));
    g_assert_true(memx_history_enter(&h, 0));
    memx_history_list(&h, 0);
    memx_history_list(&h, 1);
    memx_history_unlist(&h, 0);
    memx_history_list(&h, 0);
    g_assert_cmpuint(memx_history_victim(&h, MEMX_QUEUE_UNPLACED), ==, 1);
    memx_history_unlist(&h, 1);
    memx_history_evicted(&h, 0);
    memx_history_unlist(&h, 0);
    g_assert_true(memx_history_enter(&h, 0));
    memx_history_destroy(&h);
}

/* However often others were used: what could not be taken is tried again when
 * all others were, or in another period. */
static void test_what_cannot_be_taken_comes_last(void)
{
    MemxHistory h;

    g_assert_true(memx_history_init(&h, 3));
    for (uint32_t c = 0; c < 3; c++) {
        memx_history_list(&h, c);
    }
    for (unsigned i = 0; i < 200; i++) {
        memx_history_fold(&h, 0, 3, (uint64_t[]) { 1 }, NULL);
    }
    memx_history_touch(&h, 2);
    memx_history_touch(&h, 1);
    g_assert_cmpuint(memx_history_victim(&h, MEMX_QUEUE_UNPLACED), ==, 0);
    g_assert_cmpuint(memx_history_after(&h, 0), ==, 2);
    g_assert_cmpuint(memx_history_after(&h, 2), ==, 1);
    memx_history_fold(&h, 0, 3, (uint64_t[]) { 1 }, NULL);
    g_assert_cmpuint(memx_history_victim(&h, MEMX_QUEUE_UNPLACED), !=, 0);
    memx_history_destroy(&h);
}

/* A newcomer is worth less than what was touched in the last period, even if
 * that was missed once; and as much as what was touched in the one before. */
static void test_a_newcomer_drives_out_what_is_colder(void)
{
    MemxHistory h;

    g_assert_true(memx_history_init(&h, 4));
    for (uint32_t c = 0; c < 4; c++) {
        memx_history_list(&h, c);
    }
    /* 0: always; 1: always, but not in the last one; 2: long ago. */
    memx_history_fold(&h, 0, 4, (uint64_t[]) { 7 }, NULL);
    memx_history_fold(&h, 0, 4, (uint64_t[]) { 3 }, NULL);
    memx_history_fold(&h, 0, 4, (uint64_t[]) { 3 }, NULL);
    memx_history_fold(&h, 0, 4, (uint64_t[]) { 1 }, NULL);
    memx_history_enter(&h, 3);
    g_assert_cmpuint(memx_history_victim(&h, MEMX_QUEUE_UNPLACED), ==, 2);
    g_assert_cmpuint(memx_history_after(&h, 2), ==, 3);
    g_assert_cmpuint(memx_history_after(&h, 3), ==, 1);
    g_assert_cmpuint(memx_history_after(&h, 1), ==, 0);
    memx_history_destroy(&h);
}

static void test_nothing_listed_no_victim(void)
{
    MemxHistory h;

    g_assert_true(memx_history_init(&h, 5));
    memx_history_touch(&h, 3);
    g_assert_cmpuint(memx_history_victim(&h, MEMX_QUEUE_UNPLACED), ==,
                     MEMX_CHUNK_NONE);
    memx_history_list(&h, 3);
    g_assert_cmpuint(memx_history_victim(&h, MEMX_QUEUE_UNPLACED), ==, 3);
    memx_history_unlist(&h, 3);
    memx_history_unlist(&h, 3);
    g_assert_cmpuint(memx_history_victim(&h, MEMX_QUEUE_UNPLACED), ==,
                     MEMX_CHUNK_NONE);
    memx_history_destroy(&h);
}

/* The victim is found without looking at any chunk: with the links and values
 * of all of them made absurd, the answer is the same. */
static void test_victim_looks_at_no_chunk(void)
{
    enum { MANY = 100000 };
    MemxHistory h;
    uint32_t victim;

    g_assert_true(memx_history_init(&h, MANY));
    for (uint32_t c = 0; c < MANY; c++) {
        memx_history_set(&h, c, 0x10 | (c % 0xe0));
        memx_history_list(&h, c);
    }
    victim = memx_history_victim(&h, MEMX_QUEUE_UNPLACED);
    memset(h.next, 0x55, MANY * sizeof(*h.next));
    memset(h.prev, 0x55, MANY * sizeof(*h.prev));
    memset(h.value, 0x55, MANY);
    g_assert_cmpuint(memx_history_victim(&h, MEMX_QUEUE_UNPLACED), ==, victim);
    memx_history_destroy(&h);
}

int main(int argc, char **argv)
{
    g_test_init(&argc, &argv, NULL);
    g_test_add_func("/history/against-model", test_against_model);
    g_test_add_func("/history/more-recent-is-hotter",
                    test_more_recent_is_hotter);
    g_test_add_func("/history/forgets-after-eight-periods",
                    test_forgets_after_eight_periods);
    g_test_add_func("/history/what-was-used-more-often-stays",
                    test_what_was_used_more_often_stays);
    g_test_add_func("/history/what-has-moved-is-followed",
                    test_what_has_moved_is_followed);
    g_test_add_func("/history/fresh-until-it-is-evicted",
                    test_fresh_until_it_is_evicted);
    g_test_add_func("/history/what-cannot-be-taken-comes-last",
                    test_what_cannot_be_taken_comes_last);
    g_test_add_func("/history/a-newcomer-drives-out-what-is-colder",
                    test_a_newcomer_drives_out_what_is_colder);
    g_test_add_func("/history/nothing-listed-no-victim",
                    test_nothing_listed_no_victim);
    g_test_add_func("/history/victim-looks-at-no-chunk",
                    test_victim_looks_at_no_chunk);
    return g_test_run();
}
