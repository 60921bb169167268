/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Lines at the control socket that are no questions, and answers that no
 * memserver gives: each is refused with what is wrong, and nobody ends.
 */
#include <gio/gio.h>
#include <glib.h>
#include <glib/gstdio.h>
#include <json-glib/json-glib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>
#include "control.h"
#include "memserver-client.h"
#include "server-process.h"

#define PAGES 1024u
#define DEADLINE_S 60
#define STATUS "{\"command\":\"status\"}"

typedef struct Fixture {
    ServerProcess *server;
    Client *client;
    Client *heir;
} Fixture;

/* With all that a status can tell. */
static void set_up(Fixture *f, gconstpointer data)
{
    static const uint8_t session[MEMX_ID_BYTES] = { 0x5e, 0x55 };

    f->server = server_process_new("64M");
    f->client = client_new(server_process_address(f->server), NULL);
    f->heir = client_new_heir(f->client, session);
    g_assert_cmpint(client_create(f->client, PAGES, PAGES / 2), ==, 0);
    g_assert_cmpint(client_offer(f->client, session, f->heir), ==, 0);
    g_assert_cmpint(client_inherit(f->heir, MEMX_LANE_FETCH), ==, 0);
}

static void tear_down(Fixture *f, gconstpointer data)
{
    client_free(f->heir);
    client_free(f->client);
    server_process_free(f->server);
}

/* All that is answered to @bytes of @text, until the server closes. */
static char *ask(Fixture *f, const char *text, size_t bytes, bool hang_up)
{
    struct timeval timeout = { .tv_sec = DEADLINE_S };
    g_autoptr(GString) answer = g_string_new(NULL);
    g_autoptr(GError) error = NULL;
    int fd = ms_control_connect(server_process_control_path(f->server),
                                &error);
    char piece[4096];
    ssize_t n;

    g_assert_no_error(error);
    g_assert_no_errno(setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &timeout,
                                 sizeof(timeout)));
    /* It may have answered and closed before all is sent. */
    while (bytes && (n = send(fd, text, bytes, MSG_NOSIGNAL)) > 0) {
        text += n;
        bytes -= n;
    }
    if (hang_up) {
        shutdown(fd, SHUT_WR);
    }
    while ((n = recv(fd, piece, sizeof(piece), 0)) > 0) {
        g_string_append_len(answer, piece, n);
    }
    close(fd);
    return g_strdup(answer->str);
}

static void check_serving(Fixture *f)
{
    g_autofree char *answer = ask(f, STATUS "\n", strlen(STATUS "\n"), false);

    g_assert_nonnull(strstr(answer, "\"capacity_bytes\":"));
    g_assert_cmpint(client_ping(f->client, MEMX_LANE_ORDERED), ==, 0);
}

/* One line, an error that says @says; and the server goes on. */
static void check_refused(Fixture *f, const char *text, size_t bytes,
                          bool hang_up, const char *says)
{
    g_autofree char *answer = ask(f, text, bytes, hang_up);
    g_autofree char *shown = g_strndup(text, MIN(bytes, 200));
    g_autoptr(JsonNode) node = NULL;
    JsonObject *object;

    if (!g_str_has_suffix(answer, "}\n")) {
        g_error("'%s': the answer is '%s'", shown, answer);
    }
    node = json_from_string(answer, NULL);
    g_assert_nonnull(node);
    object = json_node_get_object(node);
    if (!json_object_has_member(object, "error") ||
        !strstr(json_object_get_string_member(object, "error"), says)) {
        g_error("'%s' does not say '%s': %s", shown, says, answer);
    }
    check_serving(f);
}

static void test_questions(Fixture *f, gconstpointer data)
{
    static const struct {
        const char *line;
        const char *says;
    } cases[] = {
        { "", "not a JSON object" },
        { " \t", "not a JSON object" },
        { "null", "not a JSON object" },
        { "5", "not a JSON object" },
        { "[]", "not a JSON object" },
        { "[" STATUS "]", "not a JSON object" },
        { "\"status\"", "not a JSON object" },
        { "status", "not a JSON object" },
        { "{", "does not end" },
        { "{\"", "does not end" },
        { "{\"\\", "does not end" },
        { "{\"command\":\"status}", "does not end" },
        { "{\"command\":\"status\"", "does not end" },
        { "{\"command\":\"status\"]", "not JSON" },
        { "{\"command\" \"status\"}", "not JSON" },
        { "{\"command\":status}", "not JSON" },
        { "{'command':'status'}", "not JSON" },
        { "{/* \" */\"command\":\"status\"}", "not JSON" },
        { "a = " STATUS, "not a JSON object" },
        { STATUS STATUS, "follows" },
        { STATUS "\n" STATUS, "follows" },
        { STATUS "}", "follows" },
        { "{\"command\":\"\xff\"}", "UTF-8" },
        { "{\"comm\xc3", "UTF-8" },
        { "{\"command\":\"\\ud800\"}", "not JSON" },
        { "{\"command\":\"status\\u0000\"}", "NUL" },
        { "{}", "\"command\" must be a string, and is missing" },
        { "{\"Command\":\"status\"}", "\"command\" must be a string" },
        { "{\"command\":null}", "\"command\" must be a string" },
        { "{\"command\":5}", "\"command\" must be a string" },
        { "{\"command\":5.5}", "\"command\" must be a string" },
        { "{\"command\":true}", "\"command\" must be a string" },
        { "{\"command\":[]}", "\"command\" must be a string" },
        { "{\"command\":[\"status\"]}", "\"command\" must be a string" },
        { "{\"command\":{\"command\":\"status\"}}", "must be a string" },
        { "{\"command\":\"status\",\"command\":5}", "must be a string" },
        { "{\"command\":\"\"}", "no such command" },
        { "{\"command\":\"nonsense\"}", "no such command: 'nonsense'" },
        { "{\"command\":\"drop\"}", "drop needs a \"space\"" },
        { "{\"command\":\"drop\",\"space\":\"\"}", "needs a \"space\"" },
        { "{\"command\":\"drop\",\"space\":null}", "\"space\" must be a" },
        { "{\"command\":\"drop\",\"space\":5}", "\"space\" must be a str" },
        { "{\"command\":\"drop\",\"space\":[]}", "\"space\" must be a" },
        { "{\"command\":\"drop\",\"space\":\"nonsense\"}", "no space has" },
        { "{\"command\":\"drop\",\"space\":\"a\",\"force\":1}",
          "\"force\" must be true or false" },
        { "{\"command\":\"drop\",\"space\":\"a\",\"force\":\"no\"}",
          "\"force\" must be true or false" },
        { "{\"command\":\"drop\",\"space\":\"a\",\"force\":null}",
          "\"force\" must be true or false" },
        { "{\"command\":\"drain\",\"undo\":\"false\"}",
          "\"undo\" must be true or false" },
        { "{\"command\":\"drain\",\"undo\":null}", "\"undo\" must be true" },
        /* Nothing that it does not look at may hurt, either. */
        { "{\"command\":\"nonsense\",\"a\":[{\"b\":[[],{}]},1e999,-1]}",
          "no such command" },
        { "{\"a\":[[[[[[[[[[[[[[[[[]]]]]]]]]]]]]]]]]}", "nested too deep" },
    };

    for (unsigned i = 0; i < G_N_ELEMENTS(cases); i++) {
        g_autofree char *line = g_strconcat(cases[i].line, "\n", NULL);

        check_refused(f, line, strlen(line), false, cases[i].says);
    }
    g_autofree char *status = server_process_memxctl(f->server, "status",
                                                     "--json");
    g_assert_nonnull(strstr(status, "\"draining\" : false"));
}

static void test_nul(Fixture *f, gconstpointer data)
{
    static const char first[] = "\0" STATUS "\n";
    static const char behind[] = STATUS "\0\n";
    static const char inside[] = "{\"command\":\"status\0\"}\n";

    check_refused(f, first, sizeof(first) - 1, false, "NUL");
    check_refused(f, behind, sizeof(behind) - 1, false, "NUL");
    check_refused(f, inside, sizeof(inside) - 1, false, "NUL");
}

/* Of what kind the line is does not matter then. */
static void test_long(Fixture *f, gconstpointer data)
{
    static const struct {
        const char *piece;
        size_t bytes;
    } cases[] = {
        { " ", 5000 }, { "[", 5000 }, { "[", 1 << 20 },
        { "{\"\":", 1 << 20 }, { "x", 17 << 20 },
    };

    for (unsigned i = 0; i < G_N_ELEMENTS(cases); i++) {
        g_autoptr(GString) line = g_string_new(NULL);

        while (line->len < cases[i].bytes) {
            g_string_append(line, cases[i].piece);
        }
        g_string_append(line, STATUS "\n");
        check_refused(f, line->str, line->len, false, "too long");
    }
}

static void test_no_line(Fixture *f, gconstpointer data)
{
    g_autofree char *answer = ask(f, NULL, 0, true);

    g_assert_nonnull(strstr(answer, "error"));
    check_refused(f, "{", 1, true, "middle of a line");
    check_refused(f, STATUS, strlen(STATUS), true, "middle of a line");
}

/* --- Answers --- */

typedef struct FakeServer {
    char *directory;
    char *path;
    int fd;
    GBytes *answer;
    GThread *thread;
} FakeServer;

static void *fake_server_thread(void *opaque)
{
    FakeServer *fake = opaque;
    size_t left;
    const char *at = g_bytes_get_data(fake->answer, &left);
    int fd = accept4(fake->fd, NULL, NULL, SOCK_CLOEXEC);
    char question[4096];
    ssize_t n;

    g_assert_cmpint(fd, >=, 0);
    g_assert_cmpint(recv(fd, question, sizeof(question), 0), >, 0);
    while (left && (n = send(fd, at, left, MSG_NOSIGNAL)) > 0) {
        at += n;
        left -= n;
    }
    close(fd);
    return NULL;
}

static void fake_server_open(FakeServer *fake)
{
    struct sockaddr_un address = { .sun_family = AF_UNIX };
    g_autoptr(GError) error = NULL;

    fake->directory = g_dir_make_tmp("memx-test-XXXXXX", &error);
    g_assert_no_error(error);
    fake->path = g_build_filename(fake->directory, "control", NULL);
    fake->fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    g_strlcpy(address.sun_path, fake->path, sizeof(address.sun_path));
    g_assert_no_errno(bind(fake->fd, (struct sockaddr *)&address,
                           sizeof(address)));
    g_assert_no_errno(listen(fake->fd, 1));
}

static void fake_server_close(FakeServer *fake)
{
    close(fake->fd);
    g_unlink(fake->path);
    g_rmdir(fake->directory);
    g_free(fake->path);
    g_free(fake->directory);
}

/* What memxctl makes of it: its exit status, and @err. */
static int told(FakeServer *fake, const char *command, const char *space,
                const char *answer, size_t bytes, char **err)
{
    const char *argv[] = { g_getenv("MEMXCTL"), command, "--control",
                           fake->path, space, NULL };
    g_autoptr(GError) error = NULL;
    g_autofree char *out = NULL;
    int status;

    fake->answer = g_bytes_new(answer, bytes);
    fake->thread = g_thread_new("fake-server", fake_server_thread, fake);
    g_spawn_sync(NULL, (char **)argv, NULL, 0, NULL, NULL, &out, err, &status,
                 &error);
    g_assert_no_error(error);
    g_thread_join(fake->thread);
    g_bytes_unref(fake->answer);
    if (!WIFEXITED(status)) {
        g_error("memxctl %s ended with status %d at the answer '%.2000s': %s",
                command, status, answer, *err);
    }
    return WEXITSTATUS(status);
}

static void test_answers(void)
{
    static const struct {
        const char *line;
        size_t bytes;       /* if there is a NUL in it */
    } cases[] = {
        { "\n" }, { "null\n" }, { "5\n" }, { "[]\n" }, { "[{}]\n" },
        { "{\n" }, { "{}{}\n" }, { "{\"\xff\":0}\n" }, { "\0{}\n", 4 },
        { "{}\0\n", 4 }, { "{\"error\":5}\n" }, { "{\"error\":null}\n" },
        { "{\"error\":{}}\n" }, { "" }, { "{}" },
    };
    static const char *const commands[][2] = {
        { "status" }, { "drop", "5e55" }, { "drain" },
    };
    g_autofree char *deep = g_strnfill(4 << 20, '[');
    FakeServer fake;

    fake_server_open(&fake);
    for (unsigned k = 0; k < G_N_ELEMENTS(commands); k++) {
        for (unsigned i = 0; i <= G_N_ELEMENTS(cases); i++) {
            g_autofree char *last = g_strconcat("{\"a\":", deep, "\n", NULL);
            const char *line = i < G_N_ELEMENTS(cases) ? cases[i].line : last;
            g_autofree char *err = NULL;

            g_assert_cmpint(
                told(&fake, commands[k][0], commands[k][1], line,
                     i < G_N_ELEMENTS(cases) && cases[i].bytes ?
                     cases[i].bytes : strlen(line), &err), ==, 1);
            g_assert_true(g_str_has_prefix(err, "memxctl: "));
        }
    }
    fake_server_close(&fake);
}

typedef struct Damage {
    FakeServer fake;
    JsonNode *status;
    unsigned n_refused;
} Damage;

static void try_damaged(Damage *damage, const char *name)
{
    g_autofree char *text = json_to_string(damage->status, FALSE);
    g_autofree char *line = g_strconcat(text, "\n", NULL);
    g_autofree char *err = NULL;
    int status = told(&damage->fake, "status", NULL, line, strlen(line),
                      &err);

    /* Whatever it does not need it may ignore. */
    if (status) {
        g_assert_cmpint(status, ==, 1);
        g_assert_nonnull(strstr(err, name));
        damage->n_refused++;
    } else {
        g_assert_cmpstr(err, ==, "");
    }
}

static void damage_node(Damage *damage, JsonNode *node);

/* Each of its members: missing, null, of another type, damaged itself. */
static void damage_object(Damage *damage, JsonObject *object)
{
    g_autoptr(GList) names = json_object_get_members(object);

    for (GList *link = names; link; link = link->next) {
        g_autofree char *name = g_strdup(link->data);
        JsonNode *node = json_node_ref(json_object_get_member(object, name));

        json_object_remove_member(object, name);
        try_damaged(damage, name);
        json_object_set_null_member(object, name);
        try_damaged(damage, name);
        if (JSON_NODE_HOLDS_OBJECT(node) || JSON_NODE_HOLDS_ARRAY(node)) {
            json_object_set_int_member(object, name, 5);
        } else {
            json_object_set_array_member(object, name, json_array_new());
        }
        try_damaged(damage, name);
        json_object_set_member(object, name, node);
        damage_node(damage, node);
        link->data = NULL; /* it went with the member */
    }
}

static void damage_node(Damage *damage, JsonNode *node)
{
    if (JSON_NODE_HOLDS_OBJECT(node)) {
        damage_object(damage, json_node_get_object(node));
    } else if (JSON_NODE_HOLDS_ARRAY(node) &&
               json_array_get_length(json_node_get_array(node))) {
        damage_node(damage, json_array_get_element(
                        json_node_get_array(node), 0));
    }
}

static void test_status_damaged(Fixture *f, gconstpointer data)
{
    g_autofree char *line = ask(f, STATUS "\n", strlen(STATUS "\n"), false);
    g_autoptr(GError) error = NULL;
    g_autofree char *err = NULL;
    Damage damage = { .status = json_from_string(line, &error) };

    g_assert_no_error(error);
    fake_server_open(&damage.fake);
    g_assert_cmpint(told(&damage.fake, "status", NULL, line, strlen(line),
                         &err), ==, 0);
    damage_node(&damage, damage.status);
    g_assert_cmpuint(damage.n_refused, >, 50);
    json_node_unref(damage.status);
    fake_server_close(&damage.fake);
}

int main(int argc, char **argv)
{
#define ADD(path, function) \
    g_test_add("/memserver/control-lines/" path, Fixture, NULL, set_up, \
               function, tear_down)

    /* For memserver and memxctl: a complaint of a library is an end, too. */
    g_setenv("G_DEBUG", "fatal-criticals", true);
    g_test_init(&argc, &argv, NULL);
    ADD("questions", test_questions);
    ADD("nul", test_nul);
    ADD("long", test_long);
    ADD("no-line", test_no_line);
    g_test_add_func("/memserver/control-lines/answers", test_answers);
    ADD("status-damaged", test_status_damaged);
    return g_test_run();
}
