/*
 * Figures of a split migration's source: for QEMU's own counters, for
 * query-migrate, and to notice a server that will not come back.
 *
 * The regions count.  Asking them takes a lock each and some microseconds, so
 * what QEMU reads for every page is kept here and brought up to date by the
 * migration thread as it goes, and by query-migrate.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#include "qemu/osdep.h"
#include "exec/ramblock.h"
#include "migration/migration.h"
#include "migration/migration-stats.h"
#include "migration/options.h"
#include "monitor/monitor.h"
#include "qapi/error.h"
#include "qapi/qapi-types-migration.h"
#include "qemu/cutils.h"
#include "qemu/lockable.h"
#include "qemu/units.h"
#include "hooks.h"
#include "memx-backend.h"
#include "memx-split.h"

#define PAGE (4 * KiB)
#define DOWN_S 30               /* without a connection: give up */
#define SILENT_S 2              /* without an answer: don't count on it */
#define ENDLESS (1ull << 56)    /* bytes that no downtime-limit allows */

static struct {
    QemuMutex lock;             /* protects all but the last four */
    MemxSplitPhase phase;
    uint8_t session[MEMX_SESSION_BYTES];
    MemxSplitStats sums;        /* over all regions */
    int64_t rated_at;           /* when the rates were computed */
    int64_t up_at;              /* when all servers were last connected */
    struct {
        uint64_t sent_bytes;    /* at rated_at */
        uint64_t rate;
        uint64_t peak;          /* the highest rate so far */
        int64_t answered_at;    /* or nothing was pending */
    } servers[MEMX_SERVERS_MAX];
    uint64_t moved, to_move;    /* bytes, from server to server */
    uint64_t stream_bytes;      /* sent by the main stream, at rated_at */
    uint64_t stream_peak;
    bool silent;                /* some server is */

    int64_t migration;          /* whose they are: when it began */
    uint64_t sent_bytes;        /* atomic */
    uint64_t pending_bytes;     /* atomic */
    int64_t window_ms;          /* the migration thread's: when it began */
} figures;

static void __attribute__((constructor)) figures_init(void)
{
    qemu_mutex_init(&figures.lock);
}

/* The last migration was a split one. */
static bool is_current(void)
{
    return figures.migration &&
           figures.migration == migrate_get_current()->start_time;
}

uint64_t memx_split_sent_bytes(void)
{
    return is_current() ? qatomic_read(&figures.sent_bytes) : 0;
}

uint64_t memx_split_pending_bytes(void)
{
    return qatomic_read(&figures.pending_bytes);
}

uint64_t memx_split_excess_bytes(uint64_t used, uint64_t limit)
{
    int64_t now_ms = qemu_clock_get_ms(QEMU_CLOCK_REALTIME);
    int64_t ms = MAX(now_ms - figures.window_ms, BUFFER_DELAY);
    double allowed = (double)limit * ms / BUFFER_DELAY;

    figures.window_ms = now_ms;
    return is_current() && used > allowed
           ? MIN(used - allowed, limit - limit / 16) /* the stream's part */
           : 0;
}

void memx_split_figures_start(void)
{
    QEMU_LOCK_GUARD(&figures.lock);
    figures.migration = migrate_get_current()->start_time;
    memcpy(figures.session, memx_split.session, MEMX_SESSION_BYTES);
    memset(&figures.sums, 0, sizeof(figures.sums));
    memset(figures.servers, 0, sizeof(figures.servers));
    figures.stream_bytes = migration_transferred_bytes();
    figures.stream_peak = 0;
    figures.moved = figures.to_move = 0;
    figures.rated_at = figures.up_at = g_get_monotonic_time();
    qatomic_set(&figures.sent_bytes, 0);
    qatomic_set(&figures.pending_bytes, 0);
}

void memx_split_figures_phase(MemxSplitPhase phase)
{
    QEMU_LOCK_GUARD(&figures.lock);
    figures.phase = phase;
}

void memx_split_figures_moves(uint64_t moved, uint64_t to_move)
{
    QEMU_LOCK_GUARD(&figures.lock);
    figures.moved = moved;
    figures.to_move = to_move;
}

/* --- sums -------------------------------------------------------------- */

static void add_server(MemxSplitStats *sums, const MemxSplitStats *stats,
                       unsigned i)
{
    unsigned j;

    for (j = 0; j < sums->n_servers; j++) {
        if (g_str_equal(sums->servers[j].address,
                        stats->servers[i].address)) {
            sums->servers[j].pending_bytes += stats->servers[i].pending_bytes;
            sums->servers[j].sent_bytes += stats->servers[i].sent_bytes;
            sums->servers[j].health = MAX(sums->servers[j].health,
                                          stats->servers[i].health);
            return;
        }
    }
    if (j < MEMX_SERVERS_MAX) {
        sums->servers[sums->n_servers++] = stats->servers[i];
    }
}

/* What is pending of it. */
static uint64_t add_region(MemxSplitStats *sums, MemxRegion *region)
{
    g_autofree MemxSplitStats *stats = g_new0(MemxSplitStats, 1);
    unsigned i;

    memx_split_stats(region, stats);
    sums->hot_chunks += stats->hot_chunks;
    sums->cold_chunks += stats->cold_chunks;
    sums->pending_bytes += stats->pending_bytes;
    sums->sent_bytes += stats->sent_bytes;
    sums->sent_pages += stats->sent_pages;
    sums->zero_pages += stats->zero_pages;
    sums->left_pages += stats->left_pages;
    sums->main_pages += stats->main_pages;
    sums->main_pages_max += stats->main_pages_max;
    sums->spilled_pages += stats->spilled_pages;
    sums->fetched_pages += stats->fetched_pages;
    for (i = 0; i < stats->n_servers; i++) {
        add_server(sums, stats, i);
    }
    return stats->pending_bytes;
}

static void rate_servers(int64_t now)
{
    int64_t us = now - figures.rated_at;
    uint64_t stream;
    unsigned i;

    if (us < G_USEC_PER_SEC) {
        return;
    }
    for (i = 0; i < figures.sums.n_servers; i++) {
        uint64_t sent = figures.sums.servers[i].sent_bytes;

        figures.servers[i].rate = (double)(sent -
            figures.servers[i].sent_bytes) * G_USEC_PER_SEC / us;
        figures.servers[i].sent_bytes = sent;
        figures.servers[i].peak = MAX(figures.servers[i].peak,
                                      figures.servers[i].rate);
    }
    stream = migration_transferred_bytes() - figures.sums.sent_bytes;
    figures.stream_peak = MAX(figures.stream_peak,
                              (double)(stream - figures.stream_bytes) *
                              G_USEC_PER_SEC / us);
    figures.stream_bytes = stream;
    figures.rated_at = now;
}

static bool is_silent(unsigned i, int64_t now)
{
    return figures.sums.servers[i].health != MEMX_SERVER_UP ||
           now - figures.servers[i].answered_at > SILENT_S * G_USEC_PER_SEC;
}

/* @before: what they had answered until the last time. */
static void watch_servers(const MemxSplitStats *before, int64_t now)
{
    const MemxSplitStats *sums = &figures.sums;
    unsigned i;

    figures.silent = false;
    for (i = 0; i < sums->n_servers; i++) {
        if (!sums->servers[i].pending_bytes || i >= before->n_servers ||
            sums->servers[i].sent_bytes != before->servers[i].sent_bytes) {
            figures.servers[i].answered_at = now;
        }
        figures.silent |= is_silent(i, now);
    }
}

/* "a:1, b:2": those that may be why something takes so long. */
char *memx_split_suspects(void)
{
    const MemxSplitStats *sums = &figures.sums;
    g_autoptr(GString) text = g_string_new(NULL);
    int64_t now = g_get_monotonic_time();
    unsigned i;

    memx_split_figures_refresh(NULL);
    QEMU_LOCK_GUARD(&figures.lock);
    for (i = 0; i < sums->n_servers; i++) {
        if (sums->servers[i].pending_bytes || is_silent(i, now)) {
            g_string_append_printf(text, "%s%s", text->len ? ", " : "",
                                   sums->servers[i].address);
        }
    }
    return g_string_free(g_steal_pointer(&text), false);
}

/*
 * A server that is merely slow, or stopped, is waited for: it has what it was
 * sent.  So has one that can't be reached, perhaps: for a while.
 */
static bool check_servers(int64_t now, Error **errp)
{
    const MemxSplitStats *sums = &figures.sums;
    unsigned i;

    for (i = 0; i < sums->n_servers; i++) {
        const char *address = sums->servers[i].address;

        if (sums->servers[i].health == MEMX_SERVER_EMPTY) {
            error_setg(errp, "memory server %s came back without what it was "
                       "sent: the VM runs on here; migrate again", address);
            return false;
        }
        if (sums->servers[i].health == MEMX_SERVER_DOWN &&
            now - figures.up_at > DOWN_S * G_USEC_PER_SEC) {
            error_setg(errp, "memory server %s could not be reached for %d s: "
                       "the VM runs on here; see to the server and the "
                       "network, and migrate again", address, DOWN_S);
            return false;
        }
    }
    return true;
}

bool memx_split_figures_refresh(Error **errp)
{
    g_autofree MemxSplitStats *sums = g_new0(MemxSplitStats, 1);
    g_autofree MemxSplitStats *before = NULL;
    int64_t now = g_get_monotonic_time();
    unsigned i;

    QEMU_LOCK_GUARD(&figures.lock);
    for (i = 0; i < memx_split.n_blocks; i++) {
        MemxSplitBlock *block = &memx_split.blocks[i];

        if (qatomic_read(&block->begun) || !block->passive) {
            qatomic_set(&block->pending_bytes,
                        add_region(sums, block->region));
        }
    }
    for (i = 0; i < sums->n_servers &&
                sums->servers[i].health != MEMX_SERVER_DOWN; i++) {
    }
    if (i == sums->n_servers) {
        figures.up_at = now;
    }
    /* In QEMU's terms these are ordinary pages and zero pages. */
    stat64_add(&mig_stats.normal_pages,
               sums->sent_pages - figures.sums.sent_pages);
    stat64_add(&mig_stats.zero_pages,
               sums->zero_pages - figures.sums.zero_pages);
    before = g_memdup2(&figures.sums, sizeof(*before));
    figures.sums = *sums;
    if (sums->n_servers < before->n_servers) {
        /* One was left: their numbers are others.  Nothing was sent yet. */
        memset(figures.servers, 0, sizeof(figures.servers));
    }
    watch_servers(before, now);
    qatomic_set(&figures.sent_bytes, sums->sent_bytes);
    qatomic_set(&figures.pending_bytes, sums->pending_bytes);
    rate_servers(now);
    return check_servers(now, errp);
}

/* A part of what is left, as if it went over all links together. */
static double weighed(uint64_t bytes, uint64_t peak, double total,
                      unsigned links)
{
    return bytes * (peak ? CLAMP(total / peak, 1, links) : links);
}

uint64_t memx_split_pending_weighed(uint64_t stream)
{
    MigrationState *s = migrate_get_current();
    double total = (double)s->threshold_size * 1000 /
                   MAX(migrate_downtime_limit(), 1);
    unsigned links, i;
    double most;

    QEMU_LOCK_GUARD(&figures.lock);
    if (figures.silent) {
        /* Its part can't be sent in any time: the VM had better run on. */
        return ENDLESS;
    }
    links = figures.sums.n_servers + 1;
    most = weighed(stream, figures.stream_peak, total, links);
    for (i = 0; i < figures.sums.n_servers; i++) {
        most = MAX(most, weighed(figures.sums.servers[i].pending_bytes,
                                 figures.servers[i].peak, total, links));
    }
    return MAX(most, stream + figures.sums.pending_bytes) - stream;
}

void memx_split_figures_end(void)
{
    qatomic_set(&figures.pending_bytes, 0);
}

/* --- for people -------------------------------------------------------- */

static MemxSplitServerInfo *server_info(unsigned i)
{
    MemxSplitServerInfo *info = g_new0(MemxSplitServerInfo, 1);

    info->address = g_strdup(figures.sums.servers[i].address);
    info->state = (MemxServerState)figures.sums.servers[i].health;
    if (info->state == MEMX_SERVER_STATE_UP &&
        is_silent(i, g_get_monotonic_time())) {
        info->state = MEMX_SERVER_STATE_STALLED;
    }
    info->pending = figures.sums.servers[i].pending_bytes;
    info->sent = figures.sums.servers[i].sent_bytes;
    info->rate = figures.servers[i].rate;
    return info;
}

void memx_split_query(MigrationInfo *migration)
{
    const MemxSplitStats *sums = &figures.sums;
    MemxSplitInfo *info;
    MemxSplitServerInfoList **tail;
    char session[2 * MEMX_SESSION_BYTES + 1];
    unsigned i;

    if (!is_current()) {
        return;
    }
    if (qatomic_read(&memx_split_active)) {
        memx_split_figures_refresh(NULL);
    }
    QEMU_LOCK_GUARD(&figures.lock);
    info = g_new0(MemxSplitInfo, 1);
    memx_session_text(figures.session, session);
    info->phase = figures.phase;
    info->session = g_strdup(session);
    info->hot_chunks = sums->hot_chunks;
    info->cold_chunks = sums->cold_chunks;
    info->pending = memx_split_pending_bytes();
    info->sent = sums->sent_bytes;
    info->left = sums->left_pages * PAGE;
    info->zero_pages = sums->zero_pages;
    info->main = sums->main_pages * PAGE;
    info->main_limit = sums->main_pages_max * PAGE;
    info->spilled = sums->spilled_pages * PAGE;
    info->fetched = sums->fetched_pages * PAGE;
    info->moved = figures.moved;
    info->to_move = figures.to_move;
    tail = &info->servers;
    for (i = 0; i < sums->n_servers; i++) {
        QAPI_LIST_APPEND(tail, server_info(i));
    }
    migration->split = info;
}

void memx_split_hmp_print(Monitor *mon, const MigrationInfo *migration)
{
    const MemxSplitInfo *info = migration->split;
    const MemxSplitServerInfoList *l;

    if (!info) {
        return;
    }
    monitor_printf(mon, "split: %s, session %s\n",
                   MemxSplitPhase_str(info->phase), info->session);
    monitor_printf(mon, "split chunks: %" PRIu64 " hot, %" PRIu64 " cold\n",
                   info->hot_chunks, info->cold_chunks);
    monitor_printf(mon, "split main host: %" PRIu64 " of %" PRIu64 " kbytes, "
                   "spilled %" PRIu64 " kbytes\n", info->main >> 10,
                   info->main_limit >> 10, info->spilled >> 10);
    if (info->moved || info->to_move) {
        monitor_printf(mon, "split servers: moved %" PRIu64 " kbytes from "
                       "server to server, to move %" PRIu64 " kbytes\n",
                       info->moved >> 10, info->to_move >> 10);
    }
    monitor_printf(mon, "split servers: sent %" PRIu64 " kbytes, pending %"
                   PRIu64 " kbytes, left there %" PRIu64 " kbytes\n",
                   info->sent >> 10, info->pending >> 10, info->left >> 10);
    for (l = info->servers; l; l = l->next) {
        monitor_printf(mon, "  %s: %s, sent %" PRIu64 " kbytes, pending %"
                       PRIu64 " kbytes, %" PRIu64 " kbytes/s\n",
                       l->value->address,
                       MemxServerState_str(l->value->state),
                       l->value->sent >> 10, l->value->pending >> 10,
                       l->value->rate >> 10);
    }
}
