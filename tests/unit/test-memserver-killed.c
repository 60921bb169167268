/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * A process that stores like mad is killed at whatever instruction it is at;
 * whoever takes the memory files over finds every STORE whole: what was
 * acknowledged is there, what was not is there completely or not at all.
 *
 * Many more moments are hit here than with a daemon behind a network, which
 * test-memserver-restart.c kills.
 */
#include <glib.h>
#include <signal.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>
#include "store.h"

#define ALL UINT64_MAX
#define CAPACITY 8192u
#define N_GROUPS 32u
#define N_SPACES 2u
#define ROUNDS 200

/* What the writer tells; survives it.  Generation 0: dropped. */
typedef struct Progress {
    _Atomic uint64_t begun[N_SPACES][N_GROUPS];
    _Atomic uint64_t acknowledged[N_SPACES][N_GROUPS];
    _Atomic uint64_t operations;
    _Atomic uint64_t creates;
} Progress;

typedef struct Fixture {
    int fds[MS_N_FILES];
    MsStore *store;
    Progress *progress;
    uint64_t generation;
} Fixture;

static MsSpace *create(MsStore *store, uint8_t id)
{
    MemxOpen open = {
        .space = { id }, .client = { 1 }, .epoch = 1,
        .size_pages = N_GROUPS * MEMX_GROUP_PAGES, .vm_name = "vm",
    };
    uint8_t secret[MEMX_ID_BYTES] = { id };
    MsSpace *space = NULL;

    g_assert_cmpint(ms_store_create(store, &open, secret, &space), ==, 0);
    return space;
}

static void adopt(Fixture *f)
{
    g_autoptr(GError) error = NULL;
    MsBacking backing;

    ms_backing_adopt(&backing, f->fds, &error);
    g_assert_no_error(error);
    f->store = ms_store_new(&backing, CAPACITY, &error);
    g_assert_no_error(error);
}

/* A page says here and there which generation, group and page it is; so does
 * its hash.  Filling all of it would leave little time for commits. */
#define PAGE_WORDS 512
#define FILL_STRIDE 73

static void fill(uint64_t *words, unsigned n, uint64_t generation,
                 uint64_t group, unsigned page)
{
    for (unsigned i = 0; i < n; i += n == PAGE_WORDS ? FILL_STRIDE : 1) {
        words[i] = generation << 32 | group << 16 | page << 8 | i % 251;
    }
}

static bool is_filled(const uint64_t *words, unsigned n, uint64_t generation,
                      uint64_t group, unsigned page)
{
    for (unsigned i = 0; i < n; i += FILL_STRIDE) {
        if (words[i] != (generation << 32 | group << 16 | page << 8 |
                         i % 251)) {
            return false;
        }
    }
    return true;
}

static void store_group(MsSpace *space, uint64_t group, uint64_t generation)
{
    uint64_t hashes[MEMX_GROUP_PAGES][2];
    MsFrame frames[MEMX_GROUP_PAGES];

    g_assert_cmpint(ms_space_store_begin(space, group, ALL, frames), ==, 0);
    for (unsigned i = 0; i < MEMX_GROUP_PAGES; i++) {
        fill(ms_frames_page(space->store->frames, frames[i]), PAGE_WORDS, generation,
             group, i);
        fill(hashes[i], 2, generation, group, i);
    }
    ms_space_store_commit(space, group, ALL, frames, (uint8_t *)hashes);
}

static void G_GNUC_NORETURN write_like_mad(Fixture *f)
{
    GRand *rand = g_rand_new();
    MsSpace *spaces[N_SPACES];
    uint64_t generation = f->generation;

    prctl(PR_SET_PDEATHSIG, SIGKILL);
    adopt(f);
    for (unsigned s = 0; s < N_SPACES; s++) {
        spaces[s] = ms_store_find(f->store, (uint8_t[16]) { s + 1 });
    }
    for (;;) {
        unsigned s = g_rand_int_range(rand, 0, N_SPACES);
        unsigned group = g_rand_int_range(rand, 0, N_GROUPS);
        uint64_t next = g_rand_int_range(rand, 0, 8) ? ++generation : 0;

        atomic_store(&f->progress->begun[s][group], next);
        if (next) {
            store_group(spaces[s], group, next);
        } else {
            ms_space_drop(spaces[s], group, ALL);
        }
        atomic_store(&f->progress->acknowledged[s][group], next);
        /* A space that comes and goes: recycles frames, dies half-way. */
        if (g_rand_int_range(rand, 0, 16) == 0) {
            MsSpace *third = create(f->store, 3);

            for (unsigned g = 0; g < 4; g++) {
                store_group(third, g, 1ull << 31);
            }
            ms_store_unlink(f->store, third);
            ms_store_destroy(f->store, third);
            atomic_fetch_add(&f->progress->creates, 1);
        }
        atomic_fetch_add(&f->progress->operations, 1);
    }
}

/* The generation that a group is of, whole; 0 if it is not held. */
static uint64_t check_group(MsSpace *space, uint64_t group)
{
    MsFrame frames[MEMX_GROUP_PAGES];
    uint64_t *page, generation, hash[2], differ;

    if (ms_space_pin(space, NULL, group, ALL, frames) < 0) {
        for (unsigned i = 0; i < MEMX_GROUP_PAGES; i++) {
            g_assert_cmpint(ms_space_pin(space, NULL, group,
                                         1ull << i, frames), <, 0);
        }
        return 0;
    }
    page = ms_frames_page(space->store->frames, frames[0]);
    generation = page[0] >> 32;
    for (unsigned i = 0; i < MEMX_GROUP_PAGES; i++) {
        fill(hash, 2, generation, group, i);
        page = ms_frames_page(space->store->frames, frames[i]);
        g_assert_true(is_filled(page, PAGE_WORDS, generation, group, i));
        ms_space_compare(space, group, 1ull << i, (uint8_t *)hash, &differ);
        g_assert_cmphex(differ, ==, 0);
    }
    return generation;
}

/* A DROP is not atomic over its group: complete the one that was cut short,
 * as a client does that got no answer. */
static void finish_drop(MsSpace *space, uint64_t group)
{
    g_assert_cmpint(ms_space_drop(space, group, ALL), ==, 0);
}

static void check_space(Fixture *f, unsigned s)
{
    MsSpace *space = ms_store_find(f->store, (uint8_t[16]) { s + 1 });
    uint64_t held = 0;

    g_assert_nonnull(space);
    for (unsigned group = 0; group < N_GROUPS; group++) {
        uint64_t begun = atomic_load(&f->progress->begun[s][group]);
        uint64_t done = atomic_load(&f->progress->acknowledged[s][group]);
        uint64_t found;

        if (begun != done && !begun) {
            finish_drop(space, group);
        }
        found = check_group(space, group);
        if (found != done) {
            g_assert_cmpuint(found, ==, begun);
        }
        atomic_store(&f->progress->begun[s][group], found);
        atomic_store(&f->progress->acknowledged[s][group], found);
        f->generation = MAX(f->generation, found);
        held += found ? MEMX_GROUP_PAGES : 0;
    }
    g_assert_cmpuint(space->held_pages, ==, held);
}

/* The third space is not there, or is with what it has. */
static void check_third(Fixture *f)
{
    MsSpace *space = ms_store_find(f->store, (uint8_t[16]) { 3 });

    if (space) {
        for (unsigned group = 0; group < N_GROUPS; group++) {
            uint64_t found = check_group(space, group);

            g_assert_true(found == 0 || found == 1ull << 31);
        }
        ms_store_unlink(f->store, space);
        ms_store_destroy(f->store, space);
    }
}

/* Nothing is left of tables but those of spaces: another space in the same
 * slot would find it. */
static void check_tables(Fixture *f)
{
    uint64_t pages = 0;
    GHashTableIter iter;
    gpointer space;
    struct stat st;

    g_hash_table_iter_init(&iter, f->store->spaces);
    while (g_hash_table_iter_next(&iter, NULL, &space)) {
        pages += ((MsSpace *)space)->table_pages;
    }
    g_assert_no_errno(fstat(f->store->backing.fds[MS_FILE_TABLES], &st));
    g_assert_cmpuint(st.st_blocks * 512ull, ==, pages * MEMX_PAGE_BYTES);
}

/* Has @work done by a process that is killed. */
static void kill_at_random(Fixture *f, GRand *rand, void (*work)(Fixture *f))
{
    uint64_t target = atomic_load(&f->progress->operations) +
                      g_rand_int_range(rand, 1, 40);
    int64_t deadline = g_get_monotonic_time() + 60 * G_USEC_PER_SEC;
    pid_t pid = fork();
    int status;

    if (pid == 0) {
        work(f);
    }
    g_assert_cmpint(pid, >, 0);
    while (atomic_load(&f->progress->operations) < target) {
        g_assert_cmpint(g_get_monotonic_time(), <, deadline);
        g_assert_cmpint(waitpid(pid, &status, WNOHANG), ==, 0);
    }
    /* Somewhere in the next operation. */
    for (int spin = g_rand_int_range(rand, 0, 3000); spin; spin--) {
        atomic_thread_fence(memory_order_seq_cst);
    }
    g_assert_no_errno(kill(pid, SIGKILL));
    g_assert_cmpint(waitpid(pid, &status, 0), ==, pid);
    g_assert_true(WIFSIGNALED(status));
}

static Progress *progress_new(void)
{
    void *progress = mmap(NULL, sizeof(Progress), PROT_READ | PROT_WRITE,
                          MAP_SHARED | MAP_ANONYMOUS, -1, 0);

    g_assert_true(progress != MAP_FAILED);
    return progress;
}

static void test_killed(void)
{
    Fixture f = { .progress = progress_new() };
    unsigned in_commit = 0, half_dropped = 0;
    GRand *rand = g_rand_new_with_seed(g_test_rand_int());
    MsBacking backing;

    g_assert_true(ms_backing_create(&backing, NULL));
    f.store = ms_store_new(&backing, CAPACITY, NULL);
    for (unsigned s = 0; s < N_SPACES; s++) {
        create(f.store, s + 1);
    }
    for (int round = 0; round < ROUNDS; round++) {
        ms_store_free(f.store, f.fds);
        kill_at_random(&f, rand, write_like_mad);
        g_assert_true(ms_backing_adopt(&backing, f.fds, NULL));
        for (unsigned s = 0; s < N_SPACES; s++) {
            in_commit += ms_backing_record(&backing, s)->redo.valid;
        }
        f.store = ms_store_new(&backing, CAPACITY, NULL);
        g_assert_nonnull(f.store);
        check_tables(&f);
        half_dropped += g_hash_table_size(f.store->spaces) == 3;
        for (unsigned s = 0; s < N_SPACES; s++) {
            check_space(&f, s);
        }
        check_third(&f);
        /* No frame is lost, none is held twice. */
        g_assert_cmpuint(ms_frames_used(f.store->frames), ==,
                         ms_store_held_pages(f.store));
        g_assert_cmpuint(ms_store_free_pages(f.store), ==,
                         CAPACITY - ms_store_held_pages(f.store));
    }
    g_test_message("%d kills, %u within a commit, %u with the third space "
                   "there, %lu operations", ROUNDS, in_commit, half_dropped,
                   (unsigned long)f.progress->operations);
    g_rand_free(rand);
    ms_store_free(f.store, NULL);
    munmap(f.progress, sizeof(Progress));
}

/* An owner with an offer, all of it telling its generation. */
static void make_owner(MsOwner *owner, uint64_t generation)
{
    memset(owner, generation, sizeof(*owner));
    owner->epoch = generation;
    owner->offer_state = generation % MS_N_OFFER_STATES;
}

static void G_GNUC_NORETURN hand_over_like_mad(Fixture *f)
{
    MsSpace *space;

    prctl(PR_SET_PDEATHSIG, SIGKILL);
    adopt(f);
    space = ms_store_find(f->store, (uint8_t[16]) { 1 });
    for (;;) {
        MsOwner owner;

        make_owner(&owner, ++f->generation);
        atomic_store(&f->progress->begun[0][0], f->generation);
        ms_space_set_owner(space, &owner);
        atomic_store(&f->progress->acknowledged[0][0], f->generation);
        atomic_fetch_add(&f->progress->operations, 1);
    }
}

/* Who has a space, and to whom it is offered, changes as a whole. */
static void test_owner(void)
{
    Fixture f = { .progress = progress_new() };
    GRand *rand = g_rand_new_with_seed(g_test_rand_int());
    MsBacking backing;
    MsOwner expected;
    MsSpace *space;

    g_assert_true(ms_backing_create(&backing, NULL));
    f.store = ms_store_new(&backing, CAPACITY, NULL);
    space = create(f.store, 1);
    for (int round = 0; round < ROUNDS / 2; round++) {
        uint64_t done;

        ms_store_free(f.store, f.fds);
        kill_at_random(&f, rand, hand_over_like_mad);
        adopt(&f);
        space = ms_store_find(f.store, (uint8_t[16]) { 1 });
        f.generation = ms_space_owner(space)->epoch;
        make_owner(&expected, f.generation);
        g_assert_cmpmem(ms_space_owner(space), sizeof(MsOwner), &expected,
                        sizeof(MsOwner));
        done = atomic_load(&f.progress->acknowledged[0][0]);
        g_assert_true(f.generation == done ||
                      f.generation == f.progress->begun[0][0]);
    }
    g_rand_free(rand);
    ms_store_free(f.store, NULL);
    munmap(f.progress, sizeof(Progress));
}

/* Each step of a commit, one by one. */
static void test_redo(void)
{
    static const uint64_t mask = 0xff00ff;
    g_autoptr(GError) error = NULL;
    MsBacking backing;

    for (unsigned applied = 0; applied <= 16; applied++) {
        Fixture f = { 0 };
        MsFrame frames[MEMX_GROUP_PAGES];
        MsSpace *space;
        MsRedo *redo;
        unsigned i = 0;

        g_assert_true(ms_backing_create(&backing, NULL));
        f.store = ms_store_new(&backing, CAPACITY, NULL);
        space = create(f.store, 1);
        store_group(space, 2, 1);
        /* As ms_space_store_commit() does, up to a point. */
        g_assert_cmpint(ms_space_store_begin(space, 2, mask, frames), ==, 0);
        redo = &space->record->redo;
        redo->group = 2;
        redo->mask = mask;
        for (unsigned bit = 0; bit < 64; bit++) {
            if (mask >> bit & 1) {
                fill(ms_frames_page(f.store->frames, frames[i]), PAGE_WORDS,
                     2, 2, bit);
                redo->entries[i] = frames[i] + 1;
                if (i < applied) {
                    space->table[2 * 64 + bit] = frames[i] + 1;
                }
                i++;
            }
        }
        redo->valid = 1;
        ms_store_free(f.store, f.fds);
        adopt(&f);
        space = ms_store_find(f.store, (uint8_t[16]) { 1 });
        g_assert_cmpint(ms_space_pin(space, NULL, 2, ALL,
                                     frames), ==, 0);
        for (unsigned bit = 0; bit < 64; bit++) {
            uint64_t *page = ms_frames_page(f.store->frames, frames[bit]);

            g_assert_cmpuint(page[0] >> 32, ==, mask >> bit & 1 ? 2 : 1);
            g_assert_cmpuint(page[0] >> 8 & 0xff, ==, bit);
        }
        g_assert_cmpuint(space->held_pages, ==, 64);
        g_assert_cmpuint(ms_frames_used(f.store->frames), ==, 64);
        ms_store_free(f.store, NULL);
    }
}

/* What is damaged, or not ours, is refused, not guessed at. */
static void test_damaged(void)
{
    static const char *const says[] = {
        "table", "record", "record", "layout",
    };

    for (unsigned i = 0; i < G_N_ELEMENTS(says); i++) {
        g_autoptr(GError) error = NULL;
        Fixture f = { 0 };
        MsBacking backing;
        MsSpace *space;

        g_assert_true(ms_backing_create(&backing, NULL));
        f.store = ms_store_new(&backing, CAPACITY, NULL);
        space = create(f.store, 1);
        store_group(space, 2, 1);
        switch (i) {
        case 0:
            space->table[0] = space->table[128];
            break;
        case 1:
            space->record->owner[0].offer_state = MS_N_OFFER_STATES;
            break;
        case 2:
            space->record->current_owner = 2;
            break;
        case 3:
            f.store->backing.super->layout_version++;
            break;
        }
        ms_store_free(f.store, f.fds);
        if (ms_backing_adopt(&backing, f.fds, &error)) {
            g_assert_null(ms_store_new(&backing, CAPACITY, &error));
            ms_backing_close(&backing);
        }
        g_assert_nonnull(strstr(error->message, says[i]));
    }
}

int main(int argc, char **argv)
{
    g_test_init(&argc, &argv, NULL);
    g_test_add_func("/memserver/killed/stores-are-whole", test_killed);
    g_test_add_func("/memserver/killed/owners-are-whole", test_owner);
    g_test_add_func("/memserver/killed/each-step-of-a-commit", test_redo);
    g_test_add_func("/memserver/killed/damaged-is-refused", test_damaged);
    return g_test_run();
}
