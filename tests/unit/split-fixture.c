/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * A split migration as a program drives it; see the header.
 */
#include <string.h>
#include <sys/mman.h>
#include "split-fixture.h"

#define ROUNDS 4

#ifdef __SANITIZE_THREAD__
/* A guest writes to its memory while that is read: so it comes again. */
const char *__tsan_default_suppressions(void);
const char *__tsan_default_suppressions(void)
{
    return "race:memx_page_is_zero\nrace:read_pages\n";
}
#endif

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

void vm_write(Vm *vm, uint64_t page, unsigned generation)
{
    pattern_write(vm->base, page, generation);
    vm->generation[page] = generation;
    mark_dirty(vm, page);
}

void vm_check(const Vm *vm)
{
    for (uint64_t page = 0; page < vm->n_pages; page++) {
        pattern_check(vm->base, page, vm->generation[page]);
    }
}

static void read_or_discard(Vm *vm, GRand *rand, uint64_t page)
{
    uint64_t n = g_rand_int_range(rand, 1, 300);

    n = MIN(n, vm->n_pages - page);
    if (g_rand_int_range(rand, 0, 8)) {
        for (uint64_t i = 0; i < n && !g_atomic_int_get(&vm->stop); i++) {
            pattern_check(vm->base, page + i, vm->generation[page + i]);
        }
    } else { /* QEMU does not mark what a balloon takes */
        memx_region_discard(vm->region, page * PAGE_BYTES, n * PAGE_BYTES);
        memset(vm->generation + page, 0, n);
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

        if (!vm->region || g_rand_int_range(rand, 0, 4)) {
            vm_write(vm, page, g_rand_int_range(rand, 0, 4) ?
                     1 + g_rand_int_range(rand, 0, 200) : 0);
        } else {
            read_or_discard(vm, rand, page);
        }
        __atomic_fetch_add(&vm->writes, 1, __ATOMIC_RELAXED);
    }
    return NULL;
}

void vm_start(Vm *vm)
{
    vm->stop = 0;
    vm->writer = g_thread_new("writer", write_on, vm);
}

void vm_stop(Vm *vm)
{
    g_atomic_int_set(&vm->stop, 1);
    g_clear_pointer(&vm->writer, g_thread_join);
}

Vm *vm_new(uint8_t *base, uint64_t bytes, unsigned seed)
{
    Vm *vm = g_new0(Vm, 1);

    vm->base = base;
    vm->n_pages = bytes / PAGE_BYTES;
    vm->generation = g_malloc0(vm->n_pages);
    vm->dirty = g_new0(uint64_t, vm->n_pages / 64 + 1);
    vm->seed = seed;
    return vm;
}

void vm_free(Vm *vm)
{
    g_free(vm->generation);
    g_free(vm->dirty);
    g_free(vm);
}

/* Half of the memory, every second chunk zeros. */
void vm_fill(Vm *vm, unsigned generation)
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

void *move_map(uint64_t bytes)
{
    void *base = mmap(NULL, bytes, PROT_READ | PROT_WRITE,
                      MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);

    g_assert_true(base != MAP_FAILED);
    madvise(base, bytes, MADV_NOHUGEPAGE);
    return base;
}

MemxArrival *move_arrival(Move *m)
{
    g_autoptr(GError) error = NULL;
    MemxOptions o = MEMX_OPTIONS_INIT;
    MemxArrival *arrival;

    m->base = move_map(m->vm->n_pages * PAGE_BYTES);
    o.base = m->base;
    o.size_bytes = m->vm->n_pages * PAGE_BYTES;
    o.local_bytes = m->local_bytes ?: m->main_bytes;
    o.connect_timeout_ms = m->connect_timeout_ms ?: o.connect_timeout_ms;
    o.region_name = "arrived";
    arrival = memx_arrival_new(&o, &error);
    g_assert_no_error(error);
    return arrival;
}

bool move_try(Move *m, GError **error)
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

void move_begin(Move *m)
{
    g_autoptr(GError) error = NULL;
    bool begun;

    m->arrival = move_arrival(m);
    begun = move_try(m, &error);
    g_assert_no_error(error); /* says what it was */
    g_assert_true(begun);
}

void move_records(Move *m, bool last)
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
void move_pass(Move *m)
{
    for (uint64_t page = 0; page < m->vm->n_pages; page++) {
        if (take_dirty(m->vm, page) &&
            !memx_split_page(m->source, page * PAGE_BYTES)) {
            memcpy(m->base + page * PAGE_BYTES,
                   m->vm->base + page * PAGE_BYTES, PAGE_BYTES);
            m->streamed++;
        }
        if (page % 256 == 0) {
            move_records(m, false);
        }
    }
}

void move_drain(Move *m)
{
    g_autoptr(GError) error = NULL;

    move_pass(m);
    g_assert_cmpint(memx_split_drain(m->source, WAIT_MS, &error), ==, 1);
    g_assert_no_error(error);
}

void move_offer(Move *m)
{
    g_autoptr(GError) error = NULL;

    g_assert_cmpint(memx_split_offer(m->source, WAIT_MS, &error), ==, 1);
    g_assert_no_error(error);
    move_records(m, true);
}

MemxRegion *move_finish(Move *m)
{
    g_autoptr(GError) error = NULL;
    MemxRegion *region = memx_arrival_finish(g_steal_pointer(&m->arrival),
                                             &error);

    g_assert_no_error(error);
    g_assert_nonnull(region);
    return region;
}

void move_commit(MemxRegion *region)
{
    g_autoptr(GError) error = NULL;

    g_assert_cmpint(memx_region_commit(region, true, WAIT_MS, &error), ==,
                    MEMX_VERDICT_MINE);
    g_assert_no_error(error);
}

void move_transfer(Move *m)
{
    move_begin(m);
    for (unsigned i = 0; i < ROUNDS; i++) {
        move_pass(m);
        memx_split_wait(m->source, 10);
    }
}
