/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Who waits for a page, and for which server: the clock that ends in
 * MEMX_EVENT_STALLED, and whom that blames.
 */
#include <errno.h>
#include <pthread.h>
#include <setjmp.h>
#include <signal.h>
#include <string.h>
#include "region-fixture.h"
#include "region.h"

#define SIZE (32 * MIB)
#define LOCAL (8 * MIB)
#define TIMEOUT_MS 3000

/* TCP; each FETCH is refused, or breaks its connection, as long as `refuses` or
 * `breaks` is set, and each STORE is refused by the server of that port as long
 * as `is_full`. */
static MemxTransport refusing, filling;
static gint refuses, breaks, is_full;   /* atomic */
static const char *full_port;

static MemxChannel *connect_refusing(const char *host, const char *port,
                                     int timeout_ms, int cancel_fd,
                                     GError **error)
{
    return tcp_connect_for(g_strcmp0(port, full_port) ? &refusing : &filling,
                           host, port, timeout_ms, cancel_fd, error);
}

static MemxCall *progress_refusing(MemxChannel *channel)
{
    MemxCall *call = memx_transport_tcp.progress(channel);

    if (call && !call->status && call->request.opcode == MEMX_OP_FETCH) {
        if (g_atomic_int_get(&refuses)) {
            call->reply.error = MEMX_ERR_INTERNAL;
        } else if (g_atomic_int_get(&breaks)) {
            call->status = -ECONNRESET;
            memx_channel_shutdown(channel);
        }
    }
    return call;
}

static MemxCall *progress_filling(MemxChannel *channel)
{
    MemxCall *call = memx_transport_tcp.progress(channel);

    if (call && !call->status && call->request.opcode == MEMX_OP_STORE &&
        g_atomic_int_get(&is_full)) {
        call->reply.error = MEMX_ERR_FULL;
    }
    return call;
}

typedef struct Events {
    gint n[MEMX_EVENT_TYPES];   /* atomic */
    GMutex lock;
    char *stalled;              /* the message; by the lock */
} Events;

static void note_event(const MemxEvent *event, void *opaque)
{
    Events *events = opaque;

    if (event->type == MEMX_EVENT_STALLED) {
        g_mutex_lock(&events->lock);
        g_free(events->stalled);
        events->stalled = g_strdup(event->message);
        g_mutex_unlock(&events->lock);
    }
    g_atomic_int_inc(&events->n[event->type]);
}

static void await_event(Events *events, MemxEventType type)
{
    int64_t deadline = g_get_monotonic_time() + 30 * G_USEC_PER_SEC;

    while (!g_atomic_int_get(&events->n[type])) {
        g_assert_cmpint(g_get_monotonic_time(), <, deadline);
        g_usleep(1000);
    }
}

static bool at_rest(const MemxStats *stats, uint64_t unused)
{
    return !stats->staged_bytes && !stats->servers[0].queue_depth;
}

typedef struct Fixture {
    ServerProcess *server, *other;  /* other: NULL if there is one only */
    MemxRegion *region;
    uint8_t *base;
    Events events;
} Fixture;

static void write_all(Fixture *f)
{
    MemxStats stats;

    for (uint64_t page = 0; page < SIZE / PAGE_BYTES; page++) {
        pattern_write(f->base, page, 1);
    }
    await_stats(f->region, &stats, at_rest, 0);
}

static void set_up(Fixture *f, gconstpointer two)
{
    const char *servers[3] = { NULL };
    MemxOptions o = MEMX_OPTIONS_INIT;
    g_autoptr(GError) error = NULL;

    f->server = server_process_new("80M");
    servers[0] = server_process_address(f->server);
    if (two) {
        f->other = server_process_new("80M");
        servers[1] = server_process_address(f->other);
    }
    full_port = strrchr(servers[0], ':') + 1;
    refusing = filling = memx_transport_tcp;
    refusing.connect = filling.connect = connect_refusing;
    refusing.progress = progress_refusing;
    filling.progress = progress_filling;
    if (!two) {
        full_port = NULL;
    }
    g_atomic_int_set(&refuses, 0);
    g_atomic_int_set(&breaks, 0);
    g_atomic_int_set(&is_full, 0);
    o.size_bytes = SIZE;
    o.local_bytes = LOCAL;
    o.chunk_bytes = 256 << 10;
    o.keep_copies = MEMX_KEEP_COPIES_OFF;
    o.server_timeout_ms = TIMEOUT_MS;
    o.servers = servers;
    o.event = note_event;
    o.opaque = &f->events;
    f->region = memx_region_new_over(&o, &refusing, &error);
    g_assert_no_error(error);
    f->base = memx_region_base(f->region);
    write_all(f);
}

static void tear_down(Fixture *f, gconstpointer unused)
{
    memx_region_free(f->region);
    server_process_free(f->server);
    g_clear_pointer(&f->other, server_process_free);
    g_free(f->events.stalled);
}

static uint64_t remote_page(MemxRegion *r)
{
    uint64_t g = 0;

    g_mutex_lock(&r->lock);
    while (r->table.present[g] || r->table.stored[g] != UINT64_MAX) {
        g_assert_cmpuint(++g, <, r->table.n_groups);
    }
    g_mutex_unlock(&r->lock);
    return g * MEMX_GROUP_PAGES;
}

static void *read_page(void *opaque)
{
    const volatile uint8_t *page = opaque;

    return GUINT_TO_POINTER(page[0]);
}

static void never_given(Fixture *f, gint *how, const char *why)
{
    uint64_t page = remote_page(f->region);
    Events *events = &f->events;
    GThread *thread;

    g_atomic_int_set(how, 1);
    thread = g_thread_new("reader", read_page, f->base + page * PAGE_BYTES);
    await_event(events, MEMX_EVENT_STALLED);
    g_assert_nonnull(strstr(events->stalled, why));
    g_assert_nonnull(strstr(events->stalled,
                            server_process_address(f->server)));
    g_assert_cmpint(events->n[MEMX_EVENT_SERVER_LOST], <=, 1);
    g_assert_cmpint(events->n[MEMX_EVENT_SERVER_BACK], ==, 0);
    g_atomic_int_set(how, 0);
    g_thread_join(thread);
    pattern_check(f->base, page, 1);
    await_event(events, MEMX_EVENT_RESUMED);
    g_assert_cmpint(events->n[MEMX_EVENT_STALLED], ==, 1);
}

/* One that lets its lanes be opened, but gives no page, is told like one that
 * is gone; once, as lost, and back when it gives them. */
static void test_refuses(Fixture *f, gconstpointer unused)
{
    never_given(f, &refuses, memx_error_name(MEMX_ERR_INTERNAL));
}

static void test_breaks(Fixture *f, gconstpointer unused)
{
    never_given(f, &breaks, "the connection broke each time");
}

static __thread sigjmp_buf away;

static void go_away(int signal)
{
    siglongjmp(away, 1);
}

static void *read_until_signal(void *opaque)
{
    if (!sigsetjmp(away, 1)) {
        read_page(opaque);
    }
    return NULL;
}

/* Whoever waits is taken away then, as a vCPU is, and comes again only after
 * that is over: nobody but the engine learns that the page can be had. */
static void test_refuses_and_stopped(Fixture *f, gconstpointer unused)
{
    uint64_t page = remote_page(f->region);
    Events *events = &f->events;
    pthread_t thread;

#ifdef __SANITIZE_THREAD__
    g_test_skip("ThreadSanitizer holds signals back");
    return;
#endif
    signal(SIGUSR1, go_away);
    g_atomic_int_set(&refuses, 1);
    g_assert_cmpint(pthread_create(&thread, NULL, read_until_signal,
                                   f->base + page * PAGE_BYTES), ==, 0);
    await_event(events, MEMX_EVENT_STALLED);
    pthread_kill(thread, SIGUSR1);
    pthread_join(thread, NULL);
    g_usleep(2 * TIMEOUT_MS * 1000);
    g_assert_cmpint(events->n[MEMX_EVENT_RESUMED], ==, 0);
    g_atomic_int_set(&refuses, 0);
    await_event(events, MEMX_EVENT_RESUMED);
    pattern_check(f->base, page, 1);
}

typedef bool ServerFunc(const MemxServer *s);

static bool is_asked(const MemxServer *s)
{
    return s->faults || s->waited_in;
}

static bool clock_stands(const MemxServer *s)
{
    return !s->waiting_since_ns;
}

static void await_server(MemxRegion *r, ServerFunc *done)
{
    int64_t deadline = g_get_monotonic_time() + 30 * G_USEC_PER_SEC;
    bool yes;

    do {
        g_assert_cmpint(g_get_monotonic_time(), <, deadline);
        g_usleep(1000);
        g_mutex_lock(&r->lock);
        yes = done(&r->server[0]);
        g_mutex_unlock(&r->lock);
    } while (!yes);
}

/* Discards @page, which a thread waits for that @hinted: by prefetch. */
static void discard_awaited(Fixture *f, bool hinted)
{
    MemxRegion *r = f->region;
    uint64_t page = remote_page(r);
    MemxStats stats;
    GThread *thread;

    server_process_stop(f->server);
    if (hinted) {
        g_mutex_lock(&r->lock);
        memx_prefetch_push_locked(r, page / MEMX_GROUP_PAGES, 0xff, 1);
        g_assert_cmpint(memx_prefetch_hurry_locked(r, &r->server[0], page),
                        ==, MEMX_HINT_FOLLOWED);
        g_mutex_unlock(&r->lock);
    }
    thread = g_thread_new("reader", read_page, f->base + page * PAGE_BYTES);
    await_server(r, is_asked);
    g_usleep(100000); /* by then it waits */
    memx_region_stats(r, &stats);
    g_assert_cmpuint(stats.faults_waiting, ==, 1);
    g_assert_cmpint(memx_region_discard(r, page * PAGE_BYTES, PAGE_BYTES), ==,
                    0);
    g_assert_null(g_thread_join(thread)); /* zeros */
    g_mutex_lock(&r->lock);
    g_assert_true(is_asked(&r->server[0]));
    g_mutex_unlock(&r->lock);
    memx_region_stats(r, &stats);
    g_assert_cmpuint(stats.faults_waiting, ==, 0);
    await_server(r, clock_stands);
    g_assert_cmpint(f->events.n[MEMX_EVENT_STALLED], ==, 0);
    server_process_continue(f->server);
}

/* The request is still with a server that hangs, but nobody waits for it. */
static void test_discarded(Fixture *f, gconstpointer unused)
{
    discard_awaited(f, false);
}

static void test_discarded_hinted(Fixture *f, gconstpointer unused)
{
    discard_awaited(f, true);
}

static bool other_is_away(const MemxStats *stats, uint64_t unused)
{
    return stats->servers[1].health != MEMX_SERVER_UP;
}

static unsigned server_of(MemxRegion *r, uint64_t page)
{
    unsigned server;

    g_mutex_lock(&r->lock);
    server = r->table.chunk[page >> r->table.chunk_shift].server;
    g_mutex_unlock(&r->lock);
    return server;
}

/* More than is local. */
static void *write_first_servers(void *opaque)
{
    Fixture *f = opaque;

    for (uint64_t page = 0; page < SIZE / PAGE_BYTES; page++) {
        if (server_of(f->region, page) == 0) {
            pattern_write(f->base, page, 2);
        }
    }
    return NULL;
}

/* One server is away, but nothing is to go there; the other is full. */
static void test_full(Fixture *f, gconstpointer unused)
{
    uint64_t chunk_pages = 1ull << f->region->table.chunk_shift;
    MemxStats stats;
    GThread *thread;

    for (uint64_t page = 0; page < SIZE / PAGE_BYTES; page += chunk_pages) {
        if (server_of(f->region, page) != 0) { /* or will be */
            g_assert_cmpint(memx_region_discard(f->region, page * PAGE_BYTES,
                                                chunk_pages * PAGE_BYTES),
                            ==, 0);
        }
    }
    await_stats(f->region, &stats, at_rest, 0);
    server_process_stop(f->other);
    await_stats(f->region, &stats, other_is_away, 0);
    g_atomic_int_set(&is_full, 1);
    thread = g_thread_new("writer", write_first_servers, f);
    await_event(&f->events, MEMX_EVENT_STALLED);
    g_test_message("%s", f->events.stalled);
    g_assert_nonnull(strstr(f->events.stalled, "is full"));
    g_assert_nonnull(strstr(f->events.stalled,
                            server_process_address(f->server)));
    g_atomic_int_set(&is_full, 0);
    g_thread_join(thread);
    server_process_continue(f->other);
}

/* What is awaited is room, since a server that is away takes no pages. */
static void test_room(Fixture *f, gconstpointer unused)
{
    Events *events = &f->events;
    GThread *thread;

    g_assert_cmpint(memx_region_discard(f->region, 0, SIZE), ==, 0);
    server_process_stop(f->server);
    thread = g_thread_new("writer", write_first_servers, f);
    await_event(events, MEMX_EVENT_STALLED);
    g_test_message("%s", events->stalled);
    g_assert_nonnull(strstr(events->stalled, "room for a page"));
    g_assert_null(strstr(events->stalled, "is full"));
    g_assert_nonnull(strstr(events->stalled,
                            server_process_address(f->server)));
    server_process_continue(f->server);
    g_thread_join(thread);
    await_event(events, MEMX_EVENT_RESUMED);
}

int main(int argc, char **argv)
{
#define ADD(path, two, function) \
    g_test_add("/waits/" path, Fixture, two, set_up, function, tear_down)

    g_test_init(&argc, &argv, NULL);
    ADD("server-refuses", NULL, test_refuses);
    ADD("server-breaks", NULL, test_breaks);
    ADD("server-refuses-and-vm-stopped", NULL, test_refuses_and_stopped);
    ADD("discarded", NULL, test_discarded);
    ADD("discarded-and-prefetched", NULL, test_discarded_hinted);
    ADD("full-and-another-away", "two", test_full);
    ADD("room", NULL, test_room);
    return g_test_run();
}
