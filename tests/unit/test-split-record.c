/*
 * The records of a split migration: golden bytes, made by hand after the
 * header, tables there and back, and everything that a decoder refuses.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#include <glib.h>
#include <string.h>
#include "split-record.h"

#define MIB (1ull << 20)
#define HEADER MEMX_SPLIT_HEADER_BYTES

static uint8_t record[MEMX_SPLIT_RECORD_MAX];

/* --- What goes wrong, and says so --- */

static void assert_refused(bool ok, GError **error, const char *words)
{
    g_assert_false(ok);
    g_assert_error(*error, MEMX_ERROR, MEMX_ERROR_INVALID);
    if (!strstr((*error)->message, words)) {
        g_error("'%s' is not in '%s'", words, (*error)->message);
    }
    g_clear_error(error);
}

static void put(size_t at, uint64_t value, unsigned width)
{
    value = GUINT64_TO_LE(value);
    memcpy(record + at, &value, width);
}

/* A region of two chunks of 1 MiB, and a third of one group and 5 pages. */
static void make_begin(MemxSplitBegin *begin, uint32_t n_servers)
{
    memset(begin, 0, sizeof(*begin));
    begin->chunk_bytes = 1 * MIB;
    begin->size_bytes = 2 * MIB + (64 + 5) * MEMX_PAGE_BYTES;
    begin->main_bytes = 1 * MIB;
    memset(begin->session, 0x11, sizeof(begin->session));
    memset(begin->heir, 0x22, sizeof(begin->heir));
    memset(begin->hash_key, 0x33, sizeof(begin->hash_key));
    begin->n_servers = n_servers;
    for (uint32_t i = 0; i < n_servers; i++) {
        MemxSplitServer *server = &begin->servers[i];

        g_snprintf(server->address, sizeof(server->address), "h%u:7", i);
        memset(server->space, 0x44, sizeof(server->space));
        memset(server->secret, 0x55, sizeof(server->secret));
        server->epoch = i;
    }
}

/* --- BEGIN --- */

static const char begin_hex[] =
    "010000007a000000"
    "01000000" "00001000" "0050240000000000" "0000100000000000"
    "11111111111111111111111111111111" "22222222222222222222222222222222"
    "33333333333333333333333333333333" "01000000"
    "0400" "68303a37" "44444444444444444444444444444444"
    "55555555555555555555555555555555" "0000000000000000";

static void test_begin_golden(void)
{
    MemxSplitBegin begin;
    size_t bytes;
    g_autoptr(GString) hex = g_string_new(NULL);

    make_begin(&begin, 1);
    bytes = memx_split_begin_encode(record, &begin);
    for (size_t i = 0; i < bytes; i++) {
        g_string_append_printf(hex, "%02x", record[i]);
    }
    g_assert_cmpstr(hex->str, ==, begin_hex);
}

static void test_begin_there_and_back(void)
{
    MemxSplitBegin begin, back;
    size_t bytes;
    GError *error = NULL;

    make_begin(&begin, MEMX_SERVERS_MAX);
    memset(begin.servers[3].address, 'a', MEMX_SPLIT_ADDRESS_MAX);
    begin.servers[3].epoch = UINT64_MAX - 1;
    bytes = memx_split_begin_encode(record, &begin);
    g_assert_true(memx_split_begin_decode(&back, record, bytes, &error));
    g_assert_no_error(error);
    g_assert_cmpmem(&back, sizeof(back), &begin, sizeof(begin));

    /* Any end is missed. */
    for (size_t n = 0; n < bytes; n++) {
        put(4, n < HEADER ? 0 : n - HEADER, 4);
        g_assert_false(memx_split_begin_decode(&back, record, n, &error));
        g_assert_error(error, MEMX_ERROR, MEMX_ERROR_INVALID);
        g_clear_error(&error);
    }
    put(4, bytes + 1 - HEADER, 4);
    record[bytes] = 0;
    assert_refused(memx_split_begin_decode(&back, record, bytes + 1, &error),
                   &error, "1 bytes too many");
}

static void test_begin_refuses(void)
{
    static const struct {
        size_t at;
        uint64_t value;
        unsigned width;
        const char *words;
    } cases[] = {
        { 0, 0, 4, "unknown type 0" },
        { 0, 4, 4, "unknown type 4" },
        { 0, MEMX_SPLIT_END, 4, "type 3 where one of type 1" },
        { 4, 116, 4, "claims a payload of 116" },
        { 4, UINT32_MAX, 4, "claims a payload" },
        { 8, 2, 4, "version 2 of the split's table, this host knows 1" },
        { 12, 0, 4, "chunk size of 0" },
        { 12, 128 << 10, 4, "power of two" },
        { 12, 3 << 18, 4, "power of two" },
        { 12, 128 << 20, 4, "power of two" },
        { 16, 0, 8, "a size of 0" },
        { 16, 2 * MIB + 1, 8, "a size of 2097153" },
        { 16, 1ull << 52, 8, "a size of" }, /* too many chunks */
        { 16, 1ull << 53, 8, "a size of" }, /* too many pages */
        { 16, -4096ull, 8, "a size of" },
        { 24, 0, 8, "0 bytes of" },
        { 24, MIB + 1, 8, "for the main host" },
        { 24, 3 * MIB, 8, "for the main host" },
        { 80, 0, 4, "0 servers" },
        { 80, 2, 4, "cut short" },
        { 80, 17, 4, "17 servers" },
        { 80, UINT32_MAX, 4, "servers" },
        { 84, 0, 2, "has 0 bytes" },
        { 84, 272, 2, "has 272 bytes" },
        { 84, 65535, 2, "has 65535 bytes" },
        { 84, 5, 2, "cut short" },
        { 84, 3, 2, "too many" },
        { 87, 0, 1, "no text" },
        { 87, '\n', 1, "no text" },
        { 87, ' ', 1, "no text" },
        { 87, 0xc3, 1, "no text" },
        { 122, UINT64_MAX, 8, "nobody can follow" },
    };
    MemxSplitBegin begin, back;
    GError *error = NULL;

    make_begin(&begin, 1);
    for (size_t i = 0; i < G_N_ELEMENTS(cases); i++) {
        size_t bytes = memx_split_begin_encode(record, &begin);

        put(cases[i].at, cases[i].value, cases[i].width);
        assert_refused(memx_split_begin_decode(&back, record, bytes, &error),
                       &error, cases[i].words);
    }
    memset(begin.session, 0, sizeof(begin.session));
    assert_refused(memx_split_begin_decode(
        &back, record, memx_split_begin_encode(record, &begin), &error),
        &error, "session");
    make_begin(&begin, 2);
    memset(begin.heir, 0, sizeof(begin.heir));
    assert_refused(memx_split_begin_decode(
        &back, record, memx_split_begin_encode(record, &begin), &error),
        &error, "id is zero");
    make_begin(&begin, 2);
    begin.servers[1] = begin.servers[0];
    assert_refused(memx_split_begin_decode(
        &back, record, memx_split_begin_encode(record, &begin), &error),
        &error, "server h0:7 is there twice");
}

static void test_geometry(void)
{
    MemxSplitBegin begin;

    make_begin(&begin, 1);
    g_assert_cmpuint(memx_split_n_pages(&begin), ==, 512 + 64 + 5);
    g_assert_cmpuint(memx_split_n_chunks(&begin), ==, 3);
    g_assert_cmpuint(memx_split_n_groups(&begin, 1), ==, 4);
    g_assert_cmphex(memx_split_last_mask(&begin, 1), ==, UINT64_MAX);
    g_assert_cmpuint(memx_split_n_groups(&begin, 2), ==, 2);
    g_assert_cmphex(memx_split_last_mask(&begin, 2), ==, 0x1f);

    begin.size_bytes = 1ull << 49; /* 512 TiB in 64 MiB */
    begin.chunk_bytes = 64 * MIB;
    g_assert_cmpuint(memx_split_n_chunks(&begin), ==, 1 << 23);
    g_assert_cmpuint(memx_split_n_groups(&begin, (1 << 23) - 1), ==, 256);
}

/* --- CHUNKS --- */

static void test_chunks_golden(void)
{
    static const uint8_t golden[] = {
        2, 0, 0, 0, 49, 0, 0, 0,  0, 0, 0, 0, 3, 0, 0, 0,
        0, 0xff, 7,
        2, 1, 0x80,
        3, 0, 0xff,
        1, 0, 0, 0, 0, 0, 0, 0x80,  2, 0, 0, 0, 0, 0, 0, 0x40,
        0x1e, 0, 0, 0, 0, 0, 0, 0,  1, 0, 0, 0, 0, 0, 0, 0,
    };
    static const uint64_t all[4] = { -1ull, -1ull, -1ull, -1ull }, no[4];
    static const uint64_t remote[2] = { 0x8000000000000001ull, 0x1e };
    static const uint64_t in_stream[2] = { 0x4000000000000002ull, 1 };
    MemxSplitWriter writer;

    memx_split_writer_start(&writer, record, 0);
    g_assert_cmpuint(memx_split_writer_end(&writer), ==, 0);
    g_assert_true(memx_split_writer_add(&writer, 0xff, 7, no, no, 4, -1ull));
    g_assert_true(memx_split_writer_add(&writer, 1, 0x80, all, no, 4,
                                        -1ull));
    g_assert_true(memx_split_writer_add(&writer, 0, 0xff, remote, in_stream,
                                        2, 0x1f));
    g_assert_cmpmem(record, memx_split_writer_end(&writer), golden,
                    sizeof(golden));
}

/* A table of pages as they come, some chunks all the same. */
static void random_chunk(GRand *rand, MemxSplitChunk *c,
                         const MemxSplitBegin *begin, uint32_t chunk)
{
    unsigned how = g_rand_int_range(rand, 0, 6);

    memset(c, 0, sizeof(*c));
    c->chunk = chunk;
    c->server = g_rand_int_range(rand, 0, begin->n_servers);
    c->history = g_rand_int(rand);
    c->n_groups = memx_split_n_groups(begin, chunk);
    for (unsigned i = 0; i < c->n_groups; i++) {
        uint64_t a = (uint64_t)g_rand_int(rand) << 32 | g_rand_int(rand);
        uint64_t b = (uint64_t)g_rand_int(rand) << 32 | g_rand_int(rand);
        uint64_t all = i == c->n_groups - 1
            ? memx_split_last_mask(begin, chunk) : UINT64_MAX;

        c->remote[i] = (how == 0 ? UINT64_MAX : how < 3 ? a & b : 0) & all;
        c->main[i] = (how == 3 ? UINT64_MAX : how == 2 || how == 4 ? b & ~a
                      : 0) & all;
    }
    if (how > 2 && g_rand_boolean(rand)) {
        c->server = MEMX_SERVER_NONE;
    }
}

static void assert_chunks_back(const MemxSplitBegin *begin, size_t bytes,
                               const MemxSplitChunk *chunks, uint32_t first,
                               uint32_t end)
{
    g_autofree MemxSplitChunk *back = g_new(MemxSplitChunk, 1);
    MemxSplitReader reader;
    GError *error = NULL;

    g_assert_true(memx_split_reader_start(&reader, begin, record, bytes,
                                          &error));
    for (uint32_t i = first; i < end; i++) {
        const MemxSplitChunk *c = &chunks[i];

        g_assert_cmpint(memx_split_reader_next(&reader, back, &error), ==, 1);
        g_assert_no_error(error);
        g_assert_cmpuint(back->chunk, ==, i);
        g_assert_cmpuint(back->server, ==, c->server);
        g_assert_cmpuint(back->history, ==, c->history);
        g_assert_cmpmem(back->remote, back->n_groups * 8, c->remote,
                        c->n_groups * 8);
        g_assert_cmpmem(back->main, back->n_groups * 8, c->main,
                        c->n_groups * 8);
    }
    g_assert_cmpint(memx_split_reader_next(&reader, back, &error), ==, 0);
    g_assert_no_error(error);
}

/* Tables of several records, of all sizes of chunks. */
static void test_chunks_there_and_back(void)
{
    for (unsigned shift = 18; shift <= 26; shift++) {
        GRand *rand = g_rand_new_with_seed(shift);
        g_autofree MemxSplitChunk *chunks = NULL;
        MemxSplitBegin begin;
        MemxSplitWriter writer;
        uint32_t n, first = 0, i = 0;
        unsigned records = 0;

        make_begin(&begin, 3);
        begin.chunk_bytes = 1u << shift;
        begin.size_bytes = 100ull * begin.chunk_bytes + MEMX_PAGE_BYTES *
                           g_rand_int_range(rand, 1, 64);
        n = memx_split_n_chunks(&begin);
        g_assert_cmpuint(n, ==, 101);
        chunks = g_new(MemxSplitChunk, n);
        for (uint32_t j = 0; j < n; j++) {
            random_chunk(rand, &chunks[j], &begin, j);
        }
        memx_split_writer_start(&writer, record, 0);
        while (i < n) {
            const MemxSplitChunk *c = &chunks[i];

            if (memx_split_writer_add(&writer, c->server, c->history,
                                      c->remote, c->main, c->n_groups,
                                      memx_split_last_mask(&begin, i))) {
                i++;
                continue;
            }
            g_assert_cmpuint(i, >, first);
            assert_chunks_back(&begin, memx_split_writer_end(&writer), chunks,
                               first, i);
            first = i;
            records++;
            memx_split_writer_start(&writer, record, i);
        }
        assert_chunks_back(&begin, memx_split_writer_end(&writer), chunks,
                           first, n);
        /* The larger ones did not fit into one. */
        g_assert_true(shift < 26 || records > 1);
        g_rand_free(rand);
    }
}

/* Encodes chunk 2, mixed, then changes one place. */
static int read_changed(size_t at, uint64_t value, unsigned width,
                        GError **error)
{
    static const uint64_t remote[2] = { 1, 2 }, in_stream[2] = { 2, 1 };
    MemxSplitChunk *chunk = g_new(MemxSplitChunk, 1);
    MemxSplitBegin begin;
    MemxSplitWriter writer;
    MemxSplitReader reader;
    size_t bytes;
    int r = -1;

    make_begin(&begin, 2);
    memx_split_writer_start(&writer, record, 2);
    g_assert_true(memx_split_writer_add(&writer, 1, 0, remote, in_stream, 2,
                                        0x1f));
    bytes = memx_split_writer_end(&writer);
    g_assert_cmpuint(bytes, ==, 16 + 3 + 32);
    put(at, value, width);
    if (memx_split_reader_start(&reader, &begin, record, bytes, error)) {
        while ((r = memx_split_reader_next(&reader, chunk, error)) == 1) {
            continue;
        }
    }
    g_free(chunk);
    return r;
}

static void test_chunks_refuse(void)
{
    static const struct {
        size_t at;
        uint64_t value;
        unsigned width;
        const char *words;
    } cases[] = {
        { 0, 1, 4, "type 1 where one of type 2" },
        { 4, 42, 4, "claims a payload of 42" },
        { 8, 3, 4, "1 chunks from chunk 3 on; there are 3" },
        { 8, UINT32_MAX, 4, "chunks from chunk" },
        { 8, 0, 4, "cut short" },          /* it has four groups */
        { 12, 0, 4, "0 chunks" },
        { 12, 2, 4, "2 chunks from chunk 2 on" },
        { 12, UINT32_MAX, 4, "chunks from chunk 2" },
        { 16, 4, 1, "unknown kind 4" },
        { 16, 255, 1, "unknown kind 255" },
        { 16, 0, 1, "32 bytes too many" },
        { 16, 1, 1, "32 bytes too many" },
        { 17, 2, 1, "on server 2; there are 2" },
        { 17, 0xff, 1, "no server" },
        { 19, 3, 8, "group 0 of chunk 2 has pages that are both" },
        { 35, 0x20, 8, "group 1 of chunk 2" }, /* beyond the end */
        { 43, 1ull << 63, 8, "group 1 of chunk 2" },
    };
    GError *error = NULL;

    g_assert_cmpint(read_changed(18, 9, 1, &error), ==, 0); /* history */
    g_assert_no_error(error);
    for (size_t i = 0; i < G_N_ELEMENTS(cases); i++) {
        assert_refused(read_changed(cases[i].at, cases[i].value,
                                    cases[i].width, &error) == 0, &error,
                       cases[i].words);
    }
}

/* A table is written in one way only. */
static void test_chunks_refuse_the_longer_form(void)
{
    static const uint64_t words[3][4] = {
        { 0, 0, 0, 0 },
        { -1ull, 0, 0x1f, 0 },
        { 0, -1ull, 0, 0x1f },
    };
    MemxSplitBegin begin;
    MemxSplitReader reader;
    g_autofree MemxSplitChunk *chunk = g_new(MemxSplitChunk, 1);
    GError *error = NULL;

    make_begin(&begin, 1);
    for (unsigned i = 0; i < 3; i++) {
        put(0, MEMX_SPLIT_CHUNKS, 4);
        put(4, 43, 4);
        put(8, 2, 4);
        put(12, 1, 4);
        put(16, 3, 3); /* mixed, server 0, no history */
        for (unsigned j = 0; j < 4; j++) {
            put(19 + 8 * j, words[i][j], 8);
        }
        g_assert_true(memx_split_reader_start(&reader, &begin, record, 51,
                                              &error));
        assert_refused(memx_split_reader_next(&reader, chunk, &error) >= 0,
                       &error, "chunk 2 is not of kind 3");
    }
    /* Remote, and no server. */
    put(4, 11, 4);
    put(16, 0xff02, 3);
    g_assert_true(memx_split_reader_start(&reader, &begin, record, 19,
                                          &error));
    assert_refused(memx_split_reader_next(&reader, chunk, &error) >= 0,
                   &error, "chunk 2 has remote pages, but no server");
}

/* --- END --- */

static void test_end(void)
{
    static const uint8_t golden[] = {
        3, 0, 0, 0, 20, 0, 0, 0,
        0x45, 2, 0, 0, 0, 0, 0, 0,  0, 0, 0, 0, 0, 0, 0, 0,  3, 0, 0, 0,
    };
    MemxSplitBegin begin;
    MemxSplitEnd end = { .remote_pages = 581, .n_chunks = 3 }, back;
    size_t bytes = memx_split_end_encode(record, &end);
    GError *error = NULL;

    make_begin(&begin, 1);
    g_assert_cmpmem(record, bytes, golden, sizeof(golden));
    g_assert_true(memx_split_end_decode(&back, &begin, record, bytes,
                                        &error));
    g_assert_cmpuint(back.remote_pages, ==, 581);
    g_assert_cmpuint(back.main_pages, ==, 0);
    g_assert_cmpuint(back.n_chunks, ==, 3);

    put(16, 1, 8);
    assert_refused(memx_split_end_decode(&back, &begin, record, bytes,
                                         &error), &error, "of 581");
    put(8, UINT64_MAX, 8);
    assert_refused(memx_split_end_decode(&back, &begin, record, bytes,
                                         &error), &error, "of 581");
    put(8, 0, 8);
    put(24, 2, 4);
    assert_refused(memx_split_end_decode(&back, &begin, record, bytes,
                                         &error), &error,
                   "2 chunks of 3 were described");
    put(4, 19, 4);
    assert_refused(memx_split_end_decode(&back, &begin, record, 27, &error),
                   &error, "END is cut short");
    assert_refused(memx_split_record_type(record, 7, &error), &error,
                   "a record of 7 bytes");
    assert_refused(memx_split_record_type(record, MEMX_SPLIT_RECORD_MAX + 1,
                                          &error), &error, "a record of");
}

int main(int argc, char **argv)
{
    g_test_init(&argc, &argv, NULL);
    g_test_add_func("/memx/split-record/begin/golden", test_begin_golden);
    g_test_add_func("/memx/split-record/begin/there-and-back",
                    test_begin_there_and_back);
    g_test_add_func("/memx/split-record/begin/refuses", test_begin_refuses);
    g_test_add_func("/memx/split-record/geometry", test_geometry);
    g_test_add_func("/memx/split-record/chunks/golden", test_chunks_golden);
    g_test_add_func("/memx/split-record/chunks/there-and-back",
                    test_chunks_there_and_back);
    g_test_add_func("/memx/split-record/chunks/refuse", test_chunks_refuse);
    g_test_add_func("/memx/split-record/chunks/refuse-the-longer-form",
                    test_chunks_refuse_the_longer_form);
    g_test_add_func("/memx/split-record/end", test_end);
    return g_test_run();
}
