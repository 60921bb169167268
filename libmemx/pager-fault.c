/*
 * The fault thread.
 *
 * Theory of operation
 *
 * It waits for messages of the userfaultfd and for answers on the servers'
 * FAULT lanes, and takes the answers first.  Per message, under the lock:
 *
 *   chunk exclusive     leave it: woken at the end of that, faults again
 *   page present        somebody installed it since: wake.  If the kernel says
 *                       that it isn't mapped, it is lost: MEMX_EVENT_BUG, and
 *                       the thread is not woken
 *   page staged         copy it back from staging
 *   page stored         request it from the chunk's server; or wait for prefetch,
 *                       if that has asked for it, or is about to
 *   none of these       first touch: zeros (pager-touch.c)
 *
 * Whatever lacks budget, a free request or the server is left (see region.h).
 * Single pages are filled by COPY: it is as cheap as a 4 KiB MOVE alone, and
 * much cheaper when other CPUs run the process, since nothing is unmapped.
 *
 * Fault path, all of it: no allocation, no logging, no touch of the region's
 * memory, no lock but the region's own.
 *
 * SPDX-License-Identifier: LGPL-2.1-or-later
 */
#include <errno.h>
#include <sys/mman.h>
#include "region.h"
#include "uffd.h"
#include "urgent.h"

#define MESSAGES 16
#define ROUNDS 64 /* without a look at the doorbell */

static void wake_page(MemxRegion *r, uint64_t page)
{
    memx_uffd_wake(r->uffd, memx_page_hva(r, page), MEMX_PAGE_BYTES);
}

/* A fault on a page that the table calls local. */
static void fault_present(MemxRegion *r, uint64_t page)
{
    bool bug = memx_page_mapped(r->pagemap_fd, memx_page_hva(r, page)) == 0;

    if (bug && !r->bug) {
        r->bug = true;
        memx_event_post_locked(r, MEMX_EVENT_BUG, -1);
    }
    g_mutex_unlock(&r->lock);
    if (!bug) {
        wake_page(r, page);
    }
}

static void fault_staged(MemxRegion *r, MemxSlot *slot, uint64_t page)
{
    uint64_t group = page / MEMX_GROUP_PAGES;
    unsigned i = page % MEMX_GROUP_PAGES;
    uint32_t c = memx_chunk_of_group(&r->table, group);
    ssize_t n;

    memx_chunk_faulted_locked(r, c);
    if (!memx_budget_take_locked(r, 1)) {
        memx_starve_locked(r);
        if (slot->state == MEMX_SLOT_SAMPLED) {
            memx_ager_ring(r->ager); /* with its frame it can come back */
        }
        g_mutex_unlock(&r->lock);
        return;
    }
    slot->users++;
    r->table.chunk[c].installing++;
    if (slot->state == MEMX_SLOT_SAMPLED) {
        r->count.sampled++;
    } else {
        r->count.staged++;
    }
    g_mutex_unlock(&r->lock);

    n = memx_uffd_copy(r->uffd, memx_page_hva(r, page),
                       slot->base + i * MEMX_PAGE_BYTES, MEMX_PAGE_BYTES, 0);

    g_mutex_lock(&r->lock);
    if (n == MEMX_PAGE_BYTES) {
        uint64_t bit = 1ull << i;

        memx_trace_pages(MEMX_STAGED_TO_LOCAL, bit);
        if (slot->state == MEMX_SLOT_DONE && r->table.stored[group] & bit) {
            /* Its eviction ended, and counted it as remote, meanwhile. */
            memx_installed_locked(r, group, bit);
        } else {
            memx_set_group_locked(r, group, r->table.present[group] | bit,
                                  r->table.stored[group]);
        }
    } else {
        memx_budget_give_locked(r, 1);
    }
    memx_installing_end_locked(r, c);
    slot->users--;
    if (slot->state == MEMX_SLOT_SAMPLED) {
        memx_ager_ring(r->ager); /* the rest comes back, too */
    } else if (!slot->users && slot->state == MEMX_SLOT_DONE) {
        memx_worker_ring(&r->store);
    }
    g_mutex_unlock(&r->lock);
    if (n != MEMX_PAGE_BYTES) {
        wake_page(r, page);
    }
}

/* Is a request for the page in flight? */
static bool fault_pending(MemxRegion *r, uint64_t page)
{
    for (uint64_t m = r->fault_busy; m; m &= m - 1) {
        if (r->fault_page[__builtin_ctzll(m)] == page) {
            return true;
        }
    }
    return false;
}

G_STATIC_ASSERT(MEMX_FAULTS_MAX == 64); /* fault_busy is a word */

static MemxFault *fault_take(MemxRegion *r, MemxServer *s, uint64_t page,
                             uint64_t now)
{
    unsigned i;

    /* One server that doesn't answer must not take all requests. */
    if (!~r->fault_busy ||
        (r->n_servers > 1 && s->faults >= MEMX_FAULTS_MAX / 2)) {
        r->faults_full = true;
        return NULL;
    }
    i = __builtin_ctzll(~r->fault_busy);
    r->fault_busy |= 1ull << i;
    r->fault_page[i] = page;
    r->fault[i].server = s->index;
    r->fault[i].start_ns = now;
    s->faults++;
    return &r->fault[i];
}

static void fault_put(MemxRegion *r, MemxFault *f)
{
    r->fault_busy &= ~(1ull << (f - r->fault));
    r->server[f->server].faults--;
    memx_waits_end_locked(&r->server[f->server]);
}

/* A prefetch request for the page is about to be answered: no second one. */
static bool coming_soon(MemxRegion *r, uint64_t group, uint64_t bit,
                        uint64_t now)
{
    MemxSlot *slot = memx_staging_find(&r->staging, group, false);
    MemxServer *s;

    if (!slot || !(slot->mask & bit)) {
        return false;
    }
    s = &r->server[slot->server];
    if (!s->lane[MEMX_LANE_FETCH].up ||
        slot->sequence > s->lane[MEMX_LANE_FETCH].completed + 2) {
        return false;
    }
    memx_slot_waited_locked(s, slot, bit, now);
    return true;
}

static void prefetch_range(MemxRegion *r, uint64_t first, uint64_t end,
                           uint32_t window, int direction, uint64_t page)
{
    end = MIN(end, r->table.n_pages);
    while (first < end) {
        uint64_t group = first / MEMX_GROUP_PAGES;
        unsigned from = first % MEMX_GROUP_PAGES;
        uint64_t stop = MIN(end, (group + 1) * MEMX_GROUP_PAGES);
        uint64_t mask = memx_run_mask(from, stop - first);

        if (window >= MEMX_STREAM_MARKER_PAGES) {
            unsigned groups = MEMX_STREAM_MARKER_PAGES / MEMX_GROUP_PAGES;

            if (direction > 0 && group % groups == 0) {
                mask &= ~1ull;
            } else if (direction < 0 && group % groups == groups - 1) {
                mask &= ~(1ull << 63);
            }
        }
        if (page / MEMX_GROUP_PAGES == group) {
            mask &= ~(1ull << page % MEMX_GROUP_PAGES);
        }
        memx_prefetch_push_locked(r, group, mask, direction);
        first = stop;
    }
}

static void leave_to_server(MemxServer *s)
{
    s->dropped++;
    if (!s->waiting_since_ns) {
        s->waiting_since_ns = memx_now_ns();
    }
}

static void fault_remote(MemxRegion *r, uint64_t page, uint64_t now)
{
    uint64_t group = page / MEMX_GROUP_PAGES;
    uint64_t bit = 1ull << page % MEMX_GROUP_PAGES;
    uint32_t c = memx_chunk_of_group(&r->table, group);
    MemxChunk *chunk = &r->table.chunk[c];
    MemxServer *s = &r->server[chunk->server];
    uint64_t first, end;
    uint32_t window;
    int direction;
    MemxFault *f;
    MemxHint hint;
    bool wake;

    if (chunk->fetching &&
        (fault_pending(r, page) || coming_soon(r, group, bit, now))) {
        if (!s->waiting_since_ns) {
            s->waiting_since_ns = now;
        }
        g_mutex_unlock(&r->lock);
        return;
    }
    hint = memx_prefetch_hurry_locked(r, s, page);
    if (hint == MEMX_HINT_FOLLOWED) {
        memx_chunk_faulted_locked(r, c);
        r->count.refaults += chunk->evicted > 0;
        g_mutex_unlock(&r->lock);
        return;
    }
    if (!s->lane[MEMX_LANE_FAULT].up || s->health == MEMX_SERVER_EMPTY ||
        !(f = fault_take(r, s, page, now))) {
        leave_to_server(s);
        g_mutex_unlock(&r->lock);
        return;
    }
    if (!memx_budget_take_locked(r, 1)) {
        fault_put(r, f);
        memx_starve_locked(r);
        g_mutex_unlock(&r->lock);
        return;
    }
    if (hint == MEMX_HINT_NONE) {
        memx_streams_lost(&r->streams, page);
    }
    window = memx_streams_fault(&r->streams, page, &first, &end, &direction);
    memx_chunk_faulted_locked(r, c);
    r->count.refaults += chunk->evicted > 0;
    chunk->fetching++;
    r->count.remote++;
    if (!s->waiting_since_ns) {
        s->waiting_since_ns = now;
    }
    f->iov = (struct iovec) { f->buffer, MEMX_PAGE_BYTES };
    f->call = (MemxCall) {
        .request = { .opcode = MEMX_OP_FETCH, .group = group, .mask = bit },
        .in = &f->iov, .n_in = 1, .owner = f,
    };
    g_mutex_unlock(&r->lock);

    if (memx_lane_submit(r, s, MEMX_LANE_FAULT, &f->call)) {
        g_mutex_lock(&r->lock);
        wake = !memx_remote_of(r, group, bit);
        if (!wake) {
            leave_to_server(s);
        }
        fault_put(r, f);
        chunk->fetching--;
        memx_budget_give_locked(r, 1);
        g_mutex_unlock(&r->lock);
        if (wake) {
            wake_page(r, page);
        }
        return;
    }
    if (first < end) {
        g_mutex_lock(&r->lock);
        prefetch_range(r, first, end, window, direction, page);
        g_mutex_unlock(&r->lock);
    }
}

static void fault_handle(MemxRegion *r, uint64_t address, uint64_t now)
{
    uint64_t page = (address - (uintptr_t)r->base) / MEMX_PAGE_BYTES;
    uint64_t group = page / MEMX_GROUP_PAGES;
    uint64_t bit = 1ull << page % MEMX_GROUP_PAGES;
    MemxChunk *chunk;
    MemxSlot *slot;

    g_mutex_lock(&r->lock);
    if (address < (uintptr_t)r->base || page >= r->table.n_pages) {
        /* In staging: a page that was taken out wasn't there. */
        r->bug = true;
        memx_event_post_locked(r, MEMX_EVENT_BUG, -1);
        g_mutex_unlock(&r->lock);
        return;
    }
    chunk = &r->table.chunk[memx_chunk_of_group(&r->table, group)];
    if (memx_chunk_exclusive(chunk)) {
        memx_want_locked(r, chunk);
        g_mutex_unlock(&r->lock);
        return;
    }
    if (r->table.present[group] & bit) {
        fault_present(r, page);
        return;
    }
    slot = memx_staging_find(&r->staging, group, true);
    if (slot && slot->staged & bit) {
        fault_staged(r, slot, page);
    } else if (r->table.stored[group] & bit) {
        fault_remote(r, page, now);
    } else {
        memx_touch_fault(r, page);
    }
}

/* Whoever waited for a page that was refused may not come again before it is
 * there: a vCPU of a VM that was stopped for it. */
static void ask_refused(MemxRegion *r, MemxServer *s)
{
    bool ask = false;
    uint64_t page;

    g_mutex_lock(&r->lock);
    page = s->refused_page;
    if (s->refused) {
        uint64_t group = page / MEMX_GROUP_PAGES;
        uint32_t c = memx_chunk_of_group(&r->table, group);

        if (!memx_remote_of(r, group, 1ull << page % MEMX_GROUP_PAGES) ||
            r->table.chunk[c].server != s->index) {
            s->refused = NULL;
            memx_answered_locked(s);
            memx_waits_end_locked(s);
        } else {
            ask = s->lane[MEMX_LANE_FAULT].up && !s->faults &&
                  s->health != MEMX_SERVER_EMPTY;
        }
    }
    g_mutex_unlock(&r->lock);
    if (ask) {
        fault_handle(r, (uintptr_t)memx_page_hva(r, page), memx_now_ns());
    }
}

static void latency_record(MemxRegion *r, uint64_t ns)
{
    uint64_t us = ns / 1000;
    unsigned bucket = us ? 63 - __builtin_clzll(us) : 0;

    r->count.latency[MIN(bucket, MEMX_LATENCY_BUCKETS - 1u)]++;
}

/* Puts a fetched page in; the lock is held on entry, not on return. */
static void fault_install(MemxRegion *r, MemxFault *f)
{
    uint64_t page = r->fault_page[f - r->fault];
    uint64_t group = page / MEMX_GROUP_PAGES;
    uint64_t bit = 1ull << page % MEMX_GROUP_PAGES;
    uint32_t c = memx_chunk_of_group(&r->table, group);
    ssize_t n;

    r->table.chunk[c].installing++;
    g_mutex_unlock(&r->lock);

    n = memx_uffd_copy(r->uffd, memx_page_hva(r, page), f->buffer,
                       MEMX_PAGE_BYTES, 0);

    g_mutex_lock(&r->lock);
    if (n == MEMX_PAGE_BYTES) {
        memx_trace_pages(MEMX_REMOTE_FAULTED, bit);
        memx_installed_locked(r, group, bit);
        latency_record(r, memx_now_ns() - f->start_ns);
    } else {
        memx_budget_give_locked(r, 1); /* prefetch was faster */
        if (n == -ENOMEM) {
            memx_starve_locked(r);
        }
    }
    memx_installing_end_locked(r, c);
    r->table.chunk[c].fetching--;
    fault_put(r, f);
    g_mutex_unlock(&r->lock);
    if (n != MEMX_PAGE_BYTES && n != -ENOMEM) {
        wake_page(r, page);
    }
}

static void ask_again_locked(MemxServer *s, uint64_t page, const char *why)
{
    s->refused_page = s->refused ? s->refused_page : page;
    s->refused = why;
}

/*
 * The server didn't give a page that it acknowledged.  Either it lost it: then
 * it is as if it came back empty, and nothing more is asked of it until it
 * comes back again.  Or it is going, or in trouble: connect again, and ask
 * again, until the page came.
 */
static void fault_refused(MemxRegion *r, MemxServer *s, uint64_t page,
                          unsigned error)
{
    if (error == MEMX_ERR_NOT_HELD) {
        s->refused = NULL;
        if (s->health != MEMX_SERVER_EMPTY) {
            s->health = MEMX_SERVER_EMPTY;
            memx_event_post_locked(r, MEMX_EVENT_SERVER_EMPTY, s->index);
        }
    } else {
        ask_again_locked(s, page, memx_error_name(error));
        memx_channel_shutdown(s->lane[MEMX_LANE_FAULT].channel);
    }
    leave_to_server(s);
}

static void fault_answered(MemxRegion *r, MemxFault *f)
{
    uint64_t page = r->fault_page[f - r->fault];
    uint64_t group = page / MEMX_GROUP_PAGES;
    uint64_t bit = 1ull << page % MEMX_GROUP_PAGES;
    MemxChunk *chunk = &r->table.chunk[memx_chunk_of_group(&r->table, group)];
    MemxServer *s = &r->server[f->server];
    bool wake = false;

    g_mutex_lock(&r->lock);
    if (!f->call.status && !f->call.reply.error) {
        memx_answered_locked(s);
        s->gave = true;
    }
    if (memx_chunk_exclusive(chunk)) {
        /* Being discarded: woken, and resolved anew, when that has ended. */
        memx_want_locked(r, chunk);
    } else if (!memx_remote_of(r, group, bit)) {
        wake = true; /* what came is of no use */
    } else if (f->call.status) {
        if (!s->gave) { /* that may be what broke it */
            ask_again_locked(s, page, "the connection broke each time");
        }
        leave_to_server(s); /* until it is back */
    } else if (f->call.reply.error) {
        fault_refused(r, s, page, f->call.reply.error);
    } else {
        fault_install(r, f);
        return;
    }
    memx_budget_give_locked(r, 1);
    chunk->fetching--;
    fault_put(r, f);
    g_mutex_unlock(&r->lock);
    if (wake) {
        wake_page(r, page);
    }
}

/* Answers; lanes that broke; lanes that are new.  Those who were left, for
 * want of a lane or of a free request, fault again.  False: nothing came. */
static bool fault_lanes(MemxRegion *r)
{
    bool wake = false, any = false;

    for (unsigned i = 0; i < r->n_servers; i++) {
        MemxServer *s = &r->server[i];
        MemxCall *call;

        while ((call = memx_lane_progress(r, s, MEMX_LANE_FAULT))) {
            fault_answered(r, call->owner);
            any = true;
            wake |= r->faults_full;
        }
        if (memx_lane_refresh(r, s, MEMX_LANE_FAULT)) {
            s->gave = false;
            wake = true;
        }
    }
    if (wake) {
        r->faults_full = false;
        memx_wake_all(r);
    }
    return any;
}

static bool fault_messages(MemxRegion *r)
{
    struct uffd_msg msg[MESSAGES];
    int n = memx_uffd_read(r->uffd, msg, MESSAGES);
    uint64_t now = n > 0 ? memx_now_ns() : 0;

    for (int i = 0; i < n; i++) {
        if (msg[i].event == UFFD_EVENT_PAGEFAULT) {
            fault_handle(r, msg[i].arg.pagefault.address, now);
        }
    }
    return n > 0;
}

void *memx_fault_thread(void *opaque)
{
    MemxRegion *r = opaque;
    struct pollfd pfd[MEMX_LANE_POLL_MAX + 1];

    memx_thread_urgent();
    while (!memx_stopping(r)) {
        int lanes = memx_lane_poll(r, &r->faults, MEMX_LANE_FAULT, pfd);
        bool more = false;

        pfd[lanes] = (struct pollfd) { .fd = r->uffd, .events = POLLIN };
        poll(pfd, lanes + 1, r->n_touches ? 0 : -1);
        if (pfd[0].revents) {
            memx_worker_silence(&r->faults);
            for (unsigned i = 0; i < r->n_servers; i++) {
                ask_refused(r, &r->server[i]);
            }
        }
        for (int i = 0; i < lanes; i++) {
            more |= pfd[i].revents != 0;
        }
        if (more) {
            fault_lanes(r);
        }
        /* What comes next is mostly there already: looking is cheaper than
         * asking poll(), and nobody waits for it where it isn't. */
        more |= pfd[lanes].revents || r->n_touches;
        for (unsigned i = 0; more && i < ROUNDS; i++) {
            more = fault_messages(r);
            if (r->fault_busy) {
                more |= fault_lanes(r);
            }
            more |= memx_touch_step(r);
        }
    }
    while (memx_touch_step(r)) {
        ;
    }
    return NULL;
}

bool memx_faults_init(MemxRegion *r, GError **error)
{
    size_t bytes = MEMX_FAULTS_MAX * MEMX_PAGE_BYTES;

    r->fault_buffers = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE |
                            MAP_ANONYMOUS | MAP_POPULATE, -1, 0);
    if (r->fault_buffers == MAP_FAILED) {
        r->fault_buffers = NULL;
        g_set_error(error, MEMX_ERROR, MEMX_ERROR_SYSTEM,
                    "cannot map %zu bytes for fetches: %s", bytes,
                    g_strerror(errno));
        return false;
    }
    for (unsigned i = 0; i < MEMX_FAULTS_MAX; i++) {
        r->fault[i].buffer = r->fault_buffers + i * MEMX_PAGE_BYTES;
    }
    return true;
}

void memx_faults_destroy(MemxRegion *r)
{
    if (r->fault_buffers) {
        munmap(r->fault_buffers, MEMX_FAULTS_MAX * MEMX_PAGE_BYTES);
    }
}
