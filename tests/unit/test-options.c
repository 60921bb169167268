/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * What memx_region_new() refuses: each with its code, and a message that
 * names what is wrong; and nothing is left behind.
 */
#include <string.h>
#include "region-fixture.h"

typedef struct Bad {
    const char *name;
    void (*spoil)(MemxOptions *o);
    MemxErrorCode code;
    const char *says;
} Bad;

static ServerProcess *server;

static void size_0(MemxOptions *o)          { o->size_bytes = 0; }
static void size_odd(MemxOptions *o)        { o->size_bytes += 1; }
static void size_huge(MemxOptions *o)       { o->size_bytes = 1ull << 51; }
static void chunk_0(MemxOptions *o)         { o->chunk_bytes = 0; }
static void chunk_small(MemxOptions *o)     { o->chunk_bytes = 128 << 10; }
static void chunk_odd(MemxOptions *o)       { o->chunk_bytes = 768 << 10; }
static void chunk_large(MemxOptions *o)     { o->chunk_bytes = 128 << 20; }
static void base_odd(MemxOptions *o)        { o->base = (void *)0x10001; }
static void timeout_short(MemxOptions *o)   { o->server_timeout_ms = 999; }
static void timeout_long(MemxOptions *o) { o->server_timeout_ms = 86400001; }
static void local_odd(MemxOptions *o)       { o->local_bytes += 100; }
static void local_small(MemxOptions *o)     { o->local_bytes = 4 * MIB; }
static void local_chunks(MemxOptions *o)    { o->chunk_bytes = MIB; }
static void local_large(MemxOptions *o) { o->local_bytes = 2 * o->size_bytes; }

#define SERVERS(function, ...)                                             \
    static void function(MemxOptions *o)                                   \
    {                                                                      \
        static const char *const list[] = { __VA_ARGS__, NULL };           \
        o->servers = list;                                                 \
    }
SERVERS(no_port, "localhost")
SERVERS(empty_port, "localhost:")
SERVERS(large_port, "localhost:70000")
SERVERS(word_port, "localhost:http")
SERVERS(no_host, ":7701")
SERVERS(open_bracket, "[::1:7701")
SERVERS(twice, "127.0.0.1:1", "127.0.0.1:1")
SERVERS(closed_port, "127.0.0.1:1")

static void no_servers(MemxOptions *o)      { o->servers = NULL; }

static void many_servers(MemxOptions *o)
{
    static const char *list[MEMX_SERVERS_MAX + 2];

    for (unsigned i = 0; i <= MEMX_SERVERS_MAX; i++) {
        list[i] = "127.0.0.1:1";
    }
    o->servers = list;
}

/* The first one answers, the second does not. */
static void second_closed(MemxOptions *o)
{
    static const char *list[3];

    list[0] = server_process_address(server);
    list[1] = "127.0.0.1:1";
    o->servers = list;
}

static void too_large(MemxOptions *o)       { o->size_bytes = 512 * MIB; }

static const Bad bad[] = {
    { "size-0", size_0, MEMX_ERROR_INVALID, "size 0" },
    { "size-odd", size_odd, MEMX_ERROR_INVALID, "4096" },
    { "size-huge", size_huge, MEMX_ERROR_INVALID, "256 TiB" },
    { "chunk-0", chunk_0, MEMX_ERROR_INVALID, "chunk" },
    { "chunk-small", chunk_small, MEMX_ERROR_INVALID, "256 KiB" },
    { "chunk-odd", chunk_odd, MEMX_ERROR_INVALID, "power of two" },
    { "chunk-large", chunk_large, MEMX_ERROR_INVALID, "64 MiB" },
    { "base-odd", base_odd, MEMX_ERROR_INVALID, "page" },
    { "timeout-short", timeout_short, MEMX_ERROR_INVALID, "999" },
    { "timeout-long", timeout_long, MEMX_ERROR_INVALID, "86400000" },
    { "local-odd", local_odd, MEMX_ERROR_INVALID, "local" },
    { "local-small", local_small, MEMX_ERROR_INVALID, "too small" },
    { "local-under-16-chunks", local_chunks, MEMX_ERROR_INVALID,
      "16 chunks" },
    { "local-above-size", local_large, MEMX_ERROR_INVALID, "local" },
    { "no-servers", no_servers, MEMX_ERROR_INVALID, "server" },
    { "many-servers", many_servers, MEMX_ERROR_INVALID, "17" },
    { "no-port", no_port, MEMX_ERROR_INVALID, "localhost" },
    { "empty-port", empty_port, MEMX_ERROR_INVALID, "localhost:" },
    { "large-port", large_port, MEMX_ERROR_INVALID, "70000" },
    { "word-port", word_port, MEMX_ERROR_INVALID, "http" },
    { "no-host", no_host, MEMX_ERROR_INVALID, ":7701" },
    { "open-bracket", open_bracket, MEMX_ERROR_INVALID, "[::1:7701" },
    { "server-twice", twice, MEMX_ERROR_INVALID, "twice" },
    { "closed-port", closed_port, MEMX_ERROR_CONNECT, "127.0.0.1:1" },
    { "second-closed", second_closed, MEMX_ERROR_CONNECT, "127.0.0.1:1" },
    { "pool-too-small", too_large, MEMX_ERROR_FULL, "capacity" },
};

static MemxOptions good_options(const char **list)
{
    MemxOptions o = MEMX_OPTIONS_INIT;

    list[0] = server_process_address(server);
    list[1] = NULL;
    o.size_bytes = 64 * MIB;
    o.local_bytes = 8 * MIB;
    o.chunk_bytes = 256 << 10;
    o.servers = list;
    return o;
}

static unsigned entries(const char *path)
{
    g_autoptr(GDir) dir = g_dir_open(path, 0, NULL);
    unsigned n = 0;

    while (dir && g_dir_read_name(dir)) {
        n++;
    }
    return n;
}

static void test_refused(gconstpointer data)
{
    const Bad *b = data;
    unsigned fds = entries("/proc/self/fd"), threads = entries(
        "/proc/self/task");
    const char *list[2];
    MemxOptions o = good_options(list);
    g_autoptr(GError) error = NULL;

    b->spoil(&o);
    g_assert_null(memx_region_new(&o, &error));
    g_assert_error(error, MEMX_ERROR, (int)b->code);
    if (!strstr(error->message, b->says)) {
        g_error("\"%s\" does not say \"%s\"", error->message, b->says);
    }
    g_test_message("%s", error->message);
    g_assert_null(strchr(error->message, '\n'));
    g_assert_cmpuint(entries("/proc/self/fd"), ==, fds);
    g_assert_cmpuint(entries("/proc/self/task"), ==, threads);
}

/* The server has room for one such region: so nothing was left on it. */
static void test_good_after_all(void)
{
    const char *list[2];
    MemxOptions o = good_options(list);
    g_autoptr(GError) error = NULL;
    MemxRegion *region;

    /* 63 bytes end within a character. */
    o.vm_name = "\xc3\xa4\xc3\xa4\xc3\xa4\xc3\xa4\xc3\xa4\xc3\xa4\xc3\xa4"
                "\xc3\xa4\xc3\xa4\xc3\xa4\xc3\xa4\xc3\xa4\xc3\xa4\xc3\xa4"
                "\xc3\xa4\xc3\xa4\xc3\xa4\xc3\xa4\xc3\xa4\xc3\xa4\xc3\xa4"
                "\xc3\xa4\xc3\xa4\xc3\xa4\xc3\xa4\xc3\xa4\xc3\xa4\xc3\xa4"
                "\xc3\xa4\xc3\xa4\xc3\xa4\xc3\xa4\xc3\xa4\xc3\xa4\xc3\xa4";
    region = memx_region_new(&o, &error);
    g_assert_no_error(error);
    memx_region_free(region);
}

int main(int argc, char **argv)
{
    int status;

    g_test_init(&argc, &argv, NULL);
    server = server_process_new("72M");
    for (unsigned i = 0; i < G_N_ELEMENTS(bad); i++) {
        g_autofree char *path = g_strdup_printf("/options/refused/%s",
                                                bad[i].name);

        g_test_add_data_func(path, &bad[i], test_refused);
    }
    g_test_add_func("/options/then-a-good-one", test_good_after_all);
    status = g_test_run();
    server_process_free(server);
    return status;
}
