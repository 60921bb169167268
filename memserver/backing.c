/* SPDX-License-Identifier: GPL-2.0-or-later */
#include <errno.h>
#include <fcntl.h>
#include <linux/falloc.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>
#include <gio/gio.h>
#include "backing.h"
#include "peer.h"
#include "log.h"

static const char magic[8] = "MEMXSTOR";

const char *const ms_backing_names[MS_N_FILES] = {
    [MS_FILE_INDEX] = "memx-index",
    [MS_FILE_TABLES] = "memx-tables",
    [MS_FILE_HASHES] = "memx-hashes",
    [MS_FILE_FRAMES] = "memx-frames",
};

static const uint64_t file_bytes[MS_N_FILES] = {
    [MS_FILE_INDEX] = MS_INDEX_BYTES,
    [MS_FILE_TABLES] = MS_MAX_SPACES * MS_TABLE_STRIDE,
    [MS_FILE_HASHES] = (MS_FRAMES_MAX + 16) * MEMX_HASH_BYTES,
    [MS_FILE_FRAMES] = (MS_FRAMES_MAX + 16) * MEMX_PAGE_BYTES,
};

static void backing_clear(MsBacking *backing)
{
    backing->super = NULL;
    for (int i = 0; i < MS_N_FILES; i++) {
        backing->fds[i] = -1;
    }
}

static bool map_index(MsBacking *backing, GError **error)
{
    backing->super = ms_map_file(backing->fds[MS_FILE_INDEX], 0,
                                 MS_INDEX_BYTES);
    if (!backing->super) {
        g_set_error(error, G_IO_ERROR, g_io_error_from_errno(errno),
                    "cannot map the index of the page store: %s",
                    g_strerror(errno));
        return false;
    }
    return true;
}

bool ms_backing_create(MsBacking *backing, GError **error)
{
    backing_clear(backing);
    for (int i = 0; i < MS_N_FILES; i++) {
        int fd = memfd_create(ms_backing_names[i],
                              MFD_CLOEXEC | MFD_ALLOW_SEALING);

        backing->fds[i] = fd;
        if (fd < 0 || ftruncate(fd, file_bytes[i]) < 0 ||
            fcntl(fd, F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW) < 0) {
            g_set_error(error, G_IO_ERROR, g_io_error_from_errno(errno),
                        "cannot create the memory file %s of %" G_GUINT64_FORMAT
                        " bytes: %s", ms_backing_names[i], file_bytes[i],
                        g_strerror(errno));
            ms_backing_close(backing);
            return false;
        }
    }
    if (!map_index(backing, error)) {
        ms_backing_close(backing);
        return false;
    }
    backing->super->layout_version = MS_LAYOUT_VERSION;
    backing->super->page_bytes = MEMX_PAGE_BYTES;
    memx_random(backing->super->instance, MEMX_ID_BYTES);
    memcpy(backing->super->magic, magic, sizeof(magic));
    return true;
}

static bool check_file(int fd, int file, GError **error)
{
    struct stat st;
    int seals = fcntl(fd, F_GET_SEALS);

    if (seals < 0 || !(seals & F_SEAL_SHRINK) || fstat(fd, &st) < 0 ||
        (uint64_t)st.st_size != file_bytes[file]) {
        g_set_error(error, G_IO_ERROR, G_IO_ERROR_INVALID_DATA,
                    "descriptor %d, handed over as %s, is not the memory file "
                    "of a memserver with this layout; start the version that "
                    "stored the pages, or give them up (stop the service and "
                    "run 'systemctl clean --what=fdstore' on it)",
                    fd, ms_backing_names[file]);
        return false;
    }
    return true;
}

bool ms_backing_adopt(MsBacking *backing, const int fds[MS_N_FILES],
                      GError **error)
{
    backing->super = NULL;
    memcpy(backing->fds, fds, sizeof(backing->fds));
    for (int i = 0; i < MS_N_FILES; i++) {
        fcntl(fds[i], F_SETFD, FD_CLOEXEC);
        if (!check_file(fds[i], i, error)) {
            ms_backing_close(backing);
            return false;
        }
    }
    if (!map_index(backing, error)) {
        ms_backing_close(backing);
        return false;
    }
    if (memcmp(backing->super->magic, magic, sizeof(magic)) ||
        backing->super->layout_version != MS_LAYOUT_VERSION ||
        backing->super->page_bytes != MEMX_PAGE_BYTES) {
        g_set_error(error, G_IO_ERROR, G_IO_ERROR_INVALID_DATA,
                    "the pages handed over were stored with layout %u, this "
                    "memserver knows layout %u; start the version that stored "
                    "them, or give them up (stop the service and run "
                    "'systemctl clean --what=fdstore' on it)",
                    backing->super->layout_version, MS_LAYOUT_VERSION);
        ms_backing_close(backing);
        return false;
    }
    return true;
}

void ms_backing_close(MsBacking *backing)
{
    if (backing->super) {
        munmap(backing->super, MS_INDEX_BYTES);
    }
    for (int i = 0; i < MS_N_FILES; i++) {
        if (backing->fds[i] >= 0) {
            close(backing->fds[i]);
        }
    }
    backing_clear(backing);
}

void *ms_map_file(int fd, uint64_t offset, uint64_t bytes)
{
    void *map = mmap(NULL, bytes, PROT_READ | PROT_WRITE,
                     MAP_SHARED | MAP_NORESERVE, fd, offset);

    if (map == MAP_FAILED) {
        return NULL;
    }
    madvise(map, bytes, MADV_NOHUGEPAGE);
    madvise(map, bytes, MADV_DONTDUMP);
    return map;
}

void *ms_map_anonymous(uint64_t bytes)
{
    void *map = mmap(NULL, bytes, PROT_READ | PROT_WRITE,
                     MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);

    if (map == MAP_FAILED) {
        return NULL;
    }
    madvise(map, bytes, MADV_NOHUGEPAGE);
    return map;
}

void ms_punch(int fd, uint64_t offset, uint64_t bytes)
{
    int ret;

    do {
        ret = fallocate(fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE,
                        offset, bytes);
    } while (ret < 0 && errno == EINTR);
    if (ret < 0) {
        /* Nothing depends on it but honesty. */
        ms_log_warn("cannot give %" G_GUINT64_FORMAT " bytes back to the "
                    "system: %s", bytes, g_strerror(errno));
    }
}
