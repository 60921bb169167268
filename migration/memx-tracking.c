/*
 * Tracking of accesses: options and figures; see the header.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#include "qemu/osdep.h"
#include "migration/misc.h"
#include "qapi/error.h"
#include "qapi/qapi-builtin-visit.h"
#include "qapi/visitor.h"
#include "qemu/error-report.h"
#include "memx-backend.h"
#include "memx-tracking.h"

#define PERIOD_MS_MIN 100
#define PERIOD_MS_MAX 3600000
#define CPU_PERCENT_MAX 1600

/* A list that both sides have. */
QEMU_BUILD_BUG_ON((int)MEMX_TRACKER_MODE_AUTO != MEMX_TRACKER_AUTO);
QEMU_BUILD_BUG_ON((int)MEMX_TRACKER_MODE_OFF != MEMX_TRACKER_OFF);
QEMU_BUILD_BUG_ON((int)MEMX_TRACKER_MODE_RWP != MEMX_TRACKER_RWP);
QEMU_BUILD_BUG_ON((int)MEMX_TRACKER_MODE_IDLE != MEMX_TRACKER_IDLE);
QEMU_BUILD_BUG_ON((int)MEMX_TRACKER_MODE_SAMPLE != MEMX_TRACKER_SAMPLE);
QEMU_BUILD_BUG_ON((int)MEMX_TRACKER_MODE_DAMON != MEMX_TRACKER_DAMON);

void memx_tracking_init(MemxTracking *t)
{
    t->mode = MEMX_TRACKER_MODE_AUTO;
    t->cpu_percent = MEMX_TRACKER_OPTIONS_INIT.cpu_percent;
}

void memx_tracking_finalize(MemxTracking *t)
{
    g_free(t->idle_socket);
}

/* --- properties -------------------------------------------------------- */

static const MemxTrackingOwner *owner_of(Object *obj, MemxTracking **t)
{
    const MemxTrackingOwner *owner =
        object_property_find_err(obj, "tracker", &error_abort)->opaque;

    *t = (MemxTracking *)((char *)obj + owner->offset);
    return owner;
}

static bool is_fixed(Object *obj, const MemxTrackingOwner *owner,
                     const char *name, Error **errp)
{
    bool fixed = owner->started(obj);

    if (fixed) {
        error_setg(errp, "%s of '%s' can't be changed any more", name,
                   object_get_canonical_path_component(obj));
    }
    return fixed;
}

static void get_tracker(Object *obj, Visitor *v, const char *name,
                        void *opaque, Error **errp)
{
    MemxTracking *t;
    int value;

    owner_of(obj, &t);
    value = t->mode;
    visit_type_enum(v, name, &value, &MemxTrackerMode_lookup, errp);
}

static void set_tracker(Object *obj, Visitor *v, const char *name,
                        void *opaque, Error **errp)
{
    MemxTracking *t;
    const MemxTrackingOwner *owner = owner_of(obj, &t);
    int value;

    if (!is_fixed(obj, owner, name, errp) &&
        visit_type_enum(v, name, &value, &MemxTrackerMode_lookup, errp)) {
        t->mode = value;
    }
}

static void get_period(Object *obj, Visitor *v, const char *name,
                       void *opaque, Error **errp)
{
    MemxTracking *t;

    owner_of(obj, &t);
    visit_type_uint32(v, name, &t->period_ms, errp);
}

static void set_period(Object *obj, Visitor *v, const char *name,
                       void *opaque, Error **errp)
{
    MemxTracking *t;
    const MemxTrackingOwner *owner = owner_of(obj, &t);
    uint32_t value;

    if (!visit_type_uint32(v, name, &value, errp)) {
        return;
    }
    if (value && (value < PERIOD_MS_MIN || value > PERIOD_MS_MAX)) {
        error_setg(errp, "%s is in milliseconds, %d to %d, or 0 for one that "
                   "adapts", name, PERIOD_MS_MIN, PERIOD_MS_MAX);
    } else if (!owner->started(obj) ||
               owner->change(obj, value, t->cpu_percent, errp)) {
        t->period_ms = value;
    }
}

static void get_cpu(Object *obj, Visitor *v, const char *name, void *opaque,
                    Error **errp)
{
    MemxTracking *t;

    owner_of(obj, &t);
    visit_type_uint32(v, name, &t->cpu_percent, errp);
}

static void set_cpu(Object *obj, Visitor *v, const char *name, void *opaque,
                    Error **errp)
{
    MemxTracking *t;
    const MemxTrackingOwner *owner = owner_of(obj, &t);
    uint32_t value;

    if (!visit_type_uint32(v, name, &value, errp)) {
        return;
    }
    if (!value || value > CPU_PERCENT_MAX) {
        error_setg(errp, "%s is a share of one CPU in percent, 1 to %d", name,
                   CPU_PERCENT_MAX);
    } else if (!owner->started(obj) ||
               owner->change(obj, t->period_ms, value, errp)) {
        t->cpu_percent = value;
    }
}

static char *get_idle_socket(Object *obj, Error **errp)
{
    MemxTracking *t;

    owner_of(obj, &t);
    return g_strdup(t->idle_socket);
}

static void set_idle_socket(Object *obj, const char *value, Error **errp)
{
    MemxTracking *t;

    if (!is_fixed(obj, owner_of(obj, &t), "idle-socket", errp)) {
        g_free(t->idle_socket);
        t->idle_socket = g_strdup(value);
    }
}

void memx_tracking_add_properties(ObjectClass *oc,
                                  const MemxTrackingOwner *owner)
{
    object_class_property_add(oc, "tracker", "MemxTrackerMode", get_tracker,
                              set_tracker, NULL, (void *)owner);
    object_class_property_set_description(oc, "tracker",
        "How it is known which memory is touched (default: auto, the best "
        "that this host has)");
    object_class_property_add(oc, "tracker-period", "uint32", get_period,
                              set_period, NULL, NULL);
    object_class_property_set_description(oc, "tracker-period",
        "Milliseconds between two looks at all of the memory (default: 0, "
        "adapts)");
    object_class_property_add(oc, "tracker-cpu", "uint32", get_cpu, set_cpu,
                              NULL, NULL);
    object_class_property_set_description(oc, "tracker-cpu",
        "Share of one CPU that tracking may take, in percent (default: 2)");
    object_class_property_add_str(oc, "idle-socket", get_idle_socket,
                                  set_idle_socket);
    object_class_property_set_description(oc, "idle-socket",
        "Socket of memx-idle-helper, for tracker idle without root");
}

/* --- the engine's options and figures ---------------------------------- */

bool memx_tracking_options(const MemxTracking *t, MemxTrackerOptions *options,
                           MemxIdleFiles *files, Error **errp)
{
    g_autoptr(GError) gerr = NULL;

    *files = (MemxIdleFiles) { -1, -1, -1 };
    *options = (MemxTrackerOptions) {
        .kind = (MemxTrackerKind)t->mode,
        .period_ms = t->period_ms,
        .cpu_percent = t->cpu_percent,
    };
    if (!t->idle_socket || (t->mode != MEMX_TRACKER_MODE_AUTO &&
                            t->mode != MEMX_TRACKER_MODE_IDLE)) {
        return true;
    }
    if (memx_idle_files_receive(t->idle_socket, files, &gerr)) {
        options->idle = files;
        return true;
    }
    *files = (MemxIdleFiles) { -1, -1, -1 };
    if (t->mode == MEMX_TRACKER_MODE_IDLE) {
        error_setg(errp, "idle-socket: %s", gerr->message);
        return false;
    }
    warn_report("idle-socket: %s", gerr->message);
    return true;
}

static MemxWorkingSetList *working_sets(const MemxTrackerStats *s)
{
    static const unsigned permille[] = { 500, 800, 900, 950, 990 };
    MemxWorkingSetList *list = NULL, **tail = &list;
    unsigned i;

    for (i = 0; i < ARRAY_SIZE(permille); i++) {
        MemxWorkingSet *set = g_new0(MemxWorkingSet, 1);

        set->share = permille[i];
        set->bytes = memx_tracker_working_set(s, permille[i]);
        QAPI_LIST_APPEND(tail, set);
    }
    return list;
}

MemxTrackingInfo *memx_tracking_info(const MemxTrackerStats *s)
{
    MemxTrackingInfo *info = g_new0(MemxTrackingInfo, 1);
    uint32List **tail = &info->histogram;
    unsigned i;

    info->tracker = g_strdup(s->name);
    info->reason = g_strdup(s->why);
    info->period = s->period_ms;
    info->adapts = s->adapts;
    info->cpu_limit = s->cpu_percent;
    info->cpu = s->cpu_ppm;
    info->cpu_time = s->cpu_ns;
    info->periods = s->periods;
    info->pass_time = s->pass_ns;
    info->extra_faults = s->extra_faults;
    info->extra_faults_period = s->extra_faults_period;
    info->touched_pages = s->touched_pages;
    info->touched_chunks = s->touched_chunks;
    info->looked_chunks = s->looked_chunks;
    info->chunk_size = s->chunk_bytes;
    for (i = 0; i < MEMX_HISTORIES; i++) {
        QAPI_LIST_APPEND(tail, s->chunks[i]);
    }
    info->working_sets = working_sets(s);
    return info;
}

/* --- migration --------------------------------------------------------- */

static void pause_all(bool pause)
{
    MemxBackend *b;

    memx_tracker_pause_all(pause);
    QEMU_LOCK_GUARD(&memx_backends_lock);
    QTAILQ_FOREACH(b, &memx_backends, next) {
        memx_region_pause_tracking(b->region, pause);
    }
    if (pause) { /* all give back what is away at the same time */
        memx_tracker_await_all_paused();
        QTAILQ_FOREACH(b, &memx_backends, next) {
            memx_region_await_paused(b->region);
        }
    }
}

static int migration_changed(NotifierWithReturn *n, MigrationEvent *e,
                             Error **errp)
{
    pause_all(e->type == MIG_EVENT_PRECOPY_SETUP);
    return 0;
}

void memx_tracking_look_begin(void)
{
    MemxBackend *b;

    pause_all(false);
    memx_tracker_look_all();
    QEMU_LOCK_GUARD(&memx_backends_lock);
    QTAILQ_FOREACH(b, &memx_backends, next) {
        memx_region_look(b->region);
    }
}

bool memx_tracking_has_looked(void)
{
    bool yes = memx_tracker_have_all_looked();
    MemxBackend *b;

    QEMU_LOCK_GUARD(&memx_backends_lock);
    QTAILQ_FOREACH(b, &memx_backends, next) {
        yes = yes && memx_region_has_looked(b->region);
    }
    return yes;
}

void memx_tracking_look_end(void)
{
    pause_all(true);
}

void memx_tracking_watch_migration(void)
{
    static NotifierWithReturn notifier;

    migration_add_notifier(&notifier, migration_changed);
}
