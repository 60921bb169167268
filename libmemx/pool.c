/*
 * The pool: the servers of a region together.
 *
 * Theory of operation
 *
 * A region reserves size - local-size + staging pages, shared out by what the
 * servers have free.  A server gets a quota of chunks in proportion to its
 * share, and a chunk's pages all go to one server; the quotas together are
 * all chunks.  So when pages must leave, there is always a chunk with local
 * pages whose server has reserved room: if a server's share is used up by
 * remote pages, its chunks' local pages are no more than its part of
 * local-size, and another server's are as many as its own part or more.
 *
 * SPDX-License-Identifier: LGPL-2.1-or-later
 */
#include <errno.h>
#include <string.h>
#include "farewell.h"
#include "region.h"

#define CLOSE_MS 2000
#define ROOM_MS 2000
#define GIVE_WAY_MS 3000
#define GIVE_WAY_POLL_MS 100

/* What must be reserved for a local size of @limit pages. */
uint64_t memx_pool_need(const MemxRegion *r, uint64_t limit)
{
    if (limit >= r->table.n_pages) {
        return 0; /* nothing is evicted */
    }
    uint64_t size = r->table.n_pages;
    unsigned slots = MAX(r->staging.n_slots, memx_staging_slots(limit));
    uint64_t staging = (uint64_t)slots * MEMX_GROUP_PAGES;

    /* A server's last group may have room for a part of a slot only. */
    uint64_t slack = staging + (uint64_t)r->n_servers * MEMX_GROUP_PAGES;

    return (size > limit ? size - limit : 0) + MIN(slack, size);
}

/* Shares @pages out by @room; false if it isn't enough. */
static bool share_out(unsigned n, uint64_t pages, const uint64_t *room,
                      uint64_t *share)
{
    uint64_t total = 0, given = 0;

    for (unsigned i = 0; i < n; i++) {
        total += room[i];
    }
    if (total < pages) {
        return false;
    }
    for (unsigned i = 0; i < n; i++) {
        share[i] = total ? (uint64_t)((__uint128_t)pages * room[i] / total)
                         : 0;
        given += share[i];
    }
    for (unsigned i = 0; i < n; i++) {
        uint64_t more = MIN(pages - given, room[i] - share[i]);

        share[i] += more;
        given += more;
    }
    return true;
}

static uint64_t weight(const MemxServer *s)
{
    return !memx_server_in_use(s) ? 0
           : s->want_pages ? s->want_pages : s->reserved_pages;
}

void memx_pool_quotas_locked(MemxRegion *r)
{
    uint64_t total = 0;

    for (unsigned i = 0; i < r->n_servers; i++) {
        total += weight(&r->server[i]);
    }
    for (unsigned i = 0; i < r->n_servers; i++) {
        MemxServer *s = &r->server[i];
        uint64_t part = (__uint128_t)r->table.n_chunks * weight(s) /
                        MAX(total, 1);

        s->chunk_quota = memx_server_in_use(s)
                         ? MIN(part + 1, r->table.n_chunks) : 0;
    }
}

static bool set_full(GError **error, uint64_t need, uint64_t have,
                     unsigned n_servers)
{
    g_autofree char *need_text = g_format_size_full(need * MEMX_PAGE_BYTES,
                                                    G_FORMAT_SIZE_IEC_UNITS);
    g_autofree char *have_text = g_format_size_full(have * MEMX_PAGE_BYTES,
                                                    G_FORMAT_SIZE_IEC_UNITS);

    g_set_error(error, MEMX_ERROR, MEMX_ERROR_FULL,
                "the %u memory server(s) have %s free but %s must be "
                "reserved (size less local size, and staging); add a server, "
                "raise a server's --capacity or raise the local size",
                n_servers, have_text, need_text);
    return false;
}

bool memx_pool_fill(MemxRegion *r, MemxServer *s, const MemxOpen *names,
                    GBytes *key, const char *address, GError **error)
{
    s->peer = memx_peer_new(r->transport, address, key, error);
    if (!s->peer) {
        return false;
    }
    s->told = true;
    s->open = *names;
    s->open.size_pages = r->table.n_pages;
    s->open.epoch = 1;
    memcpy(s->open.client, r->client_id, sizeof(s->open.client));
    memx_random(s->open.space, sizeof(s->open.space));
    memx_random(s->open.secret, sizeof(s->open.secret));
    return true;
}

MemxServer *memx_pool_add(MemxRegion *r, const MemxOptions *o, GBytes *key,
                          const char *address, GError **error)
{
    MemxServer *s = &r->server[r->n_servers];
    MemxOpen names = { .lane = MEMX_LANE_NONE };

    memx_name_set(names.vm_name, o->vm_name ? o->vm_name : "");
    memx_name_set(names.region_name, o->region_name ? o->region_name : "");
    memcpy(names.vm_uuid, o->vm_uuid, sizeof(names.vm_uuid));
    if (!memx_pool_fill(r, s, &names, key, address, error)) {
        return NULL;
    }
    for (unsigned i = 0; i < r->n_servers; i++) {
        if (!strcmp(r->server[i].peer->address, s->peer->address)) {
            g_set_error(error, MEMX_ERROR, MEMX_ERROR_INVALID,
                        "server %s is named twice; name each server once",
                        s->peer->address);
            g_clear_pointer(&s->peer, memx_peer_free);
            return NULL;
        }
    }
    s->index = r->n_servers++;
    return s;
}

/* What a server has free, asked on a connection of no space.  With @want
 * pages it asks others to give up their copies. */
static bool ask_room(MemxServer *s, unsigned timeout_ms, int cancel_fd,
                     uint64_t want, uint64_t *room, uint64_t *capacity,
                     GError **error)
{
    MemxOpen open = { .lane = MEMX_LANE_NONE };
    MemxCall ping = { .request = { .opcode = MEMX_OP_PING, .group = want } };
    MemxPeerInfo info = { 0 };
    MemxChannel *channel = memx_peer_connect(s->peer, &open, timeout_ms,
                                             cancel_fd, &info, error);
    int err;

    if (!channel) {
        return false;
    }
    err = memx_channel_call(channel, &ping, timeout_ms, cancel_fd);
    memx_channel_close(channel);
    if (err || ping.reply.error) {
        g_set_error(error, MEMX_ERROR, MEMX_ERROR_CONNECT,
                    "server %s: no answer to a ping: %s", s->peer->address,
                    err ? g_strerror(-err) : memx_error_name(ping.reply.error));
        return false;
    }
    if (!s->opened && ping.reply.flags & MEMX_REPLY_DRAINING) {
        g_set_error(error, MEMX_ERROR, MEMX_ERROR_CONNECT,
                    "server %s: is being drained and takes no new VM; name "
                    "another server, or undo that with memxctl drain --undo "
                    "there", s->peer->address);
        return false;
    }
    *room = ping.reply.free_pages;
    *capacity = ping.reply.capacity_pages;
    return true;
}

/* Shares the reservation out by what is free.  What is taken by other VMs'
 * copies becomes free when they are asked for it, in a moment. */
static bool reserve_first(MemxRegion *r, unsigned timeout_ms, GError **error)
{
    int64_t deadline_us = g_get_monotonic_time() +
                          MIN(timeout_ms, GIVE_WAY_MS) * 1000ll;
    uint64_t room[MEMX_SERVERS_MAX], share[MEMX_SERVERS_MAX];
    uint64_t need = memx_pool_need(r, r->limit), want = 0;
    uint64_t total, capacity;

    for (;;) {
        total = capacity = 0;
        for (unsigned i = 0; i < r->n_servers; i++) {
            uint64_t size;

            if (!ask_room(&r->server[i], timeout_ms, -1, want, &room[i],
                          &size, error)) {
                return false;
            }
            total += room[i];
            capacity += size;
        }
        if (share_out(r->n_servers, need, room, share)) {
            break;
        }
        if (capacity < need || g_get_monotonic_time() > deadline_us) {
            return set_full(error, need, total, r->n_servers);
        }
        if (want) {
            g_usleep(GIVE_WAY_POLL_MS * 1000);
        }
        want = need;
    }
    for (unsigned i = 0; i < r->n_servers; i++) {
        r->server[i].reserved_pages = share[i];
    }
    memx_pool_quotas_locked(r);
    return true;
}

bool memx_pool_open(MemxRegion *r, const MemxOptions *o, GError **error)
{
    g_autoptr(GBytes) key = o->key ? g_bytes_new(o->key, o->key_bytes) : NULL;
    unsigned n = o->servers ? g_strv_length((char **)o->servers) : 0;
    MemxServer *list[MEMX_SERVERS_MAX];

    if (!n || n > MEMX_SERVERS_MAX) {
        g_set_error(error, MEMX_ERROR, MEMX_ERROR_INVALID,
                    "%u servers are named; name 1 to %u", n,
                    MEMX_SERVERS_MAX);
        return false;
    }
    r->server = g_new0(MemxServer, MEMX_SERVERS_MAX);
    memx_random(r->client_id, sizeof(r->client_id));
    for (unsigned i = 0; i < n; i++) {
        if (!memx_pool_add(r, o, key, o->servers[i], error)) {
            return false;
        }
    }
    for (unsigned i = 0; i < n; i++) {
        list[i] = &r->server[i];
    }
    memx_farewell_hurry(); /* perhaps there is room that nobody needs */
    return reserve_first(r, o->connect_timeout_ms, error) &&
           memx_opening_create(r, list, n, o->connect_timeout_ms, error);
}

/*
 * A new ordered lane takes over from the old one, whatever that was doing.
 * What must be told before is told; and a space that the other side may still
 * want is left: the server refuses to close it.
 */
void memx_pool_close_space(MemxRegion *r, MemxServer *s, int left_ms)
{
    MemxFarewell farewell = { .open = s->open };
    MemxSide side;
    bool said;

    g_mutex_lock(&r->lock);
    side = r->side;
    farewell.close = !r->leave;
    farewell.tell = r->leave ? MEMX_OP_RESIGN : s->told ? 0 : r->tell_opcode;
    memcpy(farewell.session, r->session_id, sizeof(farewell.session));
    memx_handover_open_locked(r, s, &farewell.open);
    farewell.open.lane = MEMX_LANE_ORDERED;
    g_mutex_unlock(&r->lock);
    if (side == MEMX_SIDE_FENCED) {
        return;
    }
    said = left_ms > 0 && memx_farewell_say(s->peer, &farewell, left_ms);
    /* Nobody else has, or will have, a use for it. */
    if (!said && farewell.close && side == MEMX_SIDE_OWNER) {
        memx_farewell_later(s->peer, &farewell);
    }
    explicit_bzero(&farewell, sizeof(farewell)); /* a secret */
}

void memx_pool_close(MemxRegion *r)
{
    int64_t deadline_us = g_get_monotonic_time() + CLOSE_MS * 1000;

    for (unsigned i = 0; i < r->n_servers; i++) {
        MemxServer *s = &r->server[i];

        for (unsigned lane = 0; lane <= MEMX_LANE_FETCH; lane++) {
            g_clear_pointer(&s->lane[lane].incoming, memx_channel_close);
            g_clear_pointer(&s->lane[lane].channel, memx_channel_close);
        }
        if (s->opened) {
            /* Each has its part of what is left. */
            memx_pool_close_space(
                r, s, (deadline_us - g_get_monotonic_time()) / 1000 /
                      (r->n_servers - i));
        }
        memx_peer_free(s->peer);
    }
    g_clear_pointer(&r->server, g_free);
    r->n_servers = 0;
}

/* How much more of the reservation each server could use and grant. */
static bool growth_room(MemxRegion *r, uint64_t want, uint64_t *room,
                        GError **error)
{
    uint64_t chunk_pages = r->chunk_bytes / MEMX_PAGE_BYTES;
    uint64_t unplaced = r->table.n_chunks;

    for (unsigned i = 0; i < r->n_servers; i++) {
        uint64_t capacity;

        room[i] = 0;
        if (memx_server_in_use(&r->server[i]) &&
            !ask_room(&r->server[i], ROOM_MS, -1, want, &room[i],
                      &capacity, error)) {
            return false;
        }
    }
    g_mutex_lock(&r->lock);
    for (unsigned i = 0; i < r->n_servers; i++) {
        unplaced -= r->server[i].n_chunks;
    }
    for (unsigned i = 0; i < r->n_servers; i++) {
        MemxServer *s = &r->server[i];
        uint64_t held = s->remote_pages + s->kept_pages;
        /* More than its chunks' pages can't go there. */
        uint64_t most = (s->n_chunks + unplaced) * chunk_pages;

        room[i] += held > s->reserved_pages ? held - s->reserved_pages : 0;
        if (!memx_server_in_use(s)) {
            continue;
        }
        room[i] = MIN(room[i], most > s->reserved_pages
                               ? most - s->reserved_pages : 0);
    }
    g_mutex_unlock(&r->lock);
    return true;
}

/* Reserves as @pages say, or as before. */
static bool reserve_all(MemxRegion *r, const uint64_t *pages,
                        const uint64_t *old, GError **error)
{
    uint64_t before[MEMX_SERVERS_MAX];

    for (unsigned i = 0; i < r->n_servers; i++) {
        before[i] = r->server[i].shall_pages; /* `resize` is held */
        if (pages[i] != old[i] &&
            !memx_reserve_pages(r, &r->server[i], pages[i], error)) {
            for (unsigned k = 0; k <= i; k++) { /* it may be late */
                if (pages[k] != old[k]) {
                    memx_reserve_pages(r, &r->server[k], before[k], NULL);
                }
            }
            return false;
        }
    }
    g_mutex_lock(&r->lock);
    for (unsigned i = 0; i < r->n_servers; i++) {
        r->server[i].want_pages = 0;
    }
    memx_pool_quotas_locked(r);
    g_mutex_unlock(&r->lock);
    return true;
}

static bool grow(MemxRegion *r, uint64_t more, const uint64_t *old,
                 GError **error)
{
    int64_t deadline_us = g_get_monotonic_time() + GIVE_WAY_MS * 1000ll;
    uint64_t room[MEMX_SERVERS_MAX], share[MEMX_SERVERS_MAX], want = 0;

    for (;;) {
        g_autoptr(GError) refused = NULL;
        uint64_t total = 0;

        if (!growth_room(r, want, room, error)) {
            return false;
        }
        for (unsigned i = 0; i < r->n_servers; i++) {
            total += room[i];
        }
        if (share_out(r->n_servers, more, room, share)) {
            for (unsigned i = 0; i < r->n_servers; i++) {
                share[i] += old[i];
            }
            if (reserve_all(r, share, old, &refused)) {
                return true;
            }
        } else {
            set_full(&refused, more, total, r->n_servers);
        }
        /* Copies, ours too, are given up in a moment. */
        if (!g_error_matches(refused, MEMX_ERROR, MEMX_ERROR_FULL) ||
            g_get_monotonic_time() > deadline_us) {
            g_propagate_error(error, g_steal_pointer(&refused));
            return false;
        }
        want = more;
        g_usleep(GIVE_WAY_POLL_MS * 1000);
    }
}

bool memx_pool_reserve_each(MemxRegion *r, const uint64_t *need,
                            GError **error)
{
    int64_t deadline_us = g_get_monotonic_time() + GIVE_WAY_MS * 1000ll;
    uint64_t old[MEMX_SERVERS_MAX], pages[MEMX_SERVERS_MAX];

    g_mutex_lock(&r->lock);
    for (unsigned i = 0; i < r->n_servers; i++) {
        old[i] = r->server[i].reserved_pages;
        pages[i] = MAX(old[i], need[i]);
    }
    g_mutex_unlock(&r->lock);
    for (;;) {
        g_autoptr(GError) refused = NULL;

        if (reserve_all(r, pages, old, &refused)) {
            return true;
        }
        if (!g_error_matches(refused, MEMX_ERROR, MEMX_ERROR_FULL) ||
            g_get_monotonic_time() > deadline_us) {
            g_propagate_error(error, g_steal_pointer(&refused));
            return false;
        }
        for (unsigned i = 0; i < r->n_servers; i++) {
            uint64_t room, capacity;

            if (memx_server_in_use(&r->server[i]) &&
                !ask_room(&r->server[i], ROOM_MS, -1, pages[i] - old[i],
                          &room, &capacity, error)) {
                return false;
            }
        }
        g_usleep(GIVE_WAY_POLL_MS * 1000);
    }
}

bool memx_pool_plan(MemxRegion *r, MemxServer **list, unsigned n,
                    uint64_t need, int cancel_fd, uint64_t *want,
                    GError **error)
{
    int64_t deadline_us = g_get_monotonic_time() + GIVE_WAY_MS * 1000ll;
    uint64_t room[MEMX_SERVERS_MAX], total, capacity, ask = 0;

    for (;;) {
        total = capacity = 0;
        for (unsigned i = 0; i < n; i++) {
            MemxServer *s = list[i];
            uint64_t size, held;

            if (!ask_room(s, ROOM_MS, cancel_fd, ask, &room[i], &size,
                          error)) {
                return false;
            }
            g_mutex_lock(&r->lock);
            held = s->remote_pages + s->kept_pages;
            room[i] += MAX(s->reserved_pages, held);
            g_mutex_unlock(&r->lock);
            room[i] = MIN(room[i], r->table.n_pages);
            total += room[i];
            capacity += size;
        }
        if (share_out(n, need, room, want)) {
            return true;
        }
        if (capacity < need || g_get_monotonic_time() > deadline_us ||
            memx_stopping(r)) {
            return set_full(error, need, total, n);
        }
        ask = need;
        g_usleep(GIVE_WAY_POLL_MS * 1000);
    }
}

static uint64_t reserved_in_use(MemxRegion *r, uint64_t *pages)
{
    uint64_t sum = 0;

    g_mutex_lock(&r->lock);
    for (unsigned i = 0; i < r->n_servers; i++) {
        pages[i] = memx_server_in_use(&r->server[i])
                   ? r->server[i].reserved_pages : 0;
        sum += pages[i];
    }
    g_mutex_unlock(&r->lock);
    return sum;
}

bool memx_pool_reserve_least(MemxRegion *r, uint64_t limit, GError **error)
{
    uint64_t need = memx_pool_need(r, limit), old[MEMX_SERVERS_MAX];
    uint64_t now = reserved_in_use(r, old);

    return need <= now || grow(r, need - now, old, error);
}

/* Less is needed, but chunks are still to move, and until then what their old
 * server has must be reserved there: keeper.c lowers it when they have.  False:
 * all are where they belong. */
static bool want_less(MemxRegion *r, uint64_t need, const uint64_t *old)
{
    uint64_t room[MEMX_SERVERS_MAX], share[MEMX_SERVERS_MAX];
    MemxServer *list[MEMX_SERVERS_MAX];
    unsigned n = 0;
    bool moves;

    g_mutex_lock(&r->lock);
    moves = r->rebalance && need;
    for (unsigned i = 0; i < r->n_servers; i++) {
        room[i] = r->server[i].want_pages ? MIN(r->server[i].want_pages,
                                                old[i]) : old[i];
    }
    if (moves && (share_out(r->n_servers, need, room, share) ||
                  share_out(r->n_servers, need, old, share))) {
        for (unsigned i = 0; i < r->n_servers; i++) {
            if (memx_server_in_use(&r->server[i])) {
                share[n] = share[i];
                list[n++] = &r->server[i];
            }
        }
        memx_keeper_want_locked(r, list, n, share);
    }
    g_mutex_unlock(&r->lock);
    return moves;
}

void memx_pool_want_as_placed_locked(MemxRegion *r)
{
    uint64_t need = memx_pool_need(r, MIN(r->limit, r->table.n_pages));
    uint64_t want[MEMX_SERVERS_MAX], left[MEMX_SERVERS_MAX] = { 0 };
    uint64_t more[MEMX_SERVERS_MAX], placed = 0, given = 0;
    MemxServer *list[MEMX_SERVERS_MAX];
    unsigned n = 0;

    if (!need) { /* all is given back soon: no reason to move anything */
        return;
    }
    for (unsigned i = 0; i < r->n_servers; i++) {
        if (memx_server_in_use(&r->server[i])) {
            list[n++] = &r->server[i];
            placed += r->server[i].n_chunks;
        }
    }
    for (unsigned i = 0; i < n; i++) {
        uint64_t part = (__uint128_t)need * list[i]->n_chunks / MAX(placed, 1);

        want[i] = MIN(part, list[i]->reserved_pages);
        left[i] = list[i]->reserved_pages - want[i];
        given += want[i];
    }
    if (share_out(n, need - given, left, more)) {
        for (unsigned i = 0; i < n; i++) {
            want[i] += more[i];
        }
        memx_keeper_want_locked(r, list, n, want);
    }
}

bool memx_pool_reserve(MemxRegion *r, uint64_t limit, GError **error)
{
    uint64_t old[MEMX_SERVERS_MAX], share[MEMX_SERVERS_MAX];
    uint64_t need = memx_pool_need(r, limit);
    uint64_t now = reserved_in_use(r, old);
    bool ok;

    if (need < now) {
        ok = want_less(r, need, old) ||
             (share_out(r->n_servers, need, old, share) &&
              reserve_all(r, share, old, error));
    } else {
        ok = need == now || grow(r, need - now, old, error);
    }
    if (ok) {
        g_mutex_lock(&r->lock);
        r->grown = false;
        g_mutex_unlock(&r->lock);
    }
    return ok;
}

void memx_pool_reserved_locked(const MemxRegion *r, MemxReserved *reserved)
{
    for (unsigned i = 0; i < r->n_servers; i++) {
        reserved->pages[i] = r->server[i].shall_pages;
        reserved->want[i] = r->server[i].want_pages;
    }
}

bool memx_pool_restore(MemxRegion *r, const MemxReserved *reserved)
{
    uint64_t now[MEMX_SERVERS_MAX];
    bool all = true;

    g_mutex_lock(&r->lock);
    for (unsigned i = 0; i < r->n_servers; i++) {
        now[i] = MAX(r->server[i].reserved_pages, r->server[i].shall_pages);
    }
    g_mutex_unlock(&r->lock);
    for (unsigned i = 0; i < r->n_servers; i++) {
        if (reserved->pages[i] < now[i]) {
            all &= memx_reserve_pages(r, &r->server[i], reserved->pages[i],
                                      NULL);
        }
    }
    g_mutex_lock(&r->lock);
    for (unsigned i = 0; i < r->n_servers; i++) {
        r->server[i].want_pages = reserved->want[i];
    }
    memx_pool_quotas_locked(r);
    g_mutex_unlock(&r->lock);
    return all;
}
