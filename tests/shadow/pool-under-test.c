/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * The servers of the region under test; see the header.
 */
#include <glib.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include "control.h"
#include "inproc-server.h"
#include "pool-under-test.h"
#include "proxy.h"
#include "server-process.h"
#include "transport-inproc.h"

struct PoolUnderTest {
    bool inproc;
    unsigned n;
    ServerProcess *process[MEMX_SERVERS_MAX];
    Proxy *proxy[MEMX_SERVERS_MAX];
    InprocServer *server[MEMX_SERVERS_MAX];
    const char *address[MEMX_SERVERS_MAX + 1];
};

PoolUnderTest *pool_new(bool inproc, unsigned n, uint64_t capacity_bytes,
                        uint32_t seed)
{
    PoolUnderTest *pool = g_new0(PoolUnderTest, 1);
    g_autofree char *capacity = g_strdup_printf("%" G_GUINT64_FORMAT "K",
                                                capacity_bytes >> 10);

    pool->inproc = inproc;
    pool->n = n;
    for (unsigned i = 0; i < n; i++) {
        if (inproc) {
            pool->server[i] = inproc_server_new(capacity_bytes);
            pool->address[i] = inproc_server_address(pool->server[i]);
        } else {
            pool->process[i] = server_process_new(capacity);
            pool->proxy[i] = proxy_new(
                server_process_address(pool->process[i]), seed + i);
            pool->address[i] = proxy_address(pool->proxy[i]);
        }
    }
    return pool;
}

void pool_free(PoolUnderTest *pool)
{
    for (unsigned i = 0; i < pool->n; i++) {
        proxy_free(pool->proxy[i]);
        server_process_free(pool->process[i]);
        inproc_server_free(pool->server[i]);
    }
    g_free(pool);
}

const MemxTransport *pool_transport(const PoolUnderTest *pool)
{
    return pool->inproc ? &memx_transport_inproc : &memx_transport_tcp;
}

const char *const *pool_addresses(const PoolUnderTest *pool)
{
    return pool->address;
}

unsigned pool_faults(const PoolUnderTest *pool)
{
    return pool->inproc
           ? 1 << FAULT_NONE | 1 << FAULT_CUT | 1 << FAULT_TAKE_OVER |
             1 << FAULT_FULL
           : (1 << N_FAULTS) - 1;
}

uint64_t pool_held_pages(PoolUnderTest *pool, unsigned i)
{
    static const char member[] = "\"used_bytes\":";
    g_autofree char *answer = NULL;
    g_autoptr(GError) error = NULL;
    const char *at;
    int fd;

    if (pool->inproc) {
        return inproc_server_held_pages(pool->server[i]);
    }
    fd = ms_control_connect(server_process_control_path(pool->process[i]),
                            &error);
    g_assert_no_error(error);
    g_assert_true(ms_control_send(fd, "{\"command\":\"status\"}", NULL, 0,
                                  &error));
    answer = ms_control_receive(fd, MS_ANSWER_MAX_BYTES, 30, NULL, NULL,
                                &error);
    g_assert_no_error(error);
    close(fd);
    at = strstr(answer, member); /* of the server, not of a space */
    g_assert_nonnull(at);
    return strtoull(at + strlen(member), NULL, 10) / MEMX_PAGE_BYTES;
}

void pool_fault_begin(PoolUnderTest *pool, unsigned i, Fault fault)
{
    static const ProxyMode mode[N_FAULTS] = {
        [FAULT_CUT] = PROXY_CUT, [FAULT_HALF_CLOSE] = PROXY_HALF_CLOSE,
        [FAULT_DELAY] = PROXY_DELAY, [FAULT_STALL] = PROXY_STALL,
    };

    if (pool->inproc) {
        if (fault == FAULT_CUT) {
            inproc_server_cut(pool->server[i]);
        } else if (fault == FAULT_TAKE_OVER) {
            inproc_server_restart(pool->server[i]);
        }
    } else if (mode[fault]) {
        proxy_set(pool->proxy[i], mode[fault]);
    } else if (fault == FAULT_STOP) {
        server_process_stop(pool->process[i]);
    } else if (fault == FAULT_CRASH) {
        server_process_kill(pool->process[i]);
    } else if (fault == FAULT_TAKE_OVER) {
        server_process_take_over(pool->process[i]);
    }
}

void pool_fault_end(PoolUnderTest *pool, unsigned i, Fault fault)
{
    if (pool->inproc) {
        return;
    }
    if (fault == FAULT_STOP) {
        server_process_continue(pool->process[i]);
    } else if (fault == FAULT_CRASH) {
        server_process_restart(pool->process[i], true);
    } else {
        proxy_set(pool->proxy[i], PROXY_PASS);
    }
}
