/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Lines and descriptors over the control socket, for both of its ends.
 */
#include <errno.h>
#include <stddef.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <sys/un.h>
#include <unistd.h>
#include <gio/gio.h>
#include "control.h"

#define FDS_MAX 8

char *ms_control_default_path(void)
{
    const char *directory = g_getenv("RUNTIME_DIRECTORY");

    if (directory && *directory) {
        return g_build_filename(directory, "memserver.sock", NULL);
    }
    return g_strdup("/run/memx/memserver.sock");
}

int ms_control_connect(const char *path, GError **error)
{
    struct sockaddr_un address = { .sun_family = AF_UNIX };
    int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    int saved;

    errno = ENAMETOOLONG;
    if (fd >= 0 && strlen(path) < sizeof(address.sun_path)) {
        strcpy(address.sun_path, path);
        if (connect(fd, (struct sockaddr *)&address, sizeof(address)) == 0) {
            return fd;
        }
    }
    saved = errno;
    if (fd >= 0) {
        close(fd);
    }
    g_set_error(error, G_IO_ERROR, g_io_error_from_errno(saved),
                "cannot reach a memserver at control socket '%s': %s; %s",
                path, g_strerror(saved),
                saved == EACCES || saved == EPERM ?
                "run this as the user that memserver runs as, or as root" :
                "is it running, and with this --control PATH?");
    return -1;
}

bool ms_control_send(int fd, const char *line, const int *fds, int n_fds,
                     GError **error)
{
    g_autofree char *text = g_strconcat(line, "\n", NULL);
    size_t left = strlen(text);
    const char *at = text;
    union {
        struct cmsghdr header;
        char bytes[CMSG_SPACE(sizeof(int) * FDS_MAX)];
    } control = { 0 };

    while (left) {
        struct iovec iov = { (void *)at, left };
        struct msghdr message = { .msg_iov = &iov, .msg_iovlen = 1 };
        ssize_t sent;

        if (n_fds) {
            g_assert(n_fds <= FDS_MAX);
            message.msg_control = &control;
            message.msg_controllen = CMSG_SPACE(sizeof(int) * n_fds);
            control.header.cmsg_level = SOL_SOCKET;
            control.header.cmsg_type = SCM_RIGHTS;
            control.header.cmsg_len = CMSG_LEN(sizeof(int) * n_fds);
            memcpy(CMSG_DATA(&control.header), fds, sizeof(int) * n_fds);
        }
        sent = sendmsg(fd, &message, MSG_NOSIGNAL);
        if (sent < 0 && errno == EINTR) {
            continue;
        }
        if (sent < 0) {
            g_set_error(error, G_IO_ERROR, g_io_error_from_errno(errno),
                        "control socket: %s", g_strerror(errno));
            return false;
        }
        n_fds = 0;
        at += sent;
        left -= sent;
    }
    return true;
}

static void keep_fds(struct msghdr *message, int *fds, int room, int *n_fds)
{
    struct cmsghdr *header;

    for (header = CMSG_FIRSTHDR(message); header;
         header = CMSG_NXTHDR(message, header)) {
        int n = (header->cmsg_len - CMSG_LEN(0)) / sizeof(int);

        if (header->cmsg_level != SOL_SOCKET ||
            header->cmsg_type != SCM_RIGHTS) {
            continue;
        }
        for (int i = 0; i < n; i++) {
            int fd;

            memcpy(&fd, CMSG_DATA(header) + i * sizeof(int), sizeof(int));
            if (*n_fds < room) {
                fds[(*n_fds)++] = fd;
            } else {
                close(fd);
            }
        }
    }
}

static void set_receive_error(GError **error, ssize_t n, int timeout_s,
                              bool begun)
{
    if (n == 0) {
        g_set_error(error, G_IO_ERROR, G_IO_ERROR_CLOSED,
                    "control socket: closed by the other side%s",
                    begun ? " in the middle of a line" : "");
    } else if (errno == EAGAIN) {
        g_set_error(error, G_IO_ERROR, G_IO_ERROR_TIMED_OUT,
                    "control socket: nothing came for %d s%s", timeout_s,
                    begun ? ", in the middle of a line" : "");
    } else {
        g_set_error(error, G_IO_ERROR, g_io_error_from_errno(errno),
                    "control socket: %s", g_strerror(errno));
    }
}

static bool check_line(const GString *line, size_t max_bytes, GError **error)
{
    if (line->len > max_bytes) {
        g_set_error(error, G_IO_ERROR, G_IO_ERROR_INVALID_DATA,
                    "control socket: the line is too long: more than %zu "
                    "bytes", max_bytes);
        return false;
    }
    if (memchr(line->str, '\0', line->len)) {
        g_set_error(error, G_IO_ERROR, G_IO_ERROR_INVALID_DATA,
                    "control socket: there is a NUL in the line");
        return false;
    }
    return true;
}

char *ms_control_receive(int fd, size_t max_bytes, int timeout_s, int *fds,
                         int *n_fds, GError **error)
{
    struct timeval timeout = { .tv_sec = timeout_s };
    g_autoptr(GString) line = g_string_new(NULL);
    int room = n_fds ? *n_fds : 0, got = 0;
    union {
        struct cmsghdr header;
        char bytes[CMSG_SPACE(sizeof(int) * FDS_MAX)];
    } control;
    bool ended = false;
    char bytes[4096];

    setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &timeout, sizeof(timeout));
    while (!ended && line->len <= max_bytes) {
        struct iovec iov = { bytes, sizeof(bytes) };
        struct msghdr message = {
            .msg_iov = &iov, .msg_iovlen = 1,
            .msg_control = &control, .msg_controllen = sizeof(control),
        };
        ssize_t n = recvmsg(fd, &message, MSG_CMSG_CLOEXEC);

        if (n < 0 && errno == EINTR) {
            continue;
        }
        if (n <= 0) {
            set_receive_error(error, n, timeout_s, line->len);
            goto fail;
        }
        keep_fds(&message, fds, room, &got);
        g_string_append_len(line, bytes, n);
        /* Question and answer alternate: nothing follows the line. */
        if (bytes[n - 1] == '\n') {
            g_string_truncate(line, line->len - 1);
            ended = true;
        }
    }
    if (check_line(line, max_bytes, error)) {
        if (n_fds) {
            *n_fds = got;
        }
        return g_strdup(line->str);
    }
fail:
    while (got) {
        close(fds[--got]);
    }
    return NULL;
}
