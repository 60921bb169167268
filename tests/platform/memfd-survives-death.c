/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Pages in a memfd survive the death of the process that wrote them, as long
 * as somebody holds the descriptor: so a memserver's restart keeps them.
 */
#include "platform.h"

#include <signal.h>
#include <sys/socket.h>
#include <sys/wait.h>

#define PAGES 256

union control {
    char buf[CMSG_SPACE(sizeof(int))];
    struct cmsghdr align;
};

static void send_fd(int sock, int fd)
{
    union control control = { .buf = { 0 } };
    struct iovec iov = { .iov_base = &(char) { 0 }, .iov_len = 1 };
    struct msghdr msg = {
        .msg_iov = &iov, .msg_iovlen = 1,
        .msg_control = &control, .msg_controllen = sizeof(control),
    };
    struct cmsghdr *cmsg = CMSG_FIRSTHDR(&msg);

    cmsg->cmsg_level = SOL_SOCKET;
    cmsg->cmsg_type = SCM_RIGHTS;
    cmsg->cmsg_len = CMSG_LEN(sizeof(int));
    memcpy(CMSG_DATA(cmsg), &fd, sizeof(fd));
    expect(sendmsg(sock, &msg, 0), 1);
}

static int receive_fd(int sock)
{
    union control control;
    char byte;
    struct iovec iov = { .iov_base = &byte, .iov_len = 1 };
    struct msghdr msg = {
        .msg_iov = &iov, .msg_iovlen = 1,
        .msg_control = &control, .msg_controllen = sizeof(control),
    };
    int fd;

    expect(recvmsg(sock, &msg, MSG_CMSG_CLOEXEC), 1);
    check(CMSG_FIRSTHDR(&msg), "no descriptor came");
    memcpy(&fd, CMSG_DATA(CMSG_FIRSTHDR(&msg)), sizeof(fd));
    return fd;
}

static void server(int sock)
{
    int fd = memfd_create("pages", MFD_CLOEXEC);
    char *pages;

    check(fd >= 0 && ftruncate(fd, PAGES * PAGE) == 0, "memfd");
    pages = mmap(NULL, PAGES * PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    check(pages != MAP_FAILED, "mmap");
    memset(pages, 0x11, PAGES * PAGE);
    send_fd(sock, fd);
    pages[PAGE] = 0x22; /* written after the descriptor went */
    expect(write(sock, "", 1), 1);
    pause();
}

int main(void)
{
    int socks[2], fd, status;
    pid_t child;
    char *pages, byte;

    check(socketpair(AF_UNIX, SOCK_STREAM, 0, socks) == 0, "socketpair");
    child = fork();
    if (child == 0) {
        alarm(30); /* a fork drops its parent's */
        server(socks[1]);
        _exit(1);
    }
    check(child > 0, "fork");
    close(socks[1]);
    fd = receive_fd(socks[0]);
    expect(read(socks[0], &byte, 1), 1);
    kill(child, SIGKILL);
    check(waitpid(child, &status, 0) == child && WIFSIGNALED(status), "alive");

    pages = mmap(NULL, PAGES * PAGE, PROT_READ, MAP_SHARED, fd, 0);
    check(pages != MAP_FAILED, "mmap");
    check(pages[PAGE] == 0x22 && pages[PAGE + 1] == 0x11, "page 1");
    for (int i = 2; i < PAGES; i++) {
        check(page_is(pages + i * PAGE, 0x11), "page %d", i);
    }
    return 0;
}
