/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * memxctl doctor: is this machine fit to run MemX VMs or a memserver, and
 * can it reach its servers?  One line for each finding, and what to do about
 * those that are not ok.
 */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/utsname.h>
#include <unistd.h>
#include "host.h"
#include "memxctl.h"
#include "peer.h"
#include "uffd.h"

#define PINGS 1000
#define SERVER_TIMEOUT_MS 5000

typedef struct Doctor {
    unsigned failures;
    unsigned warnings;
} Doctor;

static void print_finding(const char *verdict, const char *what,
                          const char *format, va_list args)
{
    g_autofree char *text = g_strdup_vprintf(format, args);

    printf("%-5s %-22s %s\n", verdict, what, text);
}

static G_GNUC_PRINTF(2, 3) void ok(const char *what, const char *format, ...)
{
    va_list args;

    va_start(args, format);
    print_finding("ok", what, format, args);
    va_end(args);
}

static G_GNUC_PRINTF(3, 4) void warn(Doctor *doctor, const char *what,
                                     const char *format, ...)
{
    va_list args;

    doctor->warnings++;
    va_start(args, format);
    print_finding("warn", what, format, args);
    va_end(args);
}

static G_GNUC_PRINTF(3, 4) void fail(Doctor *doctor, const char *what,
                                     const char *format, ...)
{
    va_list args;

    doctor->failures++;
    va_start(args, format);
    print_finding("FAIL", what, format, args);
    va_end(args);
}

/* A small file's first line; NULL if it can't be read. */
static char *read_line(const char *path)
{
    char *text;

    if (!g_file_get_contents(path, &text, NULL, NULL)) {
        return NULL;
    }
    return g_strchomp(g_strdelimit(text, "\n", '\0'));
}

/* For hosts of VMs. */

static void check_kernel(Doctor *doctor)
{
    g_autoptr(GError) error = NULL;
    struct utsname kernel;
    uint64_t features = 0;
    int fd;

    uname(&kernel);
    fd = memx_uffd_open(0, &features, &error);
    if (fd < 0) {
        fail(doctor, "userfaultfd", "%s", error->message);
        return;
    }
    close(fd);
    ok("userfaultfd", "kernel %s moves pages and handles faults of the kernel",
       kernel.release);
}

static void check_permission(Doctor *doctor)
{
    g_autofree char *unprivileged =
        read_line("/proc/sys/vm/unprivileged_userfaultfd");

    if (access("/dev/userfaultfd", R_OK | W_OK) == 0) {
        ok("/dev/userfaultfd", "may be opened by this user");
    } else if (errno == ENOENT) {
        warn(doctor, "/dev/userfaultfd", "is not there; QEMU then needs "
             "CAP_SYS_PTRACE or vm.unprivileged_userfaultfd=1");
    } else {
        warn(doctor, "/dev/userfaultfd", "%s; let QEMU's user open it, such "
             "as by 'chgrp kvm /dev/userfaultfd; chmod 660 "
             "/dev/userfaultfd', and a udev rule to keep it so",
             g_strerror(errno));
    }
    ok("unprivileged_userfaultfd", "%s%s", unprivileged ?: "unknown",
       g_strcmp0(unprivileged, "1") ?
       ": only root or by /dev/userfaultfd" : "");
}

static void check_limit(Doctor *doctor, const char *what, int resource,
                        rlim_t enough, const char *advice)
{
    struct rlimit limit;

    if (getrlimit(resource, &limit) < 0) {
        return;
    }
    if (limit.rlim_max == RLIM_INFINITY) {
        ok(what, "unlimited");
    } else if (limit.rlim_max >= enough) {
        ok(what, "%llu", (unsigned long long)limit.rlim_max);
    } else {
        warn(doctor, what, "%llu: %s", (unsigned long long)limit.rlim_max,
             advice);
    }
}

static void check_huge_pages(Doctor *doctor)
{
    g_autofree char *shmem =
        read_line("/sys/kernel/mm/transparent_hugepage/shmem_enabled");

    if (shmem && strstr(shmem, "[force]")) {
        warn(doctor, "huge pages", "shmem_enabled is 'force': a memserver "
             "here takes 2 MiB where it stores one page; set it to 'never' "
             "or 'advise'");
    } else {
        ok("huge pages", "shmem_enabled does not force them");
    }
}

static void check_memory(Doctor *doctor)
{
    uint64_t swap = ms_host_meminfo_bytes("SwapTotal");
    g_autofree char *available = g_format_size_full(
        ms_host_available_bytes(), G_FORMAT_SIZE_IEC_UNITS);
    g_autofree char *overcommit =
        read_line("/proc/sys/vm/overcommit_memory");

    ok("memory", "%s available", available);
    if (swap) {
        warn(doctor, "swap", "is on: the kernel may swap out what MemX keeps "
             "local; 'swapoff -a', or MemorySwapMax=0 for the services");
    } else {
        ok("swap", "is off");
    }
    if (!g_strcmp0(overcommit, "2")) {
        warn(doctor, "overcommit_memory", "is 2: memserver maps more than it "
             "uses and may be refused; set vm.overcommit_memory=0");
    } else {
        ok("overcommit_memory", "%s", overcommit ?: "unknown");
    }
}

/* For servers. */

static int compare_ns(const void *a, const void *b)
{
    int64_t x = *(const int64_t *)a, y = *(const int64_t *)b;

    return x < y ? -1 : x > y;
}

static int64_t now_ns(void)
{
    struct timespec now;

    clock_gettime(CLOCK_MONOTONIC, &now);
    return now.tv_sec * 1000000000ll + now.tv_nsec;
}

/* The round trips of PINGS pings, sorted; 0 or -errno. */
static int measure(MemxChannel *channel, int64_t *ns, MemxReply *reply)
{
    for (int i = -PINGS / 10; i < PINGS; i++) {
        MemxCall call = { .request.opcode = MEMX_OP_PING };
        int64_t begin = now_ns();
        int ret = memx_channel_call(channel, &call, SERVER_TIMEOUT_MS, -1);

        if (ret < 0) {
            return ret;
        }
        if (i >= 0) {
            ns[i] = now_ns() - begin;
        }
        *reply = call.reply;
    }
    qsort(ns, PINGS, sizeof(*ns), compare_ns);
    return 0;
}

static void check_server(Doctor *doctor, const char *address, GBytes *key)
{
    g_autoptr(GError) error = NULL;
    g_autofree char *capacity = NULL, *freed = NULL;
    MemxPeer *peer = memx_peer_new(&memx_transport_tcp, address, key, &error);
    MemxOpen open = { .lane = MEMX_LANE_NONE };
    int64_t *ns = g_new0(int64_t, PINGS);
    MemxChannel *channel = NULL;
    MemxPeerInfo info;
    MemxReply reply = { 0 };
    int ret;

    if (peer) {
        channel = memx_peer_connect(peer, &open, SERVER_TIMEOUT_MS, -1,
                                    &info, &error);
    }
    if (!channel) {
        fail(doctor, address, "%s", error->message);
    } else if ((ret = measure(channel, ns, &reply)) < 0) {
        fail(doctor, address, "stopped answering: %s", g_strerror(-ret));
    } else {
        capacity = g_format_size_full(reply.capacity_pages * MEMX_PAGE_BYTES,
                                      G_FORMAT_SIZE_IEC_UNITS);
        freed = g_format_size_full(reply.free_pages * MEMX_PAGE_BYTES,
                                   G_FORMAT_SIZE_IEC_UNITS);
        ok(address, "round trip p50 %.1f us, p99 %.1f us; %s of %s free, "
           "load %.0f %%", ns[PINGS / 2] / 1e3, ns[PINGS * 99 / 100] / 1e3,
           freed, capacity, reply.load_permille / 10.0);
    }
    if (channel) {
        memx_channel_close(channel);
    }
    memx_peer_free(peer);
    g_free(ns);
}

int memxctl_doctor(int argc, char **argv)
{
    g_autofree char *key_file = NULL;
    const GOptionEntry entries[] = {
        { "key-file", 0, 0, G_OPTION_ARG_FILENAME, &key_file,
          "The servers' key", "PATH" },
        { NULL },
    };
    g_autoptr(GBytes) key = NULL;
    g_autoptr(GError) error = NULL;
    Doctor doctor = { 0 };

    if (!memxctl_options(&argc, &argv, entries, "[SERVER...]",
                         "Looks whether this machine can run MemX VMs or a "
                         "memserver,\nand measures the way to each SERVER "
                         "(HOST:PORT).")) {
        return MEMXCTL_USAGE;
    }
    if (key_file && !(key = memx_key_load(key_file, &error))) {
        memxctl_error("%s", error->message);
        return MEMXCTL_USAGE;
    }
    check_kernel(&doctor);
    check_permission(&doctor);
    check_limit(&doctor, "open files", RLIMIT_NOFILE, 2048,
                "a memserver takes one for each connection, up to 1024; "
                "raise LimitNOFILE=");
    check_limit(&doctor, "address space", RLIMIT_AS, RLIM_INFINITY,
                "a memserver maps all of its capacity; remove the limit");
    check_huge_pages(&doctor);
    check_memory(&doctor);
    for (int i = 1; i < argc; i++) {
        check_server(&doctor, argv[i], key);
    }
    printf("%u failed, %u warnings\n", doctor.failures, doctor.warnings);
    return doctor.failures ? MEMXCTL_FAILED : MEMXCTL_OK;
}
