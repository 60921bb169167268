/*
 * Split migration, as the files of this folder see it: docs/split-migration.md
 *
 *   memx-params.c       capability and parameters
 *   memx-split-plan.c   source: what is split, and whether it can be
 *   memx-split.c        source: its life
 *   memx-passive.c      source: regions of ordinary RAM
 *   memx-split-move.c   source: memx RAM gets other servers
 *   memx-split-stats.c  source: figures
 *   memx-warm-up.c      source: a history for memory that has none
 *   memx-stream.c       both: the section "memx" of the migration stream
 *   memx-arrival.c      destination
 *   memx-hand-over.c    both: who runs the VM
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#ifndef MEMX_SPLIT_H
#define MEMX_SPLIT_H

#include <memx.h>
#include "qapi/qapi-types-memx.h"
#include "qemu/thread.h"

#define MEMX_POLL_MS 50         /* how soon a cancel is noticed */

/* The arbiter's answer: both sides ask with the BQL held. */
#define MEMX_VERDICT_MS 2000

/*
 * The source
 *
 *   NONE     there is no split migration
 *   PLANNED  "migrate" checked it; nothing else happened
 *   SETUP    the destination knows of it; regions may exist
 *   RUNNING  some region has begun
 *   OFFERED  a server may know of the offer, but the destination does not
 *   SENT     the destination may take the VM over: the arbiter decides
 */
typedef enum MemxSplitState {
    MEMX_SPLIT_NONE,
    MEMX_SPLIT_PLANNED,
    MEMX_SPLIT_SETUP,
    MEMX_SPLIT_RUNNING,
    MEMX_SPLIT_OFFERED,
    MEMX_SPLIT_SENT,
} MemxSplitState;

typedef struct MemxPassive MemxPassive;

/* One RAM block that is split.  The first one's first server arbitrates. */
typedef struct MemxSplitBlock {
    RAMBlock *rb;               /* its memory region is referenced from SETUP */
    bool passive;               /* the region is ours, for this migration */
    bool moves;                 /* split-hosts are not the servers it has */
    uint64_t bytes;
    uint64_t main_bytes;        /* of these local at the destination */
    uint64_t chunk_bytes;
    MemxRegion *region;         /* passive ones: from memx_split_start() on */
    MemxPassive *passive_region;
    bool warm_up;               /* nothing is known of what is touched */
    bool begun;                 /* memx_split_begin() succeeded */
    uint64_t pending_bytes;     /* atomic; as the figures have it */
} MemxSplitBlock;

/*
 * There is one.  It changes under the BQL, or in the migration thread while
 * that runs: before SETUP and after the end of the thread nobody else touches
 * it.
 */
typedef struct MemxSplit {
    MemxSplitState state;
    uint8_t session[MEMX_SESSION_BYTES];
    MemxSplitBlock *blocks;
    unsigned n_blocks;
    bool refused;               /* atomic: the destination said why */

    /* Copies: whoever set them may reset them while we use them. */
    char **hosts;               /* NULL-terminated, may be empty */
    uint8_t *key;
    size_t key_bytes;
    unsigned warm_up_s;
} MemxSplit;

extern MemxSplit memx_split;

/* memx-params.c */
bool memx_split_allows_capabilities(const bool *caps, Error **errp);

/* memx-split-plan.c: NONE -> PLANNED, with blocks, hosts and key. */
bool memx_split_plan(MemxSplit *split, Error **errp);
void memx_split_plan_free(MemxSplit *split);

/* memx-split.c.  Those with a QEMUFile are for memx-stream.c. */
int memx_split_prepare(Error **errp);
bool memx_split_setup(Error **errp);
void memx_split_refresh(void);
bool memx_split_iterate(Error **errp);
bool memx_split_finish(Error **errp);   /* RUNNING -> OFFERED */
void memx_split_sent(void);             /* OFFERED -> SENT */
void memx_split_cleanup(void);
void memx_split_end(MemxSplitPhase phase);  /* -> NONE, under the BQL */
void memx_split_exit(void);
void memx_split_set_phase(MemxSplitPhase phase);
/* Something of the migration failed (with an error) or was cancelled. */
bool memx_split_unwanted(Error **errp);
bool memx_split_uses(const MemxRegion *region);

/* memx-passive.c */
bool memx_passive_connect(MemxSplitBlock *block, Error **errp);
void memx_passive_end(MemxSplitBlock *block);
bool memx_passive_ending(void);         /* some that ended before */

/* memx-split-move.c */
bool memx_split_move(Error **errp);

/* memx-split-stats.c */
void memx_split_figures_moves(uint64_t moved, uint64_t to_move);
void memx_split_figures_start(void);
void memx_split_figures_phase(MemxSplitPhase phase);
/* What is left, beside @stream bytes for the main stream, as QEMU compares it
 * with what it could send in the downtime: it knows what goes over all links
 * together, but each part has to go over its own one.  A link of which nothing
 * is known is taken for an equal part. */
uint64_t memx_split_pending_weighed(uint64_t stream);
/* Asks the regions; false if servers are in a state that ends it. */
bool memx_split_figures_refresh(Error **errp);
char *memx_split_suspects(void);
void memx_split_figures_end(void);

/* memx-warm-up.c: one period's writes, a bit per chunk, under the BQL. */
void memx_warm_up_period(MemxSplitBlock *block, uint64_t *chunks);

/* memx-stream.c */
void memx_stream_init(void);

/* memx-arrival.c */
struct MemxBackend;
bool memx_arrival_expected(void);       /* some backend waits for it */
void memx_arrival_await(struct MemxBackend *backend);
void memx_arrival_forget(struct MemxBackend *backend);
bool memx_arrival_has(const struct MemxBackend *backend);
bool memx_arrival_check(Error **errp);
bool memx_arrival_begin(const uint8_t *session, Error **errp);
bool memx_arrival_block(const char *name, uint64_t bytes, uint64_t main_bytes,
                        uint64_t chunk_bytes, Error **errp);
bool memx_arrival_complete(Error **errp);
bool memx_arrival_add_record(unsigned block, const void *record, size_t bytes,
                             Error **errp);
bool memx_arrival_attach(Error **errp);
void memx_arrival_cleanup(void);
MemxVerdict memx_arrival_commit(bool ask, GError **error);
bool memx_arrival_came(void);           /* attached, and perhaps committed */
bool memx_arrival_waits(void);          /* attached, and not yet committed */
const uint8_t *memx_arrival_session(void);
void memx_arrival_committed(void);

/* memx-hand-over.c */
void memx_session_text(const uint8_t *session, char *text); /* 33 bytes */
void memx_split_send_phase(MemxSplitPhase phase, const uint8_t *session);

#endif
