/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * The threads that use the region, as a guest and its host would.
 *
 *   users      read, verify and write their own words: of single pages, most
 *              of them in a window that wanders, and of runs in either
 *              direction; all of them anywhere, at the same time
 *   discarder  gives runs of pages back, and writes zeros
 *   kernel     system calls and devices that touch the memory (kernel-io.c)
 *   resizer    changes the local size
 */
#include <glib.h>
#include <pthread.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>
#include "coverage.h"
#include "kernel-io.h"
#include "workers.h"

#define PROGRESS_POLL_US 1000

enum { DISCARDER = SHADOW_THREADS, KERNEL, RESIZER, N_WORKERS };

typedef struct Worker {
    Workers *all;
    unsigned number;
    pthread_t thread;
    GRand *rand;
    atomic_uint steps;
} Worker;

struct Workers {
    Shadow *shadow;
    MemxRegion *region;
    Honesty *honesty;
    KernelIo *io;
    uint64_t local_min, local_max;
    atomic_bool stop;
    Worker worker[N_WORKERS];
    unsigned resized, refused;  /* the resizer's */
};

static void use_page(Worker *w, uint64_t page, bool write, bool slowly)
{
    Shadow *s = w->all->shadow;

    if (page < s->n_pages && shadow_enter(s, page)) {
        shadow_verify(s, w->number, page);
        if (write) {
            shadow_write(s, w->number, page, slowly);
        }
        shadow_leave(s, page);
    }
}

static void use_run(Worker *w, uint64_t first, uint64_t n, bool backward,
                    bool write)
{
    for (uint64_t i = 0; i < n && !atomic_load(&w->all->stop); i++) {
        use_page(w, backward ? first + n - 1 - i : first + i, write, false);
    }
}

static void *user(void *opaque)
{
    Worker *w = opaque;
    uint64_t n = w->all->shadow->n_pages, window = n / 8;
    uint64_t at = g_rand_int(w->rand) % n;

    while (!atomic_load(&w->all->stop)) {
        unsigned what = g_rand_int_range(w->rand, 0, 100);
        bool write = g_rand_int_range(w->rand, 0, 10) < 4;
        uint64_t anywhere = g_rand_int(w->rand) % n;

        if (what < 50) {
            use_page(w, (at + g_rand_int(w->rand) % window) % n, write,
                     false);
        } else if (what < 90) {
            use_page(w, anywhere, write, false);
        } else if (what < 97) {
            use_page(w, anywhere, true, true);
        } else if (what < 99) {
            use_run(w, anywhere, g_rand_int_range(w->rand, 20, 600),
                    g_rand_boolean(w->rand), write);
        } else {
            at = anywhere;
        }
        atomic_fetch_add(&w->steps, 1);
    }
    return NULL;
}

static void write_zeros(Shadow *s, uint64_t first, uint64_t n)
{
    for (uint64_t page = first; page < first + n; page++) {
        volatile uint64_t *at = s->region + page * PAGE_WORDS;

        for (unsigned i = 0; i < PAGE_WORDS; i++) {
            at[i] = 0;
        }
        shadow_set_base(s, page, 0);
    }
}

/* Where the discarder begins: anywhere, or on a page that is just leaving,
 * which chance alone would hardly ever find. */
static uint64_t discard_at(Worker *w)
{
    MemxRegion *r = w->all->region;
    uint64_t page = g_rand_int(w->rand) % w->all->shadow->n_pages;
    unsigned turn;

    if (g_rand_boolean(w->rand)) {
        return page;
    }
    g_mutex_lock(&r->lock);
    turn = g_rand_int(w->rand) % r->staging.n_slots;
    for (unsigned i = 0; i < r->staging.n_slots; i++) {
        MemxSlot *slot = &r->staging.slot[(turn + i) % r->staging.n_slots];

        if (memx_slot_is_out(slot) && slot->staged) {
            page = slot->group * MEMX_GROUP_PAGES +
                   __builtin_ctzll(slot->staged);
            break;
        }
    }
    g_mutex_unlock(&r->lock);
    return page;
}

static void *discarder(void *opaque)
{
    Worker *w = opaque;
    Shadow *s = w->all->shadow;

    while (!atomic_load(&w->all->stop)) {
        uint64_t first = discard_at(w);
        uint64_t n = shadow_claim(s, first,
                                  1 << g_rand_int_range(w->rand, 0, 9));

        if (n && g_rand_int_range(w->rand, 0, 3)) {
            g_assert_cmpint(memx_region_discard(w->all->region,
                                                first * PAGE_BYTES,
                                                n * PAGE_BYTES), ==, 0);
            for (uint64_t i = 0; i < n; i++) {
                shadow_set_base(s, first + i, 0);
            }
            if (g_rand_boolean(w->rand)) {
                shadow_verify_page(s, first + n / 2);
            }
        } else {
            write_zeros(s, first, n);
        }
        shadow_unclaim(s, first, n);
        atomic_fetch_add(&w->steps, 1);
        g_usleep(g_rand_int_range(w->rand, 0, 4000)); /* not most of it */
    }
    return NULL;
}

static void *kernel(void *opaque)
{
    Worker *w = opaque;

    while (!atomic_load(&w->all->stop)) {
        kernel_io_step(w->all->io);
        atomic_fetch_add(&w->steps, 1);
        g_usleep(g_rand_int_range(w->rand, 0, 4000));
    }
    return NULL;
}

/* What memory may be taken falls only once the smaller size was reached. */
static void lower_bound_when_reached(Workers *all)
{
    MemxStats stats;

    memx_region_stats(all->region, &stats);
    if (stats.local_bytes <= stats.local_limit_bytes) {
        honesty_lower_bound(all->honesty, stats.local_limit_bytes);
    }
}

static void resize(Worker *w)
{
    Workers *all = w->all;
    uint64_t pages = (all->local_max - all->local_min) / PAGE_BYTES;
    uint64_t local = all->local_min +
                     g_rand_int(w->rand) % (pages + 1) * PAGE_BYTES;
    g_autoptr(GError) error = NULL;
    MemxStats before, after;

    memx_region_stats(all->region, &before);
    honesty_raise_bound(all->honesty, local);
    if (memx_region_set_local_bytes(all->region, local, &error)) {
        all->resized++;
        return;
    }
    /* Refused: for want of room, or of a server's answer; nothing changed. */
    if (!g_error_matches(error, MEMX_ERROR, MEMX_ERROR_FULL) &&
        !g_error_matches(error, MEMX_ERROR, MEMX_ERROR_CONNECT)) {
        g_error("setting the local size to %" G_GUINT64_FORMAT ": %s", local,
                error->message);
    }
    memx_region_stats(all->region, &after);
    g_assert_cmpuint(after.local_limit_bytes, ==, before.local_limit_bytes);
    all->refused++;
}

static void *resizer(void *opaque)
{
    Worker *w = opaque;
    int64_t next = g_get_monotonic_time();

    while (!atomic_load(&w->all->stop)) {
        lower_bound_when_reached(w->all);
        if (g_get_monotonic_time() > next) {
            resize(w);
            next = g_get_monotonic_time() +
                   g_rand_int_range(w->rand, 100000, 800000);
        }
        atomic_fetch_add(&w->steps, 1);
        g_usleep(5000);
    }
    return NULL;
}

Workers *workers_start(Shadow *shadow, MemxRegion *region, Honesty *honesty,
                       uint64_t local_min, uint64_t local_max, uint32_t seed)
{
    static void *(*const other[])(void *) = { discarder, kernel, resizer };
    Workers *all = g_new0(Workers, 1);

    all->shadow = shadow;
    all->region = region;
    all->honesty = honesty;
    all->local_min = local_min;
    all->local_max = local_max;
    all->io = kernel_io_new(shadow, seed);
    for (unsigned i = 0; i < N_WORKERS; i++) {
        Worker *w = &all->worker[i];

        w->all = all;
        w->number = i;
        w->rand = g_rand_new_with_seed(seed + 1 + i);
        g_assert_cmpint(pthread_create(&w->thread, NULL, i < SHADOW_THREADS
                        ? user : other[i - SHADOW_THREADS], w), ==, 0);
    }
    return all;
}

bool workers_await_progress(Workers *all, unsigned deadline_s)
{
    int64_t deadline = g_get_monotonic_time() + deadline_s * G_USEC_PER_SEC;
    unsigned steps[N_WORKERS];

    for (unsigned i = 0; i < N_WORKERS; i++) {
        steps[i] = atomic_load(&all->worker[i].steps);
    }
    for (unsigned i = 0; i < N_WORKERS; i++) {
        while (atomic_load(&all->worker[i].steps) == steps[i]) {
            if (g_get_monotonic_time() > deadline) {
                printf("# thread %u is stuck\n", i);
                return false;
            }
            g_usleep(PROGRESS_POLL_US);
        }
    }
    return true;
}

void workers_stop(Workers *all)
{
    unsigned steps = 0;

    atomic_store(&all->stop, true);
    for (unsigned i = 0; i < N_WORKERS; i++) {
        pthread_join(all->worker[i].thread, NULL);
        g_rand_free(all->worker[i].rand);
        steps += i < SHADOW_THREADS ? atomic_load(&all->worker[i].steps) : 0;
    }
    printf("# %u steps of %d threads; %u discards and zeros; local size set "
           "%u times, refused %u times\n", steps, SHADOW_THREADS,
           atomic_load(&all->worker[DISCARDER].steps), all->resized,
           all->refused);
    kernel_io_print(all->io);
    kernel_io_free(all->io);
    g_free(all);
}
