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
 * event; the keeper tries again now and then.  Reservations are lowered at
 * the end, when each chunk is where it belongs.
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
#define CLOSE_MS 2000
#define LEAVE_MS 5000           /* for lanes to be left */
#define CONNECT_MS 5000

/* Nobody else is about to get the spaces. */
static bool settled_locked(MemxRegion *r)
{
    bool told = true;

    for (unsigned i = 0; i < r->n_servers; i++) {
        told &= r->server[i].told || r->server[i].released;
    }
    return told && !r->out && r->side == MEMX_SIDE_OWNER && !r->passive;
}

/* Reserves as @want says where that is more; on failure as before. */
static bool reserve_more(MemxRegion *r, MemxServer **list, unsigned n,
                         const uint64_t *want, GError **error)
{
    uint64_t old[MEMX_SERVERS_MAX];

    for (unsigned i = 0; i < n; i++) {
        old[i] = list[i]->reserved_pages; /* `resize` is held */
    }
    for (unsigned i = 0; i < n; i++) {
        if (list[i]->opened && want[i] > old[i] &&
            !memx_pool_reserve_one(r, list[i], want[i], error)) {
            for (unsigned k = 0; k < i; k++) {
                if (list[k]->opened && want[k] > old[k]) {
                    memx_pool_reserve_one(r, list[k], old[k], NULL);
                }
            }
            return false;
        }
    }
    return true;
}

static void want_locked(MemxRegion *r, MemxServer **list, unsigned n,
                        const uint64_t *want)
{
    for (unsigned i = 0; i < n; i++) {
        list[i]->want_pages = MAX(want[i], 1);
    }
    memx_pool_quotas_locked(r);
    r->rebalance = true;
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
         reserve_more(r, list, n, want, NULL);
    g_mutex_lock(&r->lock);
    if (ok) {
        s->no_room = false;
        s->moving_out = true;
        want_locked(r, list, n, want);
    } else if (!s->no_room && !memx_stopping(r)) {
        s->no_room = true;
        memx_event_post_locked(r, MEMX_EVENT_POOL_FULL, s->index);
    }
    s->hold_until_ns = ok ? 0 : memx_now_ns() + AGAIN_NS;
    g_mutex_unlock(&r->lock);
}

static void stay_locked(MemxRegion *r, MemxServer *s)
{
    s->no_room = false;
    s->hold_until_ns = 0;
    if (s->moving_out) {
        s->moving_out = false;
        s->want_pages = 0;
        r->rebalance = false; /* what went doesn't come back */
        memx_pool_quotas_locked(r);
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
    for (unsigned lane = 0; lane <= MEMX_LANE_FETCH; lane++) {
        if (s->lane[lane].up) {
            return false;
        }
    }
    return true;
}

static void close_space(MemxRegion *r, MemxServer *s)
{
    MemxControl *control;
    unsigned refused;
    bool up;

    g_mutex_lock(&r->lock);
    up = s->lane[MEMX_LANE_ORDERED].up;
    g_mutex_unlock(&r->lock);
    if (up) {
        control = g_new0(MemxControl, 1);
        control->server = s->index;
        control->opcode = MEMX_OP_CLOSE;
        memx_control_call(r, control, CLOSE_MS, &refused);
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
    s->reserved_pages = s->want_pages = s->free_pages = 0;
    s->capacity_pages = 0;
    s->dropped = 0;
    s->waiting_since_ns = 0;
    for (unsigned i = 0; i < MEMX_EVENT_TYPES; i++) {
        r->events[i] &= ~(1u << s->index);
    }
    memx_pool_quotas_locked(r);
}

static void release(MemxRegion *r, MemxServer *s)
{
    int64_t end = g_get_monotonic_time() + LEAVE_MS * 1000ll;
    bool left;

    g_mutex_lock(&r->lock);
    s->closing = true;
    g_mutex_unlock(&r->lock);
    memx_worker_join(&s->link); /* rung, it gives connecting up */
    close_space(r, s);
    g_mutex_lock(&r->lock);
    s->closed = true;
    memx_worker_ring(&r->store);
    memx_worker_ring(&r->faults);
    memx_worker_ring(&r->fetch);
    r->n_waiting++;
    while (!lanes_left_locked(s) && !memx_stopping(r) &&
           g_cond_wait_until(&r->changed, &r->lock, end)) {
        ;
    }
    r->n_waiting--;
    left = lanes_left_locked(s);
    if (left) {
        forget_locked(r, s);
    } /* else again, the next time round */
    g_mutex_unlock(&r->lock);
}

/* --- The thread --- */

/* Each chunk is where it belongs: what is reserved beyond that isn't needed. */
static void lower(MemxRegion *r)
{
    uint64_t want[MEMX_SERVERS_MAX];
    unsigned n = r->n_servers;
    bool ends;

    g_mutex_lock(&r->lock);
    ends = r->rebalance && !r->n_moves;
    for (unsigned i = 0; i < n; i++) {
        MemxServer *s = &r->server[i];

        want[i] = memx_server_in_use(s) ? s->want_pages : 0;
        ends &= !s->moving_out && (s->released ||
                                   s->n_chunks <= s->chunk_quota) &&
                (!want[i] || s->remote_pages <= want[i]);
    }
    if (ends) {
        r->rebalance = false;
    }
    g_mutex_unlock(&r->lock);
    for (unsigned i = 0; ends && i < n; i++) {
        if (want[i] > 1 && want[i] < r->server[i].reserved_pages) {
            memx_pool_reserve_one(r, &r->server[i], want[i], NULL);
        }
    }
}

static void look_after(MemxRegion *r, MemxServer *s)
{
    bool out, stay, empty;

    g_mutex_lock(&r->lock);
    out = s->draining && !s->moving_out && !s->released &&
          s->hold_until_ns < memx_now_ns();
    stay = !s->draining && !s->leaving && (s->moving_out || s->no_room) &&
           !s->closing && !s->released;
    if (stay) {
        stay_locked(r, s);
    }
    empty = !s->released && (s->closing || empty_locked(r, s));
    g_mutex_unlock(&r->lock);
    if (empty) {
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
        settled = settled_locked(r);
        g_mutex_unlock(&r->lock);
        for (unsigned i = 0; settled && i < r->n_servers; i++) {
            look_after(r, &r->server[i]);
        }
        if (settled) {
            lower(r);
        }
        g_mutex_unlock(&r->resize);
    }
    return NULL;
}

/* --- The list is changed --- */

typedef struct Change {
    MemxServer *stay[MEMX_SERVERS_MAX]; /* the list; those that are new, too */
    unsigned n_stay;
    MemxServer *fresh[MEMX_SERVERS_MAX]; /* not the region's yet */
    unsigned n_fresh;
    MemxServer *use[MEMX_SERVERS_MAX]; /* of the list, those not drained */
    uint64_t want[MEMX_SERVERS_MAX];
    unsigned n_use;
} Change;

static void change_free(MemxRegion *r, Change *change)
{
    for (unsigned i = 0; i < change->n_fresh; i++) {
        MemxServer *s = change->fresh[i];

        for (unsigned lane = 0; lane <= MEMX_LANE_FETCH; lane++) {
            g_clear_pointer(&s->lane[lane].channel, memx_channel_close);
        }
        if (s->opened) {
            memx_pool_close_space(r, s, CLOSE_MS);
        }
        memx_peer_free(s->peer);
        g_free(s);
    }
    g_free(change);
}

static MemxServer *find(MemxRegion *r, const char *address)
{
    for (unsigned i = 0; i < r->n_servers; i++) {
        if (!r->server[i].released && !r->server[i].closing &&
            !strcmp(r->server[i].peer->address, address)) {
            return &r->server[i];
        }
    }
    return NULL;
}

static bool add_address(MemxRegion *r, Change *change, const char *address,
                        GError **error)
{
    const MemxServer *model = &r->server[0];
    MemxServer *s = g_new0(MemxServer, 1), *known;
    bool draining;

    if (!memx_pool_fill(r, s, &model->open, model->peer->key, address,
                        error)) {
        g_free(s);
        return false;
    }
    for (unsigned i = 0; i < change->n_stay; i++) {
        if (!strcmp(change->stay[i]->peer->address, s->peer->address)) {
            g_set_error(error, MEMX_ERROR, MEMX_ERROR_INVALID,
                        "server %s is named twice; name each server once",
                        s->peer->address);
            memx_peer_free(s->peer);
            g_free(s);
            return false;
        }
    }
    g_mutex_lock(&r->lock);
    known = find(r, s->peer->address);
    draining = known && known->draining;
    g_mutex_unlock(&r->lock);
    if (known) {
        memx_peer_free(s->peer);
        g_free(s);
        s = known;
    } else {
        change->fresh[change->n_fresh++] = s;
    }
    change->stay[change->n_stay++] = s;
    if (!draining) { /* a new one says so when it is opened */
        change->use[change->n_use++] = s;
    }
    return true;
}

static bool open_fresh(MemxRegion *r, Change *change, GError **error)
{
    for (unsigned i = 0; i < change->n_use; i++) {
        MemxServer *s = change->use[i];
        MemxPeerInfo info;

        if (s->opened) {
            continue;
        }
        s->reserved_pages = change->want[i];
        if (!memx_pool_open_lanes(r, s, true, CONNECT_MS, &info, error)) {
            return false;
        }
    }
    return true;
}

/* An index for each; those of servers that were released first. */
static bool indices_for(MemxRegion *r, Change *change, unsigned *index,
                        GError **error)
{
    unsigned n = 0, next = r->n_servers;

    for (unsigned i = 0; i < r->n_servers && n < change->n_fresh; i++) {
        if (r->server[i].released) {
            index[n++] = i;
        }
    }
    while (n < change->n_fresh && next < MEMX_SERVERS_MAX) {
        index[n++] = next++;
    }
    if (n < change->n_fresh) {
        g_set_error(error, MEMX_ERROR, MEMX_ERROR_INVALID,
                    "a region has at most %u servers, and those that are "
                    "being drained count until they are released; try again "
                    "then, or name fewer", MEMX_SERVERS_MAX);
        return false;
    }
    for (unsigned i = r->n_servers; i < next; i++) {
        if (!r->server[i].link.wake_fd &&
            !memx_worker_init(&r->server[i].link, error)) {
            return false;
        }
    }
    return true;
}

/* Gives the new server a place; its lanes are for their owners to take. */
static void install(MemxRegion *r, MemxServer *fresh, unsigned index)
{
    MemxLinkArgs *args = g_new(MemxLinkArgs, 1);
    MemxServer *s = &r->server[index];
    g_autoptr(GError) error = NULL;

    g_mutex_lock(&r->lock);
    if (s->peer) {
        g_ptr_array_add(r->retired, s->peer);
    }
    s->peer = fresh->peer;
    s->index = index;
    s->open = fresh->open;
    s->opened = s->told = true;
    s->closing = s->closed = s->released = false;
    s->no_room = s->full = s->full_told = false;
    s->draining = fresh->draining;
    s->reserved_pages = fresh->reserved_pages;
    s->free_pages = fresh->free_pages;
    s->capacity_pages = fresh->capacity_pages;
    s->hold_until_ns = 0;
    s->stored_bytes = s->fetched_bytes = s->moved_bytes = s->reconnects = 0;
    s->why_down[0] = '\0';
    memcpy(s->instance, fresh->instance, sizeof(s->instance));
    memcpy(s->nonce, fresh->nonce, sizeof(s->nonce));
    for (unsigned lane = 0; lane <= MEMX_LANE_FETCH; lane++) {
        s->lane[lane].incoming = g_steal_pointer(&fresh->lane[lane].channel);
    }
    if (index == r->n_servers) {
        r->n_servers++;
    }
    g_mutex_unlock(&r->lock);
    g_free(fresh);
    *args = (MemxLinkArgs) { r, s };
    if (!memx_worker_start(&s->link, "memx-link", memx_link_thread, args,
                           &error)) {
        g_error("no thread for memory server %s: %s", s->peer->address,
                error->message);
    }
}

static void apply(MemxRegion *r, Change *change, const unsigned *index)
{
    for (unsigned i = 0; i < change->n_fresh; i++) {
        MemxServer *s = change->fresh[i];

        for (unsigned k = 0; k < change->n_use; k++) {
            if (change->use[k] == s) {
                change->use[k] = &r->server[index[i]];
            }
        }
        for (unsigned k = 0; k < change->n_stay; k++) {
            if (change->stay[k] == s) {
                change->stay[k] = &r->server[index[i]];
            }
        }
        install(r, s, index[i]);
    }
    change->n_fresh = 0;
    g_mutex_lock(&r->lock);
    for (unsigned i = 0; i < r->n_servers; i++) {
        MemxServer *s = &r->server[i];
        bool stays = false, uses = false;

        for (unsigned k = 0; k < change->n_stay; k++) {
            stays |= change->stay[k] == s;
        }
        for (unsigned k = 0; k < change->n_use; k++) {
            uses |= change->use[k] == s;
        }
        if (!s->released) {
            s->leaving = !stays;
            s->moving_out = !uses;
            s->no_room = false;
        }
    }
    want_locked(r, change->use, change->n_use, change->want);
    memx_worker_ring(&r->faults);
    memx_worker_ring(&r->fetch);
    g_mutex_unlock(&r->lock);
}

static bool check(MemxRegion *r, GError **error)
{
    bool ok;

    g_mutex_lock(&r->lock);
    ok = settled_locked(r);
    g_mutex_unlock(&r->lock);
    if (!ok) {
        g_set_error(error, MEMX_ERROR, MEMX_ERROR_INVALID, "servers can't be "
                    "changed during a split migration; try again when it has "
                    "ended");
    }
    return ok;
}

static bool prepare(MemxRegion *r, Change *change,
                    const char *const *servers, unsigned *index,
                    GError **error)
{
    unsigned n = servers ? g_strv_length((char **)servers) : 0;
    uint64_t need;

    if (!n || n > MEMX_SERVERS_MAX) {
        g_set_error(error, MEMX_ERROR, MEMX_ERROR_INVALID,
                    "%u servers are named; name 1 to %u", n,
                    MEMX_SERVERS_MAX);
        return false;
    }
    for (unsigned i = 0; i < n; i++) {
        if (!add_address(r, change, servers[i], error)) {
            return false;
        }
    }
    if (!change->n_use) {
        g_set_error(error, MEMX_ERROR, MEMX_ERROR_FULL, "all of these servers "
                    "are being drained; name another one, or undo that with "
                    "memxctl drain --undo");
        return false;
    }
    g_mutex_lock(&r->lock);
    need = memx_pool_need(r, MIN(r->limit, r->table.n_pages)) +
           change->n_fresh * MEMX_GROUP_PAGES;
    g_mutex_unlock(&r->lock);
    return indices_for(r, change, index, error) &&
           memx_pool_plan(r, change->use, change->n_use, need, -1,
                          change->want, error) &&
           open_fresh(r, change, error) &&
           reserve_more(r, change->use, change->n_use, change->want, error);
}

bool memx_region_set_servers(MemxRegion *r, const char *const *servers,
                             GError **error)
{
    g_autoptr(GMutexLocker) resize = g_mutex_locker_new(&r->resize);
    Change *change = g_new0(Change, 1);
    unsigned index[MEMX_SERVERS_MAX];
    bool ok;

    if (!r->retired) {
        r->retired = g_ptr_array_new_with_free_func(
            (GDestroyNotify)memx_peer_free);
    }
    ok = check(r, error) && prepare(r, change, servers, index, error);
    if (ok) {
        apply(r, change, index);
    }
    change_free(r, change);
    return ok;
}
