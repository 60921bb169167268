/*
 * libmemx: memory that is larger than its host.
 *
 * A *region* is a span of anonymous memory of this process of which at most
 * local_bytes are held locally; the rest is on memory servers.  Use it as
 * memory: a missing page is fetched when a thread, a system call or KVM
 * touches it.  Nothing here knows of QEMU.
 *
 *     MemxOptions o = MEMX_OPTIONS_INIT;
 *     const char *servers[] = { "127.0.0.1:7701", NULL };
 *     o.size_bytes = 1ull << 30;
 *     o.local_bytes = 256ull << 20;
 *     o.servers = servers;
 *     MemxRegion *r = memx_region_new(&o, &error);
 *     char *mem = memx_region_base(r);
 *     ...
 *     memx_region_free(r);
 *
 * Functions may be called from any thread unless they say otherwise, but not
 * from a thread that other threads need in order to get on with a fault, and
 * memx_region_free() only when nobody touches the memory any more.  None of
 * them takes memory of the region as an argument's storage.
 *
 * SPDX-License-Identifier: LGPL-2.1-or-later
 */
#ifndef MEMX_H
#define MEMX_H

#include <glib.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

G_BEGIN_DECLS

#define MEMX_API __attribute__((visibility("default")))

typedef struct MemxRegion MemxRegion;

#define MEMX_ERROR memx_error_quark()
typedef enum {
    MEMX_ERROR_INVALID,     /* an option's value */
    MEMX_ERROR_KERNEL,      /* the kernel or a permission lacks something */
    MEMX_ERROR_CONNECT,     /* a server can't be reached or refused */
    MEMX_ERROR_FULL,        /* the servers together are too small */
    MEMX_ERROR_SYSTEM,      /* a system call failed */
} MemxErrorCode;
MEMX_API GQuark memx_error_quark(void);

typedef enum {
    MEMX_KEEP_COPIES_AUTO,  /* keep while the pool has unreserved room */
    MEMX_KEEP_COPIES_ON,    /* keep; give way only when a server is full */
    MEMX_KEEP_COPIES_OFF,   /* a fetched page leaves its server at once */
} MemxKeepCopies;

/* Whether local memory that is in use becomes huge pages (2 MiB), where all of
 * a huge page is local. */
typedef enum {
    MEMX_HUGE_PAGES_AUTO,   /* where that can be had */
    MEMX_HUGE_PAGES_ON,     /* or it is an error */
    MEMX_HUGE_PAGES_OFF,
} MemxHugePages;

typedef enum {
    MEMX_EVENT_SERVER_LOST,  /* unreachable or not answering; being retried */
    MEMX_EVENT_SERVER_BACK,  /* answers again, with its pages */
    MEMX_EVENT_SERVER_EMPTY, /* came back without its pages: these are lost */
    MEMX_EVENT_SERVER_RELEASED, /* taken off the list, or drained: it has
                                nothing left, and is in use no more */
    MEMX_EVENT_POOL_FULL,    /* servers refuse pages although reserved; or one
                                is to be drained and the others lack room */
    MEMX_EVENT_STALLED,      /* a page, or room for one, was awaited for
                                server_timeout */
    MEMX_EVENT_RESUMED,      /* what was stalled goes on: nothing waits */
    MEMX_EVENT_BUG,          /* a page is gone that the table calls local */
} MemxEventType;

typedef struct MemxEvent {
    MemxEventType type;
    const char *server;      /* address, or NULL */
    uint64_t remote_bytes;   /* that only this server holds */
    const char *message;     /* one line, for a log */
} MemxEvent;

/* Called on the region's session thread: it may block and take any lock of
 * the caller's, but must not touch the region's memory, nor wait for
 * somebody who does. */
typedef void MemxEventFunc(const MemxEvent *event, void *opaque);

/*
 * Trackers: where the engine learns which memory is touched (docs/tracking.md).
 * What was touched is kept as a history, 8 bits per chunk, by which memory is
 * evicted and split.
 */
typedef enum {
    MEMX_TRACKER_AUTO,      /* the best that kernel and permissions allow */
    MEMX_TRACKER_OFF,       /* none: only faults tell */
    MEMX_TRACKER_RWP,       /* userfaultfd's read-write protection, Linux 7.3 */
    MEMX_TRACKER_IDLE,      /* page_idle; see MemxIdleFiles */
    MEMX_TRACKER_SAMPLE,    /* chunks are taken away for a moment in turn */
    MEMX_TRACKER_DAMON,     /* the kernel's; root only, one on a host, never by
                               AUTO */
} MemxTrackerKind;

/* "auto", "off", "rwp", "idle", "sample", "damon" */
MEMX_API const char *memx_tracker_kind_name(MemxTrackerKind kind);

/* What the idle tracker reads; only root may open it. */
typedef struct MemxIdleFiles {
    int pagemap_fd;         /* /proc/PID/pagemap, of this process */
    int bitmap_fd;          /* /sys/kernel/mm/page_idle/bitmap, to be written,
                               too */
    int kpageflags_fd;      /* /proc/kpageflags */
} MemxIdleFiles;

/* Asks memx-idle-helper, by the path of its socket.  Waits for it for some
 * seconds at most. */
MEMX_API bool memx_idle_files_receive(const char *socket_path,
                                      MemxIdleFiles *files, GError **error);
MEMX_API void memx_idle_files_close(MemxIdleFiles *files);

typedef struct MemxTrackerOptions {
    MemxTrackerKind kind;
    unsigned period_ms;     /* 100 .. 3600000; 0: adapts to what is found */
    unsigned cpu_percent;   /* of one CPU, at most; 1 .. 1600; 2 */
    const MemxIdleFiles *idle; /* duplicated; NULL: the engine opens them, if
                               it may */
} MemxTrackerOptions;

#define MEMX_TRACKER_OPTIONS_INIT ((MemxTrackerOptions) { .cpu_percent = 2 })

typedef struct MemxOptions {
    uint64_t size_bytes;     /* multiple of chunk_bytes is not required, of
                                4096 is */
    uint64_t local_bytes;    /* at least MEMX_LOCAL_BYTES_MIN and 16 chunks
                                (or size_bytes) */
    uint64_t chunk_bytes;    /* power of two, 256 KiB .. 64 MiB; 1 MiB */
    void *base;              /* existing memory to look after, or NULL: the
                                region maps its own.  Anonymous, private,
                                page-aligned, still untouched */
    const char *const *servers; /* "host:port", NULL-terminated */
    const void *key;         /* admission key, or NULL */
    size_t key_bytes;
    MemxKeepCopies keep_copies;
    MemxHugePages huge_pages;
    bool passive;            /* for memx_split_begin() alone: see there */
    unsigned server_timeout_ms; /* 1000 .. 86400000; 30000 */
    unsigned connect_timeout_ms; /* at creation, per server; 5000 */
    const char *vm_name;     /* shown by memxctl; at most 63 bytes, or NULL */
    const char *region_name;
    uint8_t vm_uuid[16];
    MemxTrackerOptions tracker; /* of a kind that can't be had: an error; with
                                AUTO there is always one */
    MemxEventFunc *event;    /* or NULL */
    void *opaque;
} MemxOptions;

#define MEMX_LOCAL_BYTES_MIN (8ull << 20)
#define MEMX_OPTIONS_INIT                                                  \
    ((MemxOptions) { .chunk_bytes = 1 << 20, .server_timeout_ms = 30000,   \
                     .connect_timeout_ms = 5000,                           \
                     .tracker = { .cpu_percent = 2 } })

/*
 * Creates a region: checks the options, connects to every server, reserves
 * size - local + staging bytes on them together, registers the memory and
 * starts the region's threads.  On failure nothing is left behind.
 * May be called with locks held that the event function takes (no event is
 * sent before it returns).
 */
MEMX_API MemxRegion *memx_region_new(const MemxOptions *options,
                                     GError **error);

/* Stops and forgets a region, and drops its spaces (waits at most 2 s for
 * the servers).  Memory that the region mapped is unmapped; memory that it
 * was given is left unregistered, with whatever pages are local.  The caller
 * holds no lock that the event function takes. */
MEMX_API void memx_region_free(MemxRegion *region);

MEMX_API void *memx_region_base(MemxRegion *region);

/*
 * Changes the local size.  Lowering reserves the difference on the servers
 * first and fails, with nothing changed, if they lack it; then memory is
 * evicted in the background: memx_region_stats() tells when local_bytes is
 * reached.  New pages obey the new bound at once.
 */
MEMX_API bool memx_region_set_local_bytes(MemxRegion *region,
                                          uint64_t local_bytes,
                                          GError **error);

/*
 * Gives memory back: [offset, offset + bytes) becomes never-written, reads
 * as zeros, and is dropped on the servers.  Takes the memory itself as well
 * (MADV_DONTNEED), in the order that keeps a concurrent fault correct; the
 * caller must not.  Both in multiples of 4096.
 */
MEMX_API int memx_region_discard(MemxRegion *region, uint64_t offset,
                                 uint64_t bytes);

/* Changes the period (0: adapts) and the share of a CPU, as in
 * MemxTrackerOptions, while it runs. */
MEMX_API bool memx_region_set_tracking(MemxRegion *region, unsigned period_ms,
                                       unsigned cpu_percent, GError **error);
/* While @pause nothing is looked at, and the history stays as it is: for the
 * time of a migration, whose dirty log would take reads of memory that rwp
 * watches for writes.  A split does so by itself.  It doesn't wait for what a
 * sampler has away just now. */
MEMX_API void memx_region_pause_tracking(MemxRegion *region, bool pause);
/* After a pause: when it returns, all that was away is back.  Of several that
 * are paused first, this takes as long as the slowest. */
MEMX_API void memx_region_await_paused(MemxRegion *region);
/* Has the tracker look at all local memory now: a split is about to ask for the
 * history, and a period may be many seconds.
 * Ends no period, and doesn't wait; memx_region_has_looked() tells when it is
 * done.  To be called when nothing is paused; a pause ends it. */
MEMX_API void memx_region_look(MemxRegion *region);
MEMX_API bool memx_region_has_looked(MemxRegion *region);

#define MEMX_LATENCY_BUCKETS 24
#define MEMX_SERVERS_MAX 16

typedef enum {
    MEMX_SERVER_UP,
    MEMX_SERVER_DOWN,        /* no connection; retried every second */
    MEMX_SERVER_STALLED,     /* connected, but requests go unanswered */
    MEMX_SERVER_EMPTY,       /* came back without its pages */
} MemxServerHealth;

typedef enum {
    MEMX_SERVER_IN_USE,
    MEMX_SERVER_DRAINING,    /* its administrator says so: what it has goes to
                                the others, if they have the room */
    MEMX_SERVER_LEAVING,     /* taken off the list: the same */
    MEMX_SERVER_RELEASED,    /* and has nothing left of this region */
} MemxServerUse;

typedef struct MemxServerStats {
    char address[272];
    MemxServerHealth health;
    MemxServerUse state;
    uint32_t chunks;         /* placed there */
    uint32_t to_move;        /* of these, going to other servers */
    uint64_t moved_bytes;    /* came to it from other servers; a counter */
    uint64_t remote_bytes;   /* only this server has them */
    uint64_t kept_bytes;     /* copies of local pages */
    uint64_t reserved_bytes;
    uint64_t free_bytes;     /* on the server, unreserved, as last told */
    uint64_t capacity_bytes;
    unsigned load_permille;
    uint64_t stored_bytes;   /* counters since the start */
    uint64_t fetched_bytes;
    uint64_t reconnects;
    unsigned queue_depth;    /* requests in flight */
} MemxServerStats;

#define MEMX_HISTORIES 256
#define MEMX_REFAULT_PERIODS 4

typedef struct MemxTrackerStats {
    const char *name;        /* of the kind in use */
    char why[512];           /* why this one, or why nothing is learnt; one
                                line */
    unsigned period_ms;      /* as it is now */
    bool adapts;
    unsigned cpu_percent;    /* the limit */
    uint64_t periods;        /* that have ended */
    uint64_t pass_ns;        /* how long the last look at all took */
    uint64_t cpu_ns;         /* of a CPU, since the start; with that of the
                                kernel's thread for `damon` */
    unsigned cpu_ppm;        /* of a CPU, over the last period */
    uint64_t extra_faults;   /* of the guest, for tracking's sake; a counter */
    uint64_t extra_faults_period; /* in the last period */
    uint64_t touched_pages;  /* of those looked at in the last period; of
                                `sample` faults */
    uint32_t touched_chunks; /* of looked_chunks */
    uint32_t looked_chunks;  /* that the tracker looked at */
    uint64_t chunk_bytes;
    uint32_t chunks[MEMX_HISTORIES]; /* by history, of all ever written */
} MemxTrackerStats;

/* The memory of the hottest chunks which account for so much of all that the
 * history saw touched: an estimate of the working set. */
MEMX_API uint64_t memx_tracker_working_set(const MemxTrackerStats *stats,
                                           unsigned permille);

typedef struct MemxStats {
    uint64_t size_bytes;
    uint64_t local_limit_bytes;  /* local-size */
    uint64_t local_bytes;        /* guest pages + staged + free frames, and 256
                                    KiB of the engine's: with a local size of
                                    all of it this may be a little more */
    uint64_t huge_bytes;         /* of it in huge pages, a moment ago */
    uint64_t staged_bytes;
    uint64_t remote_bytes;
    uint64_t never_written_bytes;
    uint64_t chunk_bytes;
    uint64_t faults;             /* all kinds below */
    uint64_t faults_first_touch;
    uint64_t faults_remote;      /* fetched for a waiting thread */
    uint64_t faults_staged;      /* found in staging */
    uint64_t faults_waiting;     /* threads that wait now: for a fetch, for room */
    uint64_t starved;            /* faults that waited for an eviction */
    uint64_t prefetched_pages;
    uint64_t prefetch_wasted_pages; /* raced with a fault or a discard */
    uint64_t prefetch_judged_pages; /* a tracker looked at them later, */
    uint64_t prefetch_untouched_pages; /* and they had not been touched */
    uint64_t evicted_pages;      /* moved out of the region */
    uint64_t evicted_unchanged_pages; /* of these, not sent again */
    uint64_t evicted_zero_pages;
    uint64_t evict_busy_pages;   /* pinned; kept */
    uint64_t refaults;           /* faults that wanted a remote page of a chunk
                                    which was evicted, in part or whole, in
                                    the last MEMX_REFAULT_PERIODS */
    uint64_t discarded_pages;
    uint64_t promotion_pages_per_s; /* fetched, over the last second */
    /* Bucket i counts remote faults served in [2^i, 2^(i+1)) us; the last
     * one all that took longer. */
    uint64_t fetch_latency[MEMX_LATENCY_BUCKETS];
    uint64_t fetch_p50_ns;
    uint64_t fetch_p99_ns;
    const char *fill;            /* "move" or "copy": how whole runs fill */
    const char *tracker;         /* tracking.name */
    MemxTrackerStats tracking;
    bool host_swap;              /* the host swaps: a warning */
    uint64_t fetched_before_commit_pages; /* after a split migration: what
                                    loading the devices needed */
    unsigned n_servers;
    MemxServerStats servers[MEMX_SERVERS_MAX];
} MemxStats;

/* A snapshot.  Takes no lock that is held across a wait; safe while threads
 * wait for pages. */
MEMX_API void memx_region_stats(MemxRegion *region, MemxStats *stats);

/*
 * Makes these the region's servers, while its memory is in use.  Connects to
 * those that are new, reserves there, and fails, with nothing changed, if the
 * servers of the list can't hold what must be reserved.  Then chunks are moved
 * in the background, from server to server directly: to the new ones until
 * each has its part, and all of those of servers that are not in the list any
 * more.  These are released when they are empty; see MemxServerStats.state.
 * Not during a split migration.
 *
 * Servers must reach each other under the addresses given here, and have the
 * same key.
 */
MEMX_API bool memx_region_set_servers(MemxRegion *region,
                                      const char *const *servers,
                                      GError **error);

/*
 * Gives up what memx_region_set_servers() has begun: servers that it took off
 * the list, and that were not released yet, are on it again, next to the new
 * ones, and chunks stay where they are now.
 */
MEMX_API void memx_region_keep_servers(MemxRegion *region);

/* Waits until no server is to be left any more, for timeout_ms at most. */
MEMX_API bool memx_region_servers_settle(MemxRegion *region,
                                         unsigned timeout_ms);

/* "in use", "draining", "leaving", "released" */
MEMX_API const char *memx_server_state_name(MemxServerUse state);

/* "up", "down", "stalled", "empty" */
MEMX_API const char *memx_server_health_name(MemxServerHealth health);

/*
 * Split migration (docs/split-migration.md).
 *
 * Source: each region is split: its hot chunks are for the main host, by a
 * stream of the caller's; its cold ones go to the memory servers.
 *
 *   memx_split_begin     decides which is which, and starts to send
 *   memx_split_page      for each dirty page: does it go to the stream?
 *   memx_split_record    what the destination must know, piece by piece
 *   memx_split_drain     the VM is stopped: all that is left
 *   memx_split_offer     from now on the destination may attach
 *   memx_split_reclaim   it shall not, after all; or memx_split_cancel before
 *                        the offer
 *
 * Memory of a VM without a region gets one for the time of its migration,
 * with MemxOptions.passive: nothing is paged, all of it is local and stays.
 *
 * Destination:
 *
 *   memx_arrival_new     checks what it can
 *   memx_arrival_record  takes the pieces
 *   memx_arrival_finish  attaches, and is the region: pages are fetched from
 *                        now on, but nothing is written to the servers
 *   memx_region_commit   takes possession; before the VM runs
 *
 * All regions of a VM have one session.  Its arbiter is the first server of
 * one region; who wins there tells all others.
 */
#define MEMX_SESSION_BYTES 16

typedef struct MemxSplitOptions {
    uint8_t session[MEMX_SESSION_BYTES]; /* random; the same for all regions */
    uint64_t main_bytes;     /* the region's local size at the destination */
    uint64_t max_bytes_per_s; /* sent to the servers together; 0: no limit */
    bool sparse;             /* of a passive region: private and anonymous, so
                                that what isn't there is zeros */
    /* The pages of [offset, offset + bytes) are going to be read and sent to
     * a server: whatever marks them dirty for the stream is to be cleared.
     * Called by memx_split_begin() alone. */
    void (*taken)(void *opaque, uint64_t offset, uint64_t bytes);
    void *opaque;
} MemxSplitOptions;

/* A passive region learns what was touched in a period: a bit per chunk. */
MEMX_API void memx_region_touched(MemxRegion *region, const uint64_t *chunks);

/* Or a whole history, a byte per chunk, that a MemxTracker made. */
MEMX_API void memx_region_set_history(MemxRegion *region, const uint8_t *value,
                                      uint32_t n_chunks);

/*
 * Ordinary memory, of a VM that is to be split later.  A tracker watches it
 * until it is freed; any memory, with huge pages too, but not a region's, which
 * has its own.
 *
 * rwp registers the memory with a userfaultfd, which excludes others (postcopy,
 * background snapshots) for as long; so does sample, for moments.  sample is for
 * private anonymous memory only, looks at 2 MiB at a time, aligned, and splits
 * huge pages in time: it is never chosen by AUTO.  Who discards memory meanwhile
 * (a balloon) has to say so, with memx_tracker_discard(): else what is away
 * at that moment would come back.
 */
typedef struct MemxTracker MemxTracker;

typedef struct MemxRange {
    void *base;              /* page-aligned */
    uint64_t bytes;          /* whole pages */
} MemxRange;

/* @chunk_bytes as of the region for the split.  NULL and @error, with the
 * reason of each kind that was tried, if this memory can't be tracked. */
MEMX_API MemxTracker *memx_tracker_new(const MemxRange *ranges, unsigned n,
                                       uint64_t chunk_bytes,
                                       const MemxTrackerOptions *options,
                                       GError **error);
MEMX_API void memx_tracker_free(MemxTracker *tracker);
MEMX_API void memx_tracker_stats(MemxTracker *tracker, MemxTrackerStats *stats);
/* As memx_region_set_tracking(). */
MEMX_API bool memx_tracker_set(MemxTracker *tracker, unsigned period_ms,
                               unsigned cpu_percent, GError **error);
/* As memx_region_pause_tracking(), memx_region_await_paused(). */
MEMX_API void memx_tracker_pause(MemxTracker *tracker, bool pause);
MEMX_API void memx_tracker_await_paused(MemxTracker *tracker);
/* As memx_region_look(), memx_region_has_looked(). */
MEMX_API void memx_tracker_look(MemxTracker *tracker);
MEMX_API bool memx_tracker_has_looked(MemxTracker *tracker);
/* Memory of a range is being given back (MADV_DONTNEED): to be called before;
 * what of it is away as a sample goes, too. */
MEMX_API void memx_tracker_discard(MemxTracker *tracker, unsigned range,
                                   uint64_t offset, uint64_t bytes);
/* The history of a range, a byte per chunk: as many as there are, n_chunks at
 * most; returns how many. */
MEMX_API uint32_t memx_tracker_history(MemxTracker *tracker, unsigned range,
                                       uint8_t *value, uint32_t n_chunks);

/* Reserves what the destination will need (blocks as memx_region_new() does),
 * splits by the history, and starts to send.  Nothing is changed on failure.
 */
MEMX_API bool memx_split_begin(MemxRegion *region,
                               const MemxSplitOptions *options,
                               GError **error);

/* The page at @offset is dirty: 0: it goes to the stream; 1: it is taken care
 * of.  Doesn't wait, but for a lock held for moments. */
MEMX_API int memx_split_page(MemxRegion *region, uint64_t offset);

MEMX_API void memx_split_set_rate(MemxRegion *region,
                                  uint64_t max_bytes_per_s);

typedef struct MemxSplitStats {
    uint32_t hot_chunks, cold_chunks;
    uint64_t pending_bytes;     /* to be sent to servers, or unanswered */
    uint64_t sent_bytes;        /* answered; again counts again */
    uint64_t sent_pages;
    uint64_t zero_pages;        /* that cost nothing */
    uint64_t left_pages;        /* were on their server already */
    uint64_t main_pages;        /* different ones that went to the stream */
    uint64_t main_pages_max;
    uint64_t spilled_pages;     /* hot, but more than the main host has room
                                   for */
    uint64_t fetched_pages;     /* came back from servers meanwhile */
    unsigned n_servers;
    struct {
        char address[272];
        uint64_t pending_bytes;
        uint64_t sent_bytes;
        MemxServerHealth health;
    } servers[MEMX_SERVERS_MAX];
} MemxSplitStats;

MEMX_API void memx_split_stats(MemxRegion *region, MemxSplitStats *stats);

/* Waits until something was answered, nothing is pending, it can't go on, or
 * timeout_ms. */
MEMX_API void memx_split_wait(MemxRegion *region, unsigned timeout_ms);

/* False: it can't go on (a server is full, or lost what it was sent). */
MEMX_API bool memx_split_check(MemxRegion *region, GError **error);

#define MEMX_SPLIT_RECORD_MAX (64u << 10)

/* Writes the next record for the destination to @buf
 * (MEMX_SPLIT_RECORD_MAX bytes) and returns its size; 0: none is due.  With
 * @last, after memx_split_offer(), until 0 is returned. */
MEMX_API size_t memx_split_record(MemxRegion *region, bool last, void *buf);

/* With the VM stopped.  1: all is answered; 0: not within timeout_ms, try
 * again; -1: it can't be (a server lost what it was sent). */
MEMX_API int memx_split_drain(MemxRegion *region, unsigned timeout_ms,
                              GError **error);

/* After memx_split_drain(): stops writing, and offers all spaces to the
 * destination.  1, 0 and -1 as above; after 0 or -1 the offer may have reached
 * some server: memx_split_reclaim() it without asking. */
MEMX_API int memx_split_offer(MemxRegion *region, unsigned timeout_ms,
                              GError **error);

/* Before the offer: paging goes on as if nothing had been.  What was reserved
 * for the split is given back in the background. */
MEMX_API void memx_split_cancel(MemxRegion *region);

typedef enum {
    MEMX_VERDICT_MINE,      /* this side runs the VM; also if asked again */
    MEMX_VERDICT_THEIRS,    /* the other side does */
    MEMX_VERDICT_UNKNOWN,   /* the arbiter did not answer: ask again */
} MemxVerdict;

/* Takes an offer back.  With @ask the region's first server decides, and
 * @error says why not; the others, and a region without @ask, are told as they
 * can be reached, before anything is written to them. */
MEMX_API MemxVerdict memx_split_reclaim(MemxRegion *region, bool ask,
                                        unsigned timeout_ms, GError **error);

/* The process ends after its offer, which stands. */
MEMX_API void memx_split_leave(MemxRegion *region);

typedef struct MemxArrival MemxArrival;

/* @options as for memx_region_new(), with base; servers must be NULL, and
 * chunk_bytes is the source's.  A child process doesn't inherit the memory. */
MEMX_API MemxArrival *memx_arrival_new(const MemxOptions *options,
                                       GError **error);
MEMX_API bool memx_arrival_record(MemxArrival *arrival, const void *record,
                                  size_t bytes, GError **error);
/* All records are there, and all memory of the stream.  Frees @arrival, on
 * failure too: the spaces stay the source's; of the memory, what the records
 * don't say to have come by the stream may have been given back. */
MEMX_API MemxRegion *memx_arrival_finish(MemxArrival *arrival,
                                         GError **error);
MEMX_API void memx_arrival_free(MemxArrival *arrival);

/* As memx_split_reclaim(), of the other side. */
MEMX_API MemxVerdict memx_region_commit(MemxRegion *region, bool ask,
                                        unsigned timeout_ms, GError **error);

G_END_DECLS

#endif
