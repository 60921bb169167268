/*
 * memx-idle-helper: opens the files of page_idle for who may not.
 *
 * Which frames a process has, and whether they were touched, only root may ask.
 * A QEMU without privileges connects to this program's socket, and is given three
 * open files, for the tracker `idle`: its own /proc/PID/pagemap, the page_idle
 * bitmap and /proc/kpageflags.  Who may connect is decided by the permissions of
 * the socket; what the files tell beyond the process itself, docs/tracking.md
 * says.
 *
 *   memx-idle-helper                one connection, as standard input (a systemd
 *                                   socket unit with Accept=yes)
 *   memx-idle-helper --listen PATH  many, one after the other
 *
 * It starts as root, keeps the three capabilities that opening takes, can gain no
 * others, reads nothing of what its peer sends, and runs nothing.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#include <errno.h>
#include <fcntl.h>
#include <linux/capability.h>
#include <stdbool.h>
#include <stdio.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/un.h>
#include <unistd.h>

#ifndef SO_PEERPIDFD
#define SO_PEERPIDFD 77 /* Linux 6.5 */
#endif

#define BITMAP "/sys/kernel/mm/page_idle/bitmap"
#define FLAGS "/proc/kpageflags"
#define BACKLOG 16

enum { FILE_PAGEMAP, FILE_BITMAP, FILE_FLAGS, FILES };

/* Frame numbers in pagemap; another process's proc files. */
static bool drop_privileges(void)
{
    struct __user_cap_header_struct header = {
        .version = _LINUX_CAPABILITY_VERSION_3,
    };
    struct __user_cap_data_struct data[2] = { 0 };
    const unsigned keep[] = {
        CAP_SYS_ADMIN, CAP_SYS_PTRACE, CAP_DAC_READ_SEARCH,
    };

    for (unsigned i = 0; i < sizeof(keep) / sizeof(keep[0]); i++) {
        data[keep[i] / 32].permitted |= 1u << keep[i] % 32;
        data[keep[i] / 32].effective |= 1u << keep[i] % 32;
    }
    return !prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) &&
           !syscall(SYS_capset, &header, data);
}

/* The text is all that a peer gets to know. */
static void refuse(int peer, const char *what, int error)
{
    char text[256];
    int n = snprintf(text, sizeof(text), "%s: %s", what, strerror(error));

    if (send(peer, text, n, MSG_NOSIGNAL) < 0) {
        return; /* it has gone */
    }
}

static void give(int peer, const int *file)
{
    char control[CMSG_SPACE(FILES * sizeof(int))] = { 0 }, byte = 0;
    struct iovec iov = { &byte, 1 };
    struct msghdr msg = {
        .msg_iov = &iov, .msg_iovlen = 1,
        .msg_control = control, .msg_controllen = sizeof(control),
    };
    struct cmsghdr *c = CMSG_FIRSTHDR(&msg);

    c->cmsg_level = SOL_SOCKET;
    c->cmsg_type = SCM_RIGHTS;
    c->cmsg_len = CMSG_LEN(FILES * sizeof(int));
    memcpy(CMSG_DATA(c), file, FILES * sizeof(int));
    if (sendmsg(peer, &msg, MSG_NOSIGNAL) < 0) {
        return; /* it has gone */
    }
}

/* The pagemap of the process at the other end, and of no other that has its
 * number since. */
static int open_pagemap(int peer)
{
    struct ucred who;
    socklen_t size = sizeof(who);
    struct stat st;
    char path[64];
    int pidfd = -1, fd, saved;

    if (getsockopt(peer, SOL_SOCKET, SO_PEERCRED, &who, &size)) {
        return -1;
    }
    size = sizeof(pidfd);
    if (getsockopt(peer, SOL_SOCKET, SO_PEERPIDFD, &pidfd, &size)) {
        return -1;
    }
    snprintf(path, sizeof(path), "/proc/%d/pagemap", (int)who.pid);
    fd = open(path, O_RDONLY | O_CLOEXEC);
    saved = errno;
    /* A program that is not its user's own (set-uid), executed since. */
    if (fd >= 0 && (fstat(fd, &st) || st.st_uid != who.uid)) {
        saved = EPERM;
        close(fd);
        fd = -1;
    }
    /* Still there: then it was there when its file was opened. */
    if (fd >= 0 && syscall(SYS_pidfd_send_signal, pidfd, 0, NULL, 0) &&
        errno != EPERM) {
        saved = errno;
        close(fd);
        fd = -1;
    }
    close(pidfd);
    errno = saved;
    return fd;
}

static void serve(int peer)
{
    const char *what = "the peer's pagemap";
    int file[FILES] = { -1, -1, -1 };
    bool ok;

    file[FILE_PAGEMAP] = open_pagemap(peer);
    ok = file[FILE_PAGEMAP] >= 0;
    if (ok) {
        what = BITMAP;
        file[FILE_BITMAP] = open(what, O_RDWR | O_CLOEXEC);
        ok = file[FILE_BITMAP] >= 0;
    }
    if (ok) {
        what = FLAGS;
        file[FILE_FLAGS] = open(what, O_RDONLY | O_CLOEXEC);
        ok = file[FILE_FLAGS] >= 0;
    }
    if (ok) {
        give(peer, file);
    } else {
        refuse(peer, what, errno);
    }
    for (unsigned i = 0; i < FILES; i++) {
        if (file[i] >= 0) {
            close(file[i]);
        }
    }
}

/* Only root, until somebody changes the file's mode or owner. */
static int listen_at(const char *path)
{
    struct sockaddr_un address = { .sun_family = AF_UNIX };
    struct stat st;
    mode_t mask;
    int fd, err;

    if (strlen(path) >= sizeof(address.sun_path)) {
        errno = ENAMETOOLONG;
        return -1;
    }
    strcpy(address.sun_path, path);
    if (!lstat(path, &st) && S_ISSOCK(st.st_mode)) {
        unlink(path); /* of one that ran before */
    }
    fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    mask = umask(0177);
    err = fd < 0 || bind(fd, (struct sockaddr *)&address, sizeof(address)) ||
          listen(fd, BACKLOG);
    umask(mask);
    return err ? -1 : fd;
}

int main(int argc, char **argv)
{
    bool many = argc == 3 && !strcmp(argv[1], "--listen");
    int fd;

    if (argc != 1 && !many) {
        fprintf(stderr, "Usage: %s [--listen PATH]\n"
                "Opens the files of page_idle for the process at the other "
                "end of the socket\nPATH, or of standard input; see "
                "memx-idle-helper(8).\n", argv[0]);
        return argc == 2 && !strcmp(argv[1], "--help") ? 0 : 2;
    }
    fd = many ? listen_at(argv[2]) : 0;
    if (fd < 0) {
        fprintf(stderr, "memx-idle-helper: cannot listen at %s: %s\n",
                argv[2], strerror(errno));
        return 1;
    }
    if (!drop_privileges()) {
        fprintf(stderr, "memx-idle-helper: cannot keep CAP_SYS_ADMIN, "
                "CAP_SYS_PTRACE and CAP_DAC_READ_SEARCH: %s; run it as "
                "root\n", strerror(errno));
        return 1;
    }
    if (!many) {
        serve(fd);
        return 0;
    }
    for (;;) {
        int peer = accept4(fd, NULL, NULL, SOCK_CLOEXEC);

        if (peer >= 0) {
            serve(peer);
            close(peer);
        } else if (errno != EINTR && errno != ECONNABORTED) {
            fprintf(stderr, "memx-idle-helper: cannot accept: %s\n",
                    strerror(errno));
            return 1;
        }
    }
}
