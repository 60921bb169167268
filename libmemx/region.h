/*
 * The inside of a region: what the engine's threads share.
 *
 * Theory of operation
 *
 * A region has these threads:
 *
 *   fault    reads the userfaultfd, resolves each fault: a first touch with
 *            zeros, a staged page from staging, a remote one by a request on
 *            its own connection (lane) to the server, and installs the
 *            answers.  Nothing else ever runs on it, so no fault waits behind
 *            bulk traffic.                                    pager-fault.c
 *   store    evicts: takes pages of the coldest chunk out into staging, asks
 *            or stores on the ordered lane, gives frames back; drops what
 *            servers hold in vain; reserves.                  pager-store.c
 *   fetch    prefetches runs of pages into staging and moves them into the
 *            guest.                                           pager-fetch.c
 *   link     one per server: connects its three lanes, again after a loss,
 *            and hands them to the threads that own them.     link.c
 *   keeper   what takes longer with the servers: makes room for what a server
 *            that is drained has, releases it when it is empty. keeper.c
 *   session  watches the clock, calls the event function.     session.c
 *   ager     looks what was touched, and ages the history.    ager.c, ageing.c
 *   collapse makes huge pages of local memory in use.         huge.c
 *
 * One lock protects what they share: the network page table, history, slots,
 * the budget and the servers' books.  It is held for table look-ups only,
 * never across a system call that may wait, a userfaultfd ioctl or a network
 * transfer; two marks in the chunk (installing, exclusive; see page-table.h)
 * keep it theirs while the lock is open.  docs/locking.md has the whole.
 *
 * The budget: `held` counts guest pages, slots' frames and the pages that
 * fetches in flight will need, and never exceeds `limit`.  When what is free
 * falls below `low`, the store thread evicts until it is `high`.
 *
 * A fault that can't be resolved now (no budget, server away, chunk exclusive)
 * is forgotten: the thread stays asleep, and when the obstacle is gone it is
 * woken, faults again, and its message comes anew.
 *
 * SPDX-License-Identifier: LGPL-2.1-or-later
 */
#ifndef MEMX_REGION_H
#define MEMX_REGION_H

#include <poll.h>
#include <stdatomic.h>
#include <time.h>
#include "ager.h"
#include "history.h"
#include "memx.h"
#include "page-hash.h"
#include "page-table.h"
#include "peer.h"
#include "prefetched.h"
#include "staging.h"
#include "streams.h"
#include "trace.h"
#include "worker.h"

#define MEMX_FAULTS_MAX 64      /* pages that waiting threads fetch at once */
#define MEMX_PREFETCH_QUEUE 256
#define MEMX_RATE_NS 1000000000ull   /* over which rates are told */
#define MEMX_STALL_NS 2000000000ull  /* without an answer: health is stalled */
#define MEMX_PING_NS 1000000000ull   /* an idle server is asked so often */
#define MEMX_SHORT_PART 16           /* free below capacity / 16: short */
#define MEMX_GENTLE_SLOTS 2          /* evicted at once with room to spare */
#define MEMX_FULL_NS 1000000000ull   /* then a full server is asked again */

/* One of a server's three connections. */
typedef struct MemxLaneState {
    /* Protected by the lock. */
    bool up;                /* the owner has a working channel */
    MemxChannel *incoming;  /* from link, for the owner to adopt */
    unsigned in_flight;
    uint64_t progress_ns;   /* of the last answer, or of the first request
                               after an idle time */
    uint64_t submitted;     /* calls on this channel */
    uint64_t completed;
    /* The owner's. */
    MemxChannel *channel;
} MemxLaneState;

#define MEMX_WHY_BYTES 256

/* A server's part in moves (move.c); the store thread's. */
typedef struct MemxMove {
    /* A chunk is coming here. */
    bool active, asking;    /* a COPY is in flight */
    uint32_t chunk;
    unsigned from;
    uint64_t at, end;       /* groups */
    uint64_t *copied;       /* pages, for each group of the chunk */
    uint64_t channels;      /* MemxServer.channels when it began */
    MemxCall call;
    uint8_t body[MEMX_SOURCE_BYTES];

    /* Pages of a chunk are dropped here, which it has in vain. */
    bool dropping, drop_asking;
    uint32_t drop_chunk;    /* also where to look for the next */
    uint64_t drop_at, drop_end;
    MemxCall drop;
} MemxMove;

typedef struct MemxServer {
    /* Constant while it is in use. */
    MemxPeer *peer;
    unsigned index;
    MemxOpen open;          /* space id, secret, ...; lane is filled in */
    bool opened;            /* the space was created or attached */

    /* Protected by the lock. */
    uint32_t chunk_quota;   /* chunks that may be placed here */
    MemxLaneState lane[MEMX_LANE_FETCH + 1]; /* by MemxLane */
    MemxServerHealth health;
    bool lost;              /* a SERVER_LOST event is out */
    char why_down[MEMX_WHY_BYTES]; /* why it was not connected; "" */
    uint64_t reserved_pages; /* that is counted on: see reserve.c */
    uint64_t granted_pages, shall_pages;
    unsigned n_reserving;   /* RESERVEs in flight */
    bool reserve_again;
    uint64_t remote_pages;  /* stored, not present */
    uint64_t kept_pages;    /* stored and present */
    uint64_t free_pages;
    uint64_t capacity_pages;
    uint32_t load_permille;
    uint32_t n_chunks;      /* placed here */
    unsigned n_out, n_in;   /* slots on their way to it, and from it */
    unsigned waited_in;     /* of n_in: threads were left waiting for them */
    bool full;              /* refused a store; asked again after a while, or
                               when it dropped something */
    bool full_told;         /* a POOL_FULL event is out */
    uint64_t full_since_ns;
    uint64_t waiting_since_ns; /* a thread waits for a page of it; 0: none */
    uint64_t nobody_since_ns; /* nobody is known to wait; the session's */
    unsigned dropped;       /* faults forgotten for its sake */
    unsigned faults;        /* faults in flight to it */
    const char *refused;    /* why a page that it should have isn't given;
                               NULL: none is asked for in vain */
    uint64_t refused_page;  /* is asked for again, until it came */
    bool gave;              /* a page, on this FAULT lane */
    uint64_t stored_bytes;
    uint64_t fetched_bytes;
    uint64_t reconnects;
    uint8_t instance[MEMX_ID_BYTES];

    bool told;              /* whose the space is: see handover.c */

    /* Comings and goings: keeper.c. */
    bool draining;          /* it says that it is to be emptied */
    bool leaving;           /* taken off the list */
    bool kept;              /* but then put back, with what it has left */
    bool left_behind;       /* it was released, but could not be told */
    bool moving_out;        /* all of its chunks go elsewhere */
    bool no_room;           /* for them, elsewhere */
    bool closing;           /* its lanes are not opened any more */
    bool closed;            /* those that are there are closed */
    bool released;          /* it is none of ours any more */
    uint64_t want_pages;    /* to be reserved when chunks are where they
                               belong; 0: as it is */
    uint32_t n_old;         /* chunks of which it is `old` */
    uint64_t moved_bytes;
    uint64_t hold_until_ns; /* no move to or from it before */
    uint64_t room_after_ns; /* nor is room looked for, for what it has */
    uint8_t nonce[2][MEMX_NONCE_BYTES]; /* of the ordered lane's channel:
                               client's, server's */

    /* The store thread's. */
    bool telling;           /* a call is in flight */
    MemxCall tell;
    uint64_t kept_cursor;   /* group at which to look for kept copies */
    unsigned n_drops;       /* in flight */
    uint64_t channels;      /* how often its channel came or went */
    MemxCall ping, reserve;

    MemxWorker link;
} MemxServer;

/* A page on its way for a thread that waits; the fault thread's. */
typedef struct MemxFault {
    unsigned server;
    uint64_t start_ns;
    uint8_t *buffer;
    struct iovec iov;
    MemxCall call;
} MemxFault;

/* Zeros on their way to pages nobody waits for yet; pager-touch.c. */
#define MEMX_TOUCHES_MAX 4
typedef struct MemxTouch {
    uint64_t page;
    unsigned n;             /* from it on, in one group */
} MemxTouch;

typedef struct MemxPrefetch {
    uint64_t group;
    uint64_t mask;
    uint64_t waited;        /* of it: threads were left waiting for these */
    int direction;          /* of the stream; 0: of none */
} MemxPrefetch;

/* What was reserved on each server, and was to be in the end. */
typedef struct MemxReserved {
    uint64_t pages[MEMX_SERVERS_MAX];
    uint64_t want[MEMX_SERVERS_MAX];
} MemxReserved;

/* Something that an API thread asks of the store thread. */
typedef struct MemxControl {
    unsigned server;
    uint16_t opcode;        /* RESERVE, OFFER, COMMIT, RECLAIM */
    uint64_t reserve_pages;
    uint8_t body[2 * MEMX_ID_BYTES];
    unsigned body_bytes;
    bool done;
    bool abandoned;         /* nobody waits any more: whoever ends it frees */
    int status;             /* 0, -errno */
    unsigned error;         /* MemxError */
    MemxCall call;
    struct MemxControl *next;
} MemxControl;

/* A DROP on its way. */
#define MEMX_DROPS_MAX 64
typedef struct MemxDrop {
    bool busy;
    unsigned server;
    uint32_t chunk;
    MemxCall call;
} MemxDrop;

/* A bit in MemxRegion.events: of the server with this index, or of none. */
#define MEMX_EVENT_TYPES (MEMX_EVENT_BUG + 1)
#define MEMX_EVENT_NO_SERVER 31

/* Whose a region's spaces are; handover.c. */
typedef enum MemxSide {
    MEMX_SIDE_OWNER,        /* ours */
    MEMX_SIDE_OFFERED,      /* ours, but the destination may take them */
    MEMX_SIDE_HEIR,         /* the source's; we may take them */
    MEMX_SIDE_FENCED,       /* the other side took them */
} MemxSide;

typedef struct MemxSplitOut MemxSplitOut;

typedef struct MemxCounters {
    uint64_t first_touch, remote, staged, sampled, starved;
    uint64_t prefetched, prefetch_wasted, prefetch_judged;
    uint64_t hurried;       /* threads that waited for a hint to be followed */
    uint64_t prefetch_untouched;
    uint64_t evicted, unchanged, zero, busy, refaults, discarded;
    uint64_t latency[MEMX_LATENCY_BUCKETS];
} MemxCounters;

struct MemxRegion {
    /* Constant after creation. */
    uint8_t *base;
    uint64_t size_bytes;
    uint64_t chunk_bytes;
    bool owns_base;
    bool passive;           /* nothing is paged: only the store, session and
                               link threads are there */
    MemxKeepCopies keep_copies;
    uint64_t server_timeout_ns;
    MemxEventFunc *event;
    void *opaque;
    MemxRange range;        /* base and size, for the tracker */
    MemxAger *ager;         /* NULL: passive */
    bool tracked;           /* by more than faults */
    bool tracking_paused;
    int uffd;
    bool rwp;               /* registered for it */
    bool huge;              /* local memory may become huge pages */
    int pagemap_fd;
    bool fill_by_move;
    bool host_swap;
    const MemxTransport *transport;
    MemxServer *server;     /* MEMX_SERVERS_MAX of them */
    const uint8_t *zeros;   /* a group of them */
    uint8_t client_id[MEMX_ID_BYTES];
    uint8_t hash_key[MEMX_HASH_KEY_BYTES];

    int stop;               /* atomic: threads shall end */
    int ready;              /* atomic: events may be delivered */
    atomic_uint n_servers;  /* grows, when the next one is complete */
    GMutex resize;          /* one change of the local size at a time; taken
                               before `lock`, held across the network */

    GMutex lock;
    GCond changed;          /* installing or exclusive ended, control done */
    unsigned n_waiting;     /* for `changed`; protected by the lock */

    /* Protected by the lock. */
    MemxPageTable table;
    MemxHistory history;
    MemxStaging staging;
    MemxStreams streams;    /* faults only, but read for statistics */
    uint64_t limit;         /* local-size in pages; see memx_limit() */
    bool home;              /* it is the size: all comes home and stays */
    uint64_t held;
    uint64_t low, high;     /* free pages: evict below, until */
    bool starved;           /* a fault found no budget */
    unsigned n_starved;     /* faults forgotten for want of it */
    uint64_t starved_since_ns;
    bool stalled;           /* a STALLED event is out */
    bool stalled_for_room;  /* it was for want of budget, not of a page */
    bool bug;
    MemxPrefetch prefetch[MEMX_PREFETCH_QUEUE];
    unsigned prefetch_head, prefetch_n;
    MemxControl *control, *control_sent; /* to be sent; in flight */
    uint32_t events[MEMX_EVENT_TYPES]; /* to be delivered: a bit a server */
    MemxCounters count;
    uint64_t fault_busy;    /* a bit per fault[]: in flight */
    uint64_t fault_page[MEMX_FAULTS_MAX];
    unsigned fetch_used;    /* pages that prefetch asked for, */
    uint64_t fetch_since_ns; /* since then; */
    uint64_t stream_ns;     /* and when it had asked for many in a short time */
    uint64_t promoted_last, promotion_rate;
    uint64_t home_at;       /* group from which on some may be remote */
    uint64_t warm_at;       /* and what is in use, after a migration */
    uint64_t faults_at_age, evicted_at_age;
    uint64_t age_ns;        /* when it was aged last, */
    uint32_t entered;       /* and the chunks that came in since */
    MemxPrefetched prefetched;
    MemxSide side;
    uint16_t tell_opcode;   /* what servers that aren't told must hear */
    uint8_t session_id[MEMX_ID_BYTES];
    uint8_t heir_id[MEMX_ID_BYTES]; /* source: of whom it was offered to */
    bool quiet;             /* nothing is evicted or trimmed, for the moment */
    bool leave;             /* the spaces are another's when we end */
    uint64_t huge_windows;  /* that are huge pages, a moment ago */
    uint64_t *given_back;   /* a bit per window: the guest gave pages back;
                               NULL: no huge pages */
    unsigned windows_away;  /* taken by the sampler: chunks are exclusive */
    bool rebalance;         /* chunks go where there are too few of them */
    bool moves_wait;        /* but not now: a split begins */
    bool grown;             /* a split reserved more than it was `before` */
    MemxReserved before;
    unsigned n_moves;       /* active */
    uint64_t fetched_at_commit;
    MemxSplitOut *out;      /* while it is being split; split-out.c */

    /* The fault thread's. */
    bool faults_full;       /* one was left for want of a free request */
    MemxFault fault[MEMX_FAULTS_MAX];
    uint8_t *fault_buffers;
    MemxTouch touch[MEMX_TOUCHES_MAX];
    unsigned n_touches;

    /* The store thread's. */
    MemxPageHash *hash;
    bool evicting;
    unsigned queue_turn;
    MemxDrop drop[MEMX_DROPS_MAX];
    unsigned n_drops;       /* in flight */
    MemxMove move[MEMX_SERVERS_MAX]; /* by server */
    uint32_t move_cursor;   /* chunk at which to look for one to move */
    uint64_t move_idle_ns;  /* there was none, then */
    uint32_t trim_chunk;    /* being trimmed, from group trim_at on */
    uint64_t trim_at, trim_end;

    MemxWorker faults, store, fetch, session, keeper, collapse;
    GPtrArray *retired;     /* peers of servers released; the keeper's */
};

static inline uint64_t memx_now_ns(void)
{
    struct timespec t;

    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec * 1000000000ull + t.tv_nsec;
}

static inline void *memx_page_hva(const MemxRegion *r, uint64_t page)
{
    return r->base + page * MEMX_PAGE_BYTES;
}

static inline void *memx_group_hva(const MemxRegion *r, uint64_t group)
{
    return r->base + group * MEMX_GROUP_BYTES;
}

/* The pages of @mask for which their server is needed: they were not discarded,
 * nor came meanwhile. */
static inline uint64_t memx_remote_of(const MemxRegion *r, uint64_t group,
                                      uint64_t mask)
{
    return mask & r->table.stored[group] & ~r->table.present[group];
}

static inline uint64_t memx_free_pages(const MemxRegion *r)
{
    return r->limit > r->held ? r->limit - r->held : 0;
}

/* A passive region reads nothing back. */
static inline unsigned memx_last_lane(const MemxRegion *r)
{
    return r->passive ? MEMX_LANE_ORDERED : MEMX_LANE_FETCH;
}

static inline bool memx_stopping(const MemxRegion *r)
{
    return g_atomic_int_get(&r->stop);
}

/* books.c: what several threads do to the shared tables; all _locked. */

/* A thread waits for an exclusive chunk: it is woken at the end of that, which
 * comes at once if the sampler has the chunk away.  Fault path. */
void memx_want_locked(MemxRegion *r, MemxChunk *chunk);

/* Makes a group's words @present and @stored, and keeps every count right. */
void memx_set_group_locked(MemxRegion *r, uint64_t group, uint64_t present,
                           uint64_t stored);
/* Takes @n pages of budget; rings the store thread when it runs low. */
bool memx_budget_take_locked(MemxRegion *r, uint64_t n);
void memx_budget_give_locked(MemxRegion *r, uint64_t n);
/* Remembers that a thread was left waiting for room. */
void memx_starve_locked(MemxRegion *r);
/* The server gave what it was asked for: the clock of those that wait starts
 * anew; but not of those whose page it lost, or refuses. */
void memx_answered_locked(MemxServer *s);
/* Somebody waits no more: the clock stops if it was the last one. */
void memx_waits_end_locked(MemxServer *s);
/* Threads are left waiting for what a FETCH brings; it was answered, or ended. */
void memx_slot_waited_locked(MemxServer *s, MemxSlot *slot, uint64_t mask,
                             uint64_t now);
void memx_slot_unwaited_locked(MemxServer *s, MemxSlot *slot);
/* How many threads still need what was asked of it?  A server that hangs keeps
 * the request when its page was discarded. */
unsigned memx_server_awaited_locked(const MemxRegion *r, const MemxServer *s);
/* Ends an exclusive or installing phase; true: wake the chunk's range. */
bool memx_exclusive_end_locked(MemxRegion *r, uint32_t chunk);
void memx_installing_end_locked(MemxRegion *r, uint32_t chunk);
/* Wakes those who wait for `changed`; a system call only if there are some. */
void memx_changed_locked(MemxRegion *r);
/* A thread needs a page of the chunk; it was not there.  Fault path. */
void memx_chunk_faulted_locked(MemxRegion *r, uint32_t chunk);
/* After installing from a server: may its copy stay?  If not it is marked for
 * trimming. */
void memx_installed_locked(MemxRegion *r, uint64_t group, uint64_t mask);
/* Has the server room for another slot: unreserved, or in our reservation? */
static inline bool memx_server_has_room(const MemxServer *s)
{
    uint64_t coming = (s->n_out + 1ull) * MEMX_GROUP_PAGES;

    return s->free_pages >= coming ||
           s->remote_pages + s->kept_pages + coming <= s->reserved_pages;
}

/* Does the server take pages now?  One of several may have its part of the
 * slots and a little more, and one that doesn't answer a single one, to try.
 */
static inline bool memx_server_stores(const MemxRegion *r,
                                      const MemxServer *s)
{
    unsigned most = MAX(1, r->staging.out_max * 2 / (r->n_servers + 1));

    /* No hurry: what is queued for the link delays the faults behind it. */
    if (!r->starved && memx_free_pages(r) >= r->low / 2) {
        most = MIN(most, MEMX_GENTLE_SLOTS);
    }
    return s->lane[MEMX_LANE_ORDERED].up && !s->full && s->told &&
           !s->closing &&
           s->health != MEMX_SERVER_EMPTY && memx_server_has_room(s) &&
           s->n_out < (s->health == MEMX_SERVER_STALLED ? 1 : most);
}
/* The server that decides whose the spaces are: the first one. */
static inline unsigned memx_arbiter(const MemxRegion *r)
{
    unsigned i = 0;

    while (i + 1 < r->n_servers && r->server[i].released) {
        i++;
    }
    return i;
}

/* May chunks be placed there? */
static inline bool memx_server_in_use(const MemxServer *s)
{
    return !s->released && !s->moving_out;
}

/* Places a chunk that has no server, by room and load; -1 if none will have
 * it.  MEMX_CHUNK_NONE only asks. */
int memx_place_locked(MemxRegion *r, uint32_t chunk);
void memx_event_post_locked(MemxRegion *r, MemxEventType type, int server);
void memx_wake_chunk(MemxRegion *r, uint32_t chunk); /* Unlocked. */
void memx_wake_all(MemxRegion *r);                   /* Unlocked. */
/* For a local size of @limit pages: evict when fewer are free. */
uint64_t memx_low_watermark(uint64_t limit);
/* Makes @local_bytes the local size.  If it is all of the size, nothing has to
 * be evicted ever, and the limit has room for what fetches need besides. */
void memx_limit_set_locked(MemxRegion *r, uint64_t local_bytes);

/* lane.c: what the three owners do with their lanes. */
int memx_lane_submit(MemxRegion *r, MemxServer *s, MemxLane lane,
                     MemxCall *call);
MemxCall *memx_lane_progress(MemxRegion *r, MemxServer *s, MemxLane lane);
/* Adopts what link handed over; closes a dead channel.  True: it is a new
 * one, and what was in flight must be asked again. */
bool memx_lane_refresh(MemxRegion *r, MemxServer *s, MemxLane lane);
void memx_lane_close(MemxRegion *r, MemxServer *s, MemxLane lane);
/* Fills pfd[0..] with the worker's bell and its lanes; returns how many. */
int memx_lane_poll(MemxRegion *r, MemxWorker *worker, MemxLane lane,
                   struct pollfd *pfd);
#define MEMX_LANE_POLL_MAX (1 + MEMX_SERVERS_MAX)

/* Thread functions, and what each file offers to the others. */
void *memx_fault_thread(void *region);
void *memx_store_thread(void *region);
void *memx_fetch_thread(void *region);
void *memx_session_thread(void *region);

/* The thread that keeps a server connected. */
bool memx_link_start(MemxRegion *r, MemxServer *s, GError **error);

bool memx_faults_init(MemxRegion *r, GError **error);
void memx_faults_destroy(MemxRegion *r);
/* On entry the lock is held, on return not. */
void memx_touch_fault(MemxRegion *r, uint64_t page);
/* Goes on with what was touched; false: there was nothing. */
bool memx_touch_step(MemxRegion *r);
/* Zeros for those pages of a group that were never written, as far as there is
 * room and the chunk isn't exclusive.  Any thread. */
void memx_touch_fill(MemxRegion *r, uint64_t group, uint64_t mask);
/* For a stream of that @direction, or 0. */
void memx_prefetch_push_locked(MemxRegion *r, uint64_t group, uint64_t mask,
                               int direction);
typedef enum MemxHint {
    MEMX_HINT_NONE,         /* none has the page, nor is it on its way */
    MEMX_HINT_QUEUED,       /* one may, but nothing can be asked for now */
    MEMX_HINT_FOLLOWED,     /* it is asked for at once; a thread that waits for it
                               is woken, come what may */
} MemxHint;
/* For a page that a thread waits for.  Fault path. */
MemxHint memx_prefetch_hurry_locked(MemxRegion *r, MemxServer *s,
                                    uint64_t page);

/* pool.c: the servers together.  By API threads only. */
bool memx_pool_open(MemxRegion *r, const MemxOptions *o, GError **error);
/* Drops the spaces that were opened; the other threads have ended. */
void memx_pool_close(MemxRegion *r);
/* Makes the reservation fit a local size of @limit pages. */
bool memx_pool_reserve(MemxRegion *r, uint64_t limit, GError **error);
/* Makes it fit that at least. */
bool memx_pool_reserve_least(MemxRegion *r, uint64_t limit, GError **error);
/* Makes it at least @need[i] pages on server i. */
bool memx_pool_reserve_each(MemxRegion *r, const uint64_t *need,
                            GError **error);
/* It shall be what is needed, and so shared out that chunks are where they
 * belong: next to none moves, and the keeper lowers what is beyond that. */
void memx_pool_want_as_placed_locked(MemxRegion *r);
/* What it is; and as it was, after it has grown.  False: some server could not
 * be told. */
void memx_pool_reserved_locked(const MemxRegion *r, MemxReserved *reserved);
bool memx_pool_restore(MemxRegion *r, const MemxReserved *reserved);
/* What must be reserved for that. */
uint64_t memx_pool_need(const MemxRegion *r, uint64_t limit);
MemxServer *memx_pool_add(MemxRegion *r, const MemxOptions *o, GBytes *key,
                          const char *address, GError **error);
void memx_pool_quotas_locked(MemxRegion *r);
/* Fills in a server that is not in the region yet. */
bool memx_pool_fill(MemxRegion *r, MemxServer *s, const MemxOpen *names,
                    GBytes *key, const char *address, GError **error);
/* Shares a reservation of @need pages out over @n servers, by what each has
 * and could have more. */
bool memx_pool_plan(MemxRegion *r, MemxServer **list, unsigned n,
                    uint64_t need, int cancel_fd, uint64_t *want,
                    GError **error);
/* Drops the space, on a connection of its own; where it can't be told within
 * left_ms, later. */
void memx_pool_close_space(MemxRegion *r, MemxServer *s, int left_ms);

/* reserve.c.  Reserves @pages; any thread but the region's own, the keeper
 * excepted; `resize` is held. */
bool memx_reserve_pages(MemxRegion *r, MemxServer *s, uint64_t pages,
                        GError **error);
/* That is so, with nothing in flight. */
void memx_reserve_set_locked(MemxServer *s, uint64_t pages);
/* The server says so, of a new ordered lane. */
void memx_reserve_opened_locked(MemxServer *s, uint64_t pages);
/* The store thread's part. */
void memx_reserve_sent_locked(MemxServer *s, uint64_t pages);
void memx_reserve_answered(MemxRegion *r, MemxServer *s,
                           const MemxCall *call);
void memx_reserve_again(MemxRegion *r);

/* opening.c: all lanes of @n servers at the same time; by an API thread, of
 * servers that no other thread knows yet.  Makes their spaces. */
bool memx_opening_create(MemxRegion *r, MemxServer **list, unsigned n,
                         unsigned timeout_ms, GError **error);
/* Of spaces that there are: whoever starts that ends it, and may do other
 * things before.  @opened: for each server, or NULL. */
typedef struct MemxOpening MemxOpening;
MemxOpening *memx_opening_attach(MemxRegion *r, MemxServer **list, unsigned n,
                                 unsigned timeout_ms);
bool memx_opening_end(MemxOpening *opening, MemxOpened *opened,
                      GError **error);

/* ageing.c: makes the region's ager; its thread is started with the others. */
bool memx_ageing_init(MemxRegion *r, const MemxOptions *o, GError **error);
void memx_ageing_stats(MemxRegion *r, MemxTrackerStats *stats); /* Unlocked. */
/* By the store thread: ends a period by itself if looks come too late. */
void memx_ageing_blind(MemxRegion *r);
/* Pages came by prefetch: the tracker is to tell whether they are touched. */
void memx_prefetched_locked(MemxRegion *r, uint64_t group, uint64_t mask,
                            int direction, bool moved);
/* A group is to be evicted: ask the tracker before?  (memx_ager_peek().)  Then
 * pages of it left; what was touched is known of @known. */
bool memx_prefetched_peeks_locked(MemxRegion *r, uint64_t group);
void memx_prefetched_left_locked(MemxRegion *r, uint64_t group, uint64_t left,
                                 uint64_t touched, uint64_t known);

/* keeper.c */
void *memx_keeper_thread(void *region);
/* Nobody else is about to get the spaces. */
bool memx_keeper_settled_locked(MemxRegion *r);
/* Reserves as @want says where that is more; on failure as before. */
bool memx_keeper_reserve(MemxRegion *r, MemxServer **list, unsigned n,
                         const uint64_t *want, GError **error);
/* Chunks go where they should be for that. */
void memx_keeper_want_locked(MemxRegion *r, MemxServer **list, unsigned n,
                             const uint64_t *want);

/* The server was asked to close the space, or can't be: the last request. */
void memx_keeper_closed_locked(MemxRegion *r, MemxServer *s);

/* move.c: the store thread's part.  True: there is more, soon. */
bool memx_moves(MemxRegion *r);
void memx_move_answered(MemxRegion *r, MemxServer *s, MemxCall *call);
void memx_moves_destroy(MemxRegion *r);

/* control.c: asks the store thread to do something with a server; @control is
 * its own from then on.  Whoever starts one ends it, and may start others
 * before.  0, -errno, or -ETIMEDOUT (it may still be done); *error: the
 * server's refusal. */
MemxControl *memx_control_new(const MemxServer *s, uint16_t opcode);
void memx_control_start(MemxRegion *r, MemxControl *control);
int memx_control_end(MemxRegion *r, MemxControl *control, int64_t deadline_us,
                     unsigned *error);
/* Both. */
int memx_control_call(MemxRegion *r, MemxControl *control,
                      unsigned timeout_ms, unsigned *error);

/* region.c, in steps, for an arrival: what can be done while others still
 * write to the memory; its registration, and the tracker; the threads, when
 * the pool is open. */
MemxRegion *memx_region_prepare(const MemxOptions *o,
                                const MemxTransport *transport,
                                const uint8_t *hash_key, GError **error);
bool memx_region_register(MemxRegion *r, const MemxOptions *o,
                          GError **error);
bool memx_region_start(MemxRegion *r, GError **error);
/* Takes `resize`, unless somebody else has it for seconds. */
bool memx_resize_begin(MemxRegion *r, GError **error);
bool memx_check_options(const MemxOptions *o, GError **error);
bool memx_check_local(uint64_t size, uint64_t chunk, uint64_t local,
                      GError **error);
/* The slots of staging for a local size of @limit pages. */
unsigned memx_staging_slots(uint64_t limit);

/* handover.c: the store thread's part. */
void memx_handover_tell(MemxRegion *r);
void memx_handover_told(MemxRegion *r, MemxServer *s);
/* The other side has the spaces. */
void memx_handover_fenced_locked(MemxRegion *r);
/* As the open of a lane must be now. */
void memx_handover_open_locked(MemxRegion *r, MemxServer *s, MemxOpen *open);

/* pager-store.c, on its thread: a server has no room.  False: nothing can be
 * given up there. */
bool memx_store_refused(MemxRegion *r, MemxServer *s);

/* What other threads do to a split that is going on; see split-out.h. */
void memx_out_free(MemxRegion *r);
/* Store thread: sends what is due.  Milliseconds until there is more to do
 * that nobody rings for, or INT_MAX. */
int memx_out_push(MemxRegion *r);
/* Store thread: a drain waits for a server that is full. */
bool memx_out_needs_room(MemxRegion *r);
void memx_out_answered(MemxRegion *r, MemxCall *call);
/* A server took the offer, of the session at @offer, also if nobody waits for
 * that any more. */
void memx_out_offered_locked(MemxRegion *r, unsigned server,
                             const uint8_t *offer);
/* The destination is to have these pages from their server. */
uint64_t memx_out_handed_locked(MemxRegion *r, uint64_t group);
/* What servers had of the pages isn't there any more. */
void memx_out_gone_locked(MemxRegion *r, uint64_t group, uint64_t mask);
/* A chunk has got a server. */
void memx_out_placed_locked(MemxRegion *r, uint32_t c);
/* The guest gave the pages back. */
void memx_out_discard_locked(MemxRegion *r, uint64_t group, uint64_t mask);
/* Store thread: @s has no room, and nothing but what the destination is to
 * have: the VM goes first. */
void memx_out_squeezed(MemxRegion *r, MemxServer *s);
void memx_out_failed_locked(MemxRegion *r, MemxServer *s, const char *why);

/* memx_region_new() over a transport of the caller's choice. */
MemxRegion *memx_region_new_over(const MemxOptions *options,
                                 const MemxTransport *transport,
                                 GError **error);

/* fill-probe.c: is MOVE faster than COPY for a group, with a second thread
 * running? */
bool memx_fill_probe(MemxRegion *r);

#endif
