/*
 * Link: see link.h.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#include "bench.h"
#include "link.h"

#include <errno.h>
#include <fcntl.h>
#include <sched.h>
#include <unistd.h>

#define CLIENT_ADDRESS "10.255.77.1"
#define SERVER_ADDRESS "10.255.77.2"

/* A bucket of 256 KiB and a queue of 20 ms: 10 Gbit/s comes out exactly. */
#define TBF "burst 256kb latency 20ms"

Link *link_loopback_new(void)
{
    Link *link = g_new0(Link, 1);

    link->name = g_strdup("loopback");
    link->server_host = "127.0.0.1";
    link->loopback = true;
    link->ns_fd[LINK_CLIENT] = link->ns_fd[LINK_SERVER] = -1;
    link->home_fd = -1;
    return link;
}

void link_free(Link *link)
{
    if (!link) {
        return;
    }
    for (int side = 0; side < 2; side++) {
        if (link->ns_fd[side] >= 0) {
            close(link->ns_fd[side]);
        }
    }
    if (link->home_fd >= 0) {
        close(link->home_fd);
    }
    g_free(link->name);
    g_free(link);
}

static void enter_fd(int fd)
{
    if (fd >= 0 && setns(fd, CLONE_NEWNET) < 0) {
        g_error("setns: %s", g_strerror(errno));
    }
}

void link_enter(const Link *link, LinkSide side)
{
    enter_fd(link->ns_fd[side]);
}

void link_leave(const Link *link)
{
    enter_fd(link->home_fd);
}

static int open_own_namespace(void)
{
    return open("/proc/thread-self/ns/net", O_RDONLY | O_CLOEXEC);
}

/* Runs a command line in the current namespace. */
static bool run(GError **error, const char *format, ...)
    __attribute__((format(printf, 2, 3)));
static bool run(GError **error, const char *format, ...)
{
    g_autofree char *command = NULL;
    g_autofree char *errors = NULL;
    g_autoptr(GError) local = NULL;
    int status;
    va_list args;

    va_start(args, format);
    command = g_strdup_vprintf(format, args);
    va_end(args);
    if (!g_spawn_command_line_sync(command, NULL, &errors, &status, &local) ||
        !g_spawn_check_wait_status(status, &local)) {
        g_set_error(error, BENCH_ERROR, BENCH_ERROR_UNAVAILABLE,
                    "\"%s\" failed: %s%s%s", command, local->message,
                    errors && *errors ? ": " : "",
                    errors ? g_strchomp(errors) : "");
        return false;
    }
    return true;
}

static bool new_namespace(Link *link, LinkSide side, GError **error)
{
    if (unshare(CLONE_NEWNET) < 0) {
        g_set_error(error, BENCH_ERROR, BENCH_ERROR_UNAVAILABLE,
                    "cannot make a network namespace (%s): run as root",
                    g_strerror(errno));
        return false;
    }
    link->ns_fd[side] = open_own_namespace();
    return true;
}

/* tbf's own queue is one for all.  What waits for the rate stands in the queue
 * that a network card has: systemd's default, or else the kernel's. */
static const char *queue_as_on_a_host(const char *device)
{
    static const char *const queues[] = { "fq_codel", "pfifo_fast" };

    for (size_t i = 0; i < G_N_ELEMENTS(queues); i++) {
        if (run(NULL, "tc qdisc add dev %s parent 1: %s", device,
                queues[i])) {
            return queues[i];
        }
    }
    return "fifo";
}

static bool set_up_side(Link *link, LinkSide side, const char *rate,
                        GError **error)
{
    const char *device = side == LINK_CLIENT ? "memx0" : "memx1";
    const char *address = side == LINK_CLIENT ? CLIENT_ADDRESS
                                              : SERVER_ADDRESS;

    link_enter(link, side);
    if (!run(error, "ip link set lo up") ||
        !run(error, "ip addr add %s/24 dev %s", address, device) ||
        !run(error, "ip link set %s up", device) ||
        !run(error, "tc qdisc add dev %s root handle 1: tbf rate %s " TBF,
             device, rate)) {
        return false;
    }
    if (side == LINK_CLIENT) {
        link->name = g_strdup_printf("veth %s %s", rate,
                                     queue_as_on_a_host(device));
    } else {
        queue_as_on_a_host(device);
    }
    return true;
}

static bool set_up(Link *link, const char *rate, GError **error)
{
    if (!new_namespace(link, LINK_SERVER, error) ||
        !new_namespace(link, LINK_CLIENT, error) ||
        !run(error, "ip link add memx0 mtu 9000 type veth peer name memx1 "
             "mtu 9000 netns /proc/%d/fd/%d", (int)getpid(),
             link->ns_fd[LINK_SERVER])) {
        return false;
    }
    return set_up_side(link, LINK_SERVER, rate, error) &&
           set_up_side(link, LINK_CLIENT, rate, error);
}

Link *link_veth_new(int gbit, GError **error)
{
    g_autofree char *rate = g_strdup_printf("%dgbit", gbit);
    g_autoptr(Link) link = g_new0(Link, 1);
    bool ok;

    link->server_host = SERVER_ADDRESS;
    link->ns_fd[LINK_CLIENT] = link->ns_fd[LINK_SERVER] = -1;
    link->home_fd = open_own_namespace();
    if (link->home_fd < 0) {
        g_set_error(error, BENCH_ERROR, BENCH_ERROR_UNAVAILABLE,
                    "no network namespaces here: %s", g_strerror(errno));
        return NULL;
    }
    ok = set_up(link, rate, error);
    if (link->ns_fd[LINK_SERVER] >= 0) {
        link_leave(link);
    }
    return ok ? g_steal_pointer(&link) : NULL;
}
