/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Split migration as a program drives it: memx.h and real memservers; the
 * stream is a memcpy.  A writer goes on meanwhile, and says what it wrote
 * after it has, as a dirty log does.
 */
#include <errno.h>
#include <string.h>
#include <sys/mman.h>
#include "region-fixture.h"

#ifdef __SANITIZE_THREAD__
/* A guest writes to its memory while that is read: so it comes again.  The
 * writer's stack is not always known. */
const char *__tsan_default_suppressions(void);
const char *__tsan_default_suppressions(void)
{
    return "race:pattern_write\nrace:memx_page_is_zero\nrace:read_pages\n";
}
#endif

#define WAIT_MS 20000
#define ROUNDS 4

/* One side's memory, with what was written to it. */
typedef struct Vm {
    uint8_t *base;
    uint64_t n_pages;
    uint8_t *generation;    /* 0: zeros */
    uint64_t *dirty;        /* atomic: a bit per page */
    GThread *writer;
    int stop;               /* atomic */
    unsigned seed;
    uint64_t writes;        /* atomic */
} Vm;

typedef struct Move {
    Vm *vm;
    MemxRegion *source;
    uint64_t main_bytes;
    uint64_t local_bytes;   /* of the destination */
    bool sparse;
    uint8_t *base;          /* of the destination */
    MemxArrival *arrival;
    uint64_t streamed, taken;
} Move;

static void mark_dirty(Vm *vm, uint64_t page)
{
    __atomic_fetch_or(&vm->dirty[page / 64], 1ull << page % 64,
                      __ATOMIC_SEQ_CST);
}

static bool take_dirty(Vm *vm, uint64_t page)
{
    return __atomic_fetch_and(&vm->dirty[page / 64], ~(1ull << page % 64),
                              __ATOMIC_SEQ_CST) >> page % 64 & 1;
}

static void vm_write(Vm *vm, uint64_t page, unsigned generation)
{
    pattern_write(vm->base, page, generation);
    vm->generation[page] = generation;
    mark_dirty(vm, page);
}

static void vm_check(const Vm *vm)
{
    for (uint64_t page = 0; page < vm->n_pages; page++) {
        pattern_check(vm->base, page, vm->generation[page]);
    }
}

static void *write_on(void *opaque)
{
    Vm *vm = opaque;
    g_autoptr(GRand) rand = g_rand_new_with_seed(vm->seed);

    while (!g_atomic_int_get(&vm->stop)) {
        /* Most of it in an eighth of the memory. */
        uint64_t n = g_rand_int_range(rand, 0, 8) ? vm->n_pages / 8
                                                  : vm->n_pages;
        uint64_t page = g_rand_int_range(rand, 0, n);

        vm_write(vm, page, g_rand_int_range(rand, 0, 4) ?
                 1 + g_rand_int_range(rand, 0, 200) : 0);
        __atomic_fetch_add(&vm->writes, 1, __ATOMIC_RELAXED);
    }
    return NULL;
}

static void vm_start(Vm *vm)
{
    vm->stop = 0;
    vm->writer = g_thread_new("writer", write_on, vm);
}

static void vm_stop(Vm *vm)
{
    g_atomic_int_set(&vm->stop, 1);
    g_clear_pointer(&vm->writer, g_thread_join);
}

static Vm *vm_new(uint8_t *base, uint64_t bytes, unsigned seed)
{
    Vm *vm = g_new0(Vm, 1);

    vm->base = base;
    vm->n_pages = bytes / PAGE_BYTES;
    vm->generation = g_malloc0(vm->n_pages);
    vm->dirty = g_new0(uint64_t, vm->n_pages / 64 + 1);
    vm->seed = seed;
    return vm;
}

static void vm_free(Vm *vm)
{
    g_free(vm->generation);
    g_free(vm->dirty);
    g_free(vm);
}

/* Half of the memory, every second chunk zeros. */
static void vm_fill(Vm *vm, unsigned generation)
{
    for (uint64_t page = 0; page < vm->n_pages * 3 / 4; page++) {
        vm_write(vm, page, page / 512 % 4 == 3 ? 0 : generation);
    }
}

static void all_dirty(Vm *vm)
{
    for (uint64_t page = 0; page < vm->n_pages; page++) {
        mark_dirty(vm, page);
    }
}

static void taken(void *opaque, uint64_t offset, uint64_t bytes)
{
    Move *m = opaque;

    for (uint64_t page = offset / PAGE_BYTES;
         page < (offset + bytes) / PAGE_BYTES; page++) {
        take_dirty(m->vm, page);
    }
}

static void *map(uint64_t bytes)
{
    void *base = mmap(NULL, bytes, PROT_READ | PROT_WRITE,
                      MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);

    g_assert_true(base != MAP_FAILED);
    madvise(base, bytes, MADV_NOHUGEPAGE);
    return base;
}

static MemxArrival *arrival_new(Move *m)
{
    g_autoptr(GError) error = NULL;
    MemxOptions o = MEMX_OPTIONS_INIT;
    MemxArrival *arrival;

    m->base = map(m->vm->n_pages * PAGE_BYTES);
    o.base = m->base;
    o.size_bytes = m->vm->n_pages * PAGE_BYTES;
    o.local_bytes = m->local_bytes ?: m->main_bytes;
    o.region_name = "arrived";
    arrival = memx_arrival_new(&o, &error);
    g_assert_no_error(error);
    return arrival;
}

static bool try_begin(Move *m, GError **error)
{
    MemxSplitOptions o = { .main_bytes = m->main_bytes, .taken = taken,
                           .opaque = m, .sparse = m->sparse };

    for (unsigned i = 0; i < MEMX_SESSION_BYTES; i++) {
        o.session[i] = g_random_int_range(1, 256);
    }
    all_dirty(m->vm);
    m->streamed = 0;
    return memx_split_begin(m->source, &o, error);
}

static void begin(Move *m)
{
    g_autoptr(GError) error = NULL;

    m->arrival = arrival_new(m);
    g_assert_true(try_begin(m, &error));
    g_assert_no_error(error);
}

static void records(Move *m, bool last)
{
    g_autofree uint8_t *buf = g_malloc(MEMX_SPLIT_RECORD_MAX);
    g_autoptr(GError) error = NULL;
    size_t bytes;

    while ((bytes = memx_split_record(m->source, last, buf))) {
        g_assert_cmpuint(bytes, <=, MEMX_SPLIT_RECORD_MAX);
        memx_arrival_record(m->arrival, buf, bytes, &error);
        g_assert_no_error(error);
        if (!last) {
            break;
        }
    }
}

/* Once through the memory, as QEMU does. */
static void pass(Move *m)
{
    for (uint64_t page = 0; page < m->vm->n_pages; page++) {
        if (take_dirty(m->vm, page) &&
            !memx_split_page(m->source, page * PAGE_BYTES)) {
            memcpy(m->base + page * PAGE_BYTES,
                   m->vm->base + page * PAGE_BYTES, PAGE_BYTES);
            m->streamed++;
        }
        if (page % 256 == 0) {
            records(m, false);
        }
    }
}

static void drain(Move *m)
{
    g_autoptr(GError) error = NULL;

    pass(m);
    g_assert_cmpint(memx_split_drain(m->source, WAIT_MS, &error), ==, 1);
    g_assert_no_error(error);
}

static void offer(Move *m)
{
    g_autoptr(GError) error = NULL;

    g_assert_cmpint(memx_split_offer(m->source, WAIT_MS, &error), ==, 1);
    g_assert_no_error(error);
    records(m, true);
}

static MemxRegion *finish(Move *m)
{
    g_autoptr(GError) error = NULL;
    MemxRegion *region = memx_arrival_finish(g_steal_pointer(&m->arrival),
                                             &error);

    g_assert_no_error(error);
    g_assert_nonnull(region);
    return region;
}

static void commit(MemxRegion *region)
{
    g_autoptr(GError) error = NULL;

    g_assert_cmpint(memx_region_commit(region, true, WAIT_MS, &error), ==,
                    MEMX_VERDICT_MINE);
    g_assert_no_error(error);
}

/* The VM goes on with the destination's memory. */
static void moved(Move *m, MemxRegion *region)
{
    MemxStats stats;
    MemxSplitStats split;

    memx_split_stats(m->source, &split);
    g_test_message("%" G_GUINT64_FORMAT " pages by the stream, %"
                   G_GUINT64_FORMAT " to servers, %" G_GUINT64_FORMAT
                   " were there, %" G_GUINT64_FORMAT " zero, %"
                   G_GUINT64_FORMAT " spilled; hot %u, cold %u chunks",
                   m->streamed, split.sent_pages, split.left_pages,
                   split.zero_pages, split.spilled_pages, split.hot_chunks,
                   split.cold_chunks);
    g_assert_cmpuint(split.main_pages, <=, split.main_pages_max);
    m->vm->base = m->base;
    vm_check(m->vm);
    vm_start(m->vm);
    g_usleep(200000);
    vm_stop(m->vm);
    vm_check(m->vm);
    memx_region_stats(region, &stats);
    g_assert_cmpuint(stats.local_bytes, <=,
                     stats.local_limit_bytes + 2 * MIB);
}

static void transfer(Move *m)
{
    begin(m);
    for (unsigned i = 0; i < ROUNDS; i++) {
        pass(m);
        memx_split_wait(m->source, 10);
    }
}

#define SIZE (96 * MIB)

static MemxRegion *paged(ServerProcess **servers, Vm **vm)
{
    MemxRegion *region = region_fixture_new(&(RegionFixture) {
        .size = SIZE, .local = 40 * MIB, .chunk = MIB / 2,
        .servers = servers, .n_servers = 2,
    });

    *vm = vm_new(memx_region_base(region), SIZE, g_random_int());
    vm_fill(*vm, 1);
    return region;
}

static MemxRegion *passive(ServerProcess **servers, uint64_t main_bytes,
                           Vm **vm)
{
    g_autoptr(GError) error = NULL;
    MemxOptions o = MEMX_OPTIONS_INIT;
    const char *address[] = { server_process_address(servers[0]),
                              server_process_address(servers[1]), NULL };
    g_autofree uint64_t *touched = NULL;
    MemxRegion *region;

    o.size_bytes = SIZE;
    o.local_bytes = main_bytes;
    o.chunk_bytes = MIB / 2;
    o.base = map(SIZE);
    o.passive = true;
    o.servers = address;
    region = memx_region_new(&o, &error);
    g_assert_no_error(error);
    *vm = vm_new(o.base, SIZE, g_random_int());
    vm_fill(*vm, 1);
    touched = g_new0(uint64_t, SIZE / o.chunk_bytes / 64 + 1);
    touched[0] = 0xffff;
    memx_region_touched(region, touched);
    return region;
}

/* Used memory fits the main host, though the VM doesn't: all of it goes
 * there. */
static void test_sparse(void)
{
    ServerProcess *servers[2];
    MemxRegion *region;
    MemxSplitStats split;
    Move m = { .main_bytes = 64 * MIB, .sparse = true };

    servers[0] = server_process_new("160M");
    servers[1] = server_process_new("160M");
    m.source = passive(servers, m.main_bytes, &m.vm);
    for (uint64_t page = 0; page < m.vm->n_pages; page++) {
        if (page % 256 >= 128) { /* every second chunk was never used */
            madvise(m.vm->base + page * PAGE_BYTES, PAGE_BYTES,
                    MADV_DONTNEED);
            m.vm->generation[page] = 0;
        }
    }
    transfer(&m);
    vm_start(m.vm);
    pass(&m);
    vm_stop(m.vm);
    drain(&m);
    memx_split_stats(m.source, &split);
    g_assert_cmpuint(split.cold_chunks, ==, 0);
    g_assert_cmpuint(split.sent_pages, ==, 0);
    offer(&m);
    region = finish(&m);
    commit(region);
    moved(&m, region);
    memx_split_leave(m.source);
    memx_region_free(m.source);
    memx_region_free(region);
    vm_free(m.vm);
    server_process_free(servers[0]);
    server_process_free(servers[1]);
}

static void servers_new(ServerProcess **servers, const char *capacity)
{
    servers[0] = server_process_new(capacity);
    servers[1] = server_process_new(capacity);
}

static void servers_free(ServerProcess **servers)
{
    server_process_free(servers[0]);
    server_process_free(servers[1]);
}

static MemxRegion *source_new(ServerProcess **servers, bool is_passive,
                              Move *m)
{
    m->main_bytes = 32 * MIB;
    m->source = is_passive ? passive(servers, m->main_bytes, &m->vm)
                           : paged(servers, &m->vm);
    return m->source;
}

static void test_moves(const void *is_passive)
{
    ServerProcess *servers[2];
    MemxRegion *source, *region;
    g_autoptr(GError) error = NULL;
    Move m = { 0 };
    MemxStats stats;

    servers_new(servers, "160M");
    source = source_new(servers, !!is_passive, &m);
    m.sparse = is_passive;
    vm_start(m.vm);
    transfer(&m);
    vm_stop(m.vm);
    drain(&m);
    offer(&m);
    region = finish(&m);
    memx_region_stats(region, &stats);
    g_assert_cmpuint(stats.faults, ==, 0);
    commit(region);
    commit(region); /* again: the same */
    moved(&m, region);
    g_assert_cmpint(memx_split_reclaim(source, true, WAIT_MS, &error), ==,
                    MEMX_VERDICT_THEIRS);
    g_assert_error(error, MEMX_ERROR, MEMX_ERROR_CONNECT);
    g_test_message("%s", error->message);
    memx_split_leave(source);
    memx_region_free(source);
    vm_check(m.vm);
    memx_region_free(region);
    vm_free(m.vm);
    servers_free(servers);
}

/* ... and again, from there to a third one. */
static void test_moves_again(void)
{
    ServerProcess *servers[2];
    MemxRegion *source, *region;
    Move m = { 0 };

    servers_new(servers, "160M");
    source = source_new(servers, false, &m);
    for (unsigned i = 0; i < 3; i++) {
        vm_start(m.vm);
        transfer(&m);
        vm_stop(m.vm);
        drain(&m);
        offer(&m);
        region = finish(&m);
        commit(region);
        moved(&m, region);
        memx_split_leave(source);
        memx_region_free(source);
        m.source = source = region;
        m.main_bytes = (48 - 8 * i) * MIB;
    }
    vm_check(m.vm);
    memx_region_free(source);
    vm_free(m.vm);
    servers_free(servers);
}

static void test_cancelled(const void *is_passive)
{
    ServerProcess *servers[2];
    MemxRegion *source, *region;
    g_autoptr(GError) error = NULL;
    Move m = { 0 };

    servers_new(servers, "160M");
    source = source_new(servers, !!is_passive, &m);
    vm_start(m.vm);
    transfer(&m);
    memx_split_cancel(source);
    g_clear_pointer(&m.arrival, memx_arrival_free);
    vm_stop(m.vm);
    vm_check(m.vm);
    /* With the VM stopped, and offered. */
    vm_start(m.vm);
    transfer(&m);
    vm_stop(m.vm);
    drain(&m);
    offer(&m);
    region = finish(&m);
    g_assert_cmpint(memx_split_reclaim(source, true, WAIT_MS, &error), ==,
                    MEMX_VERDICT_MINE);
    g_assert_cmpint(memx_region_commit(region, true, WAIT_MS, &error), ==,
                    MEMX_VERDICT_THEIRS);
    g_test_message("%s", error->message);
    g_clear_error(&error);
    memx_region_free(region);
    vm_check(m.vm);
    /* Not asked: the last byte was never sent. */
    vm_start(m.vm);
    transfer(&m);
    vm_stop(m.vm);
    drain(&m);
    offer(&m);
    g_clear_pointer(&m.arrival, memx_arrival_free);
    g_assert_cmpint(memx_split_reclaim(source, false, WAIT_MS, &error), ==,
                    MEMX_VERDICT_MINE);
    vm_start(m.vm);
    g_usleep(300000);
    /* And now it goes. */
    transfer(&m);
    vm_stop(m.vm);
    vm_check(m.vm);
    drain(&m);
    offer(&m);
    region = finish(&m);
    commit(region);
    moved(&m, region);
    memx_split_leave(source);
    memx_region_free(source);
    memx_region_free(region);
    vm_free(m.vm);
    servers_free(servers);
}

/* A server is killed in every phase, and comes back with its pages. */
static void test_server_restarted(const void *is_passive)
{
    ServerProcess *servers[2];
    MemxRegion *source, *region;
    Move m = { 0 };

    servers_new(servers, "160M");
    source = source_new(servers, !!is_passive, &m);
    vm_start(m.vm);
    begin(&m);
    for (unsigned i = 0; i < ROUNDS; i++) {
        server_process_kill(servers[i % 2]);
        pass(&m);
        server_process_restart(servers[i % 2], true);
        pass(&m);
    }
    vm_stop(m.vm);
    server_process_kill(servers[1]);
    server_process_restart(servers[1], true);
    drain(&m);
    server_process_kill(servers[0]);
    server_process_restart(servers[0], true);
    offer(&m);
    region = finish(&m);
    server_process_kill(servers[1]);
    server_process_restart(servers[1], true);
    commit(region);
    server_process_kill(servers[0]);
    server_process_restart(servers[0], true);
    moved(&m, region);
    memx_split_leave(source);
    memx_region_free(source);
    memx_region_free(region);
    vm_free(m.vm);
    servers_free(servers);
}

/* The arbiter is away when it is asked: nobody has it, until it is back. */
static void test_arbiter_away(void)
{
    ServerProcess *servers[2];
    MemxRegion *source, *region;
    g_autoptr(GError) error = NULL;
    Move m = { 0 };

    servers_new(servers, "160M");
    source = source_new(servers, false, &m);
    transfer(&m);
    drain(&m);
    offer(&m);
    region = finish(&m);
    server_process_kill(servers[0]);
    g_assert_cmpint(memx_region_commit(region, true, 300, &error), ==,
                    MEMX_VERDICT_UNKNOWN);
    g_test_message("%s", error->message);
    g_clear_error(&error);
    g_assert_cmpint(memx_split_reclaim(source, true, 300, &error), ==,
                    MEMX_VERDICT_UNKNOWN);
    g_clear_error(&error);
    server_process_restart(servers[0], true);
    commit(region);
    g_assert_cmpint(memx_split_reclaim(source, true, WAIT_MS, &error), ==,
                    MEMX_VERDICT_THEIRS);
    moved(&m, region);
    memx_split_leave(source);
    memx_region_free(source);
    memx_region_free(region);
    vm_free(m.vm);
    servers_free(servers);
}

/* The other server hears of it when it is back, before it gets a page. */
static void test_second_server_away(void)
{
    ServerProcess *servers[2];
    MemxRegion *source, *region;
    Move m = { 0 };

    servers_new(servers, "160M");
    source = source_new(servers, false, &m);
    transfer(&m);
    drain(&m);
    offer(&m);
    region = finish(&m);
    server_process_kill(servers[1]);
    commit(region);
    memx_split_leave(source);
    server_process_restart(servers[1], true);
    moved(&m, region);
    memx_region_free(source);
    memx_region_free(region);
    vm_free(m.vm);
    servers_free(servers);
}

static void test_server_comes_back_empty(const void *is_passive)
{
    ServerProcess *servers[2];
    MemxRegion *source;
    g_autoptr(GError) error = NULL;
    Move m = { 0 };

    servers_new(servers, "160M");
    source = source_new(servers, true, &m);
    transfer(&m);
    while (memx_split_check(source, NULL)) {
        server_process_kill(servers[0]);
        server_process_restart(servers[0], false);
        memx_split_wait(source, 100);
        g_usleep(100000);
    }
    g_assert_cmpint(memx_split_drain(source, WAIT_MS, &error), ==, -1);
    g_test_message("%s", error->message);
    memx_split_cancel(source);
    g_clear_pointer(&m.arrival, memx_arrival_free);
    vm_check(m.vm);
    memx_region_free(source);
    vm_free(m.vm);
    servers_free(servers);
}

static void test_too_small(void)
{
    ServerProcess *servers[2];
    g_autoptr(GError) error = NULL;
    Move m = { 0 };
    MemxRegion *source;
    uint8_t buf[MEMX_SPLIT_RECORD_MAX];
    size_t bytes;

    servers_new(servers, "44M");
    source = source_new(servers, false, &m);
    m.main_bytes = 8 * MIB; /* 88 MiB and staging don't fit */
    g_assert_false(try_begin(&m, &error));
    g_assert_error(error, MEMX_ERROR, MEMX_ERROR_FULL);
    g_test_message("%s", error->message);
    g_clear_error(&error);
    m.main_bytes = MIB;
    g_assert_false(try_begin(&m, &error));
    g_assert_error(error, MEMX_ERROR, MEMX_ERROR_INVALID);
    g_clear_error(&error);
    m.main_bytes = 36 * MIB;
    m.local_bytes = 32 * MIB; /* the destination has less than that */
    m.arrival = arrival_new(&m);
    g_assert_true(try_begin(&m, &error));
    bytes = memx_split_record(source, false, buf);
    g_assert_false(memx_arrival_record(m.arrival, buf, bytes, &error));
    g_assert_error(error, MEMX_ERROR, MEMX_ERROR_INVALID);
    g_test_message("%s", error->message);
    memx_arrival_free(m.arrival);
    memx_split_cancel(source);
    vm_check(m.vm);
    memx_region_free(source);
    vm_free(m.vm);
    servers_free(servers);
}

int main(int argc, char **argv)
{
    static const char yes[] = "yes";

    g_test_init(&argc, &argv, NULL);
    g_test_add_data_func("/split/moves/memx", NULL, test_moves);
    g_test_add_data_func("/split/moves/ordinary", yes, test_moves);
    g_test_add_func("/split/moves-again", test_moves_again);
    g_test_add_data_func("/split/cancelled/memx", NULL, test_cancelled);
    g_test_add_data_func("/split/cancelled/ordinary", yes, test_cancelled);
    g_test_add_data_func("/split/server-restarted/memx", NULL,
                         test_server_restarted);
    g_test_add_data_func("/split/server-restarted/ordinary", yes,
                         test_server_restarted);
    g_test_add_func("/split/arbiter-away", test_arbiter_away);
    g_test_add_func("/split/second-server-away", test_second_server_away);
    g_test_add_data_func("/split/server-comes-back-empty", NULL,
                         test_server_comes_back_empty);
    g_test_add_func("/split/too-small", test_too_small);
    g_test_add_func("/split/sparse", test_sparse);
    return g_test_run();
}
