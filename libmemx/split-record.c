/*
 * The records of a split migration: see the header.
 *
 * SPDX-License-Identifier: LGPL-2.1-or-later
 */
#include <assert.h>
#include <inttypes.h>
#include <string.h>
#include "split-record.h"

#define RUN_BYTES 8u            /* first chunk, chunks */
#define CHUNK_BYTES 3u          /* kind, server, history */
#define CHUNK_BYTES_MIN (256u << 10)
#define CHUNK_BYTES_MAX (64u << 20)

typedef enum {
    KIND_NONE,      /* never written */
    KIND_MAIN,      /* all pages that exist */
    KIND_REMOTE,    /* the same */
    KIND_MIXED,
} Kind;

static_assert(CHUNK_BYTES_MIN == MEMX_GROUP_BYTES, "");
static_assert(CHUNK_BYTES_MAX == MEMX_SPLIT_GROUPS_MAX * MEMX_GROUP_BYTES,
              "a chunk's groups fit");
static_assert(MEMX_SPLIT_HEADER_BYTES + RUN_BYTES + CHUNK_BYTES +
              16 * MEMX_SPLIT_GROUPS_MAX <= MEMX_SPLIT_RECORD_MAX,
              "a record has room for any chunk");
static_assert(MEMX_SPLIT_HEADER_BYTES + 100 + MEMX_SERVERS_MAX *
              sizeof(MemxSplitServer) <= MEMX_SPLIT_RECORD_MAX,
              "a record has room for all servers");

/* --- Bytes --- */

static uint8_t *put(uint8_t *at, uint64_t value, unsigned width)
{
    for (unsigned i = 0; i < width; i++) {
        *at++ = value >> (8 * i);
    }
    return at;
}

static uint8_t *put_bytes(uint8_t *at, const void *bytes, size_t n)
{
    memcpy(at, bytes, n);
    return at + n;
}

/* What is left of a payload.  Reading beyond its end gives zeros and is
 * remembered. */
typedef struct Cursor {
    const uint8_t *at;
    const uint8_t *end;
    bool short_of;
} Cursor;

static bool left(Cursor *cursor, size_t n)
{
    if ((size_t)(cursor->end - cursor->at) < n) {
        cursor->short_of = true;
        cursor->at = cursor->end;
    }
    return !cursor->short_of;
}

static uint64_t get(Cursor *cursor, unsigned width)
{
    uint64_t value = 0;

    if (left(cursor, width)) {
        for (unsigned i = 0; i < width; i++) {
            value |= (uint64_t)*cursor->at++ << (8 * i);
        }
    }
    return value;
}

static void get_bytes(Cursor *cursor, void *bytes, size_t n)
{
    if (left(cursor, n)) {
        memcpy(bytes, cursor->at, n);
        cursor->at += n;
    } else {
        memset(bytes, 0, n);
    }
}

static bool G_GNUC_PRINTF(2, 3) refuse(GError **error, const char *format,
                                       ...)
{
    va_list args;
    g_autofree char *text = NULL;

    va_start(args, format);
    text = g_strdup_vprintf(format, args);
    va_end(args);
    g_set_error(error, MEMX_ERROR, MEMX_ERROR_INVALID,
                "what the source says of its memory makes no sense: %s; "
                "do both hosts run the same version?", text);
    return false;
}

/* --- Geometry --- */

uint64_t memx_split_n_pages(const MemxSplitBegin *begin)
{
    return begin->size_bytes / MEMX_PAGE_BYTES;
}

uint32_t memx_split_n_chunks(const MemxSplitBegin *begin)
{
    return (begin->size_bytes - 1) / begin->chunk_bytes + 1;
}

static uint64_t pages_of_chunk(const MemxSplitBegin *begin, uint32_t chunk)
{
    uint64_t chunk_pages = begin->chunk_bytes / MEMX_PAGE_BYTES;

    return MIN(memx_split_n_pages(begin) - chunk * chunk_pages, chunk_pages);
}

unsigned memx_split_n_groups(const MemxSplitBegin *begin, uint32_t chunk)
{
    return (pages_of_chunk(begin, chunk) - 1) / MEMX_GROUP_PAGES + 1;
}

uint64_t memx_split_last_mask(const MemxSplitBegin *begin, uint32_t chunk)
{
    unsigned pages = pages_of_chunk(begin, chunk) % MEMX_GROUP_PAGES;

    return pages ? (1ull << pages) - 1 : UINT64_MAX;
}

/* --- Any record --- */

static size_t end_record(uint8_t *record, unsigned type, const uint8_t *end)
{
    size_t bytes = end - record;

    put(record, type, 4);
    put(record + 4, bytes - MEMX_SPLIT_HEADER_BYTES, 4);
    return bytes;
}

unsigned memx_split_record_type(const uint8_t *record, size_t bytes,
                                GError **error)
{
    Cursor cursor = { record, record + bytes, false };
    uint32_t type = get(&cursor, 4);
    uint32_t payload_bytes = get(&cursor, 4);

    if (cursor.short_of || bytes > MEMX_SPLIT_RECORD_MAX) {
        return refuse(error, "a record of %zu bytes; it has from %u to %u",
                      bytes, MEMX_SPLIT_HEADER_BYTES, MEMX_SPLIT_RECORD_MAX);
    }
    if (payload_bytes != bytes - MEMX_SPLIT_HEADER_BYTES) {
        return refuse(error, "a record of %zu bytes claims a payload of %u",
                      bytes, payload_bytes);
    }
    if (type < MEMX_SPLIT_BEGIN || type > MEMX_SPLIT_END) {
        return refuse(error, "a record of unknown type %u", type);
    }
    return type;
}

static bool open_record(Cursor *payload, MemxSplitType type,
                        const uint8_t *record, size_t bytes, GError **error)
{
    unsigned found = memx_split_record_type(record, bytes, error);

    *payload = (Cursor) {
        record + MEMX_SPLIT_HEADER_BYTES, record + bytes, false
    };
    if (found && found != type) {
        return refuse(error, "a record of type %u where one of type %u is "
                      "due", found, type);
    }
    return found;
}

/* Whether a payload was read to its end, and no further. */
static bool close_record(const Cursor *payload, const char *name,
                         GError **error)
{
    if (payload->short_of) {
        return refuse(error, "record %s is cut short", name);
    }
    if (payload->at != payload->end) {
        return refuse(error, "record %s has %zu bytes too many", name,
                      (size_t)(payload->end - payload->at));
    }
    return true;
}

/* --- BEGIN --- */

size_t memx_split_begin_encode(uint8_t *record, const MemxSplitBegin *begin)
{
    uint8_t *at = record + MEMX_SPLIT_HEADER_BYTES;

    at = put(at, MEMX_SPLIT_VERSION, 4);
    at = put(at, begin->chunk_bytes, 4);
    at = put(at, begin->size_bytes, 8);
    at = put(at, begin->main_bytes, 8);
    at = put_bytes(at, begin->session, sizeof(begin->session));
    at = put_bytes(at, begin->heir, sizeof(begin->heir));
    at = put_bytes(at, begin->hash_key, sizeof(begin->hash_key));
    at = put(at, begin->n_servers, 4);
    for (uint32_t i = 0; i < begin->n_servers; i++) {
        const MemxSplitServer *server = &begin->servers[i];
        size_t n = strlen(server->address);

        at = put(at, n, 2);
        at = put_bytes(at, server->address, n);
        at = put_bytes(at, server->space, sizeof(server->space));
        at = put_bytes(at, server->secret, sizeof(server->secret));
        at = put(at, server->epoch, 8);
    }
    return end_record(record, MEMX_SPLIT_BEGIN, at);
}

static bool is_zero(const uint8_t *bytes, size_t n)
{
    return !bytes[0] && !memcmp(bytes, bytes + 1, n - 1);
}

static bool check_sizes(const MemxSplitBegin *begin, GError **error)
{
    uint64_t size = begin->size_bytes;

    if (begin->chunk_bytes < CHUNK_BYTES_MIN ||
        begin->chunk_bytes > CHUNK_BYTES_MAX ||
        begin->chunk_bytes & (begin->chunk_bytes - 1)) {
        return refuse(error, "a chunk size of %u bytes; it is a power of two "
                      "from 256 KiB to 64 MiB", begin->chunk_bytes);
    }
    if (size == 0 || size % MEMX_PAGE_BYTES ||
        size / MEMX_PAGE_BYTES > MEMX_PAGES_MAX ||
        (size - 1) / begin->chunk_bytes >= UINT32_MAX - 1) {
        return refuse(error, "a size of %" PRIu64 " bytes in chunks of %u",
                      size, begin->chunk_bytes);
    }
    if (begin->main_bytes == 0 || begin->main_bytes % MEMX_PAGE_BYTES ||
        begin->main_bytes > size) {
        return refuse(error, "%" PRIu64 " bytes of %" PRIu64 " for the main "
                      "host", begin->main_bytes, size);
    }
    if (is_zero(begin->session, sizeof(begin->session)) ||
        is_zero(begin->heir, sizeof(begin->heir))) {
        return refuse(error, "the session or the destination's id is zero");
    }
    return true;
}

/* The address gets its NUL; what is wrong with the rest is found later. */
static bool get_server(Cursor *payload, MemxSplitServer *server,
                       uint32_t number, GError **error)
{
    uint16_t n = get(payload, 2);

    if (!payload->short_of && (n == 0 || n > MEMX_SPLIT_ADDRESS_MAX)) {
        return refuse(error, "the address of server %u has %u bytes; it has "
                      "from 1 to %u", number, n, MEMX_SPLIT_ADDRESS_MAX);
    }
    get_bytes(payload, server->address, n);
    server->address[n] = 0;
    for (uint16_t i = 0; i < n && !payload->short_of; i++) {
        if (!g_ascii_isgraph(server->address[i])) {
            return refuse(error, "the address of server %u is no text",
                          number);
        }
    }
    get_bytes(payload, server->space, sizeof(server->space));
    get_bytes(payload, server->secret, sizeof(server->secret));
    server->epoch = get(payload, 8);
    if (server->epoch == UINT64_MAX) {
        return refuse(error, "server %s has epoch %" PRIu64
                      ", which nobody can follow", server->address,
                      server->epoch);
    }
    return true;
}

bool memx_split_begin_decode(MemxSplitBegin *begin, const uint8_t *record,
                             size_t bytes, GError **error)
{
    Cursor payload;
    uint32_t version;

    if (!open_record(&payload, MEMX_SPLIT_BEGIN, record, bytes, error)) {
        return false;
    }
    memset(begin, 0, sizeof(*begin));
    version = get(&payload, 4);
    if (version != MEMX_SPLIT_VERSION) {
        return refuse(error, "version %u of the split's table, this host "
                      "knows %u", version, MEMX_SPLIT_VERSION);
    }
    begin->chunk_bytes = get(&payload, 4);
    begin->size_bytes = get(&payload, 8);
    begin->main_bytes = get(&payload, 8);
    get_bytes(&payload, begin->session, sizeof(begin->session));
    get_bytes(&payload, begin->heir, sizeof(begin->heir));
    get_bytes(&payload, begin->hash_key, sizeof(begin->hash_key));
    begin->n_servers = get(&payload, 4);
    if (!payload.short_of &&
        (begin->n_servers == 0 || begin->n_servers > MEMX_SERVERS_MAX)) {
        return refuse(error, "%u servers; there are from 1 to %u",
                      begin->n_servers, MEMX_SERVERS_MAX);
    }
    for (uint32_t i = 0; i < begin->n_servers; i++) {
        if (!get_server(&payload, &begin->servers[i], i, error)) {
            return false;
        }
        for (uint32_t j = 0; j < i && !payload.short_of; j++) {
            if (!strcmp(begin->servers[i].address,
                        begin->servers[j].address)) {
                return refuse(error, "server %s is there twice",
                              begin->servers[i].address);
            }
        }
    }
    return close_record(&payload, "BEGIN", error) &&
           check_sizes(begin, error);
}

/* --- CHUNKS --- */

void memx_split_writer_start(MemxSplitWriter *writer, uint8_t *record,
                             uint32_t first_chunk)
{
    writer->record = record;
    writer->bytes = MEMX_SPLIT_HEADER_BYTES + RUN_BYTES;
    writer->n_chunks = 0;
    put(record + MEMX_SPLIT_HEADER_BYTES, first_chunk, 4);
}

static Kind kind_of(const uint64_t *remote, const uint64_t *in_stream,
                    unsigned n_groups, uint64_t last_mask)
{
    bool all_remote = true, all_main = true, none = true;

    for (unsigned i = 0; i < n_groups; i++) {
        uint64_t all = i == n_groups - 1 ? last_mask : UINT64_MAX;

        all_remote &= remote[i] == all;
        all_main &= in_stream[i] == all;
        none &= !(remote[i] | in_stream[i]);
    }
    return none ? KIND_NONE : all_remote ? KIND_REMOTE :
           all_main ? KIND_MAIN : KIND_MIXED;
}

/* The first group that has a page twice, or one that there isn't; n_groups if
 * all are right. */
static unsigned first_wrong(const uint64_t *remote, const uint64_t *in_stream,
                            unsigned n_groups, uint64_t last_mask)
{
    for (unsigned i = 0; i < n_groups; i++) {
        uint64_t all = i == n_groups - 1 ? last_mask : UINT64_MAX;

        if (remote[i] & in_stream[i] || (remote[i] | in_stream[i]) & ~all) {
            return i;
        }
    }
    return n_groups;
}

static bool any(const uint64_t *words, unsigned n)
{
    uint64_t sum = 0;

    for (unsigned i = 0; i < n; i++) {
        sum |= words[i];
    }
    return sum;
}

bool memx_split_writer_add(MemxSplitWriter *writer, uint8_t server,
                           uint8_t history, const uint64_t *remote,
                           const uint64_t *in_stream, unsigned n_groups,
                           uint64_t last_mask)
{
    Kind kind = kind_of(remote, in_stream, n_groups, last_mask);
    size_t bytes = CHUNK_BYTES + (kind == KIND_MIXED ? 16 * n_groups : 0);
    uint8_t *at = writer->record + writer->bytes;

    assert(n_groups > 0 && n_groups <= MEMX_SPLIT_GROUPS_MAX && last_mask);
    assert(first_wrong(remote, in_stream, n_groups, last_mask) == n_groups);
    assert(server != MEMX_SERVER_NONE || !any(remote, n_groups));
    if (bytes > MEMX_SPLIT_RECORD_MAX - writer->bytes) {
        return false;
    }
    at = put(at, kind, 1);
    at = put(at, server, 1);
    at = put(at, history, 1);
    for (unsigned i = 0; kind == KIND_MIXED && i < n_groups; i++) {
        at = put(at, remote[i], 8);
        at = put(at, in_stream[i], 8);
    }
    writer->bytes += bytes;
    writer->n_chunks++;
    return true;
}

size_t memx_split_writer_end(MemxSplitWriter *writer)
{
    if (writer->n_chunks == 0) {
        return 0;
    }
    put(writer->record + MEMX_SPLIT_HEADER_BYTES + 4, writer->n_chunks, 4);
    return end_record(writer->record, MEMX_SPLIT_CHUNKS,
                      writer->record + writer->bytes);
}

bool memx_split_reader_start(MemxSplitReader *reader,
                             const MemxSplitBegin *begin,
                             const uint8_t *record, size_t bytes,
                             GError **error)
{
    Cursor payload;
    uint32_t n_chunks = memx_split_n_chunks(begin), n;

    if (!open_record(&payload, MEMX_SPLIT_CHUNKS, record, bytes, error)) {
        return false;
    }
    reader->begin = begin;
    reader->next = get(&payload, 4);
    n = get(&payload, 4);
    if (payload.short_of) {
        return close_record(&payload, "CHUNKS", error);
    }
    if (n == 0 || reader->next >= n_chunks || n > n_chunks - reader->next) {
        return refuse(error, "%u chunks from chunk %u on; there are %u", n,
                      reader->next, n_chunks);
    }
    reader->last = reader->next + n;
    reader->at = payload.at;
    reader->end = payload.end;
    return true;
}

static void get_pages(Cursor *payload, MemxSplitChunk *chunk, Kind kind,
                      uint64_t last_mask)
{
    for (unsigned i = 0; i < chunk->n_groups; i++) {
        uint64_t all = i == chunk->n_groups - 1 ? last_mask : UINT64_MAX;

        if (kind == KIND_MIXED) {
            chunk->remote[i] = get(payload, 8);
            chunk->main[i] = get(payload, 8);
        } else {
            chunk->remote[i] = kind == KIND_REMOTE ? all : 0;
            chunk->main[i] = kind == KIND_MAIN ? all : 0;
        }
    }
}

/* What is wrong with a chunk that was read whole. */
static bool check_chunk(const MemxSplitChunk *chunk, Kind kind,
                        const MemxSplitBegin *begin, GError **error)
{
    uint64_t last_mask = memx_split_last_mask(begin, chunk->chunk);
    unsigned wrong = first_wrong(chunk->remote, chunk->main, chunk->n_groups,
                                 last_mask);

    if (kind > KIND_MIXED) {
        return refuse(error, "chunk %u is of unknown kind %u", chunk->chunk,
                      kind);
    }
    if (chunk->server != MEMX_SERVER_NONE &&
        chunk->server >= begin->n_servers) {
        return refuse(error, "chunk %u is on server %u; there are %u",
                      chunk->chunk, chunk->server, begin->n_servers);
    }
    if (wrong < chunk->n_groups) {
        return refuse(error, "group %u of chunk %u has pages that are both "
                      "remote and not, or beyond the memory's end", wrong,
                      chunk->chunk);
    }
    if (chunk->server == MEMX_SERVER_NONE &&
        any(chunk->remote, chunk->n_groups)) {
        return refuse(error, "chunk %u has remote pages, but no server",
                      chunk->chunk);
    }
    if (kind != kind_of(chunk->remote, chunk->main, chunk->n_groups,
                        last_mask)) {
        return refuse(error, "chunk %u is not of kind %u", chunk->chunk,
                      kind);
    }
    return true;
}

int memx_split_reader_next(MemxSplitReader *reader, MemxSplitChunk *chunk,
                           GError **error)
{
    Cursor payload = { reader->at, reader->end, false };
    Kind kind;

    if (reader->next == reader->last) {
        return close_record(&payload, "CHUNKS", error) ? 0 : -1;
    }
    chunk->chunk = reader->next++;
    kind = get(&payload, 1);
    chunk->server = get(&payload, 1);
    chunk->history = get(&payload, 1);
    chunk->n_groups = memx_split_n_groups(reader->begin, chunk->chunk);
    get_pages(&payload, chunk, kind,
              memx_split_last_mask(reader->begin, chunk->chunk));
    reader->at = payload.at;
    if (payload.short_of) {
        close_record(&payload, "CHUNKS", error);
        return -1;
    }
    return check_chunk(chunk, kind, reader->begin, error) ? 1 : -1;
}

/* --- END --- */

size_t memx_split_end_encode(uint8_t *record, const MemxSplitEnd *end)
{
    uint8_t *at = record + MEMX_SPLIT_HEADER_BYTES;

    at = put(at, end->remote_pages, 8);
    at = put(at, end->main_pages, 8);
    at = put(at, end->n_chunks, 4);
    return end_record(record, MEMX_SPLIT_END, at);
}

bool memx_split_end_decode(MemxSplitEnd *end, const MemxSplitBegin *begin,
                           const uint8_t *record, size_t bytes,
                           GError **error)
{
    Cursor payload;
    uint64_t n_pages = memx_split_n_pages(begin);

    if (!open_record(&payload, MEMX_SPLIT_END, record, bytes, error)) {
        return false;
    }
    end->remote_pages = get(&payload, 8);
    end->main_pages = get(&payload, 8);
    end->n_chunks = get(&payload, 4);
    if (!close_record(&payload, "END", error)) {
        return false;
    }
    if (end->remote_pages > n_pages ||
        end->main_pages > n_pages - end->remote_pages) {
        return refuse(error, "%" PRIu64 " pages are remote, %" PRIu64
                      " are not, of %" PRIu64, end->remote_pages,
                      end->main_pages, n_pages);
    }
    if (end->n_chunks != memx_split_n_chunks(begin)) {
        return refuse(error, "%u chunks of %u were described", end->n_chunks,
                      memx_split_n_chunks(begin));
    }
    return true;
}
