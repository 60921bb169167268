/*
 * What QEMU's own files call.  Without CONFIG_MEMX all of it vanishes.
 * Include it after qemu/osdep.h, which brings the types.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#ifndef MEMX_HOOKS_H
#define MEMX_HOOKS_H

struct MigrateSetParameters;
struct MigrationInfo;
struct MigrationParameters;

#ifdef CONFIG_MEMX

/*
 * True for -object arguments that need keyval syntax: a list written with
 * dots, "servers.0=...", means nothing to the older parser of -object.
 */
bool memx_object_is_keyval(const char *arg);

/*
 * Gives a range of guest RAM back to host and servers.  Returns false if the
 * block isn't ours, for the caller to do it; otherwise *ret is 0 or -errno.
 */
bool memx_discard_range(RAMBlock *block, uint64_t offset, size_t bytes,
                        int *ret);

/* Each returns false with an error if memx RAM makes it impossible. */
bool memx_allows_snapshot(Error **errp);
bool memx_allows_capabilities(const bool *caps, Error **errp);
bool memx_allows_transport(int transport, Error **errp);
bool memx_allows_virtio_mem(HostMemoryBackend *memdev, Error **errp);

/*
 * A vhost-user device begins (also when this refuses it) or ends.  While
 * there is one, no memx RAM can be added.
 */
bool memx_vhost_user_begin(Error **errp);
void memx_vhost_user_end(void);

/* The user stopped the VM, perhaps while it was stopped by us. */
void memx_user_stop(void);

/*
 * Split migration: capability and parameters.
 */
bool memx_split_migration(void);        /* the capability is on */
bool memx_split_capability(int capability);
void memx_params_init(struct MigrationParameters *params);
void memx_params_query(struct MigrationParameters *to,
                       const struct MigrationParameters *from);
void memx_params_apply(const struct MigrateSetParameters *from,
                       struct MigrationParameters *to);
bool memx_params_check(const struct MigrateSetParameters *params,
                       Error **errp);
void memx_params_hmp_set(int parameter, const char *name, Visitor *v,
                         struct MigrateSetParameters *params, Error **errp);
void memx_params_hmp_print(Monitor *mon,
                           const struct MigrationParameters *params);

/*
 * Split migration: the source.
 *
 * memx_split_start() runs between the stream's setup, which may have failed
 * with *@errp set, and its first pages, in the migration thread without the
 * BQL, and may take seconds.  From then on memx_split_save_page() is asked for
 * each dirty page: 0: send it; 1: it is taken care of.
 */
bool memx_split_start(bool is_set_up, Error **errp);
extern bool memx_split_active;
int memx_split_divert(RAMBlock *block, uint64_t offset);
static inline int memx_split_save_page(RAMBlock *block, uint64_t offset)
{
    return memx_split_active ? memx_split_divert(block, offset) : 0;
}

/* An answer on the return path that is none of QEMU's own; false: nor is it
 * ours. */
bool memx_split_answer(QEMUFile *rp, unsigned type, unsigned bytes);

/* What went to memory servers, and what has yet to. */
uint64_t memx_split_sent_bytes(void);
uint64_t memx_split_pending_bytes(void);
/* What goes off the next window's @limit, since so much was @used of this one:
 * the stream doesn't know what servers are still to be sent in a window. */
uint64_t memx_split_excess_bytes(uint64_t used, uint64_t limit);

void memx_split_query(struct MigrationInfo *info);
void memx_split_hmp_print(Monitor *mon, const struct MigrationInfo *info);

/*
 * Split migration: both sides.  False, with an error and an event, if this
 * side must not run the VM; each call asks again.  Under the BQL, for 2 s at
 * most.
 */
bool memx_may_run(Error **errp);
/* Nobody has asked yet, or the answer was no: for who would start the VM
 * without asking (gdb). */
bool memx_must_wait(void);
/* An incoming migration ends, but memx_may_run() or the disks said no.  False:
 * it is none of ours.  If the VM is not (yet) this side's, the source is told,
 * by an error of @from_source. */
bool memx_arrival_stopped(QEMUFile *from_source);

#else

static inline bool memx_object_is_keyval(const char *arg)
{
    return false;
}

static inline bool memx_discard_range(RAMBlock *block, uint64_t offset,
                                      size_t bytes, int *ret)
{
    return false;
}

static inline bool memx_allows_snapshot(Error **errp)
{
    return true;
}

static inline bool memx_allows_capabilities(const bool *caps, Error **errp)
{
    return true;
}

static inline bool memx_allows_transport(int transport, Error **errp)
{
    return true;
}

static inline bool memx_allows_virtio_mem(HostMemoryBackend *memdev,
                                          Error **errp)
{
    return true;
}

static inline bool memx_vhost_user_begin(Error **errp)
{
    return true;
}

static inline void memx_vhost_user_end(void)
{
}

static inline void memx_user_stop(void)
{
}

static inline bool memx_split_migration(void)
{
    return false;
}

static inline bool memx_split_capability(int capability)
{
    return false;
}

static inline void memx_params_init(struct MigrationParameters *params)
{
}

static inline void memx_params_query(struct MigrationParameters *to,
                                     const struct MigrationParameters *from)
{
}

static inline void memx_params_apply(const struct MigrateSetParameters *from,
                                     struct MigrationParameters *to)
{
}

static inline bool
memx_params_check(const struct MigrateSetParameters *params, Error **errp)
{
    return true;
}

static inline void
memx_params_hmp_set(int parameter, const char *name, Visitor *v,
                    struct MigrateSetParameters *params, Error **errp)
{
    g_assert_not_reached();
}

static inline void
memx_params_hmp_print(Monitor *mon, const struct MigrationParameters *params)
{
}

static inline bool memx_split_start(bool is_set_up, Error **errp)
{
    return is_set_up;
}

static inline int memx_split_save_page(RAMBlock *block, uint64_t offset)
{
    return 0;
}

static inline bool memx_split_answer(QEMUFile *rp, unsigned type,
                                     unsigned bytes)
{
    return false;
}

static inline uint64_t memx_split_sent_bytes(void)
{
    return 0;
}

static inline uint64_t memx_split_pending_bytes(void)
{
    return 0;
}

static inline uint64_t memx_split_excess_bytes(uint64_t used, uint64_t limit)
{
    return 0;
}

static inline void memx_split_query(struct MigrationInfo *info)
{
}

static inline void memx_split_hmp_print(Monitor *mon,
                                        const struct MigrationInfo *info)
{
}

static inline bool memx_may_run(Error **errp)
{
    return true;
}

static inline bool memx_must_wait(void)
{
    return false;
}

static inline bool memx_arrival_stopped(QEMUFile *from_source)
{
    return false;
}

#endif
#endif
