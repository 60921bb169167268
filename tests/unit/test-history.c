/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Chunk history against a naive model: an array of values, and one list of
 * chunks in the order in which they came to their value.
 */
#include <glib.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include "history.h"

#define CHUNKS 97

/* The naive model: sorts by (worth, arrival). */
typedef struct Model {
    uint8_t value[CHUNKS];
    bool listed[CHUNKS];
    GList *order[MEMX_HISTORY_VALUES];
    uint8_t sorted[MEMX_HISTORY_VALUES];
} Model;

/* A touch is worth seven tenths of one in the period after it. */
static double worth(unsigned value)
{
    double sum = 0;

    for (unsigned age = 0; age < 8; age++) {
        sum += value & 0x80 >> age ? 1e7 * pow(0.7, age) : 0;
    }
    return round(sum);
}

static int by_worth(const void *a, const void *b)
{
    unsigned x = *(const uint8_t *)a, y = *(const uint8_t *)b;
    double difference = worth(x) - worth(y);

    return difference < 0 ? -1 : difference > 0 ? 1 : (int)x - (int)y;
}

static void model_append(Model *m, uint32_t c)
{
    GList **list = &m->order[m->value[c]];

    *list = g_list_append(*list, GUINT_TO_POINTER(c));
}

static void model_remove(Model *m, uint32_t c)
{
    GList **list = &m->order[m->value[c]];

    *list = g_list_remove(*list, GUINT_TO_POINTER(c));
}

static void model_set(Model *m, uint32_t c, uint8_t value)
{
    if (m->value[c] == value) {
        return;
    }
    if (m->listed[c]) {
        model_remove(m, c);
    }
    m->value[c] = value;
    if (m->listed[c]) {
        model_append(m, c);
    }
}

static void model_requeue(Model *m, uint32_t c)
{
    if (m->listed[c]) {
        model_remove(m, c);
        model_append(m, c);
    }
}

static void model_touch(Model *m, uint32_t c)
{
    if (m->value[c] & 0x80) {
        model_requeue(m, c);
    } else {
        model_set(m, c, m->value[c] | 0x80);
    }
}

/* Chunk after chunk; one whose value changes comes last among its equals. */
static void model_fold(Model *m, const uint64_t *touched,
                       const uint64_t *left)
{
    for (unsigned c = 0; c < CHUNKS; c++) {
        bool hit = touched[c / 64] >> c % 64 & 1;

        if (!(left[c / 64] >> c % 64 & 1)) {
            model_set(m, c, m->value[c] >> 1 | hit << 7);
        }
    }
}

static void model_enter(Model *m, uint32_t c)
{
    if (worth(m->value[c]) >= worth(0x40)) {
        model_requeue(m, c);
    } else {
        model_set(m, c, 0x40);
    }
}

static void model_list(Model *m, uint32_t c, bool list)
{
    if (list && !m->listed[c]) {
        model_append(m, c);
    } else if (!list && m->listed[c]) {
        model_remove(m, c);
    }
    m->listed[c] = list;
}

/* All chunks from the coldest to the hottest are the model's, in its order. */
static void check(const MemxHistory *h, const Model *m)
{
    uint32_t c = memx_history_victim(h, MEMX_QUEUE_UNPLACED);
    unsigned n = 0;

    for (unsigned i = 0; i < MEMX_HISTORY_VALUES; i++) {
        for (GList *l = m->order[m->sorted[i]]; l; l = l->next) {
            g_assert_cmpuint(c, ==, GPOINTER_TO_UINT(l->data));
            g_assert_cmpuint(h->value[c], ==, m->sorted[i]);
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

    for (unsigned v = 0; v < MEMX_HISTORY_VALUES; v++) {
        m->sorted[v] = v;
    }
    qsort(m->sorted, MEMX_HISTORY_VALUES, 1, by_worth);
    g_assert_true(memx_history_init(&h, CHUNKS));
    for (unsigned i = 0; i < 20000; i++) {
        uint32_t c = g_test_rand_int_range(0, CHUNKS);
        unsigned what = g_test_rand_int_range(0, 16);
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
            model_requeue(m, c);
        } else if (what < 14) {
            memx_history_set(&h, c, value);
            model_set(m, c, value);
        } else if (what < 15) {
            memx_history_enter(&h, c);
            model_enter(m, c);
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
    for (unsigned v = 0; v < MEMX_HISTORY_VALUES; v++) {
        g_list_free(m->order[v]);
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
    g_test_add_func("/history/a-newcomer-drives-out-what-is-colder",
                    test_a_newcomer_drives_out_what_is_colder);
    g_test_add_func("/history/nothing-listed-no-victim",
                    test_nothing_listed_no_victim);
    g_test_add_func("/history/victim-looks-at-no-chunk",
                    test_victim_looks_at_no_chunk);
    return g_test_run();
}
