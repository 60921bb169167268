/*
 * The TCP client's receive states against a hostile server.  Byte 0 chooses
 * the calls in flight, byte 1 how many bytes come at a time, the rest comes.
 *
 * Each call has to come back exactly once, in order, and one that succeeded
 * with a reply that fits it; `in` is as large as it says, for ASan.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#include <errno.h>
#include <glib.h>
#include <sys/socket.h>
#include <unistd.h>
#include "fuzz.h"
#include "transport-tcp.h"

#define N_CALLS 4
#define STREAM_BYTES_MAX 65536

static const unsigned opcodes[][N_CALLS] = {
    { MEMX_OP_FETCH, MEMX_OP_FETCH, MEMX_OP_FETCH, MEMX_OP_FETCH },
    { MEMX_OP_HELLO, MEMX_OP_AUTH, MEMX_OP_OPEN, MEMX_OP_PING },
    { MEMX_OP_COMPARE, MEMX_OP_FETCH, MEMX_OP_DROP, MEMX_OP_FETCH },
};
static const uint64_t masks[N_CALLS] = { 1, 0x8001, 0xff, 2 };

typedef struct Talk {
    MemxChannel *client;
    MemxCall calls[N_CALLS];
    struct iovec in[N_CALLS][8];
    unsigned done;
} Talk;

static void submit(Talk *talk, const unsigned *plan)
{
    static const uint8_t body[MEMX_BODY_MAX];

    for (unsigned i = 0; i < N_CALLS; i++) {
        MemxCall *call = &talk->calls[i];
        unsigned pages = memx_mask_pages(masks[i]);

        call->request.opcode = plan[i];
        call->body = body;
        if (plan[i] == MEMX_OP_FETCH || plan[i] == MEMX_OP_COMPARE) {
            call->request.mask = masks[i];
        }
        if (plan[i] == MEMX_OP_FETCH) {
            for (unsigned j = 0; j < pages; j++) {
                talk->in[i][j].iov_base = g_malloc(MEMX_PAGE_BYTES);
                talk->in[i][j].iov_len = MEMX_PAGE_BYTES;
            }
            call->in = talk->in[i];
            call->n_in = pages;
        }
        FUZZ_CHECK(memx_channel_submit(talk->client, call) == 0);
    }
}

static void progress(Talk *talk)
{
    MemxCall *call;

    while ((call = memx_channel_progress(talk->client))) {
        bool dead = memx_channel_is_dead(talk->client);

        FUZZ_CHECK(talk->done < N_CALLS);
        FUZZ_CHECK(call == &talk->calls[talk->done++]);
        FUZZ_CHECK(dead == (call->status != 0));
        if (call->status == 0 && call->reply.error == MEMX_ERR_NONE) {
            FUZZ_CHECK(call->reply.payload_bytes ==
                       call->n_in * MEMX_PAGE_BYTES);
            FUZZ_CHECK((call->reply.mask & ~call->request.mask) == 0);
        }
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes)
{
    static const size_t steps[] = {
        1, 7, 64, 65, 100, 4096, 4160, STREAM_BYTES_MAX,
    };
    g_autofree Talk *talk = g_new0(Talk, 1);
    size_t step;
    int fds[2];

    if (bytes < 2 || bytes > STREAM_BYTES_MAX) {
        return 0;
    }
    FUZZ_CHECK(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, fds) == 0);
    talk->client = memx_tcp_client_new(fds[0]);
    submit(talk, opcodes[data[0] % G_N_ELEMENTS(opcodes)]);
    /* Few enough pieces to be quick. */
    step = MAX(steps[data[1] % G_N_ELEMENTS(steps)], bytes / 256);
    data += 2;
    bytes -= 2;
    while (bytes && !memx_channel_is_dead(talk->client)) {
        size_t piece = MIN(step, bytes);

        FUZZ_CHECK(send(fds[1], data, piece, MSG_NOSIGNAL) ==
                   (ssize_t)piece);
        data += piece;
        bytes -= piece;
        progress(talk);
    }
    /* The end is seen after what was "drained". */
    close(fds[1]);
    progress(talk);
    progress(talk);
    FUZZ_CHECK(memx_channel_is_dead(talk->client));
    FUZZ_CHECK(talk->done == N_CALLS);
    memx_channel_close(talk->client);
    for (unsigned i = 0; i < N_CALLS; i++) {
        for (unsigned j = 0; j < G_N_ELEMENTS(talk->in[i]); j++) {
            g_free(talk->in[i][j].iov_base);
        }
    }
    return 0;
}
