/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * What the history, its ageing and the adapting period are good for: a guest is
 * simulated whose accesses are seen exactly, chunk by chunk, in simulated time.
 * No clock, no kernel: the same numbers each time.
 */
#include <glib.h>
#include <math.h>
#include "ager.h"
#include "history.h"

#define CHUNKS 2048u
#define WORDS (CHUNKS / 64)
#define SECOND 1000000000ull

typedef struct Guest {
    MemxHistory h;
    uint32_t n;                 /* chunks */
    uint32_t local_max;
    uint64_t touched[WORDS];
    uint64_t now_ns, period_end_ns, period_ns;
    uint64_t step_ns;           /* from one access to the next */
    uint64_t fixed_ns;          /* 0: the period adapts */
    uint32_t entered;
    uint64_t evicted, evicted_before;
    GRand *rand;
    double sum[CHUNKS];         /* of the probabilities of ranks */
    uint32_t place[CHUNKS];     /* of a rank */
} Guest;

static Guest *guest_new(uint32_t n, double local, uint64_t step_ns)
{
    Guest *g = g_new0(Guest, 1);
    double all = 0;

    g->n = n;
    g_assert_true(memx_history_init(&g->h, n));
    g->local_max = n * local;
    g->step_ns = step_ns;
    g->period_ns = g->period_end_ns = MEMX_PERIOD_DEFAULT_NS;
    g->rand = g_rand_new_with_seed(1);
    for (uint32_t i = 0; i < n; i++) {
        all += pow(i + 1, -0.99);
        g->sum[i] = all;
        g->place[i] = i;
    }
    for (uint32_t i = 0; i < n; i++) {
        uint32_t j = g_rand_int_range(g->rand, 0, n);
        uint32_t other = g->place[j];

        g->sum[i] /= all;
        g->place[j] = g->place[i];
        g->place[i] = other;
    }
    return g;
}

static void guest_free(Guest *g)
{
    memx_history_destroy(&g->h);
    g_rand_free(g->rand);
    g_free(g);
}

static uint32_t zipf(Guest *g)
{
    double x = g_rand_double(g->rand);
    uint32_t low = 0, high = g->n - 1;

    while (low < high) {
        uint32_t middle = (low + high) / 2;

        if (g->sum[middle] < x) {
            low = middle + 1;
        } else {
            high = middle;
        }
    }
    return g->place[low];
}

static void period_ends(Guest *g)
{
    MemxFound found = { .looked_chunks = g->h.n_listed };

    for (uint32_t c = 0; c < g->n; c++) {
        found.touched_chunks += memx_history_listed(&g->h, c) &&
                                g->touched[c / 64] >> c % 64 & 1;
    }
    memx_history_fold(&g->h, 0, g->n, g->touched, NULL);
    memset(g->touched, 0, sizeof(g->touched));
    g->period_ns = memx_ager_adapt(g->period_ns, &found,
                                   g->evicted != g->evicted_before);
    if (g->fixed_ns) {
        g->period_ns = g->fixed_ns;
    }
    g->evicted_before = g->evicted;
    g->period_end_ns = g->now_ns + g->period_ns;
    g->entered = 0;
}

/* As the ager: the period ends early. */
static bool turned_over(Guest *g)
{
    uint64_t since = g->now_ns - (g->period_end_ns - g->period_ns);

    if (g->fixed_ns || since < SECOND / 4 || g->entered < g->h.n_listed) {
        return false;
    }
    g->period_ns = MIN(g->period_ns, since);
    return true;
}

/* True: it was local. */
static bool touch(Guest *g, uint32_t c)
{
    bool hit = memx_history_listed(&g->h, c);

    if (!hit) {
        if (g->h.n_listed == g->local_max) {
            uint32_t victim = memx_history_victim(&g->h,
                                                  MEMX_QUEUE_UNPLACED);

            memx_history_evicted(&g->h, victim);
            memx_history_unlist(&g->h, victim);
            g->evicted++;
        }
        g->entered += memx_history_enter(&g->h, c);
        memx_history_list(&g->h, c);
    }
    g->touched[c / 64] |= 1ull << c % 64;
    g->now_ns += g->step_ns;
    if (g->now_ns >= g->period_end_ns || turned_over(g)) {
        period_ends(g);
    }
    return hit;
}

/* Accesses of Zipf's distribution: how many of those that an ideal placement
 * has are local? */
static void test_zipf(gconstpointer percent)
{
    double local = GPOINTER_TO_UINT(percent) / 100.0;
    /* From 500 to 50,000 accesses a second: the period has to find out. */
    static const uint64_t steps[] = {
        SECOND / 500, SECOND / 5000, SECOND / 50000,
    };

    for (unsigned s = 0; s < G_N_ELEMENTS(steps); s++) {
        Guest *g = guest_new(CHUNKS, local, steps[s]);
        uint64_t hits = 0, n = 400 * CHUNKS;
        double ideal = g->sum[g->local_max - 1], got;

        for (uint64_t i = 0; i < n; i++) {
            touch(g, zipf(g));
        }
        for (uint64_t i = 0; i < n; i++) {
            hits += touch(g, zipf(g));
        }
        got = (double)hits / n / ideal;
        g_test_message("%.0f %% local, %.0f accesses a second: period %.2f "
                       "s, %.3f of the ideal hits", local * 100,
                       (double)SECOND / steps[s],
                       (double)g->period_ns / SECOND, got);
        g_assert_cmpfloat(got, >=, 0.95);
        guest_free(g);
    }
}

/* A guest with little memory that touches a chunk now and then: the period has
 * to become long, and soon. */
static void test_zipf_slow(gconstpointer percent)
{
    double local = GPOINTER_TO_UINT(percent) / 100.0;
    uint64_t hits = 0, n = 4000, ideal = 0;

    for (unsigned seed = 1; seed <= 20; seed++) {
        Guest *g = guest_new(128, local, SECOND / 20);

        g_rand_set_seed(g->rand, seed);
        for (uint64_t i = 0; i < 2 * n; i++) {
            uint32_t c = zipf(g);
            bool hit = touch(g, c);

            hits += hit && i >= n;
            for (uint32_t rank = 0; rank < g->local_max && i >= n; rank++) {
                ideal += g->place[rank] == c;
            }
        }
        guest_free(g);
    }
    g_test_message("%.0f %% local: %.3f of the ideal hits", local * 100,
                   (double)hits / ideal);
    g_assert_cmpfloat((double)hits / ideal, >=, 0.95);
}

/* Fetches of Belady's optimum, which knows the future, from access @first on. */
static uint64_t belady(const uint32_t *trace, uint64_t n, uint32_t local_max,
                       uint64_t first)
{
    g_autofree uint64_t *next = g_new(uint64_t, n);
    uint64_t wanted[CHUNKS], fetches = 0;
    bool local[CHUNKS] = { false };
    uint32_t n_local = 0;

    for (uint32_t c = 0; c < CHUNKS; c++) {
        wanted[c] = n;
    }
    for (uint64_t i = n; i-- > 0; wanted[trace[i]] = i) {
        next[i] = wanted[trace[i]];
    }
    for (uint64_t i = 0; i < n; i++) {
        uint32_t last = CHUNKS;

        for (uint32_t c = 0; n_local == local_max && !local[trace[i]] &&
             c < CHUNKS; c++) {
            if (local[c] && (last == CHUNKS || wanted[c] > wanted[last])) {
                last = c;
            }
        }
        if (last < CHUNKS) {
            local[last] = false;
            n_local--;
        }
        if (!local[trace[i]]) {
            local[trace[i]] = true;
            n_local++;
            fetches += i >= first;
        }
        wanted[trace[i]] = next[i];
    }
    return fetches;
}

/*
 * Half is local, accesses are independent of each other.  Nobody who doesn't know
 * the future needs fewer fetches than who keeps the most probable chunks (Aho,
 * Denning, Ullman 1971): how far are we from that?  Belady's optimum, which
 * knows it, comes to little more than half of these.
 */
static void test_fetches(void)
{
    Guest *g = guest_new(CHUNKS, 0.5, SECOND / 5000);
    uint64_t n = 200 * CHUNKS, ours = 0, best = 0, optimum;
    g_autofree uint32_t *trace = g_new(uint32_t, n);
    uint32_t other = CHUNKS;
    bool fixed[CHUNKS] = { false };

    for (uint32_t rank = 0; rank + 1 < g->local_max; rank++) {
        fixed[g->place[rank]] = true;
    }
    for (uint64_t i = 0; i < n; i++) {
        uint32_t c = trace[i] = zipf(g);

        ours += !touch(g, c) && i >= n / 2;
        if (!fixed[c] && c != other) { /* one place is for all others */
            other = c;
            best += i >= n / 2;
        }
    }
    optimum = belady(trace, n, g->local_max, n / 2);
    g_assert_cmpuint(best * 2, >, optimum * 3); /* 1.5 times can't be had */
    g_test_message("fetches over Belady's: %.2f; the best without knowing "
                   "the future: %.2f", (double)ours / optimum,
                   (double)best / optimum);
    g_assert_cmpuint(optimum, <=, best);
    g_assert_cmpfloat((double)ours / best, <=, 1.12);
    guest_free(g);
}

/* A tenth is in use, a scan goes over all the rest: what is in use stays. */
static void test_scan(void)
{
    Guest *g = guest_new(CHUNKS, 0.5, SECOND / 5000);
    uint32_t hot = CHUNKS / 10, at = hot;
    uint64_t n = 0, hits = 0;

    for (uint64_t i = 0; i < 200 * CHUNKS; i++) {
        if (i % 2) {
            touch(g, at);
            at = at + 1 < CHUNKS ? at + 1 : hot;
        } else {
            bool hit = touch(g, g_rand_int_range(g->rand, 0, hot));

            n += i > 100 * CHUNKS;
            hits += hit && i > 100 * CHUNKS;
        }
    }
    g_test_message("period %.2f s, %.4f of the hot accesses are local",
                   (double)g->period_ns / SECOND, (double)hits / n);
    g_assert_cmpfloat((double)hits / n, >=, 0.99);
    guest_free(g);
}

/* Another working set that fits, each time after a while: it is local soon. */
static void test_other(void)
{
    Guest *g = guest_new(CHUNKS, 0.5, SECOND / 5000);
    uint32_t hot = CHUNKS / 3;
    uint64_t hits = 0, n = 100 * CHUNKS;

    for (unsigned phase = 0; phase < 6; phase++) {
        for (uint64_t i = 0; i < n; i++) {
            hits += touch(g, phase % 3 * hot +
                          g_rand_int_range(g->rand, 0, hot));
        }
    }
    g_test_message("%.3f of all accesses are local", hits / 6.0 / n);
    g_assert_cmpfloat(hits / 6.0 / n, >=, 0.9);
    guest_free(g);
}

/* The period is as long as looking takes, not what would be best; some chunks
 * have @n accesses in each. */
static Guest *guest_new_slow(double local, unsigned n)
{
    Guest *g = guest_new(CHUNKS, local, 5 * SECOND / n);

    g->fixed_ns = g->period_ns = g->period_end_ns = 5 * SECOND;
    return g;
}

/*
 * A small working set, touched @rate times a chunk and period, beside a scan over
 * all the rest, round and round, in @tenths of a period for each: each of its
 * chunks is wanted again soon after it was evicted, but there is no room for
 * all of them: the working set stays.
 */
static void scan_again(unsigned tenths, unsigned rate)
{
    uint32_t hot = CHUNKS / 10, at = hot;
    uint32_t others = (CHUNKS - hot) * 10 / tenths, period;
    uint64_t n = 0, hits = 0;
    Guest *g;

    period = rate * hot + others;
    g = guest_new_slow(0.5, period);
    for (uint64_t i = 0; i < 120ull * period; i++) {
        /* Spread evenly over the others. */
        if (i * hot * rate % period < hot * rate) {
            bool hit = touch(g, g_rand_int_range(g->rand, 0, hot));

            n += i > 60ull * period;
            hits += hit && i > 60ull * period;
        } else {
            touch(g, at);
            at = at + 1 < CHUNKS ? at + 1 : hot;
        }
    }
    g_test_message("%.1f periods a round: %.4f of the hot accesses are local",
                   tenths / 10.0, (double)hits / n);
    g_assert_cmpfloat((double)hits / n, >=, 0.998);
    guest_free(g);
}

static void test_scan_again(void)
{
    scan_again(13, 5);
    scan_again(20, 2);
    scan_again(30, 2);
    scan_again(37, 2);
}

typedef struct Move {
    unsigned hot, moved;        /* percent of all chunks */
    double refaults;            /* at most, of each that has moved */
} Move;

/*
 * The guest's kernel moves data in use to other places (khugepaged does), while
 * periods are long.  It fits, as before; but until what has moved outranks what
 * nobody wants any more, its chunks evict each other.
 */
static void test_moved(gconstpointer opaque)
{
    const Move *move = opaque;
    uint32_t hot = CHUNKS * move->hot / 100, n = CHUNKS * move->moved / 100;
    uint32_t period = 2 * hot; /* accesses */
    Guest *g = guest_new_slow(0.5, period);
    uint64_t misses = 0;
    unsigned last = 0;
    double refaults;

    for (uint32_t c = CHUNKS; c-- > 0;) {
        touch(g, c);
    }
    for (uint64_t i = 0; i < 120ull * period; i++) {
        touch(g, g_rand_int_range(g->rand, 0, hot));
    }
    for (uint64_t i = 0; i < 20ull * period; i++) {
        uint32_t c = g_rand_int_range(g->rand, 0, hot);

        if (!touch(g, c < n ? hot + c : c)) {
            misses++;
            last = i / period;
        }
    }
    refaults = (double)misses / n - 1; /* once it has to come */
    g_test_message("%u %% in use, %u %% moved: %.1f refaults of a chunk, in %u "
                   "periods", move->hot, move->moved, refaults, last + 1);
    g_assert_cmpfloat(refaults, <=, move->refaults);
    guest_free(g);
}

/* What fits is local before long, and stays, after it has moved, too. */
static void test_moving(void)
{
    Guest *g = guest_new(CHUNKS, 0.5, SECOND / 5000);
    uint32_t hot = CHUNKS / 3;

    for (unsigned phase = 0; phase < 3; phase++) {
        uint64_t hits = 0, n = 40 * CHUNKS;

        for (uint64_t i = 0; i < 2 * n; i++) {
            bool hit = touch(g, phase * hot +
                             g_rand_int_range(g->rand, 0, hot));

            hits += hit && i >= n;
        }
        g_assert_cmpuint(hits, ==, n);
    }
    guest_free(g);
}

int main(int argc, char **argv)
{
    static const Move all = { 40, 40, 11 }, part = { 45, 10, 7 };

    g_test_init(&argc, &argv, NULL);
    g_test_add_data_func("/ranking/zipf/quarter", GUINT_TO_POINTER(25),
                         test_zipf);
    g_test_add_data_func("/ranking/zipf/half", GUINT_TO_POINTER(50),
                         test_zipf);
    g_test_add_data_func("/ranking/zipf/three-quarters",
                         GUINT_TO_POINTER(75), test_zipf);
    g_test_add_data_func("/ranking/zipf-slow/quarter", GUINT_TO_POINTER(25),
                         test_zipf_slow);
    g_test_add_data_func("/ranking/zipf-slow/half", GUINT_TO_POINTER(50),
                         test_zipf_slow);
    g_test_add_data_func("/ranking/zipf-slow/three-quarters",
                         GUINT_TO_POINTER(75), test_zipf_slow);
    g_test_add_func("/ranking/fetches", test_fetches);
    g_test_add_func("/ranking/scan", test_scan);
    g_test_add_func("/ranking/scan-again", test_scan_again);
    g_test_add_func("/ranking/moving", test_moving);
    g_test_add_data_func("/ranking/moved/all", &all, test_moved);
    g_test_add_data_func("/ranking/moved/part", &part, test_moved);
    g_test_add_func("/ranking/other", test_other);
    return g_test_run();
}
