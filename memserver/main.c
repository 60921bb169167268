/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * memserver: lends this machine's memory to VMs on others.
 */
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/in.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/resource.h>
#include <unistd.h>
#include <gio/gio.h>
#include <glib-unix.h>
#include "control.h"
#include "handover.h"
#include "host.h"
#include "log.h"
#include "notify.h"
#include "server.h"
#include "status.h"

#define DEFAULT_LISTEN "127.0.0.1:7701"
/* What the daemon needs over what it stores, as a part of it: 1/64. */
#define OVERHEAD_SHIFT 6
#define STATUS_SECONDS 10

typedef struct Options {
    char *listen;
    char *capacity;
    char *key_file;
    char *control;
    char *take_over;
    char *name;
    gint64 orphan_timeout_s;
    gboolean insecure;
    gboolean version;
} Options;

typedef struct Daemon {
    Options options;
    GMainLoop *loop;
    MsServer *server;
    MsControl *control;
    MsHandover handover;
    bool took_over;
    bool adopted;
    char *told_status;
    int64_t told_us;
} Daemon;

static bool parse_options(Options *o, int argc, char **argv, GError **error)
{
    const GOptionEntry entries[] = {
        { "capacity", 'c', 0, G_OPTION_ARG_STRING, &o->capacity,
          "Memory for pages, such as 64G", "SIZE" },
        { "listen", 'l', 0, G_OPTION_ARG_STRING, &o->listen,
          "Address to listen at (default " DEFAULT_LISTEN "; port 0: any)",
          "HOST:PORT" },
        { "key-file", 'k', 0, G_OPTION_ARG_FILENAME, &o->key_file,
          "Key that clients must know", "PATH" },
        { "insecure", 0, 0, G_OPTION_ARG_NONE, &o->insecure,
          "Listen beyond loopback without a key", NULL },
        { "control", 0, 0, G_OPTION_ARG_FILENAME, &o->control,
          "Control socket (default memserver.sock in "
          "$RUNTIME_DIRECTORY or /run/memx)", "PATH" },
        { "orphan-timeout", 0, 0, G_OPTION_ARG_INT64, &o->orphan_timeout_s,
          "Drop spaces whose client is gone for so long (default: never)",
          "SECONDS" },
        { "take-over", 0, 0, G_OPTION_ARG_FILENAME, &o->take_over,
          "Succeed the memserver with this control socket", "PATH" },
        { "name", 0, 0, G_OPTION_ARG_STRING, &o->name,
          "What status calls this server (default: the host's name)",
          "NAME" },
        { "version", 0, 0, G_OPTION_ARG_NONE, &o->version,
          "Print the version and exit", NULL },
        { NULL },
    };
    g_autoptr(GOptionContext) context = g_option_context_new(NULL);

    g_option_context_set_summary(
        context, "Lends this machine's memory to VMs on other machines.");
    g_option_context_add_main_entries(context, entries, NULL);
    if (!g_option_context_parse(context, &argc, &argv, error)) {
        return false;
    }
    if (argc > 1) {
        g_set_error(error, G_IO_ERROR, G_IO_ERROR_INVALID_ARGUMENT,
                    "'%s' is not an option; see memserver --help", argv[1]);
        return false;
    }
    if (o->orphan_timeout_s < 0) {
        g_set_error(error, G_IO_ERROR, G_IO_ERROR_INVALID_ARGUMENT,
                    "--orphan-timeout %" G_GINT64_FORMAT " is negative; leave "
                    "it out to keep orphaned spaces", o->orphan_timeout_s);
        return false;
    }
    if (!o->version && !o->capacity && !o->take_over) {
        g_set_error(error, G_IO_ERROR, G_IO_ERROR_INVALID_ARGUMENT,
                    "say how much memory to lend: --capacity SIZE, such as "
                    "--capacity 64G");
        return false;
    }
    return true;
}

/* Listening. */

static bool is_loopback(int fd)
{
    struct sockaddr_storage address;
    socklen_t bytes = sizeof(address);
    const struct sockaddr_in *v4 = (void *)&address;
    const struct sockaddr_in6 *v6 = (void *)&address;

    if (getsockname(fd, (struct sockaddr *)&address, &bytes) < 0) {
        return false;
    }
    if (address.ss_family == AF_INET) {
        return ntohl(v4->sin_addr.s_addr) >> 24 == 127;
    }
    return address.ss_family == AF_INET6 &&
           (IN6_IS_ADDR_LOOPBACK(&v6->sin6_addr) ||
            (IN6_IS_ADDR_V4MAPPED(&v6->sin6_addr) &&
             v6->sin6_addr.s6_addr[12] == 127));
}

/* "host:port" or "[v6]:port" in two; port 0 is all right here. */
static bool split_address(const char *text, char **host, char **port,
                          GError **error)
{
    const char *colon = strrchr(text, ':');
    guint64 number;

    if (!colon || colon == text ||
        !g_ascii_string_to_unsigned(colon + 1, 10, 0, 65535, &number, NULL) ||
        (text[0] == '[') != (colon[-1] == ']') ||
        (text[0] != '[' && memchr(text, ':', colon - text))) {
        g_set_error(error, G_IO_ERROR, G_IO_ERROR_INVALID_ARGUMENT,
                    "--listen '%s' is not HOST:PORT or [IPv6]:PORT, such as "
                    DEFAULT_LISTEN " or [::1]:7701", text);
        return false;
    }
    *host = text[0] == '[' ? g_strndup(text + 1, colon - text - 2) :
                             g_strndup(text, colon - text);
    *port = g_strdup(colon + 1);
    return true;
}

static MemxListener *open_listener(Daemon *daemon, GBytes *key,
                                   GError **error)
{
    const Options *o = &daemon->options;
    g_autofree char *host = NULL, *port = NULL, *address = NULL;
    MemxListener *listener;

    if (daemon->took_over) {
        listener = memx_transport_tcp.listener_from_fd(
            daemon->handover.listener_fd, error);
    } else {
        if (!split_address(o->listen ?: DEFAULT_LISTEN, &host, &port,
                           error)) {
            return NULL;
        }
        listener = memx_transport_tcp.listen(host, port, error);
    }
    if (!listener) {
        return NULL;
    }
    address = memx_transport_tcp.listener_address(listener);
    if (daemon->took_over && o->listen && strcmp(o->listen, address)) {
        ms_log_warn("--listen %s is not used: the listening socket, at %s, is "
                    "taken over, too", o->listen, address);
    }
    if (!key && !o->insecure &&
        !is_loopback(memx_transport_tcp.listener_fd(listener))) {
        g_set_error(error, G_IO_ERROR, G_IO_ERROR_PERMISSION_DENIED,
                    "listening at %s, beyond loopback, lets everybody on the "
                    "network in: give a --key-file PATH (make one with "
                    "'(umask 077; openssl rand -base64 32 > PATH)'), or "
                    "--insecure if the network is trusted", address);
        memx_transport_tcp.listener_close(listener);
        return NULL;
    }
    return listener;
}

/* The store. */

static bool open_backing(Daemon *daemon, MsBacking *backing, GError **error)
{
    int fds[MS_N_FILES], n;

    if (daemon->took_over) {
        return ms_backing_adopt(backing, daemon->handover.fds, error);
    }
    n = ms_notify_kept(fds);
    if (n == MS_N_FILES) {
        daemon->adopted = true;
        return ms_backing_adopt(backing, fds, error);
    }
    if (n) {
        ms_log_error("the service manager kept %d of %d memory files: all "
                     "pages are lost; FileDescriptorStoreMax= must be at "
                     "least %d", n, MS_N_FILES, MS_N_FILES);
        for (int i = 0; i < MS_N_FILES; i++) {
            if (fds[i] >= 0) {
                close(fds[i]);
            }
        }
    }
    return ms_backing_create(backing, error);
}

static bool check_capacity(uint64_t bytes, uint64_t held_bytes, bool adopted,
                           GError **error)
{
    uint64_t available = ms_host_available_bytes();
    uint64_t more = bytes > held_bytes ? bytes - held_bytes : 0;
    g_autofree char *want = NULL, *have = NULL, *most = NULL;

    if (bytes >> 12 > MS_FRAMES_MAX / 2) {
        g_set_error(error, G_IO_ERROR, G_IO_ERROR_INVALID_ARGUMENT,
                    "--capacity: at most 8 TiB; start several memservers");
        return false;
    }
    if (!available || more + (more >> OVERHEAD_SHIFT) <= available) {
        return true;
    }
    want = g_format_size_full(more + (more >> OVERHEAD_SHIFT),
                              G_FORMAT_SIZE_IEC_UNITS);
    have = g_format_size_full(available, G_FORMAT_SIZE_IEC_UNITS);
    most = g_format_size_full((held_bytes + available) / 65 * 64,
                              G_FORMAT_SIZE_IEC_UNITS);
    if (adopted) {
        /* Refusing would take away what is stored already. */
        ms_log_warn("--capacity needs %s more, but this machine has only %s "
                    "available: lower it to %s", want, have, most);
        return true;
    }
    g_set_error(error, G_IO_ERROR, G_IO_ERROR_NO_SPACE,
                "--capacity needs %s (its own overhead included), but this "
                "machine has only %s available; give at most %s, or free "
                "memory", want, have, most);
    return false;
}

static MsStore *open_store(Daemon *daemon, GError **error)
{
    const Options *o = &daemon->options;
    uint64_t bytes = daemon->handover.capacity_bytes;
    MsBacking backing;
    MsStore *store;
    bool kept;

    if (o->capacity && !ms_parse_size(o->capacity, &bytes, error)) {
        g_prefix_error(error, "--capacity: ");
        return NULL;
    }
    if (bytes < MEMX_GROUP_BYTES) {
        g_set_error(error, G_IO_ERROR, G_IO_ERROR_INVALID_ARGUMENT,
                    "--capacity %s is less than 256 KiB", o->capacity);
        return NULL;
    }
    if (!open_backing(daemon, &backing, error)) {
        return NULL;
    }
    /* What the service manager passed to us, it keeps on keeping. */
    kept = daemon->adopted;
    daemon->adopted |= daemon->took_over;
    store = ms_store_new(&backing, bytes / MEMX_PAGE_BYTES, error);
    if (!store) {
        ms_backing_close(&backing);
        return NULL;
    }
    if (!check_capacity(bytes, ms_store_held_pages(store) * MEMX_PAGE_BYTES,
                        daemon->adopted, error) ||
        (!kept && !ms_notify_keep(store->backing.fds, error))) {
        ms_store_free(store, NULL);
        return NULL;
    }
    return store;
}

/* Running. */

static void handed_over(void *opaque)
{
    Daemon *daemon = opaque;

    g_main_loop_quit(daemon->loop);
}

static gboolean on_signal(gpointer opaque)
{
    g_main_loop_quit(opaque);
    return G_SOURCE_CONTINUE;
}

static gboolean on_tick(gpointer opaque)
{
    Daemon *daemon = opaque;
    int64_t now_us = g_get_monotonic_time();
    g_autofree char *status = NULL;

    ms_server_tick(daemon->server);
    if (ms_notify_heard() &&
        now_us - daemon->told_us >= STATUS_SECONDS * G_USEC_PER_SEC) {
        status = ms_status_text(daemon->server);
        if (g_strcmp0(status, daemon->told_status)) {
            ms_notify("STATUS=%s", status);
            g_free(daemon->told_status);
            daemon->told_status = g_steal_pointer(&status);
            daemon->told_us = now_us;
        }
    }
    return G_SOURCE_CONTINUE;
}

static void raise_limits(void)
{
    struct rlimit limit;

    /* A descriptor for each connection. */
    if (getrlimit(RLIMIT_NOFILE, &limit) == 0) {
        limit.rlim_cur = limit.rlim_max;
        setrlimit(RLIMIT_NOFILE, &limit);
    }
}

static bool start(Daemon *daemon, GError **error)
{
    const Options *o = &daemon->options;
    g_autoptr(GBytes) key = NULL;
    g_autofree char *control_path = NULL, *address = NULL, *status = NULL;
    MemxListener *listener;
    MsStore *store;

    if (o->key_file) {
        key = memx_key_load(o->key_file, error);
        if (!key) {
            return false;
        }
    }
    if (o->take_over) {
        if (!ms_handover_take(&daemon->handover, o->take_over, error)) {
            return false;
        }
        daemon->took_over = true;
    }
    listener = open_listener(daemon, key, error);
    if (!listener) {
        return false;
    }
    store = open_store(daemon, error);
    if (!store) {
        memx_transport_tcp.listener_close(listener);
        return false;
    }
    daemon->server = ms_server_new(o->name ?: g_get_host_name(), listener,
                                   store, key, o->orphan_timeout_s);
    if (daemon->took_over && !ms_handover_ready(&daemon->handover, error)) {
        return false;
    }
    control_path = o->control ? g_strdup(o->control) :
                   o->take_over ? g_strdup(o->take_over) :
                   ms_control_default_path();
    daemon->control = ms_control_open(
        control_path, !g_strcmp0(control_path, o->take_over), daemon->server,
        handed_over, daemon, error);
    if (!daemon->control) {
        return false;
    }
    ms_server_start(daemon->server);
    if (daemon->took_over) {
        ms_handover_done(&daemon->handover);
    }
    status = ms_status_text(daemon->server);
    ms_log_info("%s%s", status, daemon->adopted ? ", taken over" : "");
    address = memx_transport_tcp.listener_address(listener);
    ms_log_info("listening on %s%s", address, key ? "" : " (no key)");
    ms_notify("READY=1\nSTATUS=%s", status);
    return true;
}

static void stop(Daemon *daemon)
{
    g_autofree char *status = NULL;
    uint64_t held;

    if (ms_control_settle(daemon->control)) {
        ms_control_close(daemon->control);
        return;
    }
    ms_notify("STOPPING=1");
    ms_server_stop(daemon->server);
    ms_control_close(daemon->control);
    g_mutex_lock(&daemon->server->lock);
    held = ms_store_held_pages(daemon->server->store);
    g_mutex_unlock(&daemon->server->lock);
    status = ms_status_text(daemon->server);
    if (ms_notify_heard()) {
        ms_log_info("stopping; %s, which the service manager keeps", status);
    } else if (held) {
        ms_log_warn("stopping; nobody keeps the memory: %" G_GUINT64_FORMAT
                    " pages are lost (%s)", held, status);
    } else {
        ms_log_info("stopping; no page is lost");
    }
}

int main(int argc, char **argv)
{
    Daemon daemon = { .handover.fd = -1 };
    g_autoptr(GError) error = NULL;

    signal(SIGPIPE, SIG_IGN);
    if (!parse_options(&daemon.options, argc, argv, &error)) {
        ms_log_error("%s", error->message);
        return 2;
    }
    if (daemon.options.version) {
        printf("memserver %s, protocol %u\n", MEMX_VERSION,
               MEMX_PROTOCOL_VERSION);
        return 0;
    }
    raise_limits();
    daemon.loop = g_main_loop_new(NULL, FALSE);
    g_unix_signal_add(SIGTERM, on_signal, daemon.loop);
    g_unix_signal_add(SIGINT, on_signal, daemon.loop);
    if (!start(&daemon, &error)) {
        ms_log_error("%s", error->message);
        return 1;
    }
    g_timeout_add_seconds(1, on_tick, &daemon);
    g_main_loop_run(daemon.loop);
    stop(&daemon);
    return 0;
}
