/*
 * Memory cgroup: see memory-cgroup.h.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#include "bench.h"
#include "guard.h"
#include "memory-cgroup.h"

#include <errno.h>
#include <fcntl.h>
#include <mntent.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

struct MemoryCgroup {
    char *path;
    bool v2;
    int guard_id;
};

static bool has_memory_controller(const char *root)
{
    g_autofree char *path = g_build_filename(root, "cgroup.controllers",
                                             NULL);
    g_autofree char *text = NULL;

    return g_file_get_contents(path, &text, NULL, NULL) &&
           strstr(text, "memory");
}

/* Where the memory controller's groups are; NULL if nowhere. */
static char *find_root(bool *v2)
{
    FILE *mounts = setmntent("/proc/self/mounts", "re");
    struct mntent *mount;
    char *root = NULL;

    while (mounts && !root && (mount = getmntent(mounts))) {
        *v2 = g_str_equal(mount->mnt_type, "cgroup2");
        if (*v2 ? has_memory_controller(mount->mnt_dir)
                : g_str_equal(mount->mnt_type, "cgroup") &&
                  hasmntopt(mount, "memory")) {
            root = g_strdup(mount->mnt_dir);
        }
    }
    if (mounts) {
        endmntent(mounts);
    }
    return root;
}

static bool put(const char *directory, const char *file, const char *value,
                GError **error)
{
    g_autofree char *path = g_build_filename(directory, file, NULL);
    int fd = open(path, O_WRONLY | O_CLOEXEC);
    bool ok = fd >= 0 && write(fd, value, strlen(value)) > 0;

    if (!ok) {
        g_set_error(error, BENCH_ERROR, BENCH_ERROR_UNAVAILABLE,
                    "cannot write %s into %s: %s", value, path,
                    g_strerror(errno));
    }
    if (fd >= 0) {
        close(fd);
    }
    return ok;
}

MemoryCgroup *memory_cgroup_new(GError **error)
{
    MemoryCgroup *cgroup;
    bool v2;
    g_autofree char *root = find_root(&v2);

    if (!root) {
        g_set_error(error, BENCH_ERROR, BENCH_ERROR_UNAVAILABLE,
                    "no memory cgroups are mounted here");
        return NULL;
    }
    if (v2 && !put(root, "cgroup.subtree_control", "+memory", error)) {
        return NULL;
    }
    cgroup = g_new0(MemoryCgroup, 1);
    cgroup->v2 = v2;
    cgroup->path = g_strdup_printf("%s/memx-bench-%d", root, (int)getpid());
    cgroup->guard_id = guard_push(GUARD_RMDIR, "%s", cgroup->path);
    if (mkdir(cgroup->path, 0755) < 0) {
        g_set_error(error, BENCH_ERROR, BENCH_ERROR_UNAVAILABLE,
                    "cannot make the cgroup %s (%s): run as root",
                    cgroup->path, g_strerror(errno));
        memory_cgroup_free(cgroup);
        return NULL;
    }
    return cgroup;
}

void memory_cgroup_free(MemoryCgroup *cgroup)
{
    if (!cgroup) {
        return;
    }
    guard_undo(cgroup->guard_id);
    g_free(cgroup->path);
    g_free(cgroup);
}

bool memory_cgroup_add(MemoryCgroup *cgroup, pid_t pid, GError **error)
{
    g_autofree char *text = g_strdup_printf("%d", (int)pid);

    return put(cgroup->path, "cgroup.procs", text, error);
}

bool memory_cgroup_limit(MemoryCgroup *cgroup, uint64_t bytes,
                         GError **error)
{
    g_autofree char *text = g_strdup_printf("%" G_GUINT64_FORMAT, bytes);

    return put(cgroup->path, cgroup->v2 ? "memory.max"
                                        : "memory.limit_in_bytes",
               text, error);
}
