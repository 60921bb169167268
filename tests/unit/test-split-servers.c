/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * What servers hear of a split: all at the same time where the VM stands
 * still; that it is over, also who was away then; where each chunk is.
 */
#include <string.h>
#include "region.h"
#include "split-fixture.h"
#include "split-out.h"

#define SIZE (32 * MIB)
#define CHUNK (MIB / 2)
#define DEADLINE_US (60 * G_USEC_PER_SEC)
#define HOLDS_NOTHING "\"held_bytes\" : 0"

static void servers_new(ServerProcess **servers)
{
    servers[0] = server_process_new("80M");
    servers[1] = server_process_new("80M");
}

static void servers_free(ServerProcess **servers)
{
    server_process_free(servers[0]);
    server_process_free(servers[1]);
}

/* Memory that is wholly there, or ordinary. */
static void source_new(ServerProcess **servers, bool passive, Move *m)
{
    g_autoptr(GError) error = NULL;
    MemxOptions o = MEMX_OPTIONS_INIT;
    const char *address[] = { server_process_address(servers[0]),
                              server_process_address(servers[1]), NULL };

    o.base = move_map(SIZE);
    o.size_bytes = SIZE;
    o.local_bytes = SIZE;
    o.chunk_bytes = CHUNK;
    o.passive = passive;
    o.servers = address;
    m->source = memx_region_new(&o, &error);
    g_assert_no_error(error);
    m->vm = vm_new(o.base, SIZE, 1);
    vm_fill(m->vm, 1);
    m->main_bytes = SIZE / 2;
}

/* --- It is over --- */

/* The server that is away has it dropped when it is back, though the source
 * has long gone on to other things. */
static void cancelled_while_away(bool offered)
{
    ServerProcess *servers[2];
    g_autoptr(GError) error = NULL;
    Move m = { 0 };

    servers_new(servers);
    source_new(servers, true, &m);
    move_transfer(&m);
    if (offered) {
        move_drain(&m);
        move_offer(&m);
    }
    server_process_stop(servers[1]);
    if (offered) {
        g_assert_cmpint(memx_split_reclaim(m.source, true, WAIT_MS, &error),
                        ==, MEMX_VERDICT_MINE);
    } else {
        memx_split_cancel(m.source);
    }
    g_clear_pointer(&m.arrival, memx_arrival_free);
    memx_region_free(m.source);
    server_process_continue(servers[1]);
    for (unsigned i = 0; i < 2; i++) {
        server_process_await_status(servers[i], NO_SPACE);
    }
    vm_check(m.vm);
    vm_free(m.vm);
    servers_free(servers);
}

static void test_cancelled_while_away(void)
{
    cancelled_while_away(false);
}

static void test_reclaimed_while_away(void)
{
    cancelled_while_away(true);
}

/* One that is killed, and comes back with its pages after a while. */
static void test_cancelled_while_killed(void)
{
    ServerProcess *servers[2];
    Move m = { 0 };

    servers_new(servers);
    source_new(servers, true, &m);
    move_transfer(&m);
    server_process_kill(servers[0]);
    memx_split_cancel(m.source);
    g_clear_pointer(&m.arrival, memx_arrival_free);
    memx_region_free(m.source);
    server_process_restart(servers[0], true);
    for (unsigned i = 0; i < 2; i++) {
        server_process_await_status(servers[i], NO_SPACE);
    }
    vm_free(m.vm);
    servers_free(servers);
}

/* A destination that may ask; ordinary memory is at its source. */
static MemxRegion *offered_new(ServerProcess **servers, Move *m)
{
    servers_new(servers);
    source_new(servers, true, m);
    move_transfer(m);
    move_drain(m);
    move_offer(m);
    return move_finish(m);
}

/* The destination did not hear of it before there is nothing left to ask
 * about. */
static void test_closed_while_away(void)
{
    ServerProcess *servers[2];
    g_autoptr(GError) error = NULL;
    MemxRegion *region;
    Move m = { 0 };

    region = offered_new(servers, &m);
    g_mutex_lock(&region->lock); /* it can't connect again */
    g_assert_cmpint(memx_split_reclaim(m.source, true, WAIT_MS, &error), ==,
                    MEMX_VERDICT_MINE);
    memx_region_free(m.source);
    for (unsigned i = 0; i < 2; i++) {
        server_process_await_status(servers[i], NO_SPACE);
    }
    g_mutex_unlock(&region->lock);
    g_assert_cmpint(memx_region_commit(region, true, WAIT_MS, &error), ==,
                    MEMX_VERDICT_THEIRS);
    g_test_message("%s", error->message);
    memx_region_free(region);
    vm_check(m.vm);
    vm_free(m.vm);
    servers_free(servers);
}

/* A server that came back empty does not know who has the VM. */
static void test_empty_says_nothing(void)
{
    ServerProcess *servers[2];
    g_autoptr(GError) error = NULL;
    MemxRegion *region;
    Move m = { 0 };

    region = offered_new(servers, &m);
    server_process_kill(servers[0]);
    server_process_restart(servers[0], false);
    g_assert_cmpint(memx_region_commit(region, true, 2000, &error), ==,
                    MEMX_VERDICT_UNKNOWN);
    g_test_message("%s", error->message);
    g_clear_error(&error);
    g_assert_cmpint(memx_split_reclaim(m.source, true, 2000, &error), ==,
                    MEMX_VERDICT_UNKNOWN);
    g_test_message("%s", error->message);
    memx_split_leave(m.source);
    memx_region_free(m.source);
    memx_region_free(region);
    vm_free(m.vm);
    servers_free(servers);
}

/* --- At the same time --- */

static void *continue_first(void *opaque)
{
    ServerProcess **servers = opaque;

    server_process_await_status(servers[1], "\"heir_connected\" : true");
    server_process_continue(servers[0]);
    return NULL;
}

/* A server that is slow to answer doesn't keep the others from being asked. */
static void test_attaches_at_once(void)
{
    ServerProcess *servers[2];
    MemxRegion *region;
    Move m = { .connect_timeout_ms = DEADLINE_US / 1000 };
    GThread *thread;

    servers_new(servers);
    source_new(servers, true, &m);
    move_transfer(&m);
    move_drain(&m);
    move_offer(&m);
    server_process_stop(servers[0]);
    thread = g_thread_new("continue", continue_first, servers);
    region = move_finish(&m);
    g_thread_join(thread);
    move_commit(region);
    memx_split_leave(m.source);
    memx_region_free(m.source);
    m.vm->base = m.base;
    vm_check(m.vm);
    memx_region_free(region);
    vm_free(m.vm);
    servers_free(servers);
}

/* --- Moves between servers --- */

/* Memory that is mostly remote, on server 0 alone.  Every second page of it was
 * never written. */
static MemxRegion *on_one_server(ServerProcess **servers, Move *m)
{
    MemxRegion *r;

    servers_new(servers);
    r = region_fixture_new(&(RegionFixture) {
        .base = move_map(SIZE), .size = SIZE, .local = SIZE / 4,
        .chunk = CHUNK, .servers = servers, .n_servers = 1,
    });
    m->source = r;
    m->vm = vm_new(memx_region_base(r), SIZE, 1);
    m->main_bytes = SIZE / 4;
    for (uint64_t page = 0; page < m->vm->n_pages; page += 2) {
        vm_write(m->vm, page, 1);
    }
    return r;
}

static void use_both(ServerProcess **servers, MemxRegion *r)
{
    const char *list[] = { server_process_address(servers[0]),
                           server_process_address(servers[1]), NULL };
    g_autoptr(GError) error = NULL;

    memx_region_set_servers(r, list, &error);
    g_assert_no_error(error);
}

/* As if a page of each chunk were being fetched: none changes its server. */
static void hold_all(MemxRegion *r, int by)
{
    g_mutex_lock(&r->lock);
    for (uint32_t c = 0; c < r->table.n_chunks; c++) {
        r->table.chunk[c].fetching += by;
    }
    g_mutex_unlock(&r->lock);
}

/* A chunk all of which is on the new server, too, but that is still read from
 * the old one. */
static uint32_t await_copied(MemxRegion *r)
{
    int64_t deadline = g_get_monotonic_time() + DEADLINE_US;
    const MemxMove *m = &r->move[1];
    uint32_t c = MEMX_CHUNK_NONE;

    while (c == MEMX_CHUNK_NONE) {
        g_assert_cmpint(g_get_monotonic_time(), <, deadline);
        g_usleep(1000);
        g_mutex_lock(&r->lock);
        if (m->active && m->at == m->end) {
            c = m->chunk;
        }
        g_mutex_unlock(&r->lock);
    }
    return c;
}

static void await_sent(MemxRegion *r)
{
    int64_t deadline = g_get_monotonic_time() + DEADLINE_US;
    g_autoptr(GError) error = NULL;
    MemxSplitStats stats;

    do {
        g_assert_cmpint(g_get_monotonic_time(), <, deadline);
        memx_split_wait(r, 100);
        memx_split_check(r, &error);
        g_assert_no_error(error);
        memx_split_stats(r, &stats);
    } while (stats.pending_bytes);
}

static bool has_chunks(const MemxStats *stats, uint64_t chunks)
{
    return stats->servers[1].chunks >= chunks;
}

static bool nothing_to_move(const MemxStats *stats, uint64_t unused)
{
    return !stats->servers[0].to_move;
}

static bool reserves_less(const MemxStats *stats, uint64_t bytes)
{
    return stats->servers[0].reserved_bytes < bytes;
}

/* A chunk is on its way to a new server, and what is fetched keeps it from
 * getting there.  The split has it stored where it is; cancelled, chunks go on
 * to the new server. */
static void test_begins_amid_move(void)
{
    ServerProcess *servers[2];
    MemxRegion *r;
    MemxStats stats;
    Move m = { 0 };
    uint64_t page, reserved;
    uint32_t c;

    r = on_one_server(servers, &m);
    memx_region_stats(r, &stats);
    reserved = stats.servers[0].reserved_bytes;
    hold_all(r, 1);
    use_both(servers, r);
    c = await_copied(r);
    page = c * (CHUNK / PAGE_BYTES);
    for (unsigned i = 1; i < 64; i += 2) {
        vm_write(m.vm, page + i, 2); /* the old server gets these */
    }
    move_begin(&m);
    g_mutex_lock(&r->lock);
    r->out->hot[c / 64] &= ~(1ull << c % 64); /* for the server, in any case */
    g_mutex_unlock(&r->lock);
    move_pass(&m);
    await_sent(r);
    memx_split_cancel(r);
    g_clear_pointer(&m.arrival, memx_arrival_free);
    hold_all(r, -1);
    await_stats(r, &stats, has_chunks, 1); /* more, if as many had a server */
    await_stats(r, &stats, nothing_to_move, 0);
    await_stats(r, &stats, reserves_less, reserved);
    vm_check(m.vm);
    memx_region_free(r);
    vm_free(m.vm);
    servers_free(servers);
}

/* The first group is on its way to server 0. */
static void await_pushed(MemxRegion *r)
{
    int64_t deadline = g_get_monotonic_time() + DEADLINE_US;
    bool pushed = false;

    while (!pushed) {
        g_assert_cmpint(g_get_monotonic_time(), <, deadline);
        g_usleep(1000);
        g_mutex_lock(&r->lock);
        for (unsigned i = 0; i < MEMX_PUSHES; i++) {
            pushed |= r->out->push[i].busy && !r->out->push[i].group;
        }
        g_mutex_unlock(&r->lock);
    }
}

static bool is_down(const MemxStats *stats, uint64_t unused)
{
    return stats->servers[0].health == MEMX_SERVER_DOWN;
}

static bool is_released(const MemxStats *stats, uint64_t unused)
{
    return stats->servers[0].state == MEMX_SERVER_RELEASED;
}

/* What was sent to a server got lost with its connection, and the split is
 * cancelled: it isn't taken for something that could be fetched from there. */
static void test_moves_after_loss(void)
{
    ServerProcess *servers[2];
    const char *other[2] = { NULL };
    g_autoptr(GError) error = NULL;
    MemxRegion *r;
    MemxStats stats;
    Move m = { 0 };

    r = on_one_server(servers, &m);
    move_begin(&m);
    move_pass(&m);
    await_sent(r);
    server_process_stop(servers[0]);
    g_mutex_lock(&r->lock);
    r->out->hot[0] &= ~1ull;
    g_mutex_unlock(&r->lock);
    for (unsigned i = 1; i < 64; i += 2) {
        vm_write(m.vm, i, 2);
    }
    move_pass(&m);
    await_pushed(r);
    server_process_kill(servers[0]);
    await_stats(r, &stats, is_down, 0);
    memx_split_cancel(r);
    g_clear_pointer(&m.arrival, memx_arrival_free);
    server_process_restart(servers[0], true);
    other[0] = server_process_address(servers[1]);
    memx_region_set_servers(r, other, &error);
    g_assert_no_error(error);
    await_stats(r, &stats, is_released, 0);
    vm_check(m.vm);
    memx_region_free(r);
    vm_free(m.vm);
    servers_free(servers);
}

/* TCP; each STORE is refused, though the server has done it. */
static MemxTransport refusing;
static int refused;             /* atomic */

static MemxChannel *connect_refusing(const char *host, const char *port,
                                     int timeout_ms, int cancel_fd,
                                     GError **error)
{
    return tcp_connect_for(&refusing, host, port, timeout_ms, cancel_fd,
                           error);
}

static MemxCall *progress_refusing(MemxChannel *channel)
{
    MemxCall *call = memx_transport_tcp.progress(channel);

    if (call && !call->status && call->request.opcode == MEMX_OP_STORE) {
        call->reply.error = MEMX_ERR_FULL;
        g_atomic_int_inc(&refused);
    }
    return call;
}

/* A server that refuses has something of what it refused.  That ends the split,
 * and then it has nothing. */
static void test_refused_leaves_nothing(void)
{
    ServerProcess *server = server_process_new("80M");
    const char *address[] = { server_process_address(server), NULL };
    g_autofree char *status = NULL;
    g_autoptr(GError) error = NULL;
    MemxOptions o = MEMX_OPTIONS_INIT;
    int64_t deadline = g_get_monotonic_time() + DEADLINE_US;
    Move m = { 0 };

    refusing = memx_transport_tcp;
    refusing.connect = connect_refusing;
    refusing.progress = progress_refusing;
    o.base = move_map(SIZE);
    o.size_bytes = SIZE;
    o.local_bytes = SIZE;
    o.chunk_bytes = CHUNK;
    o.servers = address;
    m.source = memx_region_new_over(&o, &refusing, &error);
    g_assert_no_error(error);
    m.vm = vm_new(o.base, SIZE, 1);
    m.main_bytes = SIZE / 2;
    vm_fill(m.vm, 1);
    move_begin(&m);
    while (memx_split_check(m.source, NULL)) {
        g_assert_cmpint(g_get_monotonic_time(), <, deadline);
        move_pass(&m);
        memx_split_wait(m.source, 10);
    }
    g_assert_false(memx_split_check(m.source, &error));
    g_assert_nonnull(strstr(error->message, "is full"));
    g_assert_cmpint(g_atomic_int_get(&refused), >, 0);
    status = server_process_memxctl(server, "status", "--json");
    g_assert_null(strstr(status, HOLDS_NOTHING));
    memx_split_cancel(m.source);
    g_clear_pointer(&m.arrival, memx_arrival_free);
    server_process_await_status(server, HOLDS_NOTHING);
    vm_check(m.vm);
    memx_region_free(m.source);
    vm_free(m.vm);
    server_process_free(server);
}

/* --- Reservations --- */

/* What a server says of each space: one after the other. */
static char *reserved_text(const ServerProcess *server)
{
    g_autofree char *out = server_process_memxctl(server, "status", "--json");
    GString *text = g_string_new("");
    const char *at = out;

    while ((at = strstr(at, "\"reserved_bytes\""))) {
        g_string_append_len(text, at, strcspn(at, ",}\n"));
        at++;
    }
    return g_string_free(text, FALSE);
}

typedef struct Reserved {
    uint64_t bytes[2];
    char *text[2];
} Reserved;

static void reserved_get(ServerProcess **servers, MemxRegion *r,
                         Reserved *reserved)
{
    MemxStats stats;

    memx_region_stats(r, &stats);
    for (unsigned i = 0; i < 2; i++) {
        reserved->bytes[i] = stats.servers[i].reserved_bytes;
        reserved->text[i] = reserved_text(servers[i]);
        g_test_message("%" G_GUINT64_FORMAT " %s", reserved->bytes[i],
                       reserved->text[i]);
    }
}

static bool reserves_as(const MemxStats *stats, uint64_t reserved)
{
    const Reserved *r = (const Reserved *)(uintptr_t)reserved;

    return stats->servers[0].reserved_bytes == r->bytes[0] &&
           stats->servers[1].reserved_bytes == r->bytes[1];
}

static void reserved_check(ServerProcess **servers, MemxRegion *r,
                           Reserved *reserved)
{
    MemxStats stats;

    memx_region_stats(r, &stats);
    for (unsigned i = 0; i < 2; i++) {
        g_autofree char *text = reserved_text(servers[i]);

        g_assert_cmpuint(stats.servers[i].reserved_bytes, ==,
                         reserved->bytes[i]);
        g_assert_cmpstr(text, ==, reserved->text[i]);
        g_clear_pointer(&reserved->text[i], g_free);
    }
}

/* Half of it is remote, on both. */
static MemxRegion *on_two_servers(ServerProcess **servers, Move *m)
{
    MemxRegion *r = region_fixture_new(&(RegionFixture) {
        .base = move_map(SIZE), .size = SIZE, .local = SIZE / 2,
        .chunk = CHUNK, .servers = servers, .n_servers = 2,
    });

    m->source = r;
    m->vm = vm_new(memx_region_base(r), SIZE, 1);
    m->main_bytes = SIZE / 4;
    vm_fill(m->vm, 1);
    return r;
}

/* One server grants what is asked of it, and the other can't. */
static void test_failed_reserves_nothing(void)
{
    ServerProcess *servers[2];
    MemxRegion *r, *other;
    g_autoptr(GError) error = NULL;
    Reserved reserved;
    Move m = { 0 };

    servers[0] = server_process_new("32M");
    servers[1] = server_process_new("80M");
    r = on_two_servers(servers, &m);
    other = region_fixture_new(&(RegionFixture) { /* nearly all that is free */
        .size = 31 * MIB, .local = 8 * MIB, .servers = servers,
        .n_servers = 1,
    });
    reserved_get(servers, r, &reserved);
    g_assert_false(move_try(&m, &error));
    g_assert_error(error, MEMX_ERROR, MEMX_ERROR_FULL);
    g_test_message("%s", error->message);
    reserved_check(servers, r, &reserved);
    memx_region_free(other);
    vm_check(m.vm);
    memx_region_free(r);
    vm_free(m.vm);
    servers_free(servers);
}

static void test_cancelled_reserves_nothing(void)
{
    ServerProcess *servers[2];
    MemxRegion *r;
    MemxStats stats;
    Reserved reserved;
    Move m = { 0 };

    servers_new(servers);
    r = on_two_servers(servers, &m);
    reserved_get(servers, r, &reserved);
    for (unsigned i = 0; i < 2; i++) { /* the second one perhaps at once */
        move_transfer(&m);
        memx_region_stats(r, &stats);
        g_assert_cmpuint(stats.servers[0].reserved_bytes, >,
                         reserved.bytes[0]);
        memx_split_cancel(r);
        g_clear_pointer(&m.arrival, memx_arrival_free);
    }
    await_stats(r, &stats, reserves_as, (uintptr_t)&reserved);
    reserved_check(servers, r, &reserved);
    vm_check(m.vm);
    memx_region_free(r);
    vm_free(m.vm);
    servers_free(servers);
}

/* Nor does one whose server was away when it was given up. */
static void test_away_reserves_nothing(void)
{
    ServerProcess *servers[2];
    MemxRegion *r;
    MemxStats stats;
    Reserved reserved;
    int64_t deadline = g_get_monotonic_time() + 60 * G_USEC_PER_SEC;
    bool grown;
    Move m = { 0 };

    servers_new(servers);
    r = on_two_servers(servers, &m);
    reserved_get(servers, r, &reserved);
    move_transfer(&m);
    server_process_kill(servers[0]);
    await_stats(r, &stats, is_down, 0);
    memx_split_cancel(r);
    g_clear_pointer(&m.arrival, memx_arrival_free);
    do { /* the keeper has tried */
        g_assert_cmpint(g_get_monotonic_time(), <, deadline);
        g_usleep(10000);
        g_mutex_lock(&r->lock);
        grown = r->grown;
        g_mutex_unlock(&r->lock);
    } while (grown);
    server_process_restart(servers[0], true);
    await_stats(r, &stats, reserves_as, (uintptr_t)&reserved);
    reserved_check(servers, r, &reserved);
    vm_check(m.vm);
    memx_region_free(r);
    vm_free(m.vm);
    servers_free(servers);
}

/* --- Where chunks are --- */

/* A chunk that has no server, and that the destination was told of. */
static uint32_t find_told_locked(MemxRegion *r)
{
    uint32_t c = 0;

    while (c < r->table.n_chunks &&
           (r->table.chunk[c].server != MEMX_SERVER_NONE ||
            memx_bit(r->out->changed, c))) {
        c++;
    }
    return c;
}

/* A chunk that is evicted for the first time after that, and comes back: the
 * destination must know that its server may have something to drop. */
static void test_gets_server_meanwhile(void)
{
    ServerProcess *servers[2];
    MemxRegion *region, *r;
    Move m = { 0 };
    uint32_t c;

    servers_new(servers);
    source_new(servers, false, &m);
    move_transfer(&m);
    r = m.source;
    do {
        move_records(&m, false);
        g_mutex_lock(&r->lock);
        c = find_told_locked(r);
        g_mutex_unlock(&r->lock);
    } while (c == r->table.n_chunks);
    g_mutex_lock(&r->lock);
    g_assert_cmpint(memx_place_locked(r, c), >=, 0);
    g_mutex_unlock(&r->lock);
    move_drain(&m);
    move_offer(&m);
    region = move_finish(&m);
    g_assert_cmpuint(region->table.chunk[c].server, ==,
                     r->table.chunk[c].server);
    move_commit(region);
    memx_split_leave(r);
    memx_region_free(r);
    m.vm->base = m.base;
    vm_check(m.vm);
    memx_region_free(region);
    vm_free(m.vm);
    servers_free(servers);
}

int main(int argc, char **argv)
{
    g_test_init(&argc, &argv, NULL);
    g_test_add_func("/split-servers/cancelled-while-away",
                    test_cancelled_while_away);
    g_test_add_func("/split-servers/reclaimed-while-away",
                    test_reclaimed_while_away);
    g_test_add_func("/split-servers/cancelled-while-killed",
                    test_cancelled_while_killed);
    g_test_add_func("/split-servers/closed-while-away",
                    test_closed_while_away);
    g_test_add_func("/split-servers/empty-says-nothing",
                    test_empty_says_nothing);
    g_test_add_func("/split-servers/attaches-at-once", test_attaches_at_once);
    g_test_add_func("/split-servers/begins-amid-move",
                    test_begins_amid_move);
    g_test_add_func("/split-servers/moves-after-loss", test_moves_after_loss);
    g_test_add_func("/split-servers/refused-leaves-nothing",
                    test_refused_leaves_nothing);
    g_test_add_func("/split-servers/failed-reserves-nothing",
                    test_failed_reserves_nothing);
    g_test_add_func("/split-servers/cancelled-reserves-nothing",
                    test_cancelled_reserves_nothing);
    g_test_add_func("/split-servers/away-reserves-nothing",
                    test_away_reserves_nothing);
    g_test_add_func("/split-servers/gets-server-meanwhile",
                    test_gets_server_meanwhile);
    return g_test_run();
}
