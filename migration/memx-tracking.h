/*
 * Tracking of accesses: its options, as memory-backend-memx and memx-tracker
 * have them, and its figures.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#ifndef MEMX_TRACKING_H
#define MEMX_TRACKING_H

#include <memx.h>
#include "qapi/qapi-types-memx.h"
#include "qapi/qapi-types-qom.h"
#include "qom/object.h"

typedef struct MemxTracking {
    MemxTrackerMode mode;
    uint32_t period_ms;         /* 0: adapts */
    uint32_t cpu_percent;
    char *idle_socket;
} MemxTracking;

void memx_tracking_init(MemxTracking *tracking);
void memx_tracking_finalize(MemxTracking *tracking);

/* What an object that has these options says to a change of them. */
typedef struct MemxTrackingOwner {
    size_t offset;              /* of its MemxTracking */
    bool (*started)(Object *obj);
    /* Once it has started: period and CPU share. */
    bool (*change)(Object *obj, uint32_t period_ms, uint32_t cpu_percent,
                   Error **errp);
} MemxTrackingOwner;

/* Adds tracker, tracker-period, tracker-cpu and idle-socket.  @owner: static */
void memx_tracking_add_properties(ObjectClass *oc,
                                  const MemxTrackingOwner *owner);

/*
 * For the engine.  @files has what idle-socket gave, or nothing: close it,
 * with memx_idle_files_close(), when the engine has @options.
 */
bool memx_tracking_options(const MemxTracking *tracking,
                           MemxTrackerOptions *options, MemxIdleFiles *files,
                           Error **errp);

MemxTrackingInfo *memx_tracking_info(const MemxTrackerStats *stats);

/* Nothing is looked at while the VM migrates: the dirty log would take reads
 * of memory that rwp watches for writes. */
void memx_tracking_watch_migration(void);

/*
 * But once, before a split asks for the history: what was touched since the
 * last period's end counts, too.  From _begin() to _end(), all under the BQL,
 * trackers look.  Under KVM what rwp looks at may be sent twice.
 */
void memx_tracking_look_begin(void);
bool memx_tracking_has_looked(void);
void memx_tracking_look_end(void);

/* memx-tracker.c */
void memx_tracker_pause_all(bool pause);
void memx_tracker_await_all_paused(void);
void memx_tracker_look_all(void);
bool memx_tracker_have_all_looked(void);
/* A block at @host is about to give up pages. */
void memx_tracker_discard_range(const void *host, uint64_t offset,
                                uint64_t bytes);
/* What a memx-tracker knows of ordinary memory at @host, into
 * @region, which is to be split.  False: nothing. */
bool memx_tracker_give_history(const void *host, MemxRegion *region);

#endif
