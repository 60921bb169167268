/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Split migrations one after the other, as chance has it: sizes, copies kept
 * or not, rates, cancelled and reclaimed at any moment, servers killed at any
 * moment and back with their pages, servers that are nearly full; the guest
 * writes, reads and gives memory back all the time.  Whatever happens, no page
 * is other than it was written, and nothing waits for ever.
 *
 * MEMX_SOAK_SEED is the first seed (else random), MEMX_SOAK_RUNS how many.
 */
#include <stdlib.h>
#include <sys/mman.h>
#include "split-fixture.h"

#define RUNS 8
#define MOVES 4
#define TRIES 60                /* of a move; a full server may refuse all */
#define HURRY 6                 /* cancelled so often: now it shall move */

static unsigned first_seed;

typedef struct Soak {
    GRand *rand;
    ServerProcess *servers[2];
    Move move;
    unsigned cancelled;
} Soak;

static int any(Soak *s, int from, int to)
{
    return g_rand_int_range(s->rand, from, to);
}

static void maybe_kill(Soak *s)
{
    if (!any(s, 0, 12)) {
        ServerProcess *server = s->servers[any(s, 0, 2)];

        server_process_kill(server);
        server_process_restart(server, true);
    }
}

static void run_on(Soak *s)
{
    s->move.vm->region = s->move.source;
    vm_start(s->move.vm);
    g_usleep(any(s, 0, 50000));
}

static void stand_still(Soak *s)
{
    vm_stop(s->move.vm);
    vm_check(s->move.vm);
}

/* The destination's side of it is no more. */
static void give_up(Soak *s)
{
    g_clear_pointer(&s->move.arrival, memx_arrival_free);
    munmap(s->move.base, s->move.vm->n_pages * PAGE_BYTES);
    s->cancelled++;
}

static bool iterate(Soak *s)
{
    MemxRegion *source = s->move.source;
    unsigned passes = any(s, 0, 6);

    for (unsigned i = 0; i < passes; i++) {
        if (any(s, 0, 2)) {
            memx_split_set_rate(source, (uint64_t)any(s, 0, 400) * MIB);
        }
        move_pass(&s->move);
        if (!memx_split_check(source, NULL)) {
            return false;
        }
        maybe_kill(s);
        memx_split_wait(source, any(s, 0, 20));
    }
    return true;
}

/* The VM is stopped.  False: a server was too full for the rest. */
static bool drained(Soak *s)
{
    int done;

    move_pass(&s->move);
    maybe_kill(s);
    done = memx_split_drain(s->move.source, WAIT_MS, NULL);
    g_assert_cmpint(done, !=, 0);
    return done > 0;
}

static bool begun(Soak *s)
{
    g_autoptr(GError) error = NULL;
    int64_t end = g_get_monotonic_time() + WAIT_MS * 1000ll;

    for (;;) {
        bool ok = move_try(&s->move, &error);

        if (ok || g_error_matches(error, MEMX_ERROR, MEMX_ERROR_FULL)) {
            return ok;
        }
        /* A server that was killed is not back yet. */
        if (g_get_monotonic_time() > end) {
            g_error("%s", error->message);
        }
        g_clear_error(&error);
        g_usleep(10000);
    }
}

/* From the offer on.  False: it was taken back. */
static bool handed_over(Soak *s, int end)
{
    Move *m = &s->move;
    MemxRegion *region, *source = m->source;
    uint8_t *old = m->vm->base;

    move_offer(m);
    maybe_kill(s);
    if (end == 1) {
        give_up(s);
        g_assert_cmpint(memx_split_reclaim(source, any(s, 0, 2), WAIT_MS,
                                           NULL), ==, MEMX_VERDICT_MINE);
        return false;
    }
    region = move_finish(m);
    maybe_kill(s);
    if (end == 2) {
        g_assert_cmpint(memx_split_reclaim(source, true, WAIT_MS, NULL), ==,
                        MEMX_VERDICT_MINE);
        g_assert_cmpint(memx_region_commit(region, true, WAIT_MS, NULL), ==,
                        MEMX_VERDICT_THEIRS);
        memx_region_free(region);
        give_up(s);
        return false;
    }
    move_commit(region);
    maybe_kill(s);
    m->vm->base = m->base;
    vm_check(m->vm);
    memx_split_leave(source);
    memx_region_free(source);
    munmap(old, m->vm->n_pages * PAGE_BYTES);
    m->source = region;
    return true;
}

/* True: it has moved. */
static bool try_to_move(Soak *s)
{
    int end = s->cancelled < HURRY ? any(s, 0, 6) : 5;
    Move *m = &s->move;

    m->main_bytes = any(s, 8, 32) * MIB;
    m->local_bytes = m->main_bytes + any(s, 0, 4) * MIB;
    run_on(s);
    m->arrival = move_arrival(m);
    if (!begun(s)) {
        give_up(s);
        stand_still(s);
        return false;
    }
    if (!iterate(s) || !end) {
        if (any(s, 0, 2)) {
            stand_still(s);
            run_on(s);
        }
        memx_split_cancel(m->source);
        give_up(s);
        stand_still(s);
        return false;
    }
    vm_stop(m->vm);
    if (!drained(s)) {
        memx_split_cancel(m->source);
        give_up(s);
        vm_check(m->vm);
        return false;
    }
    return handed_over(s, end);
}

static void soak(unsigned seed)
{
    static const char *const capacity[] = { "160M", "160M", "52M", "42M" };
    unsigned moved = 0, moves, tries = 0;
    Soak s = { .rand = g_rand_new_with_seed(seed) };
    uint64_t size;
    void *base;

    size = any(&s, 48, 88) * MIB + any(&s, 0, 60) * PAGE_BYTES;
    moves = any(&s, 1, MOVES + 1);
    s.servers[0] = s.servers[1] = NULL;
    for (unsigned i = 0, c = any(&s, 0, 4); i < 2; i++) {
        s.servers[i] = server_process_new(capacity[c]);
    }
    base = move_map(size);
    s.move.source = region_fixture_new(&(RegionFixture) {
        .base = base, .size = size,
        .local = (any(&s, 0, 2) ? 8 : any(&s, 8, 28)) * MIB,
        .keep_copies = any(&s, 0, 3), .servers = s.servers, .n_servers = 2,
    });
    s.move.vm = vm_new(base, size, seed);
    vm_fill(s.move.vm, 1);
    for (; moved < moves && tries < TRIES; tries++) {
        moved += try_to_move(&s);
    }
    run_on(&s);
    stand_still(&s);
    g_test_message("seed %u: %u of %u moves, in %u tries", seed, moved, moves,
                   tries);
    base = s.move.vm->base;
    memx_region_free(s.move.source);
    munmap(base, size);
    vm_free(s.move.vm);
    server_process_free(s.servers[0]);
    server_process_free(s.servers[1]);
    g_rand_free(s.rand);
}

static void test_soak(void)
{
    const char *runs = g_getenv("MEMX_SOAK_RUNS");
    unsigned n = runs ? atoi(runs) : RUNS;

    g_test_message("MEMX_SOAK_SEED=%u", first_seed);
    for (unsigned i = 0; i < n; i++) {
        soak(first_seed + i);
    }
}

int main(int argc, char **argv)
{
    const char *seed = g_getenv("MEMX_SOAK_SEED");

    g_test_init(&argc, &argv, NULL);
    first_seed = seed ? strtoul(seed, NULL, 10) : g_random_int() >> 1;
    g_test_add_func("/split/soak", test_soak);
    return g_test_run();
}
