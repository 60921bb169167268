/*
 * Swap area: see swap-area.h.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#include "bench.h"
#include "guard.h"
#include "swap-area.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <sys/swap.h>
#include <unistd.h>

#define ZRAM_CONTROL "/sys/class/zram-control"
#define DEVICE_TIMEOUT_MS 2000

struct SwapArea {
    int unlink_guard;       /* of a file */
    int remove_guard;       /* of a zram device */
    int reset_guard;
    int swapoff_guard;
};

static bool unavailable(GError **error, const char *what, const char *path)
{
    g_set_error(error, BENCH_ERROR, BENCH_ERROR_UNAVAILABLE,
                "%s %s: %s", what, path, g_strerror(errno));
    return false;
}

static bool make_swap(SwapArea *area, const char *path, GError **error)
{
    const char *argv[] = { "mkswap", path, NULL };
    g_autofree char *errors = NULL;
    g_autoptr(GError) local = NULL;
    int status;

    if (!g_spawn_sync(NULL, (char **)argv, NULL,
                      G_SPAWN_SEARCH_PATH | G_SPAWN_STDOUT_TO_DEV_NULL, NULL,
                      NULL, NULL, &errors, &status, &local) ||
        !g_spawn_check_wait_status(status, &local)) {
        g_set_error(error, BENCH_ERROR, BENCH_ERROR_UNAVAILABLE,
                    "mkswap %s failed: %s %s", path, local->message,
                    errors ? g_strchomp(errors) : "");
        return false;
    }
    area->swapoff_guard = guard_push(GUARD_SWAPOFF, "%s", path);
    if (swapon(path, SWAP_FLAG_PREFER | SWAP_FLAG_PRIO_MASK) < 0) {
        return unavailable(error, "cannot swap to", path);
    }
    return true;
}

SwapArea *swap_area_file_new(const char *directory, uint64_t bytes,
                             GError **error)
{
    SwapArea *area = g_new0(SwapArea, 1);
    g_autofree char *path =
        g_strdup_printf("%s/memx-bench-%d.swap", directory, (int)getpid());
    int fd, failed;

    area->unlink_guard = guard_push(GUARD_UNLINK, "%s", path);
    fd = open(path, O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
    failed = fd < 0 ? errno : posix_fallocate(fd, 0, (off_t)bytes);
    if (fd >= 0) {
        close(fd);
    }
    errno = failed;
    if (failed ? !unavailable(error, "cannot make the swap file", path)
               : !make_swap(area, path, error)) {
        swap_area_free(area);
        return NULL;
    }
    return area;
}

static bool write_file(const char *path, const char *value)
{
    int fd = open(path, O_WRONLY | O_CLOEXEC);
    bool ok = fd >= 0 && write(fd, value, strlen(value)) > 0;

    if (fd >= 0) {
        close(fd);
    }
    return ok;
}

static bool zram_set_up(SwapArea *area, int number, uint64_t bytes,
                        GError **error)
{
    g_autofree char *sys = g_strdup_printf("/sys/block/zram%d", number);
    g_autofree char *algorithm = g_strconcat(sys, "/comp_algorithm", NULL);
    g_autofree char *disksize = g_strconcat(sys, "/disksize", NULL);
    g_autofree char *device = g_strdup_printf("/dev/zram%d", number);
    g_autofree char *size = g_strdup_printf("%" G_GUINT64_FORMAT, bytes);

    area->remove_guard = guard_push(GUARD_WRITE, ZRAM_CONTROL
                                    "/hot_remove %d", number);
    area->reset_guard = guard_push(GUARD_WRITE, "%s/reset 1", sys);
    (void)write_file(algorithm, "lz4");
    if (!write_file(disksize, size)) {
        return unavailable(error, "cannot size", disksize);
    }
    /* The device node is made by devtmpfs or udev. */
    for (int ms = 0; access(device, F_OK) < 0; ms += 10) {
        if (ms >= DEVICE_TIMEOUT_MS) {
            return unavailable(error, "no device", device);
        }
        g_usleep(10000);
    }
    return make_swap(area, device, error);
}

SwapArea *swap_area_zram_new(uint64_t bytes, GError **error)
{
    SwapArea *area;
    g_autofree char *number = NULL;

    if (access(ZRAM_CONTROL, F_OK) < 0) {
        (void)!system("modprobe -q zram 2>/dev/null");
    }
    /* Reading it makes a device. */
    if (!g_file_get_contents(ZRAM_CONTROL "/hot_add", &number, NULL, NULL)) {
        unavailable(error, "no zram: cannot read", ZRAM_CONTROL "/hot_add");
        return NULL;
    }
    area = g_new0(SwapArea, 1);
    if (!zram_set_up(area, atoi(number), bytes, error)) {
        swap_area_free(area);
        return NULL;
    }
    return area;
}

void swap_area_free(SwapArea *area)
{
    if (!area) {
        return;
    }
    guard_undo(area->swapoff_guard);
    guard_undo(area->reset_guard);
    guard_undo(area->remove_guard);
    guard_undo(area->unlink_guard);
    g_free(area);
}
