/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * GLib's locks, made visible to ThreadSanitizer.
 *
 * GLib isn't built with it, and makes GMutex and GCond of futexes, so that it
 * would see neither and call everything a race that they protect.  These
 * stand in front of the real ones and tell it.  Linked into every test when
 * the tree is built with -Db_sanitize=thread, and only then.
 */
#include <dlfcn.h>
#include <glib.h>

void __tsan_acquire(void *address);
void __tsan_release(void *address);

static void (*real_lock)(GMutex *);
static gboolean (*real_trylock)(GMutex *);
static void (*real_unlock)(GMutex *);
static void (*real_wait)(GCond *, GMutex *);
static gboolean (*real_wait_until)(GCond *, GMutex *, gint64);

static void *real(const char *name)
{
    void *found = dlsym(RTLD_NEXT, name);

    g_assert(found);
    return found;
}

__attribute__((constructor)) static void find_real(void)
{
    real_lock = (void (*)(GMutex *))real("g_mutex_lock");
    real_trylock = (gboolean (*)(GMutex *))real("g_mutex_trylock");
    real_unlock = (void (*)(GMutex *))real("g_mutex_unlock");
    real_wait = (void (*)(GCond *, GMutex *))real("g_cond_wait");
    real_wait_until = (gboolean (*)(GCond *, GMutex *, gint64))
        real("g_cond_wait_until");
}

static void ensure(void)
{
    if (G_UNLIKELY(!real_lock)) {
        find_real(); /* another constructor was first */
    }
}

void (g_mutex_lock)(GMutex *mutex)
{
    ensure();
    real_lock(mutex);
    __tsan_acquire(mutex);
}

gboolean (g_mutex_trylock)(GMutex *mutex)
{
    gboolean locked;

    ensure();
    locked = real_trylock(mutex);
    if (locked) {
        __tsan_acquire(mutex);
    }
    return locked;
}

void (g_mutex_unlock)(GMutex *mutex)
{
    ensure();
    __tsan_release(mutex);
    real_unlock(mutex);
}

void (g_cond_wait)(GCond *cond, GMutex *mutex)
{
    ensure();
    __tsan_release(mutex);
    real_wait(cond, mutex);
    __tsan_acquire(mutex);
}

gboolean (g_cond_wait_until)(GCond *cond, GMutex *mutex, gint64 end)
{
    gboolean signalled;

    ensure();
    __tsan_release(mutex);
    signalled = real_wait_until(cond, mutex, end);
    __tsan_acquire(mutex);
    return signalled;
}
