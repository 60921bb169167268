/*
 * The files of page_idle, from memx-idle-helper.
 *
 * The helper sends one byte, and with it three descriptors: pagemap, bitmap,
 * kpageflags; or, when it can't open them, a line that says why.
 *
 * SPDX-License-Identifier: LGPL-2.1-or-later
 */
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>
#include "tracker.h"

#define WAIT_MS 5000
#define FILES 3

static bool fail(GError **error, const char *path, const char *what,
                 const char *why)
{
    g_set_error(error, MEMX_ERROR, MEMX_ERROR_KERNEL,
                "memx-idle-helper at %s: %s%s", path, what, why);
    return false;
}

static int connect_to(const char *path, GError **error)
{
    struct sockaddr_un address = { .sun_family = AF_UNIX };
    int fd;

    if (strlen(path) >= sizeof(address.sun_path)) {
        fail(error, path, "the path is too long", "");
        return -1;
    }
    strcpy(address.sun_path, path);
    /* A helper that hangs is no reason to wait: EAGAIN. */
    fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    if (fd < 0 || connect(fd, (struct sockaddr *)&address, sizeof(address))) {
        fail(error, path, "cannot connect: ", g_strerror(errno));
        if (fd >= 0) {
            close(fd);
        }
        return -1;
    }
    return fd;
}

/* Takes what came with a message; a wrong number of descriptors is closed. */
static bool take_files(struct msghdr *msg, MemxIdleFiles *files)
{
    struct cmsghdr *c = CMSG_FIRSTHDR(msg);
    int fd[FILES * 2];
    unsigned n;

    if (!c || c->cmsg_level != SOL_SOCKET || c->cmsg_type != SCM_RIGHTS) {
        return false;
    }
    n = MIN((c->cmsg_len - CMSG_LEN(0)) / sizeof(int), G_N_ELEMENTS(fd));
    memcpy(fd, CMSG_DATA(c), n * sizeof(int));
    if (n != FILES) {
        while (n) {
            close(fd[--n]);
        }
        return false;
    }
    *files = (MemxIdleFiles) { fd[0], fd[1], fd[2] };
    return true;
}

bool memx_idle_files_receive(const char *path, MemxIdleFiles *files,
                             GError **error)
{
    char text[256] = "", control[CMSG_SPACE(FILES * 2 * sizeof(int))];
    struct iovec iov = { text, sizeof(text) - 1 };
    struct msghdr msg = {
        .msg_iov = &iov, .msg_iovlen = 1,
        .msg_control = control, .msg_controllen = sizeof(control),
    };
    int fd = connect_to(path, error);
    struct pollfd pfd = { .fd = fd, .events = POLLIN };
    ssize_t n = -1;
    bool ok;

    *files = (MemxIdleFiles) { -1, -1, -1 };
    if (fd < 0) {
        return false;
    }
    do {
        n = poll(&pfd, 1, WAIT_MS);
    } while (n < 0 && errno == EINTR);
    if (n == 0) {
        errno = ETIMEDOUT;
        n = -1;
    } else if (n > 0) {
        n = recvmsg(fd, &msg, MSG_CMSG_CLOEXEC);
    }
    if (n < 0) {
        ok = fail(error, path, "no answer: ", g_strerror(errno));
    } else if (take_files(&msg, files)) {
        ok = true;
    } else {
        g_strchomp(text);
        ok = fail(error, path, "refused: ", *text ? text : "no reason given");
    }
    close(fd);
    return ok;
}

static int duplicate(int fd)
{
    return fd < 0 ? -1 : fcntl(fd, F_DUPFD_CLOEXEC, 3);
}

MemxIdleFiles memx_idle_files_dup(const MemxIdleFiles *files)
{
    return (MemxIdleFiles) {
        .pagemap_fd = duplicate(files->pagemap_fd),
        .bitmap_fd = duplicate(files->bitmap_fd),
        .kpageflags_fd = duplicate(files->kpageflags_fd),
    };
}

void memx_idle_files_close(MemxIdleFiles *files)
{
    int *fd[] = {
        &files->pagemap_fd, &files->bitmap_fd, &files->kpageflags_fd,
    };

    for (unsigned i = 0; i < G_N_ELEMENTS(fd); i++) {
        if (*fd[i] >= 0) {
            close(*fd[i]);
            *fd[i] = -1;
        }
    }
}
