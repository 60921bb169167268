/*
 * memory-backend-memx: guest RAM of which a part lives on memory servers.
 *
 * The memory itself is QEMU's: a private anonymous RAM block, as that of
 * memory-backend-ram.  complete() makes it, takes from it what userfaultfd
 * could not live with (huge pages, merging, copies in child processes), and
 * hands it to libmemx, which from then on fetches and evicts its pages in
 * threads of its own.  Without servers, with -incoming, that happens when a
 * split migration has brought the memory (memx-arrival.c).
 *
 * The region ends with its RAM block.  That is later than the object's
 * removal where somebody still holds a reference to its memory, and it is
 * the last moment at which the memory exists.  RAM that the machine uses
 * lives until QEMU ends: an exit notifier ends those regions, so that their
 * pages are dropped on the servers.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#include "qemu/osdep.h"
#include <sys/mman.h>
#include "crypto/secret.h"
#include "exec/memory.h"
#include "qapi/error.h"
#include "qapi/qapi-builtin-visit.h"
#include "qapi/visitor.h"
#include "qemu/error-report.h"
#include "qemu/madvise.h"
#include "qemu/main-loop.h"
#include "qemu/module.h"
#include "qemu/rcu.h"
#include "qemu/units.h"
#include "qemu/uuid.h"
#include "qom/object_interfaces.h"
#include "system/runstate.h"
#include "system/system.h"
#include "compat.h"
#include "memx-backend.h"
#include "memx-split.h"
#include "trace.h"

QemuMutex memx_backends_lock;
MemxBackendList memx_backends = QTAILQ_HEAD_INITIALIZER(memx_backends);

static void (*parent_complete)(UserCreatable *uc, Error **errp);

static void __attribute__((constructor)) memx_backends_init(void)
{
    qemu_mutex_init(&memx_backends_lock);
}

/* --- the region's life ------------------------------------------------- */

static void memx_backend_stop(MemxBackend *b)
{
    memx_arrival_forget(b);
    if (!b->region) {
        return;
    }
    WITH_QEMU_LOCK_GUARD(&memx_backends_lock) {
        QTAILQ_REMOVE(&memx_backends, b, next);
    }
    /* Not under the lock: its last events may wait for it. */
    memx_region_free(b->region);
    b->region = NULL;
    trace_memx_region_freed(b->id);
}

static void memx_ram_removed(RAMBlockNotifier *n, void *host, size_t size,
                             size_t max_size)
{
    MemxBackend *b = container_of(n, MemxBackend, ram_notifier);

    if (b->host == host) {
        memx_backend_stop(b);
        b->host = NULL;
        ram_block_notifier_remove(n);
        ram_block_discard_require(false);
    }
}

/*
 * QEMU ends.  With the region its memory would turn into zeros, so where
 * somebody might still run on it (exit() in the middle of something) it
 * stays; the servers then list its pages as orphaned.
 */
static void memx_exit(Notifier *n, void *unused)
{
    MemxBackend *b, *next;

    if (runstate_is_running()) {
        return;
    }
    memx_split_exit();
    QTAILQ_FOREACH_SAFE(b, &memx_backends, next, next) {
        if (!memx_split_uses(b->region)) {
            memx_backend_stop(b);
        }
    }
}

static Notifier memx_exit_notifier = { .notify = memx_exit };

/* Once: with the first backend, or when the machine is there. */
static void memx_backend_first(void)
{
    static bool done;

    if (!done) {
        done = true;
        qemu_add_exit_notifier(&memx_exit_notifier);
        memx_events_init();
        memx_hooks_init();
    }
}

/* memserver reads the same file: there the line's end is not the key. */
void memx_key_trim(const uint8_t *key, size_t *bytes)
{
    while (*bytes && g_ascii_isspace(key[*bytes - 1])) {
        (*bytes)--;
    }
}

static bool memx_backend_get_key(MemxBackend *b, uint8_t **key, size_t *bytes,
                                 Error **errp)
{
    if (b->key_secret &&
        qcrypto_secret_lookup(b->key_secret, key, bytes, errp) < 0) {
        error_prepend(errp, "key-secret: ");
        return false;
    }
    if (b->key_secret) {
        memx_key_trim(*key, bytes);
    }
    return true;
}

/* What userfaultfd needs of memory, and what ram_block_add() did to it. */
static bool memx_backend_prepare_ram(void *host, uint64_t bytes, Error **errp)
{
    /* These two fail where the kernel knows no such thing: as good. */
    qemu_madvise(host, bytes, QEMU_MADV_UNMERGEABLE);
    qemu_madvise(host, bytes, QEMU_MADV_NOHUGEPAGE);
    /* A child's share of a page would keep it from being moved. */
    if (qemu_madvise(host, bytes, QEMU_MADV_DONTFORK) < 0) {
        error_setg_errno(errp, errno, "madvise(MADV_DONTFORK)");
        return false;
    }
    return true;
}

static void memx_backend_warn_of_swap(const MemxBackend *b)
{
    g_autofree MemxStats *stats = g_new(MemxStats, 1);

    memx_region_stats(b->region, stats);
    if (stats->host_swap) {
        warn_report("memory-backend-memx '%s': this host swaps; what it swaps "
                    "out of the %" PRIu64 " MiB of local-size comes back "
                    "slower than from a memory server: switch swap off, or "
                    "set memory.swap.max=0 for this process", b->id,
                    b->local_bytes / MiB);
    }
}

/* A huge page is made on one node: that isn't what interleave asks for. */
static MemxHugePages memx_backend_huge_pages(const MemxBackend *b)
{
    HostMemPolicy policy = MEMORY_BACKEND(b)->policy;

    if (b->huge_pages == ON_OFF_AUTO_ON) {
        return MEMX_HUGE_PAGES_ON;
    }
    return b->huge_pages == ON_OFF_AUTO_OFF ||
           policy == HOST_MEM_POLICY_INTERLEAVE ? MEMX_HUGE_PAGES_OFF
                                                : MEMX_HUGE_PAGES_AUTO;
}

bool memx_backend_options(MemxBackend *b, MemxOptions *options,
                          MemxIdleFiles *files, Error **errp)
{
    uint8_t *key = NULL;

    *options = MEMX_OPTIONS_INIT;
    if (!memx_tracking_options(&b->tracking, &options->tracker, files, errp)) {
        return false;
    }
    if (!memx_backend_get_key(b, &key, &options->key_bytes, errp)) {
        memx_idle_files_close(files);
        return false;
    }
    options->base = b->host;
    options->size_bytes = memory_region_size(&MEMORY_BACKEND(b)->mr);
    options->local_bytes = b->local_bytes;
    options->chunk_bytes = b->chunk_bytes;
    options->key = key;
    options->keep_copies = b->keep_copies == ON_OFF_AUTO_ON ?
                           MEMX_KEEP_COPIES_ON :
                           b->keep_copies == ON_OFF_AUTO_OFF ?
                           MEMX_KEEP_COPIES_OFF : MEMX_KEEP_COPIES_AUTO;
    options->huge_pages = memx_backend_huge_pages(b);
    options->server_timeout_ms = b->server_timeout_s * 1000;
    options->vm_name = qemu_get_vm_name();
    options->region_name = b->id;
    memcpy(options->vm_uuid, qemu_uuid.data, sizeof(options->vm_uuid));
    options->event = memx_backend_event;
    options->opaque = b;
    return true;
}

void memx_backend_options_free(MemxOptions *options, MemxIdleFiles *files)
{
    g_free((void *)options->key);
    memx_idle_files_close(files);
}

/* The region is there, and its memory in use. */
void memx_backend_adopt(MemxBackend *b, MemxRegion *region)
{
    g_autofree MemxStats *stats = g_new(MemxStats, 1);

    memx_region_stats(region, stats);
    b->chunk_bytes = stats->chunk_bytes; /* a split migration may bring it */
    b->region = region;
    WITH_QEMU_LOCK_GUARD(&memx_backends_lock) {
        QTAILQ_INSERT_TAIL(&memx_backends, b, next);
    }
    trace_memx_region_created(b->id, memory_region_size(&MEMORY_BACKEND(b)->mr),
                              b->local_bytes);
    memx_backend_warn_of_swap(b);
}

static MemxRegion *memx_backend_connect(MemxBackend *b, Error **errp)
{
    g_autoptr(GPtrArray) servers = g_ptr_array_new();
    g_autoptr(GError) gerr = NULL;
    MemxIdleFiles files;
    MemxOptions options;
    MemxRegion *region;
    strList *s;

    if (!memx_backend_options(b, &options, &files, errp)) {
        return NULL;
    }
    for (s = b->servers; s; s = s->next) {
        g_ptr_array_add(servers, s->value);
    }
    g_ptr_array_add(servers, NULL);
    options.servers = (const char *const *)servers->pdata;
    region = memx_region_new(&options, &gerr);
    memx_backend_options_free(&options, &files);
    if (!region) {
        error_setg(errp, "%s", gerr->message);
    }
    return region;
}

static bool memx_backend_start(MemxBackend *b, Error **errp)
{
    HostMemoryBackend *backend = MEMORY_BACKEND(b);
    MemxRegion *region = NULL;

    b->host = memory_region_get_ram_ptr(&backend->mr);
    if (!memx_backend_prepare_ram(b->host, memory_region_size(&backend->mr),
                                  errp) ||
        (b->servers && !(region = memx_backend_connect(b, errp)))) {
        b->host = NULL;
        return false;
    }
    memx_backend_first();
    b->ram_notifier.ram_block_removed = memx_ram_removed;
    ram_block_notifier_add(&b->ram_notifier);
    if (region) {
        memx_backend_adopt(b, region);
    } else {
        memx_arrival_await(b);
    }
    return true;
}

static void memx_backend_complete(UserCreatable *uc, Error **errp)
{
    ERRP_GUARD();
    MemxBackend *b = MEMORY_BACKEND_MEMX(uc);

    b->id = host_memory_backend_get_name(MEMORY_BACKEND(b));
    if (!memx_backend_check(b, errp)) {
        goto fail;
    }
    /* From here on QEMU refuses to preallocate by itself. */
    MEMORY_BACKEND(b)->reserve = false;
    if (ram_block_discard_require(true)) {
        error_setg(errp, "a device of this VM pins its memory (VFIO, vDPA or "
                   "the like): remove it, or use another memory backend");
        goto fail;
    }
    parent_complete(uc, errp);
    if (!*errp && memx_backend_start(b, errp)) {
        return;
    }
    ram_block_discard_require(false);
fail:
    error_prepend(errp, "memory-backend-memx '%s': ", b->id);
}

static bool memx_backend_alloc(HostMemoryBackend *backend, Error **errp)
{
    g_autofree char *name = host_memory_backend_get_name(backend);

    /* PRIVATE wins over -machine aux-ram-share. */
    return memory_region_init_ram_flags_nomigrate(&backend->mr,
                                                  OBJECT(backend), name,
                                                  backend->size,
                                                  RAM_PRIVATE | RAM_NORESERVE,
                                                  errp);
}

/* --- properties -------------------------------------------------------- */

/*
 * Around what may take seconds when a memory server does not answer: vCPUs and
 * devices go on meanwhile.  It is the main loop that waits, so nobody takes
 * the object away.
 */
void memx_backend_open_bql(MemxBackend *b)
{
    object_ref(OBJECT(b));
    bql_unlock();
}

void memx_backend_close_bql(MemxBackend *b)
{
    bql_lock();
    object_unref(OBJECT(b));
}

static bool memx_backend_is_fixed(MemxBackend *b, const char *name,
                                  Error **errp)
{
    if (b->host) {
        error_setg(errp, "%s of '%s' can't be changed any more", name, b->id);
    }
    return b->host;
}

static void memx_backend_get_local_size(Object *obj, Visitor *v,
                                        const char *name, void *opaque,
                                        Error **errp)
{
    visit_type_size(v, name, &MEMORY_BACKEND_MEMX(obj)->local_bytes, errp);
}

/* This one may be set while the VM runs. */
static void memx_backend_set_local_size(Object *obj, Visitor *v,
                                        const char *name, void *opaque,
                                        Error **errp)
{
    MemxBackend *b = MEMORY_BACKEND_MEMX(obj);
    g_autoptr(GError) gerr = NULL;
    uint64_t value;

    if (!visit_type_size(v, name, &value, errp)) {
        return;
    }
    if (b->region) {
        bool ok;

        memx_backend_open_bql(b);
        ok = memx_region_set_local_bytes(b->region, value, &gerr);
        memx_backend_close_bql(b);
        if (!ok) {
            error_setg(errp, "memory-backend-memx '%s': %s", b->id,
                       gerr->message);
            return;
        }
        trace_memx_local_size(b->id, b->local_bytes, value);
    } else if (memx_arrival_has(b)) {
        error_setg(errp, "local-size of '%s' can't be changed while its "
                   "memory arrives", b->id);
        return;
    }
    b->local_bytes = value;
}

static void memx_backend_get_chunk_size(Object *obj, Visitor *v,
                                        const char *name, void *opaque,
                                        Error **errp)
{
    visit_type_size(v, name, &MEMORY_BACKEND_MEMX(obj)->chunk_bytes, errp);
}

static void memx_backend_set_chunk_size(Object *obj, Visitor *v,
                                        const char *name, void *opaque,
                                        Error **errp)
{
    MemxBackend *b = MEMORY_BACKEND_MEMX(obj);

    if (!memx_backend_is_fixed(b, name, errp)) {
        visit_type_size(v, name, &b->chunk_bytes, errp);
    }
}

static void memx_backend_get_servers(Object *obj, Visitor *v,
                                     const char *name, void *opaque,
                                     Error **errp)
{
    MemxBackend *b = MEMORY_BACKEND_MEMX(obj);
    g_autoptr(strList) now = b->region ? memx_servers_list(b) : NULL;

    visit_type_strList(v, name, b->region ? &now : &b->servers, errp);
}

static void memx_backend_set_servers(Object *obj, Visitor *v,
                                     const char *name, void *opaque,
                                     Error **errp)
{
    MemxBackend *b = MEMORY_BACKEND_MEMX(obj);
    strList *value;

    if (b->region) {
        memx_servers_set(b, v, name, errp);
        return;
    }
    if (b->host) {
        error_setg(errp, "servers of '%s' come with the split migration that "
                   "it waits for", b->id);
        return;
    }
    if (!visit_type_strList(v, name, &value, errp)) {
        return;
    }
    qapi_free_strList(b->servers);
    b->servers = value;
}

static int memx_backend_get_keep_copies(Object *obj, Error **errp)
{
    return MEMORY_BACKEND_MEMX(obj)->keep_copies;
}

static void memx_backend_set_keep_copies(Object *obj, int value, Error **errp)
{
    MemxBackend *b = MEMORY_BACKEND_MEMX(obj);

    if (!memx_backend_is_fixed(b, "keep-copies", errp)) {
        b->keep_copies = value;
    }
}

static int memx_backend_get_huge_pages(Object *obj, Error **errp)
{
    return MEMORY_BACKEND_MEMX(obj)->huge_pages;
}

static void memx_backend_set_huge_pages(Object *obj, int value, Error **errp)
{
    MemxBackend *b = MEMORY_BACKEND_MEMX(obj);

    if (!memx_backend_is_fixed(b, "huge-pages", errp)) {
        b->huge_pages = value;
    }
}

static void memx_backend_get_server_timeout(Object *obj, Visitor *v,
                                            const char *name, void *opaque,
                                            Error **errp)
{
    visit_type_uint32(v, name, &MEMORY_BACKEND_MEMX(obj)->server_timeout_s,
                      errp);
}

static void memx_backend_set_server_timeout(Object *obj, Visitor *v,
                                            const char *name, void *opaque,
                                            Error **errp)
{
    MemxBackend *b = MEMORY_BACKEND_MEMX(obj);

    if (!memx_backend_is_fixed(b, name, errp)) {
        visit_type_uint32(v, name, &b->server_timeout_s, errp);
    }
}

static char *memx_backend_get_key_secret(Object *obj, Error **errp)
{
    return g_strdup(MEMORY_BACKEND_MEMX(obj)->key_secret);
}

static void memx_backend_set_key_secret(Object *obj, const char *value,
                                        Error **errp)
{
    MemxBackend *b = MEMORY_BACKEND_MEMX(obj);

    if (!memx_backend_is_fixed(b, "key-secret", errp)) {
        g_free(b->key_secret);
        b->key_secret = g_strdup(value);
    }
}

static bool memx_backend_has_started(Object *obj)
{
    return MEMORY_BACKEND_MEMX(obj)->host;
}

static bool memx_backend_change_tracking(Object *obj, uint32_t period_ms,
                                         uint32_t cpu_percent, Error **errp)
{
    MemxBackend *b = MEMORY_BACKEND_MEMX(obj);
    g_autoptr(GError) gerr = NULL;

    if (b->region && !memx_region_set_tracking(b->region, period_ms,
                                               cpu_percent, &gerr)) {
        error_setg(errp, "memory-backend-memx '%s': %s", b->id, gerr->message);
        return false;
    }
    return true;
}

static const MemxTrackingOwner memx_backend_tracking = {
    .offset = offsetof(MemxBackend, tracking),
    .started = memx_backend_has_started,
    .change = memx_backend_change_tracking,
};

static void memx_backend_class_properties(ObjectClass *oc)
{
    object_class_property_add(oc, "local-size", "size",
                              memx_backend_get_local_size,
                              memx_backend_set_local_size, NULL, NULL);
    object_class_property_set_description(oc, "local-size",
        "How much of the memory may be in this host");
    object_class_property_add(oc, "chunk-size", "size",
                              memx_backend_get_chunk_size,
                              memx_backend_set_chunk_size, NULL, NULL);
    object_class_property_set_description(oc, "chunk-size",
        "Unit of placement and eviction (default: 1 MiB)");
    object_class_property_add(oc, "servers", "strList",
                              memx_backend_get_servers,
                              memx_backend_set_servers, NULL, NULL);
    object_class_property_set_description(oc, "servers",
        "Memory servers, each as host:port; none: a split migration brings "
        "them.  May be changed while the VM runs");
    object_class_property_add_enum(oc, "keep-copies", "OnOffAuto",
                                   &OnOffAuto_lookup,
                                   memx_backend_get_keep_copies,
                                   memx_backend_set_keep_copies);
    object_class_property_set_description(oc, "keep-copies",
        "Leave fetched pages on their server (default: auto, while it has "
        "room)");
    object_class_property_add_enum(oc, "huge-pages", "OnOffAuto",
                                   &OnOffAuto_lookup,
                                   memx_backend_get_huge_pages,
                                   memx_backend_set_huge_pages);
    object_class_property_set_description(oc, "huge-pages",
        "Make huge pages of local memory that is in use (default: auto, where "
        "that can be had)");
    object_class_property_add(oc, "server-timeout", "uint32",
                              memx_backend_get_server_timeout,
                              memx_backend_set_server_timeout, NULL, NULL);
    object_class_property_set_description(oc, "server-timeout",
        "Seconds to wait for a page before the VM is stopped (default: 30)");
    object_class_property_add_str(oc, "key-secret",
                                  memx_backend_get_key_secret,
                                  memx_backend_set_key_secret);
    object_class_property_set_description(oc, "key-secret",
        "Id of a secret object with the servers' key");
    memx_tracking_add_properties(oc, &memx_backend_tracking);
}

/* --- the object -------------------------------------------------------- */

/*
 * object-del.  Views of guest memory of which this was a part until just now
 * keep a reference for an RCU grace period: let them go, so that the region
 * has ended, and given back its room on the servers, when object-del answers.
 */
static void memx_backend_unparent(Object *obj)
{
    if (MEMORY_BACKEND_MEMX(obj)->host) {
        drain_call_rcu();
    }
}

static void memx_backend_instance_init(Object *obj)
{
    MemxBackend *b = MEMORY_BACKEND_MEMX(obj);
    MemxOptions defaults = MEMX_OPTIONS_INIT;

    /* The parent's defaults come from the machine: on, mostly. */
    MEMORY_BACKEND(b)->merge = false;
    MEMORY_BACKEND(b)->dump = false;
    b->chunk_bytes = defaults.chunk_bytes;
    b->server_timeout_s = defaults.server_timeout_ms / 1000;
    b->keep_copies = ON_OFF_AUTO_AUTO;
    b->huge_pages = ON_OFF_AUTO_AUTO;
    memx_tracking_init(&b->tracking);
}

static void memx_backend_instance_finalize(Object *obj)
{
    MemxBackend *b = MEMORY_BACKEND_MEMX(obj);

    assert(!b->region);
    qapi_free_strList(b->servers);
    g_free(b->key_secret);
    memx_tracking_finalize(&b->tracking);
    g_free(b->id);
}

static void memx_backend_class_init(ObjectClass *oc, MemxClassData *data)
{
    UserCreatableClass *ucc = USER_CREATABLE_CLASS(oc);

    oc->unparent = memx_backend_unparent;
    MEMORY_BACKEND_CLASS(oc)->alloc = memx_backend_alloc;
    parent_complete = ucc->complete;
    ucc->complete = memx_backend_complete;
    memx_backend_class_properties(oc);
}

static const TypeInfo memx_backend_info = {
    .name = TYPE_MEMORY_BACKEND_MEMX,
    .parent = TYPE_MEMORY_BACKEND,
    .instance_init = memx_backend_instance_init,
    .instance_finalize = memx_backend_instance_finalize,
    .class_init = memx_backend_class_init,
    .instance_size = sizeof(MemxBackend),
};

static void memx_machine_done(Notifier *n, void *unused)
{
    memx_backend_first();
    memx_stream_init();
    memx_tracking_watch_migration();
}

static Notifier memx_machine_done_notifier = { .notify = memx_machine_done };

static void register_types(void)
{
    type_register_static(&memx_backend_info);
    memx_hmp_init();
    qemu_add_machine_init_done_notifier(&memx_machine_done_notifier);
}

type_init(register_types);
