/*
 * Regions: their beginning and end, and their local size.
 *
 * SPDX-License-Identifier: LGPL-2.1-or-later
 */
#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>
#include "huge.h"
#include "region.h"
#include "uffd.h"
#include "window.h"

#define SIZE_MIN (2ull << 20)
#define SIZE_MAX_BYTES (1ull << 48)
#define SLOTS_MIN 8
#define SLOTS_MAX 96
#define CHUNKS_LOCAL_MIN 16
#define RESIZE_MS 5000
#define RESIZE_POLL_MS 10

static bool G_GNUC_PRINTF(2, 3) invalid(GError **error, const char *format,
                                        ...)
{
    g_autofree char *text = NULL;
    va_list ap;

    va_start(ap, format);
    text = g_strdup_vprintf(format, ap);
    va_end(ap);
    g_set_error_literal(error, MEMX_ERROR, MEMX_ERROR_INVALID, text);
    return false;
}

static uint64_t local_min(uint64_t size, uint64_t chunk)
{
    return MIN(size, MAX(MEMX_LOCAL_BYTES_MIN, CHUNKS_LOCAL_MIN * chunk));
}

bool memx_check_local(uint64_t size, uint64_t chunk, uint64_t local,
                        GError **error)
{
    if (local % MEMX_PAGE_BYTES || local > size) {
        return invalid(error, "local-size %" G_GUINT64_FORMAT " must be a "
                       "multiple of 4096 and at most the size, %"
                       G_GUINT64_FORMAT, local, size);
    }
    if (local < local_min(size, chunk)) {
        return invalid(error, "local-size %" G_GUINT64_FORMAT " is too small "
                       "to run with; it must be at least %" G_GUINT64_FORMAT
                       " (8 MiB, and %d chunks)", local,
                       local_min(size, chunk), CHUNKS_LOCAL_MIN);
    }
    return true;
}

bool memx_check_options(const MemxOptions *o, GError **error)
{
    if (o->size_bytes < SIZE_MIN || o->size_bytes % MEMX_PAGE_BYTES ||
        o->size_bytes > SIZE_MAX_BYTES) {
        return invalid(error, "size %" G_GUINT64_FORMAT " must be a multiple "
                       "of 4096 from 2 MiB to 256 TiB", o->size_bytes);
    }
    if (o->chunk_bytes < MEMX_GROUP_BYTES || o->chunk_bytes > 64 << 20 ||
        o->chunk_bytes & (o->chunk_bytes - 1)) {
        return invalid(error, "chunk-size %" G_GUINT64_FORMAT " must be a "
                       "power of two from 262144 (256 KiB) to 67108864 "
                       "(64 MiB)", o->chunk_bytes);
    }
    if ((uintptr_t)o->base % MEMX_PAGE_BYTES) {
        return invalid(error, "the memory must start at a page");
    }
    if (o->server_timeout_ms < 1000 || o->server_timeout_ms > 86400000) {
        return invalid(error, "server-timeout %u ms must be 1000 to 86400000",
                       o->server_timeout_ms);
    }
    return memx_tracker_check(o->tracker.period_ms, o->tracker.cpu_percent,
                              error) &&
           memx_check_local(o->size_bytes, o->chunk_bytes, o->local_bytes,
                            error);
}

unsigned memx_staging_slots(uint64_t limit)
{
    return CLAMP(limit / MEMX_GROUP_PAGES / 16, SLOTS_MIN, SLOTS_MAX);
}

static bool map_memory(MemxRegion *r, const MemxOptions *o, GError **error)
{
    void *zeros;

    r->size_bytes = o->size_bytes;
    r->base = o->base;
    if (r->passive) {
        return true;
    }
    if (!r->base) {
        r->base = mmap(NULL, r->size_bytes, PROT_READ | PROT_WRITE,
                       MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
        if (r->base == MAP_FAILED) {
            r->base = NULL;
            g_set_error(error, MEMX_ERROR, MEMX_ERROR_SYSTEM,
                        "cannot map %" G_GUINT64_FORMAT " bytes: %s",
                        r->size_bytes, g_strerror(errno));
            return false;
        }
        r->owns_base = true;
    }
    /* No huge pages yet, which would count as one; a child would pin pages. */
    madvise(r->base, r->size_bytes, MADV_NOHUGEPAGE);
    madvise(r->base, r->size_bytes, MADV_UNMERGEABLE);
    madvise(r->base, r->size_bytes, MADV_DONTFORK);
    zeros = mmap(NULL, MEMX_GROUP_BYTES, PROT_READ, MAP_PRIVATE |
                 MAP_ANONYMOUS | MAP_POPULATE, -1, 0);
    if (zeros == MAP_FAILED) {
        g_set_error(error, MEMX_ERROR, MEMX_ERROR_SYSTEM,
                    "cannot map a group of zeros: %s", g_strerror(errno));
        return false;
    }
    r->zeros = zeros;
    return memx_faults_init(r, error);
}

static bool make_tables(MemxRegion *r, const MemxOptions *o, GError **error)
{
    uint64_t pages = o->size_bytes / MEMX_PAGE_BYTES;
    unsigned slots;

    r->chunk_bytes = o->chunk_bytes;
    slots = memx_staging_slots(o->local_bytes / MEMX_PAGE_BYTES);
    if (!memx_page_table_init(&r->table, pages, o->chunk_bytes) ||
        !memx_history_init(&r->history, r->table.n_chunks) ||
        !memx_staging_init(&r->staging, r->passive ? 0 : slots)) {
        g_set_error(error, MEMX_ERROR, MEMX_ERROR_SYSTEM,
                    "cannot map the tables of %" G_GUINT64_FORMAT " pages: %s",
                    pages, g_strerror(errno));
        return false;
    }
    memx_streams_init(&r->streams, CLAMP(slots / 2 * MEMX_GROUP_PAGES, 64,
                                         2048));
    if (r->huge) {
        r->given_back = g_new0(uint64_t, pages / MEMX_WINDOW_PAGES / 64 + 1);
    }
    memx_limit_set_locked(r, o->local_bytes);
    if (!r->passive) {
        r->held = MEMX_FAULTS_MAX; /* the fetch buffers are memory, too */
    }
    for (uint64_t g = 0; r->passive && g < r->table.n_groups; g++) {
        memx_set_group_locked(r, g, memx_group_mask(&r->table, g), 0);
    }
    return true;
}

static bool register_staging(MemxRegion *r, GError **error)
{
    r->pagemap_fd = open("/proc/self/pagemap", O_RDONLY | O_CLOEXEC);
    if (r->pagemap_fd < 0) {
        g_set_error(error, MEMX_ERROR, MEMX_ERROR_KERNEL,
                    "cannot open /proc/self/pagemap: %s", g_strerror(errno));
        return false;
    }
    if (r->passive) {
        return true;
    }
    if (memx_transport_register(r->transport, r->staging.base,
                                r->staging.bytes) ||
        memx_transport_register(r->transport, r->fault_buffers,
                                MEMX_FAULTS_MAX * MEMX_PAGE_BYTES)) {
        g_set_error(error, MEMX_ERROR, MEMX_ERROR_SYSTEM, "cannot register "
                    "memory with transport %s", r->transport->name);
        return false;
    }
    return memx_uffd_register(r->uffd, r->staging.base, r->staging.bytes,
                              error);
}

/* /proc/swaps has a line per area below its heading. */
static bool host_swaps(void)
{
    g_autofree char *text = NULL;
    const char *line;

    if (!g_file_get_contents("/proc/swaps", &text, NULL, NULL)) {
        return false;
    }
    line = strchr(text, '\n');
    return line && line[1];
}

static bool start_threads(MemxRegion *r, GError **error)
{
    if (!memx_worker_init(&r->session, error) ||
        !memx_worker_init(&r->store, error) ||
        !memx_worker_init(&r->fetch, error) ||
        !memx_worker_init(&r->keeper, error) ||
        !memx_worker_init(&r->collapse, error) ||
        !memx_worker_init(&r->faults, error)) {
        return false;
    }
    for (unsigned i = 0; i < r->n_servers; i++) {
        if (!memx_worker_init(&r->server[i].link, error)) {
            return false;
        }
    }
    if (!memx_worker_start(&r->session, "memx-session", memx_session_thread, r,
                           error) ||
        !memx_worker_start(&r->store, "memx-store", memx_store_thread, r,
                           error)) {
        return false;
    }
    if (!r->passive &&
        (!memx_worker_start(&r->fetch, "memx-fetch", memx_fetch_thread, r,
                            error) ||
         !memx_worker_start(&r->faults, "memx-fault", memx_fault_thread, r,
                            error))) {
        return false;
    }
    if (r->huge && !memx_worker_start(&r->collapse, "memx-collapse",
                                      memx_huge_thread, r, error)) {
        return false;
    }
    for (unsigned i = 0; i < r->n_servers; i++) {
        if (!memx_link_start(r, &r->server[i], error)) {
            return false;
        }
    }
    /* Last: it looks after all threads of links. */
    return r->passive ||
           memx_worker_start(&r->keeper, "memx-keeper", memx_keeper_thread, r,
                             error);
}

/* What rwp needs must be known before the memory is registered. */
static bool open_uffd(MemxRegion *r, const MemxOptions *o, GError **error)
{
    uint64_t rwp = UFFD_FEATURE_RWP | UFFD_FEATURE_RWP_ASYNC, got = 0;
    bool want = o->tracker.kind == MEMX_TRACKER_RWP ||
                (o->tracker.kind == MEMX_TRACKER_AUTO &&
                 o->huge_pages != MEMX_HUGE_PAGES_ON); /* not beside it yet */

    r->uffd = memx_uffd_open(want ? rwp : 0, &got, error);
    r->rwp = (got & rwp) == rwp;
    return r->uffd >= 0;
}

MemxRegion *memx_region_prepare(const MemxOptions *o,
                                const MemxTransport *transport,
                                const uint8_t *hash_key, GError **error)
{
    MemxRegion *r;

    if (!memx_check_options(o, error)) {
        return NULL;
    }
    r = g_new0(MemxRegion, 1);
    g_mutex_init(&r->lock);
    g_mutex_init(&r->resize);
    g_cond_init(&r->changed);
    r->uffd = r->pagemap_fd = -1;
    r->warm_at = UINT64_MAX;
    r->transport = transport;
    r->passive = o->passive;
    r->keep_copies = o->keep_copies;
    r->server_timeout_ns = o->server_timeout_ms * 1000000ull;
    r->event = o->event;
    r->opaque = o->opaque;
    r->host_swap = host_swaps();

    if (!r->passive && !open_uffd(r, o, error)) {
        goto fail;
    }
    if (!map_memory(r, o, error) || !memx_huge_choose(r, o, error) ||
        !make_tables(r, o, error)) {
        goto fail;
    }
    if (hash_key) {
        memcpy(r->hash_key, hash_key, sizeof(r->hash_key));
    } else {
        memx_random(r->hash_key, sizeof(r->hash_key));
    }
    r->hash = memx_page_hash_new(r->hash_key, error);
    if (!r->hash || !register_staging(r, error)) {
        goto fail;
    }
    r->fill_by_move = !r->passive && memx_fill_probe(r);
    return r;

fail:
    memx_region_free(r);
    return NULL;
}

bool memx_region_register(MemxRegion *r, const MemxOptions *o, GError **error)
{
    if (r->passive) {
        return true;
    }
    if (!(r->rwp
            ? memx_uffd_register_rwp(r->uffd, r->base, r->size_bytes, true,
                                     error)
            : memx_uffd_register(r->uffd, r->base, r->size_bytes, error)) ||
        !memx_ageing_init(r, o, error)) {
        return false;
    }
    if (r->huge) { /* from now on, a page comes only by us */
        madvise(r->base, r->size_bytes, MADV_HUGEPAGE);
    }
    return true;
}

bool memx_region_start(MemxRegion *r, GError **error)
{
    if (!start_threads(r, error) ||
        (r->ager && !memx_ager_start(r->ager, error))) {
        return false;
    }
    g_atomic_int_set(&r->ready, 1);
    return true;
}

MemxRegion *memx_region_new_over(const MemxOptions *o,
                                 const MemxTransport *transport,
                                 GError **error)
{
    MemxRegion *r = memx_region_prepare(o, transport, NULL, error);

    if (r && memx_region_register(r, o, error) &&
        memx_pool_open(r, o, error) && memx_region_start(r, error)) {
        return r;
    }
    memx_region_free(r);
    return NULL;
}

MemxRegion *memx_region_new(const MemxOptions *options, GError **error)
{
    return memx_region_new_over(options, &memx_transport_tcp, error);
}

/* Does a thread still wait for a page that will never come? */
static bool somebody_waits(MemxRegion *r)
{
    bool waits = r->fault_busy || r->starved || r->bug ||
                 (r->prefetch_n && r->prefetch[r->prefetch_head].waited);

    for (unsigned i = 0; i < r->n_servers; i++) {
        waits |= r->server[i].dropped || r->server[i].waited_in;
    }
    return waits;
}

static void free_controls(MemxControl *control)
{
    while (control) {
        MemxControl *next = control->next;

        g_free(control);
        control = next;
    }
}

void memx_region_free(MemxRegion *r)
{
    bool waits;

    if (!r) {
        return;
    }
    g_atomic_int_set(&r->stop, 1);
    g_mutex_lock(&r->lock);
    g_cond_broadcast(&r->changed); /* the keeper may wait for an answer */
    g_mutex_unlock(&r->lock);
    memx_ager_stop(r->ager); /* gives back what it has away */
    memx_worker_join(&r->keeper);
    memx_worker_join(&r->collapse);
    for (unsigned i = 0; i < r->n_servers; i++) {
        memx_worker_join(&r->server[i].link);
    }
    memx_worker_join(&r->fetch);
    memx_worker_join(&r->store);
    memx_worker_join(&r->faults);
    memx_worker_join(&r->session);
    memx_ager_free(r->ager); /* fault and fetch asked it to the end */
    for (unsigned i = 0; r->server && i < MEMX_SERVERS_MAX; i++) {
        memx_worker_destroy(&r->server[i].link);
    }
    memx_worker_destroy(&r->fetch);
    memx_worker_destroy(&r->store);
    memx_worker_destroy(&r->faults);
    memx_worker_destroy(&r->session);
    memx_worker_destroy(&r->keeper);
    memx_worker_destroy(&r->collapse);
    waits = somebody_waits(r);
    memx_pool_close(r);
    free_controls(r->control); /* nobody waits any more */
    free_controls(r->control_sent);
    memx_moves_destroy(r);
    g_clear_pointer(&r->retired, g_ptr_array_unref);
    memx_out_free(r); /* buffers, which channels had */
    /* Closing it unregisters, which would give zeros to whoever waits: the
     * process is about to end with that thread asleep, so let it sleep. */
    if (r->uffd >= 0 && !waits) {
        close(r->uffd);
    }
    if (r->pagemap_fd >= 0) {
        close(r->pagemap_fd);
    }
    if (r->owns_base && !waits) {
        munmap(r->base, r->size_bytes);
    }
    if (r->zeros) {
        munmap((void *)r->zeros, MEMX_GROUP_BYTES);
    }
    if (r->fault_buffers) {
        memx_transport_unregister(r->transport, r->fault_buffers,
                                  MEMX_FAULTS_MAX * MEMX_PAGE_BYTES);
    }
    if (r->staging.base) { /* not of a passive one */
        memx_transport_unregister(r->transport, r->staging.base,
                                  r->staging.bytes);
    }
    memx_faults_destroy(r);
    memx_staging_destroy(&r->staging);
    memx_history_destroy(&r->history);
    memx_page_table_destroy(&r->table);
    memx_page_hash_free(r->hash);
    g_free(r->given_back);
    g_cond_clear(&r->changed);
    g_mutex_clear(&r->lock);
    g_mutex_clear(&r->resize);
    g_free(r);
}

void *memx_region_base(MemxRegion *r)
{
    return r->base;
}

bool memx_resize_begin(MemxRegion *r, GError **error)
{
    int64_t end = g_get_monotonic_time() + RESIZE_MS * 1000ll;

    while (!g_mutex_trylock(&r->resize)) {
        if (g_get_monotonic_time() > end) {
            g_set_error(error, MEMX_ERROR, MEMX_ERROR_CONNECT,
                        "another change of the local size or the servers has "
                        "not ended for %d s, most likely since a memory "
                        "server does not answer; see to it, or try again "
                        "later", RESIZE_MS / 1000);
            return false;
        }
        g_usleep(RESIZE_POLL_MS * 1000);
    }
    return true;
}

static bool set_local_bytes(MemxRegion *r, uint64_t local_bytes,
                            GError **error)
{
    uint64_t limit = local_bytes / MEMX_PAGE_BYTES;
    bool lower, busy;

    if (!memx_check_local(r->size_bytes, r->chunk_bytes, local_bytes, error)) {
        return false;
    }
    g_mutex_lock(&r->lock);
    lower = limit < r->limit;
    busy = r->out || r->side != MEMX_SIDE_OWNER;
    g_mutex_unlock(&r->lock);
    if (busy) {
        return invalid(error, "local-size can't be changed during a split "
                       "migration; try again when it has ended");
    }
    if (lower && !memx_pool_reserve(r, limit, error)) {
        return false;
    }
    g_mutex_lock(&r->lock);
    memx_limit_set_locked(r, local_bytes);
    memx_worker_ring(&r->store);
    memx_worker_ring(&r->fetch);
    g_mutex_unlock(&r->lock);
    if (!lower) {
        memx_pool_reserve(r, limit, NULL); /* a larger one does no harm */
    }
    return true;
}

bool memx_region_set_local_bytes(MemxRegion *r, uint64_t local_bytes,
                                 GError **error)
{
    bool ok = memx_resize_begin(r, error);

    if (ok) {
        ok = set_local_bytes(r, local_bytes, error);
        g_mutex_unlock(&r->resize);
    }
    return ok;
}
