/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Regions as tests make them; see the header.
 */
#include "region-fixture.h"

#define WORDS (PAGE_BYTES / 8)
#define DEADLINE_US (60 * G_USEC_PER_SEC)
#define POLL_US 1000

/* Guest memory is written while it is read, on purpose: TSan has nothing to
 * say about that, and would need most of a test's time for it. */
#ifdef __SANITIZE_THREAD__
#define UNWATCHED __attribute__((no_sanitize("thread")))
#else
#define UNWATCHED
#endif

MemxRegion *region_fixture_try(const RegionFixture *f, GError **error)
{
    MemxOptions o = MEMX_OPTIONS_INIT;
    const char *address[MEMX_SERVERS_MAX + 1] = { NULL };

    for (unsigned i = 0; i < f->n_servers; i++) {
        address[i] = server_process_address(f->servers[i]);
    }
    o.base = f->base;
    o.size_bytes = f->size;
    o.local_bytes = f->local;
    o.chunk_bytes = f->chunk ?: 256 * 1024;
    o.keep_copies = f->keep_copies;
    o.huge_pages = f->huge_pages;
    o.servers = address;
    o.vm_name = "unit";
    o.region_name = g_get_prgname();
    if (f->tracker.cpu_percent) {
        o.tracker = f->tracker;
    }
    if (f->server_timeout_ms) {
        o.server_timeout_ms = f->server_timeout_ms;
    }
    o.event = f->event;
    o.opaque = f->opaque;
    return memx_region_new(&o, error);
}

MemxRegion *region_fixture_new(const RegionFixture *f)
{
    g_autoptr(GError) error = NULL;
    MemxRegion *region = region_fixture_try(f, &error);

    g_assert_no_error(error);
    g_assert_nonnull(region);
    return region;
}

UNWATCHED
MemxChannel *tcp_connect_for(const MemxTransport *transport, const char *host,
                             const char *port, int timeout_ms, int cancel_fd,
                             GError **error)
{
    MemxChannel *channel = memx_transport_tcp.connect(host, port, timeout_ms,
                                                      cancel_fd, error);

    if (channel) {
        channel->transport = transport;
    }
    return channel;
}

uint64_t pattern_word(uint64_t page, unsigned generation, unsigned word)
{
    return generation ? (page * WORDS + word) * 0x9e3779b97f4a7c15ull +
                        generation : 0;
}

UNWATCHED
void pattern_write(void *base, uint64_t page, unsigned generation)
{
    volatile uint64_t *at = (uint64_t *)base + page * WORDS;

    for (unsigned i = 0; i < WORDS; i++) {
        at[i] = pattern_word(page, generation, i);
    }
}

UNWATCHED
void pattern_check(const void *base, uint64_t page, unsigned generation)
{
    const volatile uint64_t *at = (const uint64_t *)base + page * WORDS;

    for (unsigned i = 0; i < WORDS; i++) {
        uint64_t is = at[i];

        if (is != pattern_word(page, generation, i)) {
            g_error("page %" G_GUINT64_FORMAT ", word %u: %016"
                    G_GINT64_MODIFIER "x instead of %016" G_GINT64_MODIFIER
                    "x, generation %u", page, i, is,
                    pattern_word(page, generation, i), generation);
        }
    }
}

static char *describe(const MemxStats *stats)
{
    GString *is = g_string_new(NULL);

    g_string_printf(is, "KiB: local %" G_GUINT64_FORMAT " of %"
                    G_GUINT64_FORMAT ", staged %" G_GUINT64_FORMAT
                    ", remote %" G_GUINT64_FORMAT ", never written %"
                    G_GUINT64_FORMAT, stats->local_bytes >> 10,
                    stats->local_limit_bytes >> 10, stats->staged_bytes >> 10,
                    stats->remote_bytes >> 10,
                    stats->never_written_bytes >> 10);
    for (unsigned i = 0; i < stats->n_servers; i++) {
        const MemxServerStats *s = &stats->servers[i];

        g_string_append_printf(is, "; server %u: state %d, chunks %"
                               G_GUINT64_FORMAT ", kept %" G_GUINT64_FORMAT
                               ", reserved %" G_GUINT64_FORMAT ", free %"
                               G_GUINT64_FORMAT " of %" G_GUINT64_FORMAT,
                               i, s->state, s->chunks, s->kept_bytes >> 10,
                               s->reserved_bytes >> 10, s->free_bytes >> 10,
                               s->capacity_bytes >> 10);
    }
    return g_string_free(is, FALSE);
}

void await_stats(MemxRegion *region, MemxStats *stats, StatsFunc *done,
                 uint64_t argument)
{
    int64_t deadline = g_get_monotonic_time() + DEADLINE_US;

    for (;;) {
        memx_region_stats(region, stats);
        if (done(stats, argument)) {
            return;
        }
        if (g_get_monotonic_time() > deadline) {
            g_autofree char *is = describe(stats);

            g_error("waited in vain: %s", is);
        }
        g_usleep(POLL_US);
    }
}

bool stats_all_written(const MemxStats *stats, uint64_t argument)
{
    return !stats->never_written_bytes;
}

bool stats_local_at_most(const MemxStats *stats, uint64_t argument)
{
    return stats->local_bytes <= argument;
}
