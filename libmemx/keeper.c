/*
 * The keeper: servers come and go while the memory is in use.
 *
 * Theory of operation
 *
 * memx_region_set_servers() adds servers and takes some off the list; and a
 * server's administrator may want it to be emptied (memxctl drain), which it
 * says in its answers.  In both cases the servers that stay first get the
 * reservation that they need (what each shall have in the end, `want`, makes
 * the quotas of chunks); only when all of it has been granted do chunks go:
 *
 *   in use     ---- taken off the list, or drained and the others have room
 *   moving out ---- move.c; evicted pages still go to its chunks' server
 *   empty      ---- closing: no more connections; the space is closed
 *   released   ---- its place in the region may be taken by a new server
 *
 * A server that is drained while the others lack room stays in use, with an
 * event; the keeper tries again now and then.  A server's reservation is
 * lowered in the end, when it has no more chunks than it shall have.
 *
 * This thread does what takes longer: connecting, reserving, waiting for
 * threads to leave a server that is released.  `resize` keeps it and the API
 * functions that change reservations apart.
 *
 * An index stays a server's own until it is released; peers of those are kept
 * to the region's end, since an event may still name one.
 *
 * SPDX-License-Identifier: LGPL-2.1-or-later
 */
#include <string.h>
#include "region.h"

#define TICK_MS 200
#define AGAIN_NS 5000000000ull  /* room is looked for again */
#define LEAVE_MS 500            /* for lanes to be left; else the next time */

bool memx_keeper_settled_locked(MemxRegion *r)
{
    bool told = true;

    for (unsigned i = 0; i < r->n_servers; i++) {
        told &= r->server[i].told || r->server[i].released;
    }
    return told && !r->out && r->side == MEMX_SIDE_OWNER && !r->passive;
}

bool memx_keeper_reserve(MemxRegion *r, MemxServer **list, unsigned n,
                         const uint64_t *want, GError **error)
{
    uint64_t old[MEMX_SERVERS_MAX], before[MEMX_SERVERS_MAX];

    g_mutex_lock(&r->lock);
    for (unsigned i = 0; i < n; i++) {
        old[i] = list[i]->reserved_pages;
        before[i] = list[i]->shall_pages;
    }
    g_mutex_unlock(&r->lock);
    for (unsigned i = 0; i < n; i++) {
        if (list[i]->opened && want[i] > old[i] &&
            !memx_reserve_pages(r, list[i], want[i], error)) {
            for (unsigned k = 0; k <= i; k++) { /* it may be late */
                if (list[k]->opened && want[k] > old[k]) {
                    memx_reserve_pages(r, list[k], before[k], NULL);
                }
            }
            return false;
        }
    }
    return true;
}

void memx_keeper_want_locked(MemxRegion *r, MemxServer **list, unsigned n,
                             const uint64_t *want)
{
    for (unsigned i = 0; i < n; i++) {
        list[i]->want_pages = MAX(want[i], 1);
    }
    memx_pool_quotas_locked(r);
    r->rebalance = true;
    r->grown = false;
    memx_worker_ring(&r->store);
}

/* --- A server is to be emptied --- */

static unsigned others(MemxRegion *r, const MemxServer *but,
                       MemxServer **list)
{
    unsigned n = 0;

    g_mutex_lock(&r->lock);
    for (unsigned i = 0; i < r->n_servers; i++) {
        MemxServer *s = &r->server[i];

        if (s != but && memx_server_in_use(s) && !s->draining) {
            list[n++] = s;
        }
    }
    g_mutex_unlock(&r->lock);
    return n;
}

static void move_out(MemxRegion *r, MemxServer *s)
{
    MemxServer *list[MEMX_SERVERS_MAX];
    uint64_t want[MEMX_SERVERS_MAX], need;
    unsigned n = others(r, s, list);
    bool ok;

    g_mutex_lock(&r->lock);
    need = memx_pool_need(r, MIN(r->limit, r->table.n_pages));
    g_mutex_unlock(&r->lock);
    ok = n && memx_pool_plan(r, list, n, need, r->keeper.wake_fd, want,
                             NULL) &&
         memx_keeper_reserve(r, list, n, want, NULL);
    g_mutex_lock(&r->lock);
    if (ok) {
        s->no_room = false;
        s->moving_out = true;
        memx_keeper_want_locked(r, list, n, want);
    } else if (!s->no_room && !memx_stopping(r)) {
        s->no_room = true;
        memx_event_post_locked(r, MEMX_EVENT_POOL_FULL, s->index);
    }
    s->room_after_ns = ok ? 0 : memx_now_ns() + AGAIN_NS;
    g_mutex_unlock(&r->lock);
}

/* It is in use again.  What the others reserved for its sake isn't needed, nor
 * perhaps all that it has itself: chunks go where there are too few of them;
 * unless the program said that none shall: then it is lowered where they are. */
static void stay(MemxRegion *r, MemxServer *s)
{
    uint64_t limit;
    bool was_out, kept;

    g_mutex_lock(&r->lock);
    limit = r->limit;
    was_out = s->moving_out;
    kept = s->kept;
    s->kept = s->no_room = false;
    s->room_after_ns = 0;
    if (was_out) {
        s->moving_out = false;
        s->want_pages = 0;
        r->rebalance &= !kept;
        memx_pool_quotas_locked(r);
    }
    if (was_out && kept) {
        memx_pool_want_as_placed_locked(r);
    }
    g_mutex_unlock(&r->lock);
    if (was_out && !kept) {
        memx_pool_reserve(r, limit, NULL);
    }
}

/* --- A server is empty --- */

static bool empty_locked(MemxRegion *r, MemxServer *s)
{
    bool idle = true;

    for (unsigned i = 0; i < r->n_servers; i++) {
        idle &= !r->move[i].active || r->move[i].from != s->index;
    }
    /* One that can't be reached keeps what it has in vain, in a space that is
     * listed as orphaned there. */
    return idle && s->moving_out && !s->n_chunks && !s->n_out && !s->n_in &&
           !s->faults && (!s->n_old || !s->lane[MEMX_LANE_ORDERED].up) &&
           !r->move[s->index].active;
}

static bool lanes_left_locked(MemxServer *s)
{
    if (!s->closed) {
        return false;
    }
    for (unsigned lane = 0; lane <= MEMX_LANE_FETCH; lane++) {
        if (s->lane[lane].up) {
            return false;
        }
    }
    return true;
}

/* Its lanes are left as soon as nothing is in flight there. */
void memx_keeper_closed_locked(MemxRegion *r, MemxServer *s)
{
    s->closed = true;
    memx_worker_ring(&r->store);
    memx_worker_ring(&r->faults);
    memx_worker_ring(&r->fetch);
}

/* Nobody waits for the answer, which may take as long as a server is stopped:
 * the store thread notes it. */
static void close_space(MemxRegion *r, MemxServer *s)
{
    unsigned refused;
    bool up;

    g_mutex_lock(&r->lock);
    up = s->lane[MEMX_LANE_ORDERED].up;
    if (!up) {
        memx_keeper_closed_locked(r, s);
    }
    g_mutex_unlock(&r->lock);
    if (up) {
        MemxControl *control = memx_control_new(s, MEMX_OP_CLOSE);

        memx_control_start(r, control);
        memx_control_end(r, control, 0, &refused);
    }
}

/* The books forget it. */
static void forget_locked(MemxRegion *r, MemxServer *s)
{
    for (uint32_t c = 0; s->n_old && c < r->table.n_chunks; c++) {
        if (r->table.chunk[c].old == s->index) {
            r->table.chunk[c].old = MEMX_SERVER_NONE;
            s->n_old--;
        }
    }
    for (unsigned lane = 0; lane <= MEMX_LANE_FETCH; lane++) {
        g_clear_pointer(&s->lane[lane].incoming, memx_channel_close);
    }
    r->move[s->index].dropping = false; /* its lane is closed */
    s->released = true;
    s->opened = s->moving_out = s->leaving = s->draining = s->lost = false;
    s->health = MEMX_SERVER_UP; /* nobody is to blame it */
    memx_reserve_set_locked(s, 0);
    s->want_pages = s->free_pages = s->capacity_pages = 0;
    s->dropped = 0;
    s->refused = NULL;
    s->waiting_since_ns = 0;
    for (unsigned i = 0; i < MEMX_EVENT_TYPES; i++) {
        r->events[i] &= ~(1u << s->index);
    }
    memx_event_post_locked(r, MEMX_EVENT_SERVER_RELEASED, s->index);
    memx_pool_quotas_locked(r);
    memx_changed_locked(r);
}

static void release(MemxRegion *r, MemxServer *s)
{
    int64_t end = g_get_monotonic_time() + LEAVE_MS * 1000ll;
    bool first, left, told;

    g_mutex_lock(&r->lock);
    first = !s->closing;
    s->left_behind |= first;
    s->closing = true;
    g_mutex_unlock(&r->lock);
    if (first) {
        memx_worker_join(&s->link); /* rung, it gives connecting up */
        close_space(r, s);
    }
    g_mutex_lock(&r->lock);
    r->n_waiting++;
    /* Not for long: `resize` is held. */
    while (first && !lanes_left_locked(s) && !memx_stopping(r) &&
           g_cond_wait_until(&r->changed, &r->lock, end)) {
        ;
    }
    r->n_waiting--;
    left = lanes_left_locked(s);
    told = !s->left_behind;
    if (left) {
        forget_locked(r, s);
    } /* else again, the next time round */
    g_mutex_unlock(&r->lock);
    if (left && !told) {
        memx_pool_close_space(r, s, 0);
    }
}

/* --- The thread --- */

/* A split was given up.  It reserved more, and gave chunks a server that these
 * are not to have in the end. */
static void after_split(MemxRegion *r)
{
    MemxServer *list[MEMX_SERVERS_MAX];
    uint64_t want[MEMX_SERVERS_MAX];
    unsigned n = 0;

    g_mutex_lock(&r->lock);
    for (unsigned i = 0; i < r->n_servers; i++) {
        if (memx_server_in_use(&r->server[i])) {
            list[n] = &r->server[i];
            want[n++] = r->before.want[i] ? r->before.want[i]
                                          : r->before.pages[i];
        }
    }
    if (r->grown && !r->home) { /* else give_back() does it */
        memx_keeper_want_locked(r, list, n, want);
    }
    r->grown = false;
    g_mutex_unlock(&r->lock);
}

/* It has no more chunks than it shall have, and its reservation in the end is
 * enough for them.  More may be there, as ever, where it is in nobody's way. */
static bool may_lower_locked(const MemxRegion *r, const MemxServer *s)
{
    return s->want_pages && s->want_pages < s->reserved_pages &&
           memx_server_in_use(s) && s->n_chunks <= s->chunk_quota &&
           !r->move[s->index].active &&
           s->remote_pages <= s->want_pages + s->free_pages &&
           s->lane[MEMX_LANE_ORDERED].up && s->health == MEMX_SERVER_UP;
}

/* What is reserved beyond what is needed where chunks are where they belong,
 * whatever the other servers still have to give. */
static void lower(MemxRegion *r)
{
    uint64_t want[MEMX_SERVERS_MAX] = { 0 };
    unsigned n = r->n_servers;
    bool ends;

    g_mutex_lock(&r->lock);
    ends = r->rebalance && !r->n_moves;
    for (unsigned i = 0; i < n; i++) {
        MemxServer *s = &r->server[i];
        bool less = r->rebalance && may_lower_locked(r, s);

        want[i] = less ? s->want_pages : 0;
        ends &= !s->moving_out &&
                (s->released || s->n_chunks <= s->chunk_quota) &&
                (!memx_server_in_use(s) || !s->want_pages ||
                 s->want_pages >= s->reserved_pages);
    }
    if (ends) {
        r->rebalance = false;
    }
    g_mutex_unlock(&r->lock);
    for (unsigned i = 0; i < n; i++) {
        if (want[i]) {
            memx_reserve_pages(r, &r->server[i], want[i], NULL);
        } /* if that fails, again the next time round */
    }
}

/* All of it is to be here: nothing need be reserved there.  Who arrived by a
 * split migration has what its source reserved. */
static void give_back(MemxRegion *r, MemxServer *s)
{
    bool give;

    g_mutex_lock(&r->lock);
    give = r->home && s->reserved_pages && memx_server_in_use(s) &&
           s->health == MEMX_SERVER_UP && s->lane[MEMX_LANE_ORDERED].up;
    g_mutex_unlock(&r->lock);
    if (give) {
        memx_reserve_pages(r, s, 0, NULL);
    }
}

static void look_after(MemxRegion *r, MemxServer *s)
{
    bool out, stays, empty, link;

    g_mutex_lock(&r->lock);
    out = s->draining && !s->moving_out && !s->released &&
          s->room_after_ns < memx_now_ns();
    stays = !s->draining && !s->leaving && (s->moving_out || s->no_room) &&
           !s->closing && !s->released;
    empty = !s->released && (s->closing || empty_locked(r, s));
    link = !s->released && !s->closing && !s->link.thread;
    g_mutex_unlock(&r->lock);
    if (link) {
        memx_link_start(r, s, NULL); /* there were too many threads */
    }
    if (stays) {
        stay(r, s);
    } else if (empty) {
        release(r, s);
    } else if (out) {
        move_out(r, s);
    }
}

void *memx_keeper_thread(void *opaque)
{
    MemxRegion *r = opaque;

    while (!memx_stopping(r)) {
        struct pollfd pfd = { .fd = r->keeper.wake_fd, .events = POLLIN };
        bool settled;

        poll(&pfd, 1, TICK_MS);
        if (memx_stopping(r)) {
            break; /* the bell stays rung: it cancels connecting */
        }
        if (!g_mutex_trylock(&r->resize)) {
            continue;
        }
        g_mutex_lock(&r->lock);
        settled = memx_keeper_settled_locked(r);
        g_mutex_unlock(&r->lock);
        if (settled) {
            after_split(r);
        }
        for (unsigned i = 0; settled && i < r->n_servers; i++) {
            look_after(r, &r->server[i]);
            give_back(r, &r->server[i]);
        }
        if (settled) {
            lower(r);
        }
        g_mutex_unlock(&r->resize);
    }
    return NULL;
}
