/*
 * Testbed: see testbed.h.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#include "guard.h"
#include "raw-tcp.h"
#include "testbed.h"

#include <unistd.h>

#define START_TIMEOUT_S 120

/* A server that says "listening on ADDRESS" once it does. */
static Child *start_server(Testbed *testbed, const char *const *argv,
                           char **address, GError **error)
{
    Child *child;

    link_enter(testbed->link, LINK_SERVER);
    pin_thread(testbed->pinning.server_cpu);
    child = child_start(argv, CHILD_STDERR, error);
    pin_thread(CPU_ANY);
    link_enter(testbed->link, LINK_CLIENT);
    if (!child) {
        return NULL;
    }
    for (;;) {
        g_autofree char *text = child_hear(child, "", START_TIMEOUT_S, error);
        const char *found;

        if (!text) {
            child_stop(child);
            return NULL;
        }
        /* Others' logs put the program's name in front. */
        found = strstr(text, "listening on ");
        if (found) {
            *address = g_strdup(found + strlen("listening on "));
            g_strdelimit(*address, " ,;", '\0');
            return child;
        }
    }
}

static bool start_memserver(Testbed *testbed, const Options *options,
                            uint64_t capacity_bytes, GError **error)
{
    g_autofree char *listen =
        g_strdup_printf("%s:0", testbed->link->server_host);
    g_autofree char *capacity =
        g_strdup_printf("%" G_GUINT64_FORMAT "M",
                        (guint64)(capacity_bytes / MIB));
    g_autofree char *control =
        g_build_filename(testbed->directory, "control", NULL);
    const char *argv[] = {
        options->memserver, "--listen", listen, "--capacity", capacity,
        "--control", control,
        testbed->link->loopback ? NULL : "--insecure", NULL
    };

    testbed->memserver = start_server(testbed, argv,
                                      &testbed->memserver_address, error);
    return testbed->memserver != NULL;
}

static bool start_raw_server(Testbed *testbed, const Options *options,
                             GError **error)
{
    const char *argv[] = { options->self, "raw-tcp-server",
                           testbed->link->server_host, NULL };

    testbed->raw_server = start_server(testbed, argv, &testbed->raw_address,
                                       error);
    if (!testbed->raw_server) {
        return false;
    }
    testbed->raw_fd = raw_tcp_connect(testbed->raw_address, error);
    return testbed->raw_fd >= 0;
}

static bool make_directory(Testbed *testbed, GError **error)
{
    testbed->directory = g_dir_make_tmp("memx-bench-XXXXXX", error);
    if (!testbed->directory) {
        return false;
    }
    testbed->directory_guard =
        guard_push(GUARD_RMTEMP, "%s", testbed->directory);
    return true;
}

Testbed *testbed_new(const Options *options, PinningKind pinning,
                     const Link *link, uint64_t capacity_bytes,
                     GError **error)
{
    g_autoptr(Testbed) testbed = g_new0(Testbed, 1);

    testbed->link = link;
    testbed->raw_fd = -1;
    if (!pinning_get(pinning, &testbed->pinning, error) ||
        !make_directory(testbed, error) ||
        !start_raw_server(testbed, options, error) ||
        !start_memserver(testbed, options, capacity_bytes, error)) {
        return NULL;
    }
    return g_steal_pointer(&testbed);
}

void testbed_free(Testbed *testbed)
{
    if (!testbed) {
        return;
    }
    if (testbed->raw_fd >= 0) {
        close(testbed->raw_fd);
    }
    child_stop(testbed->memserver);
    child_stop(testbed->raw_server);
    if (testbed->directory) {
        guard_undo(testbed->directory_guard);
    }
    link_leave(testbed->link);
    g_free(testbed->directory);
    g_free(testbed->raw_address);
    g_free(testbed->memserver_address);
    g_free(testbed);
}

MemxRegion *testbed_region_new(Testbed *testbed, uint64_t size_bytes,
                               uint64_t local_bytes, MemxKeepCopies keep,
                               GError **error)
{
    const char *servers[] = { testbed->memserver_address, NULL };
    MemxOptions options = MEMX_OPTIONS_INIT;
    MemxRegion *region;

    options.size_bytes = size_bytes;
    options.local_bytes = local_bytes;
    options.servers = servers;
    options.keep_copies = keep;
    options.vm_name = "memx-bench";
    options.region_name = "bench";
    /* The region's threads inherit it. */
    pin_thread(testbed->pinning.engine_cpu);
    region = memx_region_new(&options, error);
    pin_thread(CPU_ANY);
    return region;
}
