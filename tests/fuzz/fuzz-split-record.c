/*
 * The records of a split migration, one after the other as a destination
 * takes them: what is accepted is what an encoder writes, and adds up.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#include <glib.h>
#include <string.h>
#include "fuzz.h"
#include "split-record.h"

static uint8_t wire[MEMX_SPLIT_RECORD_MAX];
static MemxSplitChunk chunk;

/* A refusal says why, and nothing else does. */
static bool told(bool ok, GError **error)
{
    FUZZ_CHECK(ok == !*error);
    FUZZ_CHECK(ok || g_error_matches(*error, MEMX_ERROR,
                                     MEMX_ERROR_INVALID));
    FUZZ_CHECK(ok || g_utf8_validate((*error)->message, -1, NULL));
    g_clear_error(error);
    return ok;
}

static bool take_begin(MemxSplitBegin *begin, const uint8_t *record,
                       size_t bytes)
{
    GError *error = NULL;

    if (!told(memx_split_begin_decode(begin, record, bytes, &error),
              &error)) {
        return false;
    }
    FUZZ_CHECK(memx_split_begin_encode(wire, begin) == bytes);
    FUZZ_CHECK(memcmp(wire, record, bytes) == 0);
    FUZZ_CHECK(memx_split_n_pages(begin) <= MEMX_PAGES_MAX);
    FUZZ_CHECK(memx_split_n_groups(begin, memx_split_n_chunks(begin) - 1) > 0);
    return true;
}

static void take_chunks(const MemxSplitBegin *begin, const uint8_t *record,
                        size_t bytes)
{
    MemxSplitWriter writer;
    MemxSplitReader reader;
    GError *error = NULL;
    int r;

    if (!told(memx_split_reader_start(&reader, begin, record, bytes, &error),
              &error)) {
        return;
    }
    memx_split_writer_start(&writer, wire, reader.next);
    while ((r = memx_split_reader_next(&reader, &chunk, &error)) == 1) {
        FUZZ_CHECK(chunk.chunk < memx_split_n_chunks(begin));
        FUZZ_CHECK(chunk.n_groups <= MEMX_SPLIT_GROUPS_MAX);
        FUZZ_CHECK(chunk.server == MEMX_SERVER_NONE ||
                   chunk.server < begin->n_servers);
        /* It asserts the rest. */
        FUZZ_CHECK(memx_split_writer_add(
            &writer, chunk.server, chunk.history, chunk.remote, chunk.main,
            chunk.n_groups, memx_split_last_mask(begin, chunk.chunk)));
    }
    if (told(r == 0, &error)) {
        FUZZ_CHECK(memx_split_writer_end(&writer) == bytes);
        FUZZ_CHECK(memcmp(wire, record, bytes) == 0);
    }
}

static void take_end(const MemxSplitBegin *begin, const uint8_t *record,
                     size_t bytes)
{
    MemxSplitEnd end;
    GError *error = NULL;

    if (told(memx_split_end_decode(&end, begin, record, bytes, &error),
             &error)) {
        FUZZ_CHECK(memx_split_end_encode(wire, &end) == bytes);
        FUZZ_CHECK(memcmp(wire, record, bytes) == 0);
        FUZZ_CHECK(end.remote_pages + end.main_pages <=
                   memx_split_n_pages(begin));
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes)
{
    MemxSplitBegin begin;
    bool begun = false;

    while (bytes) {
        GError *error = NULL;
        size_t n = bytes;
        unsigned type;

        if (bytes >= MEMX_SPLIT_HEADER_BYTES) {
            uint32_t payload;

            memcpy(&payload, data + 4, 4);
            payload = GUINT32_FROM_LE(payload);
            n = MIN(bytes, (size_t)payload + MEMX_SPLIT_HEADER_BYTES);
        }
        type = memx_split_record_type(data, n, &error);
        told(type != 0, &error);
        if (type == MEMX_SPLIT_BEGIN) {
            begun = take_begin(&begin, data, n);
        } else if (type == MEMX_SPLIT_CHUNKS && begun) {
            take_chunks(&begin, data, n);
        } else if (type == MEMX_SPLIT_END && begun) {
            take_end(&begin, data, n);
        }
        data += n;
        bytes -= n;
    }
    return 0;
}
