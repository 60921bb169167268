/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * What an administrator sees and does: memxctl, the control socket, and what
 * memserver says to options that make no sense.
 */
#include <gio/gio.h>
#include <glib.h>
#include <json-glib/json-glib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>
#include "control.h"
#include "memserver-client.h"
#include "server-process.h"
#include "tcp-socket.h"

#define PAGES 1024u

typedef struct Fixture {
    ServerProcess *server;
    Client *client;
    char *hex;              /* the id of its space */
} Fixture;

/* Runs a program; its exit status, what it printed in @out and @err. */
static int run(const char *const *argv, char **out, char **err)
{
    g_autoptr(GError) error = NULL;
    g_autofree char *stdout_text = NULL, *stderr_text = NULL;
    int status;

    g_spawn_sync(NULL, (char **)argv, NULL, G_SPAWN_SEARCH_PATH, NULL, NULL,
                 &stdout_text, &stderr_text, &status, &error);
    g_assert_no_error(error);
    g_assert_true(WIFEXITED(status));
    if (out) {
        *out = g_steal_pointer(&stdout_text);
    }
    if (err) {
        *err = g_steal_pointer(&stderr_text);
    }
    return WEXITSTATUS(status);
}

static const char *memxctl_path(void)
{
    const char *path = g_getenv("MEMXCTL");

    g_assert_nonnull(path);
    return path;
}

static int memxctl(Fixture *f, const char *command, const char *first,
                   const char *second, char **out, char **err)
{
    const char *argv[] = {
        memxctl_path(), command, "--control",
        server_process_control_path(f->server), first, second, NULL,
    };

    return run(argv, out, err);
}

static void set_up(Fixture *f, gconstpointer data)
{
    GString *hex = g_string_new(NULL);

    f->server = server_process_new("64M");
    f->client = client_new(server_process_address(f->server), NULL);
    g_assert_cmpint(client_create(f->client, PAGES, PAGES / 2), ==, 0);
    g_assert_cmpint(client_attach(f->client, MEMX_LANE_FAULT), ==, 0);
    g_assert_cmpint(client_store(f->client, 1, ALL_PAGES, 1), ==, 0);
    for (unsigned i = 0; i < MEMX_ID_BYTES; i++) {
        g_string_append_printf(hex, "%02x", f->client->open.space[i]);
    }
    f->hex = g_string_free(hex, FALSE);
}

static void tear_down(Fixture *f, gconstpointer data)
{
    g_free(f->hex);
    client_free(f->client);
    server_process_free(f->server);
}

static JsonNode *status_json(Fixture *f)
{
    g_autoptr(GError) error = NULL;
    g_autofree char *out = NULL;
    JsonNode *node;

    g_assert_cmpint(memxctl(f, "status", "--json", NULL, &out, NULL), ==, 0);
    node = json_from_string(out, &error);
    g_assert_no_error(error);
    return node;
}

static JsonObject *only_space(JsonNode *status)
{
    JsonArray *spaces = json_object_get_array_member(
        json_node_get_object(status), "spaces");

    g_assert_cmpuint(json_array_get_length(spaces), ==, 1);
    return json_array_get_object_element(spaces, 0);
}

static void test_status(Fixture *f, gconstpointer data)
{
    g_autoptr(JsonNode) node = status_json(f);
    JsonObject *status = json_node_get_object(node);
    JsonObject *space = only_space(node);

    g_assert_cmpint(json_object_get_int_member(status, "capacity_bytes"), ==,
                    64 << 20);
    g_assert_cmpint(json_object_get_int_member(status, "used_bytes"), ==,
                    MEMX_GROUP_BYTES);
    g_assert_cmpint(json_object_get_int_member(status, "reserved_bytes"), ==,
                    PAGES / 2 * MEMX_PAGE_BYTES);
    g_assert_cmpint(json_object_get_int_member(status, "free_bytes"), ==,
                    (64 << 20) - PAGES / 2 * MEMX_PAGE_BYTES);
    g_assert_cmpstr(json_object_get_string_member(status, "listen"), ==,
                    server_process_address(f->server));
    g_assert_cmpint(json_object_get_int_member(status, "connections"), ==, 2);
    g_assert_cmpstr(json_object_get_string_member(space, "id"), ==, f->hex);
    g_assert_cmpstr(json_object_get_string_member(space, "vm_name"), ==,
                    "test-vm");
    g_assert_cmpstr(json_object_get_string_member(space, "region"), ==,
                    "ram");
    g_assert_cmpstr(json_object_get_string_member(space, "state"), ==,
                    "owned");
    g_assert_cmpint(json_object_get_int_member(space, "size_bytes"), ==,
                    PAGES * MEMX_PAGE_BYTES);
    g_assert_cmpint(json_object_get_int_member(space, "held_bytes"), ==,
                    MEMX_GROUP_BYTES);
    g_assert_cmpuint(json_array_get_length(json_object_get_array_member(
                         space, "clients")), ==, 2);
    g_assert_cmpint(json_object_get_int_member(
                        json_object_get_object_member(space, "counters"),
                        "stored_pages"), ==, 64);
}

static void test_status_tells_no_secret(Fixture *f, gconstpointer data)
{
    g_autofree char *out = NULL;
    g_autoptr(GString) secret = g_string_new(NULL);

    for (unsigned i = 0; i < MEMX_ID_BYTES; i++) {
        g_string_append_printf(secret, "%02x", f->client->open.secret[i]);
    }
    g_assert_cmpint(memxctl(f, "status", "--json", NULL, &out, NULL), ==, 0);
    g_assert_null(strstr(out, secret->str));
}

/* Until the server has noticed. */
static void wait_for_state(Fixture *f, const char *state, unsigned clients)
{
    int64_t deadline = g_get_monotonic_time() + 30 * G_USEC_PER_SEC;

    for (;;) {
        g_autoptr(JsonNode) node = status_json(f);
        JsonObject *space = only_space(node);

        if (!strcmp(json_object_get_string_member(space, "state"), state) &&
            json_array_get_length(json_object_get_array_member(
                space, "clients")) == clients) {
            return;
        }
        g_assert_cmpint(g_get_monotonic_time(), <, deadline);
    }
}

static void wait_for_orphan(Fixture *f)
{
    wait_for_state(f, "orphaned", 0);
}

static void test_status_for_people(Fixture *f, gconstpointer data)
{
    g_autofree char *owned = NULL, *orphaned = NULL;

    g_assert_cmpint(memxctl(f, "status", NULL, NULL, &owned, NULL), ==, 0);
    g_assert_nonnull(strstr(owned, f->hex));
    g_assert_nonnull(strstr(owned, "test-vm"));
    g_assert_null(strstr(owned, "ORPHANED"));
    client_cut_all(f->client);
    wait_for_orphan(f);
    g_assert_cmpint(memxctl(f, "status", NULL, NULL, &orphaned, NULL), ==, 0);
    g_assert_nonnull(strstr(orphaned, "ORPHANED"));
}

static void test_drop_orphan(Fixture *f, gconstpointer data)
{
    g_autofree char *prefix = g_strndup(f->hex, 8);
    g_autofree char *err = NULL;

    client_cut_all(f->client);
    wait_for_orphan(f);
    g_assert_cmpint(memxctl(f, "drop", prefix, NULL, NULL, NULL), ==, 0);
    g_assert_cmpint(client_attach(f->client, MEMX_LANE_ORDERED), ==,
                    MEMX_ERR_NO_SPACE);
    g_assert_cmpint(memxctl(f, "drop", f->hex, NULL, NULL, &err), ==, 1);
    g_assert_nonnull(strstr(err, f->hex));
}

static void test_drop_owned(Fixture *f, gconstpointer data)
{
    g_autofree char *err = NULL;

    g_assert_cmpint(memxctl(f, "drop", f->hex, NULL, NULL, &err), ==, 1);
    g_assert_nonnull(strstr(err, "test-vm"));
    g_assert_nonnull(strstr(err, "--force"));
    g_assert_cmpint(client_ping(f->client, MEMX_LANE_FAULT), ==, 0);
    g_assert_cmpint(memxctl(f, "drop", f->hex, "--force", NULL, NULL), ==, 0);
    g_assert_cmpint(client_ping(f->client, MEMX_LANE_FAULT), <, 0);
    g_assert_cmpint(client_attach(f->client, MEMX_LANE_ORDERED), ==,
                    MEMX_ERR_NO_SPACE);
}

/* The offer, as programs are told of it, and what people see. */
static void check_offer(Fixture *f, bool owner, bool heir, bool resigned,
                        const char *says)
{
    g_autoptr(JsonNode) node = status_json(f);
    JsonObject *offer = json_object_get_object_member(only_space(node),
                                                      "offer");
    g_autofree char *text = NULL;

    g_assert_cmpstr(json_object_get_string_member(offer, "session"), ==,
                    "5e550000000000000000000000000000");
    g_assert_cmpint(json_object_get_boolean_member(offer, "owner_connected"),
                    ==, owner);
    g_assert_cmpint(json_object_get_boolean_member(offer, "heir_connected"),
                    ==, heir);
    g_assert_cmpint(json_object_get_boolean_member(offer, "owner_resigned"),
                    ==, resigned);
    g_assert_cmpint(memxctl(f, "status", NULL, NULL, &text, NULL), ==, 0);
    g_assert_nonnull(strstr(text, says));
    g_assert_nonnull(strstr(text, "; session 5e550000\n"));
    g_assert_true(!strstr(text, "ORPHANED") == (owner || heir));
}

static void test_handover(Fixture *f, gconstpointer data)
{
    static const uint8_t session[MEMX_ID_BYTES] = { 0x5e, 0x55 };
    Client *heir = client_new_heir(f->client, session);
    g_autofree char *err = NULL, *text = NULL;

    g_assert_cmpint(client_offer(f->client, session, heir), ==, 0);
    wait_for_state(f, "offered", 2);
    check_offer(f, true, false, false, "destination, not connected;");
    g_assert_cmpint(client_inherit(heir, MEMX_LANE_FETCH), ==, 0);
    wait_for_state(f, "incoming", 3);
    check_offer(f, true, true, false, "destination, 127.0.0.1;");
    g_assert_cmpint(client_decide(f->client, MEMX_OP_RESIGN, session), ==, 0);
    client_cut_all(f->client);
    /* Nobody's only when both are gone. */
    wait_for_state(f, "incoming", 1);
    check_offer(f, false, true, true,
                "destination, 127.0.0.1, the source has left;");
    client_cut_all(heir);
    wait_for_orphan(f);
    check_offer(f, false, false, true, "ORPHANED");
    /* Either may still come for it. */
    g_assert_cmpint(memxctl(f, "drop", f->hex, NULL, NULL, &err), ==, 1);
    g_assert_nonnull(strstr(err, "migrated"));
    g_assert_nonnull(strstr(err, "--force"));
    g_assert_cmpint(client_inherit(heir, MEMX_LANE_ORDERED), ==, 0);
    g_assert_cmpint(client_decide(heir, MEMX_OP_COMMIT, session), ==, 0);
    wait_for_state(f, "owned", 1);
    g_assert_cmpint(memxctl(f, "status", NULL, NULL, &text, NULL), ==, 0);
    g_assert_null(strstr(text, "offered"));
    client_free(heir);
}

/* Also one that was offered when its server was killed. */
static void test_drop_offered(Fixture *f, gconstpointer data)
{
    static const uint8_t session[MEMX_ID_BYTES] = { 0x5e, 0x55 };
    Client *heir = client_new_heir(f->client, session);

    g_assert_cmpint(client_offer(f->client, session, heir), ==, 0);
    server_process_kill(f->server);
    server_process_restart(f->server, true);
    check_offer(f, false, false, false, "ORPHANED");
    g_assert_cmpint(memxctl(f, "drop", f->hex, "--force", NULL, NULL), ==, 0);
    g_assert_cmpint(client_inherit(heir, MEMX_LANE_ORDERED), ==,
                    MEMX_ERR_NO_SPACE);
    client_free(heir);
}

static void test_socket_is_private(Fixture *f, gconstpointer data)
{
    struct stat st;

    g_assert_no_errno(stat(server_process_control_path(f->server), &st));
    g_assert_cmpint(st.st_mode & 0777, ==, 0600);
}

static void test_doctor(Fixture *f, gconstpointer data)
{
    const char *good[] = { memxctl_path(), "doctor",
                           server_process_address(f->server), NULL };
    const char *bad[] = { memxctl_path(), "doctor", "127.0.0.1:1", NULL };
    const char *typo[] = { memxctl_path(), "doctor", "localhost", NULL };
    g_autofree char *out = NULL, *out_bad = NULL, *out_typo = NULL;
    g_autofree char *line = NULL;

    run(good, &out, NULL);
    line = g_strdup_printf("ok    %s ", server_process_address(f->server));
    g_assert_nonnull(strstr(out, line));
    g_assert_nonnull(strstr(out, "round trip p50"));
    g_assert_nonnull(strstr(out, "userfaultfd"));
    g_assert_cmpint(run(bad, &out_bad, NULL), ==, 1);
    g_assert_nonnull(strstr(out_bad, "FAIL  127.0.0.1:1 "));
    g_assert_cmpint(run(typo, &out_typo, NULL), ==, 1);
    g_assert_nonnull(strstr(out_typo, "host:port"));
}

static void test_usage(void)
{
    static const struct {
        const char *argv[4];
        int status;
        const char *says;
    } cases[] = {
        { { "status", "--control", "/nonexistent/socket" }, 1,
          "/nonexistent/socket" },
        { { "drop" }, 2, "SPACE" },
        { { "status", "--nonsense" }, 2, "--nonsense" },
        { { "nonsense" }, 2, "nonsense" },
        { { NULL }, 2, "Usage" },
    };

    for (unsigned i = 0; i < G_N_ELEMENTS(cases); i++) {
        const char *argv[] = { memxctl_path(), cases[i].argv[0],
                               cases[i].argv[1], cases[i].argv[2], NULL };
        g_autofree char *err = NULL;

        g_assert_cmpint(run(argv, NULL, &err), ==, cases[i].status);
        g_assert_nonnull(strstr(err, cases[i].says));
    }
}

/* Refused at start, with what, where and what to do; nothing is left. */
static void test_bad_options(void)
{
    static const struct {
        const char *argv[6];
        const char *says;
    } cases[] = {
        { { NULL }, "--capacity SIZE" },
#ifndef __SANITIZE_THREAD__ /* can't even map as much */
        { { "--capacity", "7T" }, "available" },
#endif
        { { "--capacity", "1Q" }, "'1Q' is not a size" },
        { { "--capacity", "-4G" }, "not a size" },
        { { "--capacity", "4K" }, "less than" },
        { { "--capacity", "64M", "--listen", "localhost" }, "HOST:PORT" },
        { { "--capacity", "64M", "--listen", "::1:77" }, "HOST:PORT" },
        { { "--capacity", "64M", "--listen", "127.0.0.1:99999" },
          "HOST:PORT" },
        { { "--capacity", "64M", "--listen", "0.0.0.0:0" }, "--key-file" },
        { { "--capacity", "64M", "--listen", "192.0.2.77:0" },
          "192.0.2.77" },
        { { "--capacity", "64M", "--key-file", "/nonexistent/key" },
          "/nonexistent/key" },
        { { "--capacity", "64M", "--listen", "127.0.0.1:0", "--control",
            "/proc/nonexistent/control" }, "--control" },
        { { "--take-over", "/nonexistent/socket" }, "/nonexistent/socket" },
        { { "--capacity", "64M", "--orphan-timeout", "-1" }, "negative" },
        { { "--capacity", "64M", "surplus" }, "surplus" },
    };

    for (unsigned i = 0; i < G_N_ELEMENTS(cases); i++) {
        const char *argv[8] = { MEMSERVER_PATH };
        g_autofree char *err = NULL;

        memcpy(argv + 1, cases[i].argv, sizeof(cases[i].argv));
        g_assert_cmpint(run(argv, NULL, &err), !=, 0);
        if (!strstr(err, cases[i].says)) {
            g_error("case %u does not say '%s': %s", i, cases[i].says, err);
        }
    }
}

/* A second one may not take the first one's control socket away. */
static void test_second_server(Fixture *f, gconstpointer data)
{
    const char *argv[] = {
        MEMSERVER_PATH, "--capacity", "64M", "--listen", "127.0.0.1:0",
        "--control", server_process_control_path(f->server), NULL,
    };
    const char *port[] = {
        MEMSERVER_PATH, "--capacity", "64M", "--listen",
        server_process_address(f->server), NULL,
    };
    g_autofree char *err = NULL, *err_port = NULL;

    g_assert_cmpint(run(argv, NULL, &err), ==, 1);
    g_assert_nonnull(strstr(err, "another memserver"));
    g_assert_cmpint(run(port, NULL, &err_port), ==, 1);
    g_assert_nonnull(strstr(err_port, server_process_address(f->server)));
    g_autoptr(JsonNode) still = status_json(f);
    g_assert_nonnull(still);
}

static void wait_for_log(ServerProcess *server, const char *text)
{
    int64_t deadline = g_get_monotonic_time() + 60 * G_USEC_PER_SEC;

    for (;;) {
        g_autofree char *log = server_process_log(server);

        if (strstr(log, text)) {
            return;
        }
        if (g_get_monotonic_time() > deadline) {
            g_error("it does not say '%s': %s", text, log);
        }
        g_usleep(5000);
    }
}

/* Of the main thread; 'S' for asleep. */
static char thread_state(int pid)
{
    g_autofree char *path = g_strdup_printf("/proc/%d/stat", pid);
    g_autofree char *stat = NULL;

    g_assert_true(g_file_get_contents(path, &stat, NULL, NULL));
    return strrchr(stat, ')')[2];
}

/* Its main thread is asleep each time that it is looked at: it may wake now and
 * then, but does not run all the time. */
static void wait_until_idle(int pid)
{
    int64_t deadline = g_get_monotonic_time() + 60 * G_USEC_PER_SEC;

    for (int asleep = 0; asleep < 20; ) {
        asleep = thread_state(pid) == 'S' ? asleep + 1 : 0;
        g_assert_cmpint(g_get_monotonic_time(), <, deadline);
        g_usleep(5000);
    }
}

static int connect_bare(const char *address)
{
    g_autofree char *host = g_strndup(address, strrchr(address, ':') -
                                      address);
    g_autoptr(GError) error = NULL;
    int fd = memx_tcp_connect(host, strrchr(address, ':') + 1,
                              CLIENT_TIMEOUT_MS, -1, &error);

    g_assert_no_error(error);
    return fd;
}

/* It does not spin for one that it can't let in; and lets it in later. */
static void test_no_descriptors(Fixture *f, gconstpointer data)
{
    int pid = server_process_pid(f->server);
    struct rlimit limit, low;
    g_autoptr(GError) error = NULL;
    g_autofree char *status = NULL;
    int control, stranger;

    g_assert_no_errno(prlimit(pid, RLIMIT_NOFILE, NULL, &limit));
    low = limit;
    low.rlim_cur = 3;
    g_assert_no_errno(prlimit(pid, RLIMIT_NOFILE, &low, NULL));
    control = ms_control_connect(server_process_control_path(f->server),
                                 &error);
    g_assert_no_error(error);
    ms_control_send(control, "{\"command\":\"status\"}", NULL, 0, &error);
    g_assert_no_error(error);
    stranger = connect_bare(server_process_address(f->server));
    wait_for_log(f->server, "can't accept a connection");
    wait_for_log(f->server, "control socket: can't accept");
    wait_until_idle(pid);
    g_assert_cmpint(client_ping(f->client, MEMX_LANE_FAULT), ==, 0);
    g_assert_no_errno(prlimit(pid, RLIMIT_NOFILE, &limit, NULL));
    status = ms_control_receive(control, MS_ANSWER_MAX_BYTES,
                                CLIENT_TIMEOUT_MS / 1000, NULL, NULL, &error);
    g_assert_no_error(error);
    g_assert_nonnull(strstr(status, f->hex));
    close(control);
    close(stranger);
    g_assert_cmpint(client_attach(f->client, MEMX_LANE_FETCH), ==, 0);
}

int main(int argc, char **argv)
{
#define ADD(path, function) \
    g_test_add("/memserver/control/" path, Fixture, NULL, set_up, function, \
               tear_down)

    g_test_init(&argc, &argv, NULL);
    ADD("status", test_status);
    ADD("status-tells-no-secret", test_status_tells_no_secret);
    ADD("status-for-people", test_status_for_people);
    ADD("drop-orphan", test_drop_orphan);
    ADD("drop-owned", test_drop_owned);
    ADD("handover", test_handover);
    ADD("drop-offered", test_drop_offered);
    ADD("socket-is-private", test_socket_is_private);
    ADD("doctor", test_doctor);
    g_test_add_func("/memserver/control/usage", test_usage);
    g_test_add_func("/memserver/control/bad-options", test_bad_options);
    ADD("second-server", test_second_server);
    ADD("no-descriptors", test_no_descriptors);
    return g_test_run();
}
