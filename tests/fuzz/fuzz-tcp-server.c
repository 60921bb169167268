/*
 * The TCP server's next() and pull() against a hostile client.  Byte 0
 * chooses how payload is pulled, the rest is what the client sends.
 *
 * What arrives has to be of the announced lengths, or the channel ends; body
 * and pages are as large as they may be, for ASan.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#include <errno.h>
#include <glib.h>
#include <sys/socket.h>
#include <unistd.h>
#include "fuzz.h"
#include "transport-tcp.h"

#define STREAM_BYTES_MAX 65536

/* Nobody may block on a full socket. */
static void drain(int fd)
{
    static uint8_t waste[STREAM_BYTES_MAX];

    while (recv(fd, waste, sizeof(waste), MSG_DONTWAIT) > 0) {
        continue;
    }
}

static int pull(MemxChannel *server, const MemxRequest *request, unsigned how)
{
    unsigned pages = request->payload_bytes / MEMX_PAGE_BYTES;
    struct iovec iov[MEMX_GROUP_PAGES];
    int r = 0;

    if (how % 3 == 0) {
        return memx_channel_pull(server, NULL, -1);
    }
    for (unsigned i = 0; i < pages; i++) {
        iov[i].iov_base = g_malloc(MEMX_PAGE_BYTES);
        iov[i].iov_len = MEMX_PAGE_BYTES;
    }
    if (how % 3 == 1) {
        r = memx_channel_pull(server, iov, pages);
    }
    for (unsigned i = 0; how % 3 == 2 && r == 0 && i < pages; i++) {
        r = memx_channel_pull(server, &iov[i], 1);
    }
    for (unsigned i = 0; i < pages; i++) {
        g_free(iov[i].iov_base);
    }
    return r;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes)
{
    g_autofree uint8_t *body = g_malloc(MEMX_BODY_MAX);
    MemxReply refusal = { .error = MEMX_ERR_NOT_HELD };
    MemxChannel *server;
    MemxRequest request;
    int fds[2], r;

    if (bytes < 1 || bytes > STREAM_BYTES_MAX) {
        return 0;
    }
    FUZZ_CHECK(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, fds) == 0);
    server = memx_tcp_server_new(fds[0]);
    if (bytes > 1) {
        FUZZ_CHECK(send(fds[1], data + 1, bytes - 1, MSG_NOSIGNAL) ==
                   (ssize_t)bytes - 1);
    }
    shutdown(fds[1], SHUT_WR);
    while ((r = memx_channel_next(server, &request, body)) == 0) {
        FUZZ_CHECK(request.body_bytes <= MEMX_BODY_MAX);
        r = pull(server, &request, data[0]);
        if (r == 0) {
            r = memx_channel_reply(server, &refusal, NULL, NULL, 0);
        }
        drain(fds[1]);
        if (r < 0) {
            break;
        }
    }
    FUZZ_CHECK(r == -EPIPE || r == -EPROTO);
    FUZZ_CHECK(memx_channel_is_dead(server));
    /* A last word is allowed, and nothing after it. */
    refusal.error = MEMX_ERR_MALFORMED;
    memx_channel_pull(server, NULL, -1);
    memx_channel_reply(server, &refusal, NULL, NULL, 0);
    FUZZ_CHECK(memx_channel_next(server, &request, body) == r);
    close(fds[1]);
    memx_channel_close(server);
    return 0;
}
