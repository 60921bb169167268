/*
 * Records: what the source of a split migration tells the destination about
 * one region.  QEMU carries them in its stream without looking at them.
 *
 * A record is {u32 type, u32 bytes of payload} and the payload, at most
 * MEMX_SPLIT_RECORD_MAX in all; integers are little-endian.
 *
 *   BEGIN   first, once: u32 version, u32 chunk_bytes, u64 size_bytes,
 *           u64 main_bytes, session 16, heir's client id 16, hash key 16,
 *           u32 servers (1..16), and for each u16 bytes of its address, the
 *           address, space id 16, secret 16, u64 epoch of the owner
 *   CHUNKS  any number: u32 first chunk, u32 chunks (from 1 on), and for each
 *           u8 kind, u8 server, u8 history; kind MIXED: for each group of the
 *           chunk u64 remote, u64 main.  What comes later counts.
 *   END     last, once: u64 remote_pages, u64 main_pages, u32 chunks: sums
 *           over the region as it is now, to be compared
 *
 * Each page is remote (on the chunk's server), main (the stream has, or had,
 * its latest version), or neither: never written.  A chunk of which all pages
 * are the same has a kind of its own; each table is written in one way only.
 *
 * A record is the border between a peer's bytes and the engine, as protocol.c
 * is: what a decoder lets pass is in range and adds up, and may still be a
 * lie about which pages there are.
 *
 * SPDX-License-Identifier: LGPL-2.1-or-later
 */
#ifndef MEMX_SPLIT_RECORD_H
#define MEMX_SPLIT_RECORD_H

#include "memx.h"
#include "page-table.h"

#define MEMX_SPLIT_VERSION 1
#define MEMX_SPLIT_HEADER_BYTES 8u
#define MEMX_SPLIT_KEY_BYTES 16u     /* AES-128: the key of the page hash */
#define MEMX_SPLIT_ADDRESS_MAX 271u  /* without the NUL */
#define MEMX_SPLIT_GROUPS_MAX 256u   /* of a chunk, 64 MiB */

typedef enum {
    MEMX_SPLIT_BEGIN = 1,
    MEMX_SPLIT_CHUNKS = 2,
    MEMX_SPLIT_END = 3,
} MemxSplitType;

typedef struct MemxSplitServer {
    char address[MEMX_SPLIT_ADDRESS_MAX + 1]; /* printable, ends with NUL */
    uint8_t space[MEMX_ID_BYTES];
    uint8_t secret[MEMX_ID_BYTES];
    uint64_t epoch;         /* the owner's; the heir's is one more */
} MemxSplitServer;

typedef struct MemxSplitBegin {
    uint32_t chunk_bytes;
    uint64_t size_bytes;
    uint64_t main_bytes;    /* local size at the destination */
    uint8_t session[MEMX_SESSION_BYTES];
    uint8_t heir[MEMX_ID_BYTES];
    uint8_t hash_key[MEMX_SPLIT_KEY_BYTES];
    uint32_t n_servers;
    MemxSplitServer servers[MEMX_SERVERS_MAX];
} MemxSplitBegin;

typedef struct MemxSplitEnd {
    uint64_t remote_pages;
    uint64_t main_pages;
    uint32_t n_chunks;      /* of the region: each has to be described */
} MemxSplitEnd;

/* The region's geometry, of a BEGIN that was decoded. */
uint64_t memx_split_n_pages(const MemxSplitBegin *begin);
uint32_t memx_split_n_chunks(const MemxSplitBegin *begin);
/* Groups of a chunk; the region's last chunk may have fewer. */
unsigned memx_split_n_groups(const MemxSplitBegin *begin, uint32_t chunk);
/* The pages that exist in the last group of a chunk. */
uint64_t memx_split_last_mask(const MemxSplitBegin *begin, uint32_t chunk);

/* --- Encoders.  @record has room for MEMX_SPLIT_RECORD_MAX bytes; the size
 * of the record is returned. --- */

size_t memx_split_begin_encode(uint8_t *record, const MemxSplitBegin *begin);
size_t memx_split_end_encode(uint8_t *record, const MemxSplitEnd *end);

/* Consecutive chunks, one by one. */
typedef struct MemxSplitWriter {
    uint8_t *record;
    size_t bytes;           /* written so far */
    uint32_t n_chunks;
} MemxSplitWriter;

void memx_split_writer_start(MemxSplitWriter *writer, uint8_t *record,
                             uint32_t first_chunk);
/*
 * Appends the next chunk: @remote and @in_stream are its @n_groups words each;
 * no page is in both, none beyond @last_mask in the last one; with a remote
 * page there is a server.  False: the record is full, the chunk is not in it.
 * An empty record takes any chunk.
 */
bool memx_split_writer_add(MemxSplitWriter *writer, uint8_t server,
                           uint8_t history, const uint64_t *remote,
                           const uint64_t *in_stream, unsigned n_groups,
                           uint64_t last_mask);
/* The size of the record; 0 if nothing was added. */
size_t memx_split_writer_end(MemxSplitWriter *writer);

/* --- Decoders.  Errors are MEMX_ERROR_INVALID. --- */

/* The type of a record whose length is right, or 0. */
unsigned memx_split_record_type(const uint8_t *record, size_t bytes,
                                GError **error);

bool memx_split_begin_decode(MemxSplitBegin *begin, const uint8_t *record,
                             size_t bytes, GError **error);
bool memx_split_end_decode(MemxSplitEnd *end, const MemxSplitBegin *begin,
                           const uint8_t *record, size_t bytes,
                           GError **error);

typedef struct MemxSplitChunk {
    uint32_t chunk;
    uint8_t server;         /* < n_servers, or MEMX_SERVER_NONE */
    uint8_t history;
    unsigned n_groups;      /* words of the two that follow */
    uint64_t remote[MEMX_SPLIT_GROUPS_MAX];
    uint64_t main[MEMX_SPLIT_GROUPS_MAX];
} MemxSplitChunk;

typedef struct MemxSplitReader {
    const MemxSplitBegin *begin;
    const uint8_t *at;
    const uint8_t *end;
    uint32_t next, last;    /* chunks: the next one; one past the last */
} MemxSplitReader;

/* @begin and @record outlive the reader. */
bool memx_split_reader_start(MemxSplitReader *reader,
                             const MemxSplitBegin *begin,
                             const uint8_t *record, size_t bytes,
                             GError **error);
/* 1: @chunk is the next one; 0: there was none left; -1: see @error, and the
 * chunks so far are worth nothing. */
int memx_split_reader_next(MemxSplitReader *reader, MemxSplitChunk *chunk,
                           GError **error);

#endif
