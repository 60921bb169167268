/*
 * What QEMU's own files call.  Without CONFIG_MEMX all of it vanishes.
 * Include it after qemu/osdep.h, which brings the types.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#ifndef MEMX_HOOKS_H
#define MEMX_HOOKS_H


#ifdef CONFIG_MEMX

/*
 * True for -object arguments that need keyval syntax: a list written with
 * dots, "servers.0=...", means nothing to the older parser of -object.
 */
bool memx_object_is_keyval(const char *arg);

/*
 * Gives a range of guest RAM back to host and servers.  Returns false, and
 * does nothing, if the block isn't ours; otherwise *ret is 0 or -errno.
 */
bool memx_discard_range(RAMBlock *block, uint64_t offset, size_t bytes,
                        int *ret);

/* Each returns false with an error if memx RAM makes it impossible. */
bool memx_allows_snapshot(Error **errp);
bool memx_allows_capabilities(const bool *caps, Error **errp);
bool memx_allows_virtio_mem(HostMemoryBackend *memdev, Error **errp);

/*
 * A vhost-user device begins (also when this refuses it) or ends.  While
 * there is one, no memx RAM can be added.
 */
bool memx_vhost_user_begin(Error **errp);
void memx_vhost_user_end(void);

/* The user stopped the VM, perhaps while it was stopped by us. */
void memx_user_stop(void);

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

#endif
#endif
