/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * What tests of trackers share; see the header.
 */
#include "tracker-fixture.h"

static void *touch(void *opaque)
{
    Toucher *t = opaque;

    while (!atomic_load(&t->stop)) {
        for (uint64_t at = 0; at < t->n * CHUNK;
             at += t->all ? PAGE_BYTES : CHUNK) {
            volatile uint64_t *word = (volatile uint64_t *)
                (t->base + t->first * CHUNK + at);

            if (t->count) {
                ++*word;
            } else {
                (void)*word;
            }
        }
        t->rounds++;
        g_usleep(1000);
    }
    return NULL;
}

void toucher_start(Toucher *t)
{
    atomic_store(&t->stop, false);
    t->thread = g_thread_new("toucher", touch, t);
}

void toucher_stop(Toucher *t)
{
    atomic_store(&t->stop, true);
    g_thread_join(t->thread);
}

MemxTrackerOptions fast(MemxTrackerKind kind, const MemxIdleFiles *files)
{
    return (MemxTrackerOptions) {
        .kind = kind, .period_ms = 100, .cpu_percent = 100, .idle = files,
    };
}

MemxRegion *region_or_skip(MemxTrackerKind kind, ServerProcess *server,
                           uint64_t size, uint64_t local)
{
    g_autoptr(GError) error = NULL;
    MemxRegion *r;
    RegionFixture f = {
        .size = size, .local = local, .chunk = CHUNK, .servers = &server,
        .n_servers = 1, .tracker = fast(kind, NULL),
        .huge_pages = MEMX_HUGE_PAGES_OFF, /* chunk by chunk */
    };

    r = region_fixture_try(&f, &error);
    if (!r) {
        g_assert_error(error, MEMX_ERROR, MEMX_ERROR_KERNEL);
        g_test_skip(error->message);
    }
    return r;
}
