/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * What a server holds in vain is dropped, also when the connection breaks
 * just then.
 */
#include <errno.h>
#include <stdatomic.h>
#include <string.h>
#include "region-fixture.h"
#include "region.h"

#define SIZE (32 * MIB)
#define LOCAL (8 * MIB)
#define CHUNK (256 << 10)
#define DEADLINE_US (60 * G_USEC_PER_SEC)

/* TCP, but for the connections that break where a DROP is submitted. */
static MemxTransport breaking;
static int n_breaks;            /* atomic: still to come */
/* DROPs of a group. */
static uint64_t watched_group;
static atomic_uint_fast64_t dropped;

static MemxChannel *connect_breaking(const char *host, const char *port,
                                     int timeout_ms, int cancel_fd,
                                     GError **error)
{
    return tcp_connect_for(&breaking, host, port, timeout_ms, cancel_fd,
                           error);
}

static int submit_breaking(MemxChannel *channel, MemxCall *call)
{
    if (call->request.opcode == MEMX_OP_DROP && !channel->status &&
        g_atomic_int_get(&n_breaks) > 0) {
        g_atomic_int_add(&n_breaks, -1);
        channel->status = -EPIPE;
        memx_channel_shutdown(channel);
    }
    if (call->request.opcode == MEMX_OP_DROP &&
        call->request.group == watched_group) {
        atomic_fetch_or(&dropped, call->request.mask);
    }
    return memx_transport_tcp.submit(channel, call);
}

static bool reconnected(const MemxStats *stats, uint64_t times)
{
    return stats->servers[0].reconnects >= times;
}

/* What is in flight would give it away: the server seems to be silent then. */
static bool idle(const MemxStats *stats, uint64_t unused)
{
    return !stats->staged_bytes && !stats->servers[0].queue_depth;
}

static bool server_is_free(const MemxStats *stats, uint64_t bytes)
{
    return stats->servers[0].free_bytes >= bytes;
}

static MemxRegion *region_new(ServerProcess *server)
{
    const char *servers[] = { server_process_address(server), NULL };
    MemxOptions o = MEMX_OPTIONS_INIT;
    g_autoptr(GError) error = NULL;
    MemxRegion *region;

    breaking = memx_transport_tcp;
    breaking.connect = connect_breaking;
    breaking.submit = submit_breaking;
    o.size_bytes = SIZE;
    o.local_bytes = LOCAL;
    o.chunk_bytes = CHUNK;
    o.servers = servers;
    region = memx_region_new_over(&o, &breaking, &error);
    g_assert_no_error(error);
    return region;
}

/* The store thread must get on, or nothing is evicted any more and nobody
 * sees that the connection is gone. */
static void test_broken_at_a_drop(void)
{
    ServerProcess *server = server_process_new("80M");
    g_autoptr(GError) error = NULL;
    MemxRegion *region;
    MemxStats stats;
    uint8_t *base;

    region = region_new(server);
    base = memx_region_base(region);

    for (unsigned generation = 1; generation < 4; generation++) {
        for (uint64_t page = 0; page < SIZE / PAGE_BYTES; page++) {
            pattern_write(base, page, generation);
        }
        await_stats(region, &stats, idle, 0);
        g_assert_cmpuint(stats.remote_bytes, >, 0);
        g_atomic_int_set(&n_breaks, 1);
        g_assert_cmpint(memx_region_discard(region, 0, SIZE), ==, 0);
        await_stats(region, &stats, reconnected,
                    stats.servers[0].reconnects + 1);
        g_assert_cmpint(g_atomic_int_get(&n_breaks), ==, 0);
    }
    /* Little is reserved then, so that what is free is what isn't held. */
    memx_region_set_local_bytes(region, SIZE, &error);
    g_assert_no_error(error);
    memx_region_stats(region, &stats);
    await_stats(region, &stats, server_is_free,
                79 * MIB - stats.servers[0].reserved_bytes);
    memx_region_free(region);
    server_process_free(server);
}

/* A slot whose pages are on their way to the server. */
static MemxSlot *storing_slot(MemxRegion *r)
{
    for (unsigned i = 0; i < r->staging.n_slots; i++) {
        MemxSlot *slot = &r->staging.slot[i];

        if (slot->state == MEMX_SLOT_STORING && slot->spared == slot->staged) {
            return slot;
        }
    }
    return NULL;
}

/* More than is local: it waits for the server. */
static void *write_all(void *base)
{
    for (uint64_t page = 0; page < SIZE / PAGE_BYTES; page++) {
        pattern_write(base, page, 1);
    }
    return NULL;
}

/* Pages are discarded while they are stored, and when the answer comes somebody
 * still copies from the slot: what the server holds in vain goes nevertheless. */
static void test_slot_in_use(void)
{
    int64_t deadline = g_get_monotonic_time() + DEADLINE_US;
    ServerProcess *server = server_process_new("80M");
    MemxSlot *slot = NULL;
    MemxRegion *region;
    uint64_t sent = 0;
    MemxStats stats;
    bool done = false;
    GThread *writer;

    region = region_new(server);
    server_process_stop(server);
    writer = g_thread_new("writer", write_all, memx_region_base(region));
    while (!slot) {
        g_assert_cmpint(g_get_monotonic_time(), <, deadline);
        g_mutex_lock(&region->lock);
        slot = storing_slot(region);
        if (slot) {
            slot->users++;
            sent = slot->spared;
            watched_group = slot->group;
        }
        g_mutex_unlock(&region->lock);
        g_usleep(1000);
    }
    g_assert_cmpint(memx_region_discard(region,
                                        watched_group * MEMX_GROUP_BYTES,
                                        MEMX_GROUP_BYTES), ==, 0);
    server_process_continue(server);
    while (!done) { /* answered */
        g_assert_cmpint(g_get_monotonic_time(), <, deadline);
        g_usleep(1000);
        g_mutex_lock(&region->lock);
        done = slot->state == MEMX_SLOT_DONE && !region->table.n_trim;
        g_mutex_unlock(&region->lock);
    }
    g_mutex_lock(&region->lock);
    slot->users--;
    memx_worker_ring(&region->store);
    g_mutex_unlock(&region->lock);
    while ((atomic_load(&dropped) & sent) != sent) {
        g_assert_cmpint(g_get_monotonic_time(), <, deadline);
        g_usleep(1000);
    }
    g_thread_join(writer);
    await_stats(region, &stats, idle, 0);
    memx_region_free(region);
    server_process_free(server);
}

/* --- What is in a slot, but not on its way --- */

/* TCP; answers are kept back: those to DROPs, and to STOREs of a group. */
static MemxTransport holding;
static MemxChannel *ordered;    /* atomic: the one that STOREs go over */
static int holds_drops;         /* atomic */
static int holds_stores;        /* atomic: of watched_group */
static MemxCall *held[MEMX_DROPS_MAX + 1]; /* the store thread's */
static int n_held;              /* atomic, changed by the store thread */

static MemxChannel *connect_holding(const char *host, const char *port,
                                    int timeout_ms, int cancel_fd,
                                    GError **error)
{
    return tcp_connect_for(&holding, host, port, timeout_ms, cancel_fd,
                           error);
}

static bool is_held(const MemxCall *call)
{
    switch (call->request.opcode) {
    case MEMX_OP_DROP:
        return g_atomic_int_get(&holds_drops);
    case MEMX_OP_STORE:
        return g_atomic_int_get(&holds_stores) &&
               call->request.group == watched_group;
    default:
        return false;
    }
}

static int submit_watched(MemxChannel *channel, MemxCall *call)
{
    if (call->request.opcode == MEMX_OP_STORE) {
        g_atomic_pointer_set(&ordered, channel);
    }
    if (call->request.opcode == MEMX_OP_DROP &&
        call->request.group == watched_group) {
        atomic_fetch_or(&dropped, call->request.mask);
    }
    return memx_transport_tcp.submit(channel, call);
}

static MemxCall *progress_holding(MemxChannel *channel)
{
    MemxCall *call;

    if (g_atomic_pointer_get(&ordered) != channel) {
        return memx_transport_tcp.progress(channel);
    }
    for (int i = 0; i < n_held; i++) {
        if (!is_held(held[i])) {
            call = held[i];
            held[i] = held[n_held - 1];
            g_atomic_int_add(&n_held, -1);
            return call;
        }
    }
    while ((call = memx_transport_tcp.progress(channel)) && is_held(call)) {
        g_assert_cmpint(n_held, <, G_N_ELEMENTS(held));
        held[n_held] = call;
        g_atomic_int_inc(&n_held);
    }
    return call;
}

/* A chunk of which nothing is here and all is on the server. */
static uint64_t first_group_away(MemxRegion *r)
{
    uint64_t group = 0;

    g_mutex_lock(&r->lock);
    for (uint32_t c = 0; c < r->table.n_chunks && !group; c++) {
        uint64_t g = memx_group_of_chunk(&r->table, c);
        bool away = true;

        for (uint64_t i = g; i < memx_group_end(&r->table, c); i++) {
            away &= !r->table.present[i] && r->table.stored[i] == UINT64_MAX;
        }
        group = away ? g : 0;
    }
    g_mutex_unlock(&r->lock);
    g_assert_cmpuint(group, >, 0);
    return group;
}

static bool is_out(MemxRegion *r, uint64_t group)
{
    MemxSlot *slot;
    bool yes;

    g_mutex_lock(&r->lock);
    slot = memx_staging_find(&r->staging, group, true);
    yes = slot && slot->staged & 1 && slot->state == MEMX_SLOT_STORING;
    g_mutex_unlock(&r->lock);
    return yes;
}

static unsigned n_trims(MemxRegion *r)
{
    unsigned n;

    g_mutex_lock(&r->lock);
    n = r->table.n_trim;
    g_mutex_unlock(&r->lock);
    return n;
}

static MemxRegion *region_new_holding(ServerProcess *server)
{
    const char *servers[] = { server_process_address(server), NULL };
    MemxOptions o = MEMX_OPTIONS_INIT;
    g_autoptr(GError) error = NULL;
    MemxRegion *region;

    holding = memx_transport_tcp;
    holding.connect = connect_holding;
    holding.submit = submit_watched;
    holding.progress = progress_holding;
    o.size_bytes = SIZE;
    o.local_bytes = LOCAL;
    o.chunk_bytes = CHUNK;
    o.keep_copies = MEMX_KEEP_COPIES_ON;
    o.servers = servers;
    region = memx_region_new_over(&o, &holding, &error);
    g_assert_no_error(error);
    return region;
}

/* Others are written until the group is on its way, and stays so. */
static void send_out(MemxRegion *region, uint64_t others)
{
    int64_t deadline = g_get_monotonic_time() + DEADLINE_US;

    g_atomic_int_set(&holds_stores, 1);
    for (unsigned generation = 2; !is_out(region, watched_group);
         generation++) {
        g_assert_cmpint(g_get_monotonic_time(), <, deadline);
        for (uint64_t page = others; page < SIZE / PAGE_BYTES &&
             !is_out(region, watched_group); page++) {
            pattern_write(memx_region_base(region), page, generation);
        }
    }
}

static void await_trims(MemxRegion *region)
{
    int64_t deadline = g_get_monotonic_time() + DEADLINE_US;

    while (n_trims(region)) {
        g_assert_cmpint(g_get_monotonic_time(), <, deadline);
        g_usleep(1000);
    }
}

static void await_dropped(uint64_t pages)
{
    int64_t deadline = g_get_monotonic_time() + DEADLINE_US;

    while ((atomic_load(&dropped) & pages) != pages) {
        g_assert_cmpint(g_get_monotonic_time(), <, deadline);
        g_usleep(1000);
    }
}

/* A page is discarded, and before the server is told it is touched, and goes
 * out again with its group.  It is zero, so that nothing of it is sent: what
 * the server has goes, also when it is its turn while the group is out. */
static void test_zero_in_slot(void)
{
    int64_t deadline = g_get_monotonic_time() + DEADLINE_US;
    ServerProcess *server = server_process_new("80M");
    MemxRegion *region = region_new_holding(server);
    uint8_t *base = memx_region_base(region);
    uint64_t page, chunk_end;
    MemxStats stats;

    write_all(base);
    await_stats(region, &stats, idle, 0);
    watched_group = first_group_away(region);
    page = watched_group * MEMX_GROUP_PAGES;
    chunk_end = page + CHUNK / PAGE_BYTES;

    /* As many DROPs as may be in flight, and this page waits. */
    g_atomic_int_set(&holds_drops, 1);
    memx_region_discard(region, chunk_end * PAGE_BYTES,
                        SIZE - chunk_end * PAGE_BYTES);
    while (g_atomic_int_get(&n_held) < MEMX_DROPS_MAX) {
        g_assert_cmpint(g_get_monotonic_time(), <, deadline);
        g_usleep(1000);
    }
    atomic_store(&dropped, 0);
    memx_region_discard(region, page * PAGE_BYTES, PAGE_BYTES);
    pattern_check(base, page, 0);
    pattern_write(base, page + 1, 2);
    send_out(region, chunk_end);
    g_assert_cmpuint(atomic_load(&dropped) & 1, ==, 0);

    g_atomic_int_set(&holds_drops, 0);
    await_trims(region);
    g_atomic_int_set(&holds_stores, 0);
    await_dropped(1);
    await_stats(region, &stats, idle, 0);
    pattern_check(base, page, 0);
    pattern_check(base, page + 1, 2);
    pattern_check(base, page + 2, 1);
    memx_region_free(region);
    server_process_free(server);
}

/* The server said that it has just this page, and while others of the group are
 * stored its copy is given up: it goes when the slot has ended, not before, since
 * the slot ends counting on it. */
static void test_compared_in_slot(void)
{
    ServerProcess *server = server_process_new("80M");
    MemxRegion *region = region_new_holding(server);
    uint8_t *base = memx_region_base(region);
    g_autoptr(GError) error = NULL;
    uint64_t page, chunk_end;
    MemxStats stats;

    write_all(base);
    await_stats(region, &stats, idle, 0);
    watched_group = first_group_away(region);
    page = watched_group * MEMX_GROUP_PAGES;
    chunk_end = page + CHUNK / PAGE_BYTES;
    pattern_check(base, page, 1);
    pattern_write(base, page + 1, 2);
    send_out(region, chunk_end);
    atomic_store(&dropped, 0);
    pattern_check(base, page, 1); /* back, out of the slot */

    /* Nothing is evicted any more: copies are given up. */
    memx_region_set_local_bytes(region, SIZE, &error);
    g_assert_no_error(error);
    for (bool kept = true; kept; g_usleep(1000)) {
        g_mutex_lock(&region->lock);
        kept = region->table.stored[watched_group] & 1;
        g_mutex_unlock(&region->lock);
    }
    await_trims(region);
    g_usleep(50000); /* the last of them may only have been taken */
    g_assert_true(is_out(region, watched_group));
    g_assert_cmpuint(atomic_load(&dropped) & 1, ==, 0);

    g_atomic_int_set(&holds_stores, 0);
    await_dropped(1);
    pattern_check(base, page, 1);
    pattern_check(base, page + 1, 2);
    memx_region_free(region);
    server_process_free(server);
}

/* --- What is to be dropped elsewhere --- */

/* TCP; one server refuses each STORE as long as `refuses` is set. */
static MemxTransport refusing;
static const char *refusing_port;
static int refuses;             /* atomic */

static MemxChannel *connect_refusing(const char *host, const char *port,
                                     int timeout_ms, int cancel_fd,
                                     GError **error)
{
    bool other = strcmp(port, refusing_port);

    return tcp_connect_for(other ? &memx_transport_tcp : &refusing, host, port,
                           timeout_ms, cancel_fd, error);
}

static MemxCall *progress_refusing(MemxChannel *channel)
{
    MemxCall *call = memx_transport_tcp.progress(channel);

    if (call && !call->status && call->request.opcode == MEMX_OP_STORE &&
        g_atomic_int_get(&refuses)) {
        call->reply.error = MEMX_ERR_FULL;
    }
    return call;
}

static void count_full(const MemxEvent *event, void *opaque)
{
    if (event->type == MEMX_EVENT_POOL_FULL) {
        g_test_message("%s", event->message);
        g_atomic_int_inc((gint *)opaque);
    }
}

/* What was never written: its chunks go where there is room. */
static void *write_rest(void *base)
{
    for (uint64_t page = SIZE / 2 / PAGE_BYTES; page < SIZE / PAGE_BYTES;
         page++) {
        pattern_write(base, page, 1);
    }
    return NULL;
}

/* A page that only this server has, which is to drop it. */
static void discard_one_of(MemxRegion *r, unsigned server)
{
    uint64_t group = 0;

    g_mutex_lock(&r->lock);
    while (r->table.chunk[memx_chunk_of_group(&r->table, group)].server !=
           server || !(r->table.stored[group] & 1)) {
        g_assert_cmpuint(++group, <, r->table.n_groups);
    }
    g_mutex_unlock(&r->lock);
    g_assert_cmpint(memx_region_discard(r, group * MEMX_GROUP_BYTES,
                                        PAGE_BYTES), ==, 0);
}

static bool has_remote(const MemxStats *stats, uint64_t unused)
{
    return stats->servers[0].remote_bytes && stats->servers[1].remote_bytes;
}

static bool is_away(const MemxStats *stats, uint64_t unused)
{
    return stats->servers[1].health != MEMX_SERVER_UP;
}

static bool full_told(const MemxStats *stats, uint64_t events)
{
    return g_atomic_int_get((gint *)(uintptr_t)events) > 0;
}

/* Another server is away, and has something to drop: that gives no hope to the
 * one that is full. */
static void test_of_another_server(void)
{
    ServerProcess *server[] = { server_process_new("80M"),
                                server_process_new("80M") };
    const char *servers[] = { server_process_address(server[0]),
                              server_process_address(server[1]), NULL };
    gint events = 0;
    MemxOptions o = MEMX_OPTIONS_INIT;
    g_autoptr(GError) error = NULL;
    MemxRegion *region;
    MemxStats stats;
    GThread *writer;

    refusing = memx_transport_tcp;
    refusing.connect = connect_refusing;
    refusing.progress = progress_refusing;
    refusing_port = strrchr(servers[0], ':') + 1;
    o.size_bytes = SIZE;
    o.local_bytes = LOCAL;
    o.chunk_bytes = CHUNK;
    o.keep_copies = MEMX_KEEP_COPIES_OFF;
    o.servers = servers;
    o.event = count_full;
    o.opaque = &events;
    region = memx_region_new_over(&o, &refusing, &error);
    g_assert_no_error(error);
    for (uint64_t page = 0; page < SIZE / 2 / PAGE_BYTES; page++) {
        pattern_write(memx_region_base(region), page, 1);
    }
    await_stats(region, &stats, has_remote, 0);
    await_stats(region, &stats, idle, 0);
    server_process_stop(server[1]);
    await_stats(region, &stats, is_away, 0);
    discard_one_of(region, 1);
    g_assert_cmpint(g_atomic_int_get(&events), ==, 0);
    g_atomic_int_set(&refuses, 1);
    writer = g_thread_new("writer", write_rest, memx_region_base(region));
    await_stats(region, &stats, full_told, (uintptr_t)&events);
    g_atomic_int_set(&refuses, 0);
    server_process_continue(server[1]);
    g_thread_join(writer);
    memx_region_free(region);
    server_process_free(server[0]);
    server_process_free(server[1]);
}

int main(int argc, char **argv)
{
    g_test_init(&argc, &argv, NULL);
    g_test_add_func("/trims/broken-at-a-drop", test_broken_at_a_drop);
    g_test_add_func("/trims/slot-in-use", test_slot_in_use);
    g_test_add_func("/trims/zero-in-slot", test_zero_in_slot);
    g_test_add_func("/trims/compared-in-slot", test_compared_in_slot);
    g_test_add_func("/trims/of-another-server", test_of_another_server);
    return g_test_run();
}
