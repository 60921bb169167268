/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * COPY: pages from server to server; and what a reader may do.
 */
#include <glib.h>
#include <glib/gstdio.h>
#include <string.h>
#include <unistd.h>
#include "memserver-client.h"
#include "server-process.h"

#define PAGES 1024u
#define KEY "0123456789abcdef-the-key"

typedef struct Fixture {
    ServerProcess *from, *to;
    Client *source, *target;    /* with a space each, ordered lanes open */
    GBytes *key;
    char *from_key, *to_key;    /* files */
} Fixture;

static char *write_key(const char *text)
{
    g_autoptr(GError) error = NULL;
    char *path = NULL;
    int fd = g_file_open_tmp("memx-key-XXXXXX", &path, &error);

    g_assert_no_error(error);
    g_assert_cmpint(write(fd, text, strlen(text)), ==, strlen(text));
    close(fd);
    return path;
}

/* The file must stay, for a restart. */
static ServerProcess *server_new(const char *capacity, const char *key,
                                 char **path)
{
    const char *options[] = { key ? "--key-file" : NULL, NULL, NULL };

    *path = key ? write_key(key) : NULL;
    options[1] = *path;
    return server_process_new_with(capacity, options);
}

static void server_free(ServerProcess *server, char *path)
{
    server_process_free(server);
    if (path) {
        g_unlink(path);
        g_free(path);
    }
}

static Client *space_new(ServerProcess *server, GBytes *key)
{
    Client *client = client_new(server_process_address(server), key);

    g_assert_cmpint(client_create(client, PAGES, 0), ==, 0);
    return client;
}

static void set_up(Fixture *f, gconstpointer key)
{
    f->key = key ? g_bytes_new(key, strlen(key)) : NULL;
    f->from = server_new("16M", key, &f->from_key);
    f->to = server_new("2M", key, &f->to_key);
    f->source = space_new(f->from, f->key);
    f->target = space_new(f->to, f->key);
}

static void tear_down(Fixture *f, gconstpointer key)
{
    client_free(f->source);
    client_free(f->target);
    server_free(f->from, f->from_key);
    server_free(f->to, f->to_key);
    g_clear_pointer(&f->key, g_bytes_unref);
}

static int copy_once(Fixture *f, uint64_t group, uint64_t mask)
{
    return client_copy(f->target, f->key, f->source,
                       server_process_address(f->from), group, mask);
}

/* On a busy machine the source may be too slow for once. */
static int copy(Fixture *f, uint64_t group, uint64_t mask)
{
    int64_t deadline = g_get_monotonic_time() + 30 * G_USEC_PER_SEC;
    int ret;

    do {
        ret = copy_once(f, group, mask);
    } while (ret == MEMX_ERR_SOURCE && g_get_monotonic_time() < deadline);
    return ret;
}

static void test_copied(Fixture *f, gconstpointer key)
{
    uint64_t generation, differ;

    g_assert_cmpint(client_store(f->source, 3, ALL_PAGES, 7), ==, 0);
    g_assert_cmpint(client_store(f->source, 4, 0xf0, 8), ==, 0);
    g_assert_cmpint(client_store(f->target, 4, 0xff, 2), ==, 0);
    for (unsigned i = 0; i < 2; i++) { /* as after a lost answer */
        g_assert_cmpint(copy(f, 3, ALL_PAGES), ==, 0);
        g_assert_cmpint(copy(f, 4, 0x30), ==, 0);
    }
    g_assert_cmpint(client_fetch(f->target, MEMX_LANE_ORDERED, 3, ALL_PAGES,
                                 &generation), ==, 0);
    g_assert_cmpuint(generation, ==, 7);
    g_assert_cmpint(client_fetch(f->target, MEMX_LANE_ORDERED, 4, 0x30,
                                 &generation), ==, 0);
    g_assert_cmpuint(generation, ==, 8);
    g_assert_cmpint(client_fetch(f->target, MEMX_LANE_ORDERED, 4, 0xcf,
                                 &generation), ==, 0);
    g_assert_cmpuint(generation, ==, 2);
    /* The hashes came with them. */
    g_assert_cmpint(client_compare(f->target, 3, ALL_PAGES, 7, &differ), ==,
                    0);
    g_assert_cmpuint(differ, ==, 0);
    /* The source has its own still. */
    g_assert_cmpint(client_fetch(f->source, MEMX_LANE_ORDERED, 3, ALL_PAGES,
                                 &generation), ==, 0);
    g_assert_cmpuint(generation, ==, 7);
}

static void test_not_held(Fixture *f, gconstpointer key)
{
    uint64_t generation;

    g_assert_cmpint(client_store(f->source, 3, 0xf, 7), ==, 0);
    g_assert_cmpint(client_store(f->target, 3, 0x10, 1), ==, 0);
    g_assert_cmpint(copy(f, 3, 0x1f), ==, MEMX_ERR_NOT_HELD);
    g_assert_cmpint(client_fetch(f->target, MEMX_LANE_ORDERED, 3, 1,
                                 &generation), ==, MEMX_ERR_NOT_HELD);
    g_assert_cmpint(client_fetch(f->target, MEMX_LANE_ORDERED, 3, 0x10,
                                 &generation), ==, 0);
    g_assert_cmpint(copy(f, PAGES / 64, 1), ==, MEMX_ERR_RANGE);
    g_assert_cmpint(copy(f, 3, 0xf), ==, 0);
}

static void test_full(Fixture *f, gconstpointer key)
{
    uint64_t used;

    for (unsigned group = 0; group < 9; group++) {
        g_assert_cmpint(client_store(f->source, group, ALL_PAGES, 7), ==, 0);
    }
    for (unsigned group = 0; group < 8; group++) {
        g_assert_cmpint(copy(f, group, ALL_PAGES), ==, 0);
    }
    used = f->target->reply.space_pages;
    g_assert_cmpint(copy(f, 8, ALL_PAGES), ==, MEMX_ERR_FULL);
    g_assert_cmpuint(f->target->reply.space_pages, ==, used);
    g_assert_cmpint(client_drop(f->target, 0, ALL_PAGES), ==, 0);
    g_assert_cmpint(copy(f, 8, ALL_PAGES), ==, 0);
}

static void test_source_gone(Fixture *f, gconstpointer key)
{
    uint64_t generation;

    g_assert_cmpint(client_store(f->source, 3, 0xf, 7), ==, 0);
    g_assert_cmpint(copy(f, 3, 1), ==, 0);
    server_process_kill(f->from);
    g_assert_cmpint(copy_once(f, 3, 2), ==, MEMX_ERR_SOURCE);
    server_process_restart(f->from, true);
    g_assert_cmpint(copy(f, 3, 2), ==, 0);
    server_process_stop(f->from);
    g_assert_cmpint(copy_once(f, 3, 4), ==, MEMX_ERR_SOURCE);
    /* Others aren't kept waiting, and the lane goes on. */
    g_assert_cmpint(client_fetch(f->target, MEMX_LANE_ORDERED, 3, 3,
                                 &generation), ==, 0);
    server_process_continue(f->from);
    g_assert_cmpint(copy(f, 3, 4), ==, 0);
}

static void test_wrong_secret(Fixture *f, gconstpointer key)
{
    g_assert_cmpint(client_store(f->source, 3, 0xf, 7), ==, 0);
    f->source->open.secret[0] ^= 1;
    g_assert_cmpint(copy_once(f, 3, 1), ==, MEMX_ERR_SOURCE);
    f->source->open.secret[0] ^= 1;
    g_assert_cmpint(copy(f, 3, 1), ==, 0);
    g_assert_cmpint(client_copy(f->target, f->key, f->source, "nonsense", 3,
                                1), ==, MEMX_ERR_SOURCE);
}

/* The source's server has another key than the target's. */
static void test_wrong_key(Fixture *f, gconstpointer key)
{
    g_autoptr(GBytes) other = g_bytes_new("another-key-altogether", 22);
    char *path;
    ServerProcess *server = server_new("16M", "another-key-altogether",
                                       &path);
    Client *source = space_new(server, other);

    g_assert_cmpint(client_store(source, 3, 1, 7), ==, 0);
    g_assert_cmpint(client_copy(f->target, f->key, source,
                                server_process_address(server), 3, 1), ==,
                    MEMX_ERR_SOURCE);
    client_free(source);
    server_free(server, path);
}

static void test_reader(Fixture *f, gconstpointer key)
{
    Client *reader = client_new_rival(f->source);
    uint64_t generation;
    int ret;

    g_assert_cmpint(client_store(f->source, 3, 0xf, 7), ==, 0);
    /* The space's secret itself is not the reader's. */
    g_assert_cmpint(client_attach(reader, MEMX_LANE_READER), ==,
                    MEMX_ERR_NO_SPACE);
    g_assert_cmpint(client_attach_reader(reader), ==, 0);
    g_assert_cmpint(client_fetch(reader, MEMX_LANE_READER, 3, 0xf,
                                 &generation), ==, 0);
    g_assert_cmpuint(generation, ==, 7);
    /* Nothing is changed by it. */
    reader->lanes[MEMX_LANE_ORDERED] =
        g_steal_pointer(&reader->lanes[MEMX_LANE_READER]);
    g_assert_cmpint(client_store(reader, 3, 1, 8), ==, MEMX_ERR_LANE);
    g_assert_cmpint(client_drop(reader, 3, 1), ==, MEMX_ERR_LANE);
    g_assert_cmpint(client_reserve(reader, 1), ==, MEMX_ERR_LANE);
    g_assert_cmpint(client_close(reader), ==, MEMX_ERR_LANE);
    /* The owner writes on, and ends the space. */
    g_assert_cmpint(client_store(f->source, 3, 1, 9), ==, 0);
    g_assert_cmpint(client_close(f->source), ==, 0);
    ret = client_fetch(reader, MEMX_LANE_ORDERED, 3, 1, &generation);
    g_assert_cmpint(ret, <, 0);
    client_free(reader);
}

int main(int argc, char **argv)
{
    g_test_init(&argc, &argv, NULL);
#define ADD(name, func)                                                     \
    g_test_add("/memserver/copy/" name, Fixture, NULL, set_up, func,        \
               tear_down);                                                  \
    g_test_add("/memserver/copy/key/" name, Fixture, KEY, set_up, func,     \
               tear_down)
    ADD("copied", test_copied);
    ADD("not-held", test_not_held);
    ADD("full", test_full);
    ADD("source-gone", test_source_gone);
    ADD("wrong-secret", test_wrong_secret);
    ADD("reader", test_reader);
    g_test_add("/memserver/copy/wrong-key", Fixture, KEY, set_up,
               test_wrong_key, tear_down);
    return g_test_run();
}
