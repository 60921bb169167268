/* SPDX-License-Identifier: GPL-2.0-or-later */
#include <errno.h>
#include <fcntl.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>
#include <gio/gio.h>
#include "log.h"
#include "notify.h"

#define FIRST_PASSED_FD 3

bool ms_notify_heard(void)
{
    return g_getenv("NOTIFY_SOCKET");
}

/* One datagram to NOTIFY_SOCKET, with @fd unless it is -1.  0 or -errno. */
static int send_datagram(const char *text, int fd)
{
    const char *path = g_getenv("NOTIFY_SOCKET");
    struct sockaddr_un address = { .sun_family = AF_UNIX };
    struct iovec iov = { (void *)text, strlen(text) };
    union {
        struct cmsghdr header;
        char bytes[CMSG_SPACE(sizeof(int))];
    } control = { 0 };
    struct msghdr message = {
        .msg_name = &address, .msg_iov = &iov, .msg_iovlen = 1,
    };
    int ret = 0, sock;

    if (!path || (path[0] != '/' && path[0] != '@') ||
        strlen(path) >= sizeof(address.sun_path)) {
        return -EINVAL;
    }
    memcpy(address.sun_path, path, strlen(path));
    if (path[0] == '@') {
        address.sun_path[0] = '\0';
    }
    message.msg_namelen = offsetof(struct sockaddr_un, sun_path) +
                          strlen(path);
    if (fd >= 0) {
        message.msg_control = &control;
        message.msg_controllen = sizeof(control);
        control.header.cmsg_level = SOL_SOCKET;
        control.header.cmsg_type = SCM_RIGHTS;
        control.header.cmsg_len = CMSG_LEN(sizeof(int));
        memcpy(CMSG_DATA(&control.header), &fd, sizeof(fd));
    }
    sock = socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0);
    if (sock < 0 || sendmsg(sock, &message, MSG_NOSIGNAL) < 0) {
        ret = -errno;
    }
    if (sock >= 0) {
        close(sock);
    }
    return ret;
}

void ms_notify(const char *format, ...)
{
    g_autofree char *text = NULL;
    va_list args;

    if (!ms_notify_heard()) {
        return;
    }
    va_start(args, format);
    text = g_strdup_vprintf(format, args);
    va_end(args);
    send_datagram(text, -1);
}

bool ms_notify_keep(const int fds[MS_N_FILES], GError **error)
{
    for (int i = 0; i < MS_N_FILES && ms_notify_heard(); i++) {
        g_autofree char *text = g_strdup_printf("FDSTORE=1\nFDNAME=%s",
                                                ms_backing_names[i]);
        int ret = send_datagram(text, fds[i]);

        if (ret < 0) {
            g_set_error(error, G_IO_ERROR, g_io_error_from_errno(-ret),
                        "cannot give the page store to the service manager "
                        "at NOTIFY_SOCKET=%s: %s", g_getenv("NOTIFY_SOCKET"),
                        g_strerror(-ret));
            return false;
        }
    }
    return true;
}

static int name_to_file(const char *name)
{
    for (int i = 0; i < MS_N_FILES; i++) {
        if (!g_strcmp0(name, ms_backing_names[i])) {
            return i;
        }
    }
    return -1;
}

int ms_notify_kept(int fds[MS_N_FILES])
{
    const char *pid = g_getenv("LISTEN_PID");
    const char *count = g_getenv("LISTEN_FDS");
    g_auto(GStrv) names = g_strsplit(g_getenv("LISTEN_FDNAMES") ?: "", ":",
                                     -1);
    int n = 0, n_names = g_strv_length(names);

    for (int i = 0; i < MS_N_FILES; i++) {
        fds[i] = -1;
    }
    if (!pid || !count || atoi(pid) != getpid()) {
        return 0;
    }
    for (int i = 0; i < atoi(count); i++) {
        int fd = FIRST_PASSED_FD + i;
        int file = i < n_names ? name_to_file(names[i]) : -1;

        if (file < 0 || fds[file] >= 0) {
            ms_log_warn("descriptor %d, '%s', passed by the service manager "
                        "is not one of ours", fd,
                        i < n_names ? names[i] : "");
            close(fd);
            continue;
        }
        fcntl(fd, F_SETFD, FD_CLOEXEC);
        fds[file] = fd;
        n++;
    }
    g_unsetenv("LISTEN_PID");
    g_unsetenv("LISTEN_FDS");
    g_unsetenv("LISTEN_FDNAMES");
    return n;
}
