/*
 * Transport: how requests, replies and pages travel.  One interface for TCP
 * and, later, RDMA; no byte stream is visible above it.
 *
 * Theory of operation
 *
 * A channel is one connection.  On the client's side requests are *submitted*
 * as MemxCall objects that name the memory their payload comes from (`out`)
 * and the memory that the reply's payload goes to (`in`); several may be in
 * flight, and replies come in the order of the requests.  On the server's
 * side a request is taken with next(), its payload is *pulled* into memory
 * that the server chooses then, and the reply *pushes* pages from the
 * server's memory straight into the client's `in`.
 *
 * Over RDMA pull is a one-sided READ of the client's registered `out` and
 * push a one-sided WRITE into its registered `in`, followed by a small
 * message; over TCP both are bytes behind a header.  The test-only in-process
 * transport (tests/unit/transport-inproc.c) does them as copies by the server
 * thread into and out of the client's memory, which proves that nothing above
 * needs a byte stream.
 *
 * Memory that a channel's payload lives in is registered once with
 * memx_transport_register().  MemxTransport.flags says what a buffer may
 * undergo: pages of memory that is pinned by its registration can't be moved
 * with UFFDIO_MOVE, only copied.
 *
 * Threads: a channel belongs to one thread at a time; memx_channel_shutdown()
 * may be called from any thread, and makes all others' calls fail soon.
 *
 * SPDX-License-Identifier: LGPL-2.1-or-later
 */
#ifndef MEMX_TRANSPORT_H
#define MEMX_TRANSPORT_H

#include <glib.h>
#include <sys/uio.h>
#include "memx-protocol.h"

typedef struct MemxTransport MemxTransport;
typedef struct MemxChannel MemxChannel;
typedef struct MemxListener MemxListener;
typedef struct MemxCall MemxCall;

/* MemxTransport.flags */
#define MEMX_TRANSPORT_RECV_MOVABLE (1u << 0) /* `in` may be UFFDIO_MOVEd */
#define MEMX_TRANSPORT_SEND_MOVABLE (1u << 1) /* `out` too, once answered */

/*
 * A request in flight.  The submitter fills the first part and keeps all of
 * it, and the memory that it points to, alive and unchanged until the call
 * is completed.
 */
struct MemxCall {
    MemxRequest request;    /* id is set by submit */
    const void *body;       /* request.body_bytes of it */
    const struct iovec *out; /* request.payload_bytes in all */
    int n_out;
    const struct iovec *in; /* a reply's payload is empty or fits exactly */
    int n_in;
    void *owner;            /* the submitter's */

    /* Filled on completion. */
    int status;             /* 0: reply is valid; -errno: channel is dead */
    MemxReply reply;
    uint8_t reply_body[MEMX_WELCOME_BYTES];

    MemxCall *next;         /* the channel's while in flight */
};

struct MemxTransport {
    const char *name;
    unsigned flags;

    /* Client.  connect blocks up to timeout_ms; cancel_fd (or -1) becoming
     * readable ends it early. */
    MemxChannel *(*connect)(const char *host, const char *port,
                            int timeout_ms, int cancel_fd, GError **error);
    int (*submit)(MemxChannel *channel, MemxCall *call);
    MemxCall *(*progress)(MemxChannel *channel);
    int (*poll_fd)(MemxChannel *channel);
    short (*poll_events)(MemxChannel *channel);

    /* Server.  These block, but accept: NULL without @error when nobody is
     * there (any more); poll listener_fd for POLLIN. */
    MemxListener *(*listen)(const char *host, const char *port,
                            GError **error);
    MemxListener *(*listener_from_fd)(int fd, GError **error);
    MemxChannel *(*accept)(MemxListener *listener, GError **error);
    int (*listener_fd)(MemxListener *listener);
    char *(*listener_address)(MemxListener *listener);
    void (*listener_close)(MemxListener *listener);
    int (*next)(MemxChannel *channel, MemxRequest *request, void *body);
    int (*pull)(MemxChannel *channel, const struct iovec *iov, int n);
    int (*reply)(MemxChannel *channel, const MemxReply *reply,
                 const void *body, const struct iovec *iov, int n);

    /* Both. */
    char *(*peer_address)(MemxChannel *channel);
    void (*urgent)(MemxChannel *channel); /* or NULL */
    void (*shutdown)(MemxChannel *channel);
    void (*close)(MemxChannel *channel);
    int (*register_memory)(void *base, size_t bytes);
    void (*unregister_memory)(void *base, size_t bytes);
};

/* First member of every transport's channel. */
struct MemxChannel {
    const MemxTransport *transport;
    int status;             /* 0, or -errno once dead; owned by the channel's
                               thread */
};

extern const MemxTransport memx_transport_tcp;

/*
 * Connects to host:port.  Blocks at most timeout_ms, or until cancel_fd (or
 * -1) is readable.  NULL and @error on failure.
 */
MemxChannel *memx_channel_connect(const MemxTransport *transport,
                                  const char *host, const char *port,
                                  int timeout_ms, int cancel_fd,
                                  GError **error);

/*
 * Starts a call: sends as much as goes out without blocking, the rest goes
 * in later memx_channel_progress() calls.  Returns 0 (the call is in flight)
 * or -errno (the channel is dead; this call is not in flight and untouched).
 * Fault path.
 */
int memx_channel_submit(MemxChannel *channel, MemxCall *call);

/*
 * Sends and receives what can be without blocking, and returns the next
 * completed call, or NULL when nothing more is completed now.  Call it until
 * NULL whenever poll says so.  Once the channel is dead each call in flight
 * comes out with its status set, then NULL.  Fault path.
 */
MemxCall *memx_channel_progress(MemxChannel *channel);

/* True once the channel can do no more; sticky. */
bool memx_channel_is_dead(MemxChannel *channel);

/* What to poll for: POLLIN, and POLLOUT while requests wait to be sent. */
int memx_channel_poll_fd(MemxChannel *channel);
short memx_channel_poll_events(MemxChannel *channel);

/*
 * One call, synchronously: for handshakes and tools, on a channel without
 * other calls in flight.  0 or -errno (-ETIMEDOUT, -ECANCELED); then close
 * the channel.
 */
int memx_channel_call(MemxChannel *channel, MemxCall *call, int timeout_ms,
                      int cancel_fd);

/*
 * Server: waits for a request; @body has room for MEMX_BODY_MAX.  0, -EPIPE
 * (the peer is gone or shutdown was called), -EPROTO (malformed).
 */
int memx_channel_next(MemxChannel *channel, MemxRequest *request, void *body);
/* Server: the current request's payload; must be pulled, in one or several
 * calls, before the reply.  NULL iov with n = -1 throws the rest away. */
int memx_channel_pull(MemxChannel *channel, const struct iovec *iov, int n);
/* Server: answers the current request; encodes body/payload lengths itself
 * from @reply, and takes opcode and id from the current request. */
int memx_channel_reply(MemxChannel *channel, const MemxReply *reply,
                       const void *body, const struct iovec *iov, int n);

/* Someone waits for what goes over this channel: it passes bulk traffic where
 * the transport and the network know priorities. */
void memx_channel_urgent(MemxChannel *channel);
/* Any thread, until close: all that others wait for on it fails soon. */
void memx_channel_shutdown(MemxChannel *channel);
void memx_channel_close(MemxChannel *channel);
char *memx_channel_peer_address(MemxChannel *channel);

/* Memory that `in` and `out` may lie in.  0 or -errno. */
int memx_transport_register(const MemxTransport *transport, void *base,
                            size_t bytes);
void memx_transport_unregister(const MemxTransport *transport, void *base,
                               size_t bytes);

/* For transports: 0 if @reply is one that @call's peer may give, -EPROTO if
 * not.  @in_bytes is the size of call->in.  Fault path. */
int memx_call_check(const MemxCall *call, size_t in_bytes,
                    const MemxReply *reply);

/* For transports: waits for @events on @fd until @deadline_us of the
 * monotonic clock.  0, -ETIMEDOUT, -ECANCELED (@cancel_fd is readable). */
int memx_wait_fd(int fd, short events, int cancel_fd, int64_t deadline_us);

#endif
