/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Spaces and their store, without a network: what is stored is what is found,
 * reservations hold, and memory follows.
 */
#include <errno.h>
#include <glib.h>
#include <string.h>
#include <sys/stat.h>
#include "store.h"

#define ALL UINT64_MAX
#define CAPACITY 4096u

/* ThreadSanitizer leaves no room for a table of 4 TiB. */
#ifdef __SANITIZE_THREAD__
#define HUGE_PAGES (1ull << 36)
#else
#define HUGE_PAGES (1ull << 40)
#endif

typedef struct Fixture {
    MsStore *store;
    MsSpace *space;     /* of CAPACITY pages, nothing reserved */
} Fixture;

static MsSpace *create(MsStore *store, uint8_t id, uint64_t size_pages,
                       uint64_t reserve_pages, int expected)
{
    MemxOpen open = {
        .space = { id }, .client = { 1 }, .epoch = 1,
        .size_pages = size_pages, .reserve_pages = reserve_pages,
        .vm_name = "vm", .region_name = "ram",
    };
    uint8_t secret[MEMX_ID_BYTES] = { 42, id };
    MsSpace *space = NULL;

    g_assert_cmpint(ms_store_create(store, &open, secret, &space), ==,
                    expected);
    return space;
}

static void set_up(Fixture *f, gconstpointer data)
{
    g_autoptr(GError) error = NULL;
    MsBacking backing;

    ms_backing_create(&backing, &error);
    g_assert_no_error(error);
    f->store = ms_store_new(&backing, CAPACITY, &error);
    g_assert_no_error(error);
    f->space = create(f->store, 1, CAPACITY, 0, 0);
}

static void tear_down(Fixture *f, gconstpointer data)
{
    ms_store_free(f->store, NULL);
}

/* As a successor process would. */
static void take_over(Fixture *f)
{
    g_autoptr(GError) error = NULL;
    uint8_t id[MEMX_ID_BYTES] = { 1 };
    int fds[MS_N_FILES];
    MsBacking backing;

    ms_store_free(f->store, fds);
    ms_backing_adopt(&backing, fds, &error);
    g_assert_no_error(error);
    f->store = ms_store_new(&backing, CAPACITY, &error);
    g_assert_no_error(error);
    f->space = ms_store_find(f->store, id);
}

static uint64_t file_bytes(Fixture *f, MsBackingFile file)
{
    struct stat st;

    g_assert_no_errno(fstat(f->store->backing.fds[file], &st));
    return st.st_blocks * 512ull;
}

static int store(MsSpace *space, uint64_t group, uint64_t mask, uint8_t value)
{
    uint8_t hashes[MEMX_BODY_MAX];
    MsFrame frames[MEMX_GROUP_PAGES];
    int ret = ms_space_store_begin(space, group, mask, frames);

    if (ret < 0) {
        return ret;
    }
    memset(hashes, value, sizeof(hashes));
    for (unsigned i = 0; i < memx_mask_pages(mask); i++) {
        memset(ms_frames_page(space->store->frames, frames[i]), value,
               MEMX_PAGE_BYTES);
    }
    ms_space_store_commit(space, group, mask, frames, hashes);
    return 0;
}

static int pin(MsSpace *space, unsigned side, MemxLane lane, uint64_t group,
               uint64_t mask, MsFrame *frames)
{
    return ms_space_pin(space, ms_space_pins(space, side, lane), group, mask,
                        frames);
}

static void unpin(MsSpace *space, unsigned side, MemxLane lane)
{
    ms_space_unpin(ms_space_pins(space, side, lane));
}

static void check(MsSpace *space, uint64_t group, uint64_t mask,
                  uint8_t value)
{
    MsFrame frames[MEMX_GROUP_PAGES];

    g_assert_cmpint(pin(space, 0, MEMX_LANE_FAULT, group, mask, frames),
                    ==, 0);
    for (unsigned i = 0; i < memx_mask_pages(mask); i++) {
        uint8_t *page = ms_frames_page(space->store->frames, frames[i]);

        g_assert_cmpuint(page[0], ==, value);
        g_assert_cmpint(memcmp(page, page + 1, MEMX_PAGE_BYTES - 1), ==, 0);
    }
    unpin(space, 0, MEMX_LANE_FAULT);
}

static void test_store_and_fetch(Fixture *f, gconstpointer data)
{
    MsFrame frames[MEMX_GROUP_PAGES];

    g_assert_cmpint(store(f->space, 3, 0xff, 7), ==, 0);
    g_assert_cmpint(store(f->space, 3, 0x0f, 8), ==, 0);
    check(f->space, 3, 0x0f, 8);
    check(f->space, 3, 0xf0, 7);
    g_assert_cmpuint(f->space->held_pages, ==, 8);
    g_assert_cmpuint(ms_frames_used(f->store->frames), ==, 8);
    g_assert_cmpint(pin(f->space, 0, MEMX_LANE_FAULT, 3, 0x1ff, frames),
                    ==, -ENOENT);
    g_assert_cmpint(pin(f->space, 0, MEMX_LANE_FAULT, 9, 1, frames), ==,
                    -ENOENT);
}

static void test_compare(Fixture *f, gconstpointer data)
{
    uint8_t hashes[MEMX_BODY_MAX];
    uint64_t differ;

    memset(hashes, 7, sizeof(hashes));
    g_assert_cmpint(ms_space_compare(f->space, 3, 0xff, hashes, &differ), ==,
                    0);
    g_assert_cmphex(differ, ==, 0xff);
    store(f->space, 3, 0x0f, 7);
    store(f->space, 3, 0x30, 8);
    g_assert_cmpint(ms_space_compare(f->space, 3, 0xfe, hashes, &differ), ==,
                    0);
    g_assert_cmphex(differ, ==, 0xf0);
    hashes[2 * MEMX_HASH_BYTES + 15] = 0;
    g_assert_cmpint(ms_space_compare(f->space, 3, 0x0f, hashes, &differ), ==,
                    0);
    g_assert_cmphex(differ, ==, 0x04);
}

static void test_drop_is_idempotent(Fixture *f, gconstpointer data)
{
    MsFrame frames[MEMX_GROUP_PAGES];

    store(f->space, 3, 0xff, 7);
    for (int i = 0; i < 2; i++) {
        g_assert_cmpint(ms_space_drop(f->space, 3, 0xf00f), ==, 0);
        g_assert_cmpuint(f->space->held_pages, ==, 4);
    }
    check(f->space, 3, 0xf0, 7);
    g_assert_cmpint(pin(f->space, 0, MEMX_LANE_FAULT, 3, 1, frames), ==,
                    -ENOENT);
    g_assert_cmpint(ms_space_drop(f->space, 60, ALL), ==, 0);
    g_assert_cmpuint(ms_store_free_pages(f->store), ==, CAPACITY - 4);
}

static void test_range(Fixture *f, gconstpointer data)
{
    MsSpace *small = create(f->store, 2, 70, 0, 0);
    uint8_t hashes[MEMX_BODY_MAX] = { 0 };
    MsFrame frames[MEMX_GROUP_PAGES];
    static const struct {
        uint64_t group, mask;
    } beyond[] = {
        { 1, 1 << 6 }, { 1, ALL }, { 2, 1 }, { 1ull << 34, 1 },
        { 1ull << 58, 1 }, { UINT64_MAX, 1 }, { UINT64_MAX, ALL },
    };

    g_assert_cmpint(store(small, 1, 0x3f, 1), ==, 0);
    for (unsigned i = 0; i < G_N_ELEMENTS(beyond); i++) {
        uint64_t group = beyond[i].group, mask = beyond[i].mask, differ;

        g_assert_cmpint(store(small, group, mask, 1), ==, -ERANGE);
        g_assert_cmpint(ms_space_drop(small, group, mask), ==, -ERANGE);
        g_assert_cmpint(ms_space_compare(small, group, mask, hashes, &differ),
                        ==, -ERANGE);
        g_assert_cmpint(pin(small, 0, MEMX_LANE_FETCH, group, mask,
                                     frames), ==, -ERANGE);
    }
    g_assert_cmpint(ms_space_reserve(small, 71), ==, -ERANGE);
    create(f->store, 3, (1ull << 40) + 1, 0, -ERANGE);
    create(f->store, 3, 64, 65, -ERANGE);
    create(f->store, 2, 64, 0, -EEXIST);
    g_assert_cmpuint(small->held_pages, ==, 6);
}

/* What is reserved can be stored, whatever others do; no more is lent than
 * there is. */
static void test_reservations(Fixture *f, gconstpointer data)
{
    MsSpace *reserved = create(f->store, 2, CAPACITY, CAPACITY / 2, 0);
    uint64_t group = 0;

    create(f->store, 3, CAPACITY, CAPACITY / 2 + 1, -ENOSPC);
    g_assert_cmpint(ms_space_reserve(reserved, CAPACITY + 0), ==, 0);
    g_assert_cmpint(store(f->space, 0, 1, 1), ==, -ENOSPC);
    g_assert_cmpint(ms_space_reserve(reserved, CAPACITY / 2), ==, 0);
    while (store(f->space, group, ALL, 1) == 0) {
        group++;
    }
    g_assert_cmpuint(group, ==, CAPACITY / 2 / 64);
    g_assert_cmpuint(ms_store_free_pages(f->store), ==, 0);
    g_assert_cmpint(ms_space_reserve(reserved, CAPACITY / 2 + 1), ==,
                    -ENOSPC);
    for (group = 0; group < CAPACITY / 2 / 64; group++) {
        g_assert_cmpint(store(reserved, group, ALL, 2), ==, 0);
    }
    g_assert_cmpint(store(reserved, group, 1, 2), ==, -ENOSPC);
    /* Full, yet all of it can be overwritten. */
    for (group = 0; group < CAPACITY / 2 / 64; group++) {
        g_assert_cmpint(store(reserved, group, ALL, 3), ==, 0);
        check(reserved, group, ALL, 3);
        check(f->space, group, ALL, 1);
    }
    /* Beyond its reservation, from unreserved room. */
    g_assert_cmpint(ms_space_drop(f->space, 5, 0xff), ==, 0);
    g_assert_cmpint(store(reserved, group, 0xff, 2), ==, 0);
    g_assert_cmpint(store(f->space, 5, 1, 2), ==, -ENOSPC);
    g_assert_cmpint(ms_space_reserve(reserved, 0), ==, 0);
    g_assert_cmpuint(ms_store_free_pages(f->store), ==, 0);
}

static void test_refused_changes_nothing(Fixture *f, gconstpointer data)
{
    MsSpace *other;

    store(f->space, 1, 0xff, 5);
    other = create(f->store, 2, CAPACITY, CAPACITY - 8, 0);
    g_assert_cmpint(store(f->space, 1, 0x1ff, 6), ==, -ENOSPC);
    check(f->space, 1, 0xff, 5);
    g_assert_cmpuint(f->space->held_pages, ==, 8);
    g_assert_cmpuint(ms_frames_used(f->store->frames), ==, 8);
    g_assert_cmpint(store(f->space, 1, 0xff, 6), ==, 0);
    check(f->space, 1, 0xff, 6);
    g_assert_cmpuint(other->held_pages, ==, 0);
}

static void test_interrupted_changes_nothing(Fixture *f, gconstpointer data)
{
    MsFrame frames[MEMX_GROUP_PAGES];

    store(f->space, 1, 0xff, 5);
    g_assert_cmpint(ms_space_store_begin(f->space, 1, ALL, frames), ==, 0);
    g_assert_cmpuint(ms_store_free_pages(f->store), ==, CAPACITY - 64);
    memset(ms_frames_page(f->store->frames, frames[0]), 9, MEMX_PAGE_BYTES);
    ms_space_store_abort(f->space, frames, ALL);
    check(f->space, 1, 0xff, 5);
    g_assert_cmpuint(ms_store_free_pages(f->store), ==, CAPACITY - 8);
    g_assert_cmpuint(ms_frames_used(f->store->frames), ==, 8);
}

/* A frame that is being sent is not reused, whatever becomes of its page and
 * whichever side it is sent to. */
static void test_pinned_frames_wait(Fixture *f, gconstpointer data)
{
    static const MemxLane lanes[] = { MEMX_LANE_FAULT, MEMX_LANE_FETCH };
    MsFrame frames[4][MEMX_GROUP_PAGES];

    store(f->space, 1, ALL, 5);
    for (int i = 0; i < 4; i++) {
        g_assert_cmpint(pin(f->space, i / 2, lanes[i % 2], 1, ALL, frames[i]),
                        ==, 0);
        store(f->space, 1, ALL, 6 + i);
    }
    for (int round = 0; round < 100; round++) {
        store(f->space, 1, ALL, 10);
        store(f->space, 2, ALL, 10);
        ms_space_drop(f->space, 2, ALL);
    }
    for (int i = 0; i < 4 * 64; i++) {
        g_assert_cmpuint(*(uint8_t *)ms_frames_page(f->store->frames,
                                                    frames[i / 64][i % 64]),
                         ==, 5 + i / 64);
    }
    g_assert_cmpuint(ms_frames_used(f->store->frames), ==, 5 * 64);
    for (int i = 0; i < 4; i++) {
        unpin(f->space, i / 2, lanes[i % 2]);
    }
    store(f->space, 1, 1, 11);
    g_assert_cmpuint(ms_frames_used(f->store->frames), ==, 64);
    check(f->space, 1, ALL - 1, 10);
}

typedef struct Race {
    MsSpace *space;
    unsigned side;
    MemxLane lane;
    _Atomic bool stop;
    unsigned fetches;
} Race;

/* Whatever a reader pins holds one value all the time that it is pinned: a
 * reused frame would change it. */
static void *reader(void *opaque)
{
    Race *race = opaque;
    MsFrame frames[MEMX_GROUP_PAGES];

    while (!atomic_load(&race->stop) || race->fetches < 1000) {
        unsigned group = race->fetches++ % 4;

        if (pin(race->space, race->side, race->lane, group, 0xff,
                frames) < 0) {
            continue;
        }
        for (int pass = 0; pass < 2; pass++) {
            for (int i = 0; i < 8; i++) {
                uint8_t *page = ms_frames_page(race->space->store->frames,
                                               frames[i]);

                g_assert_cmpint(memcmp(page, page + 1, MEMX_PAGE_BYTES - 1),
                                ==, 0);
                g_assert_cmpuint(page[0] % 4, ==, group);
            }
        }
        unpin(race->space, race->side, race->lane);
    }
    return NULL;
}

static void test_readers_race_writer(Fixture *f, gconstpointer data)
{
    Race races[3] = {
        { .space = f->space, .lane = MEMX_LANE_FAULT },
        { .space = f->space, .lane = MEMX_LANE_FETCH },
        { .space = f->space, .side = 1, .lane = MEMX_LANE_FAULT },
    };
    GThread *threads[3];

    for (int i = 0; i < 3; i++) {
        threads[i] = g_thread_new("reader", reader, &races[i]);
    }
    for (unsigned round = 0; round < 40000; round++) {
        /* Any page of group g is filled with a value that is g modulo 4. */
        store(f->space, round % 4, 0xff, round % 4 + 4 * (round % 61));
        if (round % 7 == 0) {
            ms_space_drop(f->space, (round / 7) % 4, 0xff);
        }
    }
    for (int i = 0; i < 3; i++) {
        atomic_store(&races[i].stop, true);
        g_thread_join(threads[i]);
    }
    store(f->space, 5, 1, 1);
    g_assert_cmpuint(ms_frames_used(f->store->frames), ==,
                     f->space->held_pages);
}

/* The largest space takes nothing; asking for what it lacks takes nothing. */
static void test_huge_space(Fixture *f, gconstpointer data)
{
    MsSpace *huge = create(f->store, 2, HUGE_PAGES, 0, 0);
    uint8_t hashes[MEMX_BODY_MAX] = { 0 };
    uint64_t last = HUGE_PAGES / 64 - 1, differ;
    MsFrame frames[MEMX_GROUP_PAGES];

    g_assert_cmpuint(file_bytes(f, MS_FILE_TABLES), ==, 0);
    g_assert_cmpint(store(huge, last, 1ull << 63, 3), ==, 0);
    check(huge, last, 1ull << 63, 3);
    for (uint64_t group = 0; group < last; group += last / 5000) {
        g_assert_cmpint(pin(huge, 0, MEMX_LANE_FAULT, group, 1, frames),
                        ==, -ENOENT);
        g_assert_cmpint(ms_space_drop(huge, group, ALL), ==, 0);
        g_assert_cmpint(ms_space_compare(huge, group, 1, hashes, &differ), ==,
                        0);
    }
    g_assert_cmpuint(file_bytes(f, MS_FILE_TABLES), ==, MEMX_PAGE_BYTES);
    take_over(f);
    g_assert_cmpuint(file_bytes(f, MS_FILE_TABLES), ==, MEMX_PAGE_BYTES);
    huge = ms_store_find(f->store, (uint8_t[16]) { 2 });
    check(huge, last, 1ull << 63, 3);
    ms_store_unlink(f->store, huge);
    ms_store_destroy(f->store, huge);
    g_assert_cmpuint(file_bytes(f, MS_FILE_TABLES), ==, 0);
}

/* One page here and there makes tables grow; they are charged, so that they
 * can't take what the store does not have. */
static void test_sparse_tables_are_charged(Fixture *f, gconstpointer data)
{
    MsSpace *huge = create(f->store, 2, HUGE_PAGES, 0, 0);
    uint64_t group = 0;
    uint64_t memory;

    while (store(huge, group, 1, 3) == 0) {
        group += 16;
    }
    memory = file_bytes(f, MS_FILE_TABLES) + file_bytes(f, MS_FILE_FRAMES);
    g_assert_cmpuint(memory, <=,
                     (CAPACITY + 16 + 512 + 16) * MEMX_PAGE_BYTES);
    g_assert_cmpuint(huge->held_pages, >, CAPACITY / 2 - 1);
}

static void test_create_and_destroy(Fixture *f, gconstpointer data)
{
    for (int round = 0; round < 200; round++) {
        MsSpace *space = create(f->store, 2, CAPACITY, CAPACITY / 2, 0);

        for (unsigned group = 0; group < 20; group++) {
            g_assert_cmpint(store(space, group, ALL, round), ==, 0);
        }
        ms_store_unlink(f->store, space);
        g_assert_null(ms_store_find(f->store, (uint8_t[16]) { 2 }));
        ms_store_destroy(f->store, space);
        g_assert_cmpuint(ms_store_free_pages(f->store), ==, CAPACITY);
        g_assert_cmpuint(ms_frames_used(f->store->frames), ==, 0);
    }
    g_assert_cmpuint(file_bytes(f, MS_FILE_TABLES), ==, 0);
}

/* Frames, hashes and tables, but not what this process maps them with:
 * test-memserver-memory.c looks at all of it. */
static void test_memory_follows(Fixture *f, gconstpointer data)
{
    uint64_t stored = (uint64_t)CAPACITY * MEMX_PAGE_BYTES;

    for (unsigned group = 0; group < CAPACITY / 64; group++) {
        store(f->space, group, ALL, 1);
        store(f->space, group, ALL, 2);
    }
    g_assert_cmpuint(file_bytes(f, MS_FILE_FRAMES) +
                     file_bytes(f, MS_FILE_HASHES) +
                     file_bytes(f, MS_FILE_TABLES), <=,
                     stored + stored / 100 + (2u << 20));
}

int main(int argc, char **argv)
{
#define ADD(path, function) \
    g_test_add("/memserver/space/" path, Fixture, NULL, set_up, function, \
               tear_down)

    g_test_init(&argc, &argv, NULL);
    ADD("store-and-fetch", test_store_and_fetch);
    ADD("compare", test_compare);
    ADD("drop-is-idempotent", test_drop_is_idempotent);
    ADD("range", test_range);
    ADD("reservations", test_reservations);
    ADD("refused-changes-nothing", test_refused_changes_nothing);
    ADD("interrupted-changes-nothing", test_interrupted_changes_nothing);
    ADD("pinned-frames-wait", test_pinned_frames_wait);
    ADD("readers-race-writer", test_readers_race_writer);
    ADD("huge-space", test_huge_space);
    ADD("sparse-tables-are-charged", test_sparse_tables_are_charged);
    ADD("create-and-destroy", test_create_and_destroy);
    ADD("memory-follows", test_memory_follows);
    return g_test_run();
}
