/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * What the destination of a split migration refuses of a source that follows
 * the form of the records (test-split-record.c), and lies.
 */
#include <string.h>
#include <sys/mman.h>
#include "split-fixture.h"
#include "split-record.h"

#define CHUNK (MIB / 4)
#define CHUNK_PAGES (CHUNK / PAGE_BYTES)
#define SIZE (16 * MIB)
#define LOCAL (8 * MIB)
#define N_CHUNKS (SIZE / CHUNK)

static uint8_t record[MEMX_SPLIT_RECORD_MAX];

static void assert_refused(bool ok, GError **error, const char *words)
{
    g_assert_false(ok);
    g_assert_error(*error, MEMX_ERROR, MEMX_ERROR_INVALID);
    if (!strstr((*error)->message, words)) {
        g_error("'%s' is not in '%s'", words, (*error)->message);
    }
    g_clear_error(error);
}

static void assert_taken(bool ok, GError **error)
{
    g_assert_no_error(*error);
    g_assert_true(ok);
}

/* --- Records, with a server that nobody asks --- */

static MemxArrival *arrival_new(void *base)
{
    g_autoptr(GError) error = NULL;
    MemxOptions o = MEMX_OPTIONS_INIT;
    MemxArrival *arrival;

    o.base = base;
    o.size_bytes = SIZE;
    o.local_bytes = LOCAL;
    arrival = memx_arrival_new(&o, &error);
    g_assert_no_error(error);
    return arrival;
}

static bool tell_begin(MemxArrival *arrival, GError **error)
{
    MemxSplitBegin begin = {
        .chunk_bytes = CHUNK, .size_bytes = SIZE, .main_bytes = LOCAL,
        .session = "session", .heir = "heir", .hash_key = "key",
        .n_servers = 1,
        .servers[0] = { .address = "127.0.0.1:1", .space = "space",
                        .secret = "secret" },
    };

    return memx_arrival_record(arrival, record,
                               memx_split_begin_encode(record, &begin),
                               error);
}

/* @n chunks from @first on: all of their pages are on the server ('r'), in the
 * stream ('s'), or nowhere. */
static bool tell_chunks(MemxArrival *arrival, uint32_t first, unsigned n,
                        char where, GError **error)
{
    static const uint64_t all[] = { -1ull, -1ull, -1ull, -1ull }, no[4];
    const uint64_t *remote = where == 'r' ? all : no;
    const uint64_t *in_stream = where == 's' ? all : no;
    MemxSplitWriter writer;

    memx_split_writer_start(&writer, record, first);
    while (n--) {
        g_assert_true(memx_split_writer_add(&writer, where == 'r' ? 0
                                            : MEMX_SERVER_NONE, 0, remote,
                                            in_stream, G_N_ELEMENTS(all),
                                            UINT64_MAX));
    }
    return memx_arrival_record(arrival, record,
                               memx_split_writer_end(&writer), error);
}

/* In chunks, and some pages. */
static bool tell_end(MemxArrival *arrival, unsigned remote, int remote_more,
                     unsigned in_stream, int in_stream_more, GError **error)
{
    MemxSplitEnd end = {
        .remote_pages = remote * CHUNK_PAGES + remote_more,
        .main_pages = in_stream * CHUNK_PAGES + in_stream_more,
        .n_chunks = N_CHUNKS,
    };

    return memx_arrival_record(arrival, record,
                               memx_split_end_encode(record, &end), error);
}

#define REMOTE 40
#define IN_STREAM 16

/* All chunks but the last one. */
static MemxArrival *told_most(void *base)
{
    g_autoptr(GError) error = NULL;
    MemxArrival *arrival = arrival_new(base);

    assert_taken(tell_begin(arrival, &error), &error);
    assert_taken(tell_chunks(arrival, 0, REMOTE, 'r', &error), &error);
    assert_taken(tell_chunks(arrival, REMOTE, IN_STREAM, 's', &error), &error);
    assert_taken(tell_chunks(arrival, REMOTE + IN_STREAM,
                             N_CHUNKS - REMOTE - IN_STREAM - 1, 0, &error),
                 &error);
    return arrival;
}

static void test_sums(void)
{
    static const struct {
        unsigned remote;
        int remote_more;
        unsigned in_stream;
        int in_stream_more;
    } lies[] = {
        { REMOTE, 1, IN_STREAM, 0 },
        { REMOTE, -1, IN_STREAM, 0 },
        { REMOTE, 0, IN_STREAM, 1 },
        { REMOTE, 0, IN_STREAM, -1 },
        { REMOTE, 1, IN_STREAM, -1 },
        { IN_STREAM, 0, REMOTE, 0 },
        { 0, 0, 0, 0 },
    };
    void *base = move_map(SIZE);
    MemxArrival *arrival = told_most(base);
    GError *error = NULL;

    assert_refused(tell_end(arrival, REMOTE, 0, IN_STREAM, 0, &error), &error,
                   "63 of 64 chunks");
    assert_taken(tell_chunks(arrival, N_CHUNKS - 1, 1, 0, &error), &error);
    for (unsigned i = 0; i < G_N_ELEMENTS(lies); i++) {
        assert_refused(tell_end(arrival, lies[i].remote, lies[i].remote_more,
                                lies[i].in_stream, lies[i].in_stream_more,
                                &error), &error,
                       "sums are not those of its table");
    }
    assert_taken(tell_end(arrival, REMOTE, 0, IN_STREAM, 0, &error), &error);
    memx_arrival_free(arrival);
    munmap(base, SIZE);
}

/* What was said last counts, and once. */
static void test_sums_of_chunks_told_again(void)
{
    void *base = move_map(SIZE);
    MemxArrival *arrival = told_most(base);
    GError *error = NULL;

    assert_taken(tell_chunks(arrival, N_CHUNKS - 1, 1, 's', &error), &error);
    assert_taken(tell_chunks(arrival, N_CHUNKS - 1, 1, 's', &error), &error);
    assert_taken(tell_chunks(arrival, 0, 2, 's', &error), &error);
    assert_taken(tell_chunks(arrival, 1, 1, 0, &error), &error);
    assert_refused(tell_end(arrival, REMOTE, 0, IN_STREAM + 1, 0, &error),
                   &error, "sums are not those of its table");
    assert_taken(tell_end(arrival, REMOTE - 2, 0, IN_STREAM + 2, 0, &error),
                 &error);
    memx_arrival_free(arrival);
    munmap(base, SIZE);
}

static void test_order(void)
{
    void *base = move_map(SIZE);
    MemxArrival *arrival = arrival_new(base);
    GError *error = NULL;

    assert_refused(tell_chunks(arrival, 0, 1, 'r', &error), &error,
                   "before the beginning");
    assert_refused(tell_end(arrival, 0, 0, 0, 0, &error), &error,
                   "before the beginning");
    assert_taken(tell_begin(arrival, &error), &error);
    assert_refused(tell_begin(arrival, &error), &error, "began twice");
    assert_refused(!!memx_arrival_finish(arrival, &error), &error,
                   "has not told all of its memory");

    arrival = told_most(base);
    assert_taken(tell_chunks(arrival, N_CHUNKS - 1, 1, 0, &error), &error);
    assert_taken(tell_end(arrival, REMOTE, 0, IN_STREAM, 0, &error), &error);
    assert_refused(tell_chunks(arrival, 0, 1, 'r', &error), &error,
                   "after the end");
    assert_refused(tell_end(arrival, REMOTE, 0, IN_STREAM, 0, &error), &error,
                   "after the end");
    memx_arrival_free(arrival);
    munmap(base, SIZE);
}

/* --- Memory --- */

/* What the source says, but for its END. */
static void pass_records(Move *m)
{
    g_autoptr(GError) error = NULL;
    size_t bytes;

    while ((bytes = memx_split_record(m->source, true, record)) &&
           memx_split_record_type(record, bytes, NULL) != MEMX_SPLIT_END) {
        memx_arrival_record(m->arrival, record, bytes, &error);
        g_assert_no_error(error);
    }
}

/* A source that says that all of its memory comes by the stream, which brought
 * @n pages.  NULL: the destination refused it. */
static MemxRegion *flood(Move *m, uint64_t n, GError **error)
{
    g_autoptr(GError) offered = NULL;

    move_begin(m);
    move_drain(m);
    g_assert_cmpint(memx_split_offer(m->source, WAIT_MS, &offered), ==, 1);
    pass_records(m);
    assert_taken(tell_chunks(m->arrival, 0, N_CHUNKS, 's', error), error);
    assert_taken(tell_end(m->arrival, 0, 0, N_CHUNKS, 0, error), error);
    madvise(m->base, SIZE, MADV_DONTNEED);
    for (uint64_t page = 0; page < n; page++) {
        pattern_write(m->base, page, 1);
    }
    return memx_arrival_finish(g_steal_pointer(&m->arrival), error);
}

/* The last page that fits, and the first that doesn't; either time the source
 * has its memory back afterwards, as it was. */
static void test_more_than_fits(const void *excess)
{
    ServerProcess *server = server_process_new("64M");
    Move m = { .main_bytes = LOCAL };
    GError *error = NULL;
    MemxRegion *region;

    m.source = region_fixture_new(&(RegionFixture) {
        .size = SIZE, .local = LOCAL, .chunk = CHUNK,
        .servers = &server, .n_servers = 1,
    });
    m.vm = vm_new(memx_region_base(m.source), SIZE, 1);
    vm_fill(m.vm, 1);
    region = flood(&m, LOCAL / PAGE_BYTES + !!excess, &error);
    if (excess) {
        assert_refused(!!region, &error, "sent 2049 pages, more than fit a "
                       "local size of 2048");
    } else {
        assert_taken(!!region, &error);
        memx_region_free(region);
    }
    g_assert_cmpint(memx_split_reclaim(m.source, true, WAIT_MS, &error), ==,
                    MEMX_VERDICT_MINE);
    vm_check(m.vm);
    memx_region_free(m.source);
    vm_free(m.vm);
    munmap(m.base, SIZE);
    server_process_free(server);
}

int main(int argc, char **argv)
{
    g_test_init(&argc, &argv, NULL);
    g_test_add_func("/split/arrival/sums", test_sums);
    g_test_add_func("/split/arrival/told-again",
                    test_sums_of_chunks_told_again);
    g_test_add_func("/split/arrival/order", test_order);
    g_test_add_data_func("/split/arrival/as-much-as-fits", NULL,
                         test_more_than_fits);
    g_test_add_data_func("/split/arrival/more-than-fits", "more",
                         test_more_than_fits);
    return g_test_run();
}
