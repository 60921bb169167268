/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * A region as a program uses it: memx.h and a memserver, nothing else.
 */
#include <glib.h>
#include <string.h>
#include "memx.h"
#include "server-process.h"

#define MIB (1ull << 20)
#define PAGE 4096

static uint64_t value_of(uint64_t page, unsigned generation, unsigned word)
{
    return (page * 512 + word) * 0x9e3779b97f4a7c15ull + generation;
}

static void write_page(uint8_t *base, uint64_t page, unsigned generation)
{
    uint64_t *word = (uint64_t *)(base + page * PAGE);

    for (unsigned i = 0; i < PAGE / 8; i++) {
        word[i] = value_of(page, generation, i);
    }
}

static void check_page(const uint8_t *base, uint64_t page,
                       unsigned generation)
{
    const uint64_t *word = (const uint64_t *)(base + page * PAGE);

    for (unsigned i = 0; i < PAGE / 8; i++) {
        if (word[i] != value_of(page, generation, i)) {
            g_error("page %" G_GUINT64_FORMAT " word %u holds %"
                    G_GINT64_MODIFIER "x instead of %" G_GINT64_MODIFIER "x",
                    page, i, word[i], value_of(page, generation, i));
        }
    }
}

static MemxRegion *region_new(uint64_t size, uint64_t local, uint64_t chunk,
                              ServerProcess **server, unsigned n)
{
    MemxOptions o = MEMX_OPTIONS_INIT;
    const char *address[MEMX_SERVERS_MAX + 1] = { NULL };
    g_autoptr(GError) error = NULL;
    MemxRegion *region;

    for (unsigned i = 0; i < n; i++) {
        address[i] = server_process_address(server[i]);
    }
    o.size_bytes = size;
    o.local_bytes = local;
    o.chunk_bytes = chunk;
    o.servers = address;
    region = memx_region_new(&o, &error);
    g_assert_no_error(error);
    return region;
}

/* The last pages a thread touched may be about to be booked. */
static void await_all_written(MemxRegion *region, MemxStats *stats)
{
    int64_t deadline = g_get_monotonic_time() + 10 * G_USEC_PER_SEC;

    do {
        memx_region_stats(region, stats);
    } while (stats->never_written_bytes &&
             g_get_monotonic_time() < deadline);
    g_assert_cmpuint(stats->never_written_bytes, ==, 0);
}

/* Four times the local size, twice over: written, changed, verified. */
static void test_write_verify(void)
{
    g_autoptr(GTimer) timer = g_timer_new();
    ServerProcess *server = server_process_new("160M");
    uint64_t n = 128 * MIB / PAGE;
    MemxRegion *region = region_new(128 * MIB, 32 * MIB, MIB, &server, 1);
    uint8_t *base = memx_region_base(region);
    MemxStats stats;

    for (uint64_t page = 0; page < n; page++) {
        write_page(base, page, 1);
    }
    await_all_written(region, &stats);
    g_assert_cmpuint(stats.local_bytes, <=, 32 * MIB);
    g_assert_cmpuint(stats.remote_bytes + stats.staged_bytes, >=, 96 * MIB);
    for (uint64_t page = 0; page < n; page++) {
        check_page(base, page, 1);
    }
    for (uint64_t page = 0; page < n; page += 3) {
        write_page(base, page, 2);
    }
    for (uint64_t i = 0; i < n; i++) {
        uint64_t page = i * 7919 % n;

        check_page(base, page, page % 3 ? 1 : 2);
    }
    memx_region_stats(region, &stats);
    g_test_message("%.2f s; %" G_GUINT64_FORMAT " faults, %"
                   G_GUINT64_FORMAT " remote, %" G_GUINT64_FORMAT
                   " prefetched, %" G_GUINT64_FORMAT " evicted, fill by %s",
                   g_timer_elapsed(timer, NULL), stats.faults,
                   stats.faults_remote, stats.prefetched_pages,
                   stats.evicted_pages, stats.fill);
    memx_region_free(region);
    server_process_free(server);
}

int main(int argc, char **argv)
{
    g_test_init(&argc, &argv, NULL);
    g_test_add_func("/region/write-verify", test_write_verify);
    return g_test_run();
}
