/*
 * The list of a region's servers, and how it is changed.
 *
 * It is the keeper (keeper.c) who then goes on, behind the caller's back: here
 * is what is answered at once.  First all that may fail, with nothing of the
 * region changed: connecting to new servers, reservations.  Then the change,
 * in one step under the lock.
 *
 * SPDX-License-Identifier: LGPL-2.1-or-later
 */
#include <string.h>
#include "region.h"

#define CLOSE_MS 2000
#define CONNECT_MS 5000

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
    MemxServer *list[MEMX_SERVERS_MAX];
    unsigned n = 0;

    for (unsigned i = 0; i < change->n_use; i++) {
        MemxServer *s = change->use[i];

        if (!s->opened) {
            s->reserved_pages = change->want[i];
            list[n++] = s;
        }
    }
    return memx_opening_create(r, list, n, CONNECT_MS, error);
}

/* An index for each; those of servers that were released first. */
static bool indices_for(MemxRegion *r, Change *change, unsigned *index,
                        GError **error)
{
    unsigned n = 0, next = r->n_servers;

    g_mutex_lock(&r->lock);
    for (unsigned i = 0; i < r->n_servers && n < change->n_fresh; i++) {
        if (r->server[i].released &&
            !(r->events[MEMX_EVENT_SERVER_RELEASED] & 1u << i)) {
            index[n++] = i; /* its last event has its name */
        }
    }
    g_mutex_unlock(&r->lock);
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
    MemxServer *s = &r->server[index];

    g_mutex_lock(&r->lock);
    if (s->peer) {
        g_ptr_array_add(r->retired, s->peer);
    }
    s->peer = fresh->peer;
    s->index = index;
    s->open = fresh->open;
    s->opened = s->told = true;
    s->closing = s->closed = s->released = s->left_behind = false;
    s->kept = s->no_room = s->full = s->full_told = false;
    s->draining = fresh->draining;
    memx_reserve_set_locked(s, fresh->reserved_pages);
    s->free_pages = fresh->free_pages;
    s->capacity_pages = fresh->capacity_pages;
    s->hold_until_ns = s->room_after_ns = 0;
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
    /* If there can be no thread now, the keeper tries again: it is connected
     * for the moment. */
    memx_link_start(r, s, NULL);
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
            s->kept = s->no_room = false;
        }
    }
    memx_keeper_want_locked(r, change->use, change->n_use, change->want);
    memx_worker_ring(&r->faults);
    memx_worker_ring(&r->fetch);
    g_mutex_unlock(&r->lock);
}

static bool check(MemxRegion *r, GError **error)
{
    bool ok;

    g_mutex_lock(&r->lock);
    ok = memx_keeper_settled_locked(r);
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
           memx_keeper_reserve(r, change->use, change->n_use, change->want,
                               error);
}

bool memx_region_set_servers(MemxRegion *r, const char *const *servers,
                             GError **error)
{
    unsigned index[MEMX_SERVERS_MAX];
    Change *change;
    bool ok;

    if (!memx_resize_begin(r, error)) {
        return false;
    }
    change = g_new0(Change, 1);
    if (!r->retired) {
        r->retired = g_ptr_array_new_with_free_func(
            (GDestroyNotify)memx_peer_free);
    }
    ok = check(r, error) && prepare(r, change, servers, index, error);
    if (ok) {
        apply(r, change, index);
    }
    change_free(r, change);
    g_mutex_unlock(&r->resize);
    return ok;
}

/* The keeper does the rest: chunks of a server that stays don't move. */
void memx_region_keep_servers(MemxRegion *r)
{
    g_mutex_lock(&r->lock);
    for (unsigned i = 0; i < r->n_servers; i++) {
        if (!r->server[i].closing && !r->server[i].released) {
            r->server[i].kept |= r->server[i].leaving;
            r->server[i].leaving = false;
        }
    }
    g_mutex_unlock(&r->lock);
}

static bool settles_locked(MemxRegion *r)
{
    for (unsigned i = 0; i < r->n_servers; i++) {
        MemxServer *s = &r->server[i];

        if (!s->released && (s->leaving || s->moving_out || s->closing)) {
            return false;
        }
    }
    return true;
}

bool memx_region_servers_settle(MemxRegion *r, unsigned timeout_ms)
{
    int64_t end = g_get_monotonic_time() + timeout_ms * 1000ll;
    bool settled;

    g_mutex_lock(&r->lock);
    r->n_waiting++;
    while (!(settled = settles_locked(r)) &&
           g_cond_wait_until(&r->changed, &r->lock, end)) {
        ;
    }
    r->n_waiting--;
    g_mutex_unlock(&r->lock);
    return settled;
}
