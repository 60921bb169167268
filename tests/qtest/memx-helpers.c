/*
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#include "qemu/osdep.h"
#include <arpa/inet.h>
#include <glib/gstdio.h>
#include <netinet/in.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include "qobject/qstring.h"
#include "memx-helpers.h"

#define PAGE 4096u
#define PAGE_WORDS (PAGE / sizeof(uint64_t))
#define RUN 16u                 /* pages that are written at once */

static char *tmp_dir;

/* --- memservers -------------------------------------------------------- */

static char *memserver_path(void)
{
    const char *given = g_getenv("MEMX_MEMSERVER");

    return given ? g_strdup(given) : g_find_program_in_path("memserver");
}

bool memx_have_memserver(void)
{
    g_autofree char *path = memserver_path();

    return path && g_file_test(path, G_FILE_TEST_IS_EXECUTABLE);
}

static void remove_tmp_dir(void)
{
    const char *name;
    GDir *dir = g_dir_open(tmp_dir, 0, NULL);

    while (dir && (name = g_dir_read_name(dir))) {
        g_autofree char *path = g_build_filename(tmp_dir, name, NULL);

        g_unlink(path);
    }
    if (dir) {
        g_dir_close(dir);
    }
    g_rmdir(tmp_dir);
}

char *memx_tmp_path(const char *name)
{
    if (!tmp_dir) {
        tmp_dir = g_dir_make_tmp("memx-qtest-XXXXXX", NULL);
        g_assert_nonnull(tmp_dir);
        atexit(remove_tmp_dir);
    }
    return g_build_filename(tmp_dir, name, NULL);
}

unsigned memx_free_port(void)
{
    struct sockaddr_in sin = {
        .sin_family = AF_INET,
        .sin_addr.s_addr = htonl(INADDR_LOOPBACK),
    };
    socklen_t bytes = sizeof(sin);
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);

    g_assert_cmpint(bind(fd, (struct sockaddr *)&sin, bytes), ==, 0);
    g_assert_cmpint(getsockname(fd, (struct sockaddr *)&sin, &bytes), ==, 0);
    close(fd);
    return ntohs(sin.sin_port);
}

/* An aborted test leaves no process behind. */
static void die_with_parent(gpointer unused)
{
    prctl(PR_SET_PDEATHSIG, SIGKILL);
}

/* It says "listening on ..." once it does. */
static void wait_listening(GPid pid, int fd)
{
    g_autoptr(GString) output = g_string_new(NULL);
    gint64 end = g_get_monotonic_time() + 30 * G_TIME_SPAN_SECOND;
    char buf[256];

    while (!strstr(output->str, "listening on")) {
        gint64 left = (end - g_get_monotonic_time()) / 1000;
        GPollFD p = { .fd = fd, .events = G_IO_IN };
        ssize_t n;

        g_assert_cmpint(left, >, 0);
        g_poll(&p, 1, left);
        n = read(fd, buf, sizeof(buf));
        if (n <= 0) {
            g_error("memserver ended: %s", output->str);
        }
        g_string_append_len(output, buf, n);
    }
}

/* What it says later is not for us, but must not block it. */
static gpointer drain(gpointer opaque)
{
    int fd = GPOINTER_TO_INT(opaque);
    char buf[256];

    while (read(fd, buf, sizeof(buf)) > 0) {
    }
    close(fd);
    return NULL;
}

void memx_server_start(MemxServer *s, const char *options)
{
    g_autofree char *path = memserver_path();
    g_autofree char *line = g_strdup_printf(
        "%s --listen %s --capacity %s --name %s --control %s %s", path,
        s->address, s->capacity, s->address, s->control, options);
    g_auto(GStrv) argv = NULL;
    g_autoptr(GError) error = NULL;
    int fd;

    g_assert_true(g_shell_parse_argv(line, NULL, &argv, NULL));
    g_spawn_async_with_pipes(NULL, argv, NULL, G_SPAWN_DO_NOT_REAP_CHILD,
                             die_with_parent, NULL, &s->pid, NULL, NULL, &fd,
                             &error);
    g_assert_no_error(error);
    wait_listening(s->pid, fd);
    g_thread_unref(g_thread_new("drain", drain, GINT_TO_POINTER(fd)));
}

MemxServer *memx_server_new(const char *capacity, const char *options)
{
    static unsigned number;
    g_autofree char *name = g_strdup_printf("control-%u", number++);
    MemxServer *s = g_new0(MemxServer, 1);

    s->address = g_strdup_printf("127.0.0.1:%u", memx_free_port());
    s->control = memx_tmp_path(name);
    s->capacity = capacity;
    memx_server_start(s, options);
    return s;
}

static void memx_server_end(MemxServer *s, int sig)
{
    if (s->pid) {
        kill(s->pid, SIGCONT);
        kill(s->pid, sig);
        g_assert_cmpint(waitpid(s->pid, NULL, 0), ==, s->pid);
        g_spawn_close_pid(s->pid);
        s->pid = 0;
    }
}

void memx_server_kill(MemxServer *s)
{
    memx_server_end(s, SIGKILL);
}

void memx_server_free(MemxServer *s)
{
    memx_server_end(s, SIGKILL);
    g_free(s->address);
    g_free(s->control);
    g_free(s);
}

void memx_server_pause(MemxServer *s)
{
    g_assert_cmpint(kill(s->pid, SIGSTOP), ==, 0);
}

void memx_server_go_on(MemxServer *s)
{
    g_assert_cmpint(kill(s->pid, SIGCONT), ==, 0);
}

static char *memxctl(const MemxServer *s, const char *command,
                     const char *option)
{
    g_autofree char *memserver = memserver_path();
    g_autofree char *folder = g_path_get_dirname(memserver);
    g_autofree char *path = g_build_filename(folder, "memxctl", NULL);
    const char *argv[] = {
        path, command, "--control", s->control, option, NULL,
    };
    g_autoptr(GError) error = NULL;
    char *output = NULL;
    int rc;

    g_spawn_sync(NULL, (char **)argv, NULL, 0, NULL, NULL, &output, NULL, &rc,
                 &error);
    g_assert_no_error(error);
    g_assert_cmpint(rc, ==, 0);
    return output;
}

char *memx_server_status(const MemxServer *s)
{
    return memxctl(s, "status", "--json");
}

void memx_server_drain(const MemxServer *s, bool undo)
{
    g_free(memxctl(s, "drain", undo ? "--undo" : NULL));
}

/* --- virtual machines -------------------------------------------------- */

QTestState *memx_plain_vm(const char *args)
{
    QList *capabilities = qlist_new();
    g_autofree char *all = g_strdup_printf("-machine pc -nodefaults %s", args);
    QTestState *vm;

    qlist_append_str(capabilities, "oob");
    vm = qtest_init_with_env_and_capabilities(NULL, all, capabilities, true);
    qobject_unref(capabilities);
    return vm;
}

QTestState *memx_vm(const MemxServer *server, const char *size,
                    const char *local_size, const char *options,
                    const char *args)
{
    g_autofree char *all = g_strdup_printf(
        "-object memory-backend-memx,id=pc.ram,size=%s,local-size=%s,"
        "servers.0=%s%s -machine memory-backend=pc.ram %s", size, local_size,
        server->address, options, args);

    return memx_plain_vm(all);
}

void memx_quit(QTestState *vm)
{
    if (qtest_probe_child(vm)) {
        kill(qtest_pid(vm), SIGTERM);
        memx_wait_until(!qtest_probe_child(vm));
    }
    qtest_quit(vm);
}

static QDict *find_backend(QDict *response, const char *id)
{
    QList *list = qdict_get_qlist(response, "return");
    QListEntry *entry;
    QDict *found = NULL;

    g_assert_nonnull(list);
    QLIST_FOREACH_ENTRY(list, entry) {
        QDict *info = qobject_to(QDict, qlist_entry_obj(entry));

        if (g_str_equal(qdict_get_str(info, "id"), id)) {
            found = qobject_ref(info);
        }
    }
    qobject_unref(response);
    g_assert_nonnull(found);
    return found;
}

/* Out of band, so that it works in every state of the VM. */
QDict *memx_query(QTestState *vm, const char *id)
{
    return find_backend(memx_oob(vm, "query-memx"), id);
}

void memx_assert_none(QTestState *vm)
{
    QDict *response = memx_oob(vm, "query-memx");

    g_assert_true(qlist_empty(qdict_get_qlist(response, "return")));
    qobject_unref(response);
}

QDict *memx_oob(QTestState *vm, const char *command)
{
    g_autofree char *tag = g_strdup_printf("oob-%s", command);

    qtest_qmp_send(vm, "{ 'exec-oob': %s, 'id': %s }", command, tag);
    for (;;) {
        QDict *response = qtest_qmp_receive(vm);

        if (g_strcmp0(qdict_get_try_str(response, "id"), tag) == 0) {
            g_assert_false(qdict_haskey(response, "error"));
            return response;
        }
        qobject_unref(response);    /* of a slower command; nobody waits */
    }
}

/* @path is "local" or "paging.evicted" or "server.remote" (the first's). */
static uint64_t number_at(QDict *info, const char *path)
{
    g_auto(GStrv) names = g_strsplit(path, ".", 2);

    if (!names[1]) {
        return qdict_get_int(info, names[0]);
    }
    if (g_str_equal(names[0], "server")) {
        const QListEntry *first = qlist_first(qdict_get_qlist(info, "servers"));

        return qdict_get_int(qobject_to(QDict, qlist_entry_obj(first)),
                             names[1]);
    }
    return qdict_get_int(qdict_get_qdict(info, names[0]), names[1]);
}

uint64_t memx_query_number(QTestState *vm, const char *id, const char *path)
{
    QDict *info = memx_query(vm, id);
    uint64_t value = number_at(info, path);

    qobject_unref(info);
    return value;
}

void memx_wait_number(QTestState *vm, const char *id, const char *path,
                      uint64_t minimum, uint64_t maximum)
{
    uint64_t value = 0;

    memx_wait_until((value = memx_query_number(vm, id, path)) >= minimum &&
                    value <= maximum);
}

char *memx_servers(QTestState *vm)
{
    QDict *answer = qtest_qmp(vm,
        "{ 'execute': 'qom-get', 'arguments': { 'path': '/objects/pc.ram',"
        "  'property': 'servers' } }");
    GString *text = g_string_new(NULL);
    const QListEntry *e;

    QLIST_FOREACH_ENTRY(qdict_get_qlist(answer, "return"), e) {
        g_string_append_printf(text, "%s%s", text->len ? "," : "",
                               qstring_get_str(qobject_to(QString,
                                               qlist_entry_obj(e))));
    }
    qobject_unref(answer);
    return g_string_free(text, false);
}

void memx_assert_error(QTestState *vm, const char *expected,
                       const char *fmt, ...)
{
    va_list ap;
    QDict *error;
    const char *message;

    va_start(ap, fmt);
    error = qtest_vqmp_assert_failure_ref(vm, fmt, ap);
    va_end(ap);
    message = qdict_get_str(error, "desc");
    if (!strstr(message, expected)) {
        g_error("'%s' is not in the message: %s", expected, message);
    }
    qobject_unref(error);
}

void memx_wait_status(QTestState *vm, const char *status)
{
    bool reached = false;

    memx_wait_until(({
        QDict *r = qtest_qmp_assert_success_ref(
            vm, "{ 'execute': 'query-status' }");

        reached = g_str_equal(qdict_get_str(r, "status"), status);
        qobject_unref(r);
        reached;
    }));
}

/* --- guest memory ------------------------------------------------------ */

/* The upper half of each word is splitmix64's, the lower one says where it
 * is. */
static void pattern(uint64_t address, unsigned seed, uint64_t *words)
{
    uint64_t state = address / PAGE * 31 + seed, x;
    unsigned i;

    for (i = 0; i < PAGE_WORDS; i++) {
        x = state += 0x9e3779b97f4a7c15ull;
        x = (x ^ x >> 30) * 0xbf58476d1ce4e5b9ull;
        x = (x ^ x >> 27) * 0x94d049bb133111ebull;
        words[i] = x >> 32 << 32 | address | i;
    }
}

static bool is_hole(uint64_t address)
{
    return address >= 0xa0000 && address < 0x100000;
}

void memx_fill(QTestState *vm, uint64_t from, uint64_t to, unsigned seed)
{
    uint64_t words[RUN * PAGE_WORDS];
    uint64_t address = from;
    unsigned n;

    while (address < to) {
        for (n = 0; n < RUN && address + n * PAGE < to &&
             !is_hole(address + n * PAGE); n++) {
            pattern(address + n * PAGE, seed, words + n * PAGE_WORDS);
        }
        if (n) {
            qtest_bufwrite(vm, address, words, n * PAGE);
        }
        address += MAX(n, 1) * PAGE;
    }
}

/* In an order that no prefetch foresees: a walk with a stride that is coprime
 * to the number of pages visits each of them once. */
void memx_verify(QTestState *vm, uint64_t from, uint64_t to, unsigned seed)
{
    uint64_t expected[PAGE_WORDS], found[PAGE_WORDS];
    uint64_t pages = (to - from) / PAGE, i, at = 0;
    uint64_t stride = pages % 7919 ? 7919 : 7907;   /* primes */

    for (i = 0; i < pages; i++, at = (at + stride) % pages) {
        uint64_t address = from + at * PAGE;

        if (!is_hole(address)) {
            pattern(address, seed, expected);
            qtest_bufread(vm, address, found, PAGE);
            g_assert_cmpmem(found, PAGE, expected, PAGE);
        }
    }
}
