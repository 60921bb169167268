/*
 * Pins the wire protocol: sizes, numbers and golden bytes, made by hand
 * after docs/protocol.md, and everything that a decoder has to refuse.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#include <errno.h>
#include <glib.h>
#include <string.h>
#include "memx-protocol.h"

/* --- Golden bytes --- */

static const char store_hex[] =
    "4d45585120000000080706050403020155443322030000000300000000000080"
    "3000000000300000";
static const char fetch_reply_hex[] =
    "4d45585010000000080706050403020103000000000000004433221100000000"
    "8877665500000000bbaa99000000000009030000000000000020000000000000";
static const char hello_hex[] =
    "01000000030000000100000000000080202122232425262728292a2b2c2d2e2f"
    "303132333435363738393a3b3c3d3e3f0000000000000000";
static const char welcome_hex[] =
    "01000000010000000100000000000000606162636465666768696a6b6c6d6e6f"
    "202122232425262728292a2b2c2d2e2f303132333435363738393a3b3c3d3e3f"
    "0000000000000000";
static const char create_hex[] =
    "101112131415161718191a1b1c1d1e1f303132333435363738393a3b3c3d3e3f"
    "0100000001000000010203040506070800001000000000000000080000000000"
    "505152535455565758595a5b5c5d5e5f00000000000000000000000000000000"
    "00000000000000000000000000000000766d2dc3a90000000000000000000000"
    "0000000000000000000000000000000000000000000000000000000000000000"
    "0000000000000000000000000000000070632e72616d00000000000000000000"
    "0000000000000000000000000000000000000000000000000000000000000000"
    "00000000000000000000000000000000707172737475767778797a7b7c7d7e7f"
    "00000000000000000000000000000000";
static const char heir_hex[] =
    "101112131415161718191a1b1c1d1e1f303132333435363738393a3b3c3d3e3f"
    "0200000002000000070000000000000000000000000000000000000000000000"
    "00000000000000000000000000000000909192939495969798999a9b9c9d9e9f"
    "a0a1a2a3a4a5a6a7a8a9aaabacadaeaf766d0000000000000000000000000000"
    "0000000000000000000000000000000000000000000000000000000000000000"
    "0000000000000000000000000000000070632e72616d00000000000000000000"
    "0000000000000000000000000000000000000000000000000000000000000000"
    "00000000000000000000000000000000707172737475767778797a7b7c7d7e7f"
    "b0b1b2b3b4b5b6b7b8b9babbbcbdbebf";
static const char offer_hex[] =
    "b0b1b2b3b4b5b6b7b8b9babbbcbdbebf303132333435363738393a3b3c3d3e3f";
static const char session_hex[] = "b0b1b2b3b4b5b6b7b8b9babbbcbdbebf";
static const char opened_hex[] =
    "0500000000000000000010000000000000000800000000003412000000000000";

static size_t unhex(uint8_t *bytes, const char *hex)
{
    size_t n = strlen(hex) / 2;

    for (size_t i = 0; i < n; i++) {
        bytes[i] = g_ascii_xdigit_value(hex[2 * i]) * 16 +
                   g_ascii_xdigit_value(hex[2 * i + 1]);
    }
    return n;
}

static void assert_golden(const uint8_t *wire, size_t bytes, const char *hex)
{
    uint8_t golden[MEMX_OPEN_BYTES];

    g_assert_cmpuint(unhex(golden, hex), ==, bytes);
    g_assert_cmpmem(wire, bytes, golden, bytes);
}

static void count_up(uint8_t *bytes, size_t n, uint8_t first)
{
    for (size_t i = 0; i < n; i++) {
        bytes[i] = first + i;
    }
}

static void test_request_golden(void)
{
    MemxRequest request = {
        .opcode = MEMX_OP_STORE,
        .id = 0x0102030405060708,
        .group = 0x0322334455,
        .mask = 0x8000000000000003,
        .body_bytes = 48,
        .payload_bytes = 12288,
    }, decoded;
    uint8_t wire[MEMX_REQUEST_BYTES];

    memx_request_encode(wire, &request);
    assert_golden(wire, sizeof(wire), store_hex);
    g_assert_cmpint(memx_request_decode(&decoded, wire), ==, 0);
    g_assert_cmpuint(decoded.opcode, ==, request.opcode);
    g_assert_cmpuint(decoded.flags, ==, 0);
    g_assert_cmpuint(decoded.id, ==, request.id);
    g_assert_cmpuint(decoded.group, ==, request.group);
    g_assert_cmpuint(decoded.mask, ==, request.mask);
    g_assert_cmpuint(decoded.body_bytes, ==, request.body_bytes);
    g_assert_cmpuint(decoded.payload_bytes, ==, request.payload_bytes);
}

static void test_reply_golden(void)
{
    MemxReply reply = {
        .opcode = MEMX_OP_FETCH,
        .id = 0x0102030405060708,
        .mask = 3,
        .free_pages = 0x11223344,
        .capacity_pages = 0x55667788,
        .space_pages = 0x99aabb,
        .load_permille = 777,
        .payload_bytes = 8192,
    }, decoded;
    uint8_t wire[MEMX_REPLY_BYTES];

    memx_reply_encode(wire, &reply);
    assert_golden(wire, sizeof(wire), fetch_reply_hex);
    g_assert_cmpint(memx_reply_decode(&decoded, wire), ==, 0);
    g_assert_cmpuint(decoded.opcode, ==, reply.opcode);
    g_assert_cmpuint(decoded.error, ==, MEMX_ERR_NONE);
    g_assert_cmpuint(decoded.id, ==, reply.id);
    g_assert_cmpuint(decoded.mask, ==, reply.mask);
    g_assert_cmpuint(decoded.free_pages, ==, reply.free_pages);
    g_assert_cmpuint(decoded.capacity_pages, ==, reply.capacity_pages);
    g_assert_cmpuint(decoded.space_pages, ==, reply.space_pages);
    g_assert_cmpuint(decoded.load_permille, ==, reply.load_permille);
    g_assert_cmpuint(decoded.body_bytes, ==, 0);
    g_assert_cmpuint(decoded.payload_bytes, ==, reply.payload_bytes);
}

static void test_hello_golden(void)
{
    MemxHello hello = {
        .version_min = 1, .version_max = 3, .features = 0x8000000000000001,
    }, decoded;
    uint8_t wire[MEMX_HELLO_BYTES];

    count_up(hello.nonce, MEMX_NONCE_BYTES, 0x20);
    memx_hello_encode(wire, &hello);
    assert_golden(wire, sizeof(wire), hello_hex);
    g_assert_cmpint(memx_hello_decode(&decoded, wire, sizeof(wire)), ==, 0);
    g_assert_cmpmem(&decoded, sizeof(decoded), &hello, sizeof(hello));
}

static void test_welcome_golden(void)
{
    MemxWelcome welcome = {
        .version = 1, .flags = MEMX_WELCOME_AUTH, .features = 1,
    }, decoded;
    uint8_t wire[MEMX_WELCOME_BYTES];

    count_up(welcome.instance, MEMX_ID_BYTES, 0x60);
    count_up(welcome.nonce, MEMX_NONCE_BYTES, 0x20);
    memx_welcome_encode(wire, &welcome);
    assert_golden(wire, sizeof(wire), welcome_hex);
    g_assert_cmpint(memx_welcome_decode(&decoded, wire, sizeof(wire)), ==,
                    0);
    g_assert_cmpmem(&decoded, sizeof(decoded), &welcome, sizeof(welcome));
}

static void test_open_golden(void)
{
    MemxOpen open, decoded;
    uint8_t wire[MEMX_OPEN_BYTES];

    memset(&open, 0, sizeof(open));
    open.lane = MEMX_LANE_ORDERED;
    open.flags = MEMX_OPEN_CREATE;
    open.epoch = 0x0807060504030201;
    open.size_pages = 0x100000;
    open.reserve_pages = 0x80000;
    count_up(open.space, MEMX_ID_BYTES, 0x10);
    count_up(open.client, MEMX_ID_BYTES, 0x30);
    count_up(open.secret, MEMX_ID_BYTES, 0x50);
    count_up(open.vm_uuid, MEMX_ID_BYTES, 0x70);
    memx_name_set(open.vm_name, "vm-\303\251");
    memx_name_set(open.region_name, "pc.ram");
    memx_open_encode(wire, &open);
    assert_golden(wire, sizeof(wire), create_hex);
    memset(&decoded, 0, sizeof(decoded));
    g_assert_cmpint(memx_open_decode(&decoded, wire, sizeof(wire)), ==, 0);
    g_assert_cmpmem(&decoded, sizeof(decoded), &open, sizeof(open));
}

static void test_heir_golden(void)
{
    MemxOpen open, decoded;
    uint8_t wire[MEMX_OPEN_BYTES];

    memset(&open, 0, sizeof(open));
    open.lane = MEMX_LANE_FAULT;
    open.flags = MEMX_OPEN_HEIR;
    open.epoch = 7;
    count_up(open.space, MEMX_ID_BYTES, 0x10);
    count_up(open.client, MEMX_ID_BYTES, 0x30);
    count_up(open.proof, MEMX_PROOF_BYTES, 0x90);
    count_up(open.vm_uuid, MEMX_ID_BYTES, 0x70);
    count_up(open.session, MEMX_ID_BYTES, 0xb0);
    memx_name_set(open.vm_name, "vm");
    memx_name_set(open.region_name, "pc.ram");
    memx_open_encode(wire, &open);
    assert_golden(wire, sizeof(wire), heir_hex);
    memset(&decoded, 0, sizeof(decoded));
    g_assert_cmpint(memx_open_decode(&decoded, wire, sizeof(wire)), ==, 0);
    g_assert_cmpmem(&decoded, sizeof(decoded), &open, sizeof(open));
}

static void test_offer_golden(void)
{
    MemxOffer offer, decoded;
    uint8_t wire[MEMX_OFFER_BYTES], session[MEMX_ID_BYTES];

    count_up(offer.session, MEMX_ID_BYTES, 0xb0);
    count_up(offer.heir, MEMX_ID_BYTES, 0x30);
    memx_offer_encode(wire, &offer);
    assert_golden(wire, sizeof(wire), offer_hex);
    g_assert_cmpint(memx_offer_decode(&decoded, wire, sizeof(wire)), ==, 0);
    g_assert_cmpmem(&decoded, sizeof(decoded), &offer, sizeof(offer));
    g_assert_cmpint(memx_session_decode(session, wire, MEMX_ID_BYTES), ==, 0);
    assert_golden(session, sizeof(session), session_hex);
}

static void test_source_golden(void)
{
    MemxSource source = { .address = "[fe80::1]:7701" }, decoded;
    uint8_t wire[MEMX_SOURCE_BYTES], bad[MEMX_SOURCE_BYTES];
    static const struct {
        size_t offset;
        uint8_t byte;
    } damages[] = {
        { 32, '\0' }, { 33, ' ' }, { 34, 0x7f }, { 35, 0xc3 }, { 60, 'x' },
        { MEMX_SOURCE_BYTES - 1, 1 },
    };

    count_up(source.space, MEMX_ID_BYTES, 0x10);
    count_up(source.secret, MEMX_ID_BYTES, 0x50);
    memx_source_encode(wire, &source);
    g_assert_cmpmem(wire, MEMX_ID_BYTES, source.space, MEMX_ID_BYTES);
    g_assert_cmpmem(wire + 16, MEMX_ID_BYTES, source.secret, MEMX_ID_BYTES);
    g_assert_cmpstr((char *)wire + 32, ==, "[fe80::1]:7701");
    g_assert_cmpint(memx_source_decode(&decoded, wire, sizeof(wire)), ==, 0);
    g_assert_cmpmem(&decoded, sizeof(decoded), &source, sizeof(source));
    g_assert_cmpint(memx_source_decode(&decoded, wire, sizeof(wire) - 1), ==,
                    -EPROTO);
    for (size_t i = 0; i < G_N_ELEMENTS(damages); i++) {
        memcpy(bad, wire, sizeof(bad));
        bad[damages[i].offset] = damages[i].byte;
        g_assert_cmpint(memx_source_decode(&decoded, bad, sizeof(bad)), ==,
                        -EPROTO);
    }
    memset(wire + 32, 'x', MEMX_ADDRESS_BYTES);
    g_assert_cmpint(memx_source_decode(&decoded, wire, sizeof(wire)), ==,
                    -EPROTO);
}

static void test_opened_golden(void)
{
    MemxOpened opened = { 5, 0x100000, 0x80000, 0x1234 }, decoded;
    uint8_t wire[MEMX_OPENED_BYTES];

    memx_opened_encode(wire, &opened);
    assert_golden(wire, sizeof(wire), opened_hex);
    g_assert_cmpint(memx_opened_decode(&decoded, wire, sizeof(wire)), ==, 0);
    g_assert_cmpmem(&decoded, sizeof(decoded), &opened, sizeof(opened));
}

static void test_numbers(void)
{
    g_assert_cmpuint(MEMX_OP_HELLO, ==, 1);
    g_assert_cmpuint(MEMX_OP_AUTH, ==, 2);
    g_assert_cmpuint(MEMX_OP_OPEN, ==, 3);
    g_assert_cmpuint(MEMX_OP_PING, ==, 8);
    g_assert_cmpuint(MEMX_OP_FETCH, ==, 16);
    g_assert_cmpuint(MEMX_OP_STORE, ==, 32);
    g_assert_cmpuint(MEMX_OP_COMPARE, ==, 33);
    g_assert_cmpuint(MEMX_OP_DROP, ==, 34);
    g_assert_cmpuint(MEMX_OP_RESERVE, ==, 35);
    g_assert_cmpuint(MEMX_OP_CLOSE, ==, 36);
    g_assert_cmpuint(MEMX_OP_OFFER, ==, 37);
    g_assert_cmpuint(MEMX_OP_RECLAIM, ==, 38);
    g_assert_cmpuint(MEMX_OP_COMMIT, ==, 39);
    g_assert_cmpuint(MEMX_OP_RESIGN, ==, 40);
    g_assert_cmpuint(MEMX_OP_HASHES, ==, 17);
    g_assert_cmpuint(MEMX_OP_COPY, ==, 41);

    g_assert_cmpuint(MEMX_ERR_NONE, ==, 0);
    g_assert_cmpuint(MEMX_ERR_MALFORMED, ==, 1);
    g_assert_cmpuint(MEMX_ERR_VERSION, ==, 2);
    g_assert_cmpuint(MEMX_ERR_AUTH, ==, 3);
    g_assert_cmpuint(MEMX_ERR_NO_SPACE, ==, 4);
    g_assert_cmpuint(MEMX_ERR_OWNED, ==, 5);
    g_assert_cmpuint(MEMX_ERR_EXISTS, ==, 6);
    g_assert_cmpuint(MEMX_ERR_FULL, ==, 7);
    g_assert_cmpuint(MEMX_ERR_RANGE, ==, 8);
    g_assert_cmpuint(MEMX_ERR_NOT_HELD, ==, 9);
    g_assert_cmpuint(MEMX_ERR_EPOCH, ==, 10);
    g_assert_cmpuint(MEMX_ERR_LANE, ==, 11);
    g_assert_cmpuint(MEMX_ERR_SHUTDOWN, ==, 12);
    g_assert_cmpuint(MEMX_ERR_INTERNAL, ==, 13);
    g_assert_cmpuint(MEMX_ERR_OFFERED, ==, 14);
    g_assert_cmpuint(MEMX_ERR_SOURCE, ==, 15);
    g_assert_cmpuint(MEMX_ERR_DRAINING, ==, 16);

    g_assert_cmpuint(MEMX_LANE_ORDERED, ==, 1);
    g_assert_cmpuint(MEMX_LANE_FAULT, ==, 2);
    g_assert_cmpuint(MEMX_LANE_FETCH, ==, 3);
    g_assert_cmpuint(MEMX_LANE_READER, ==, 4);
    g_assert_cmpuint(MEMX_REPLY_DRAINING, ==, 1);
    g_assert_cmpuint(MEMX_SOURCE_BYTES, ==, 304);
    g_assert_cmpuint(MEMX_FEATURE_TLS, ==, 1);
    g_assert_cmpuint(MEMX_WELCOME_AUTH, ==, 1);
    g_assert_cmpuint(MEMX_OPEN_CREATE, ==, 1);
    g_assert_cmpuint(MEMX_OPEN_HEIR, ==, 2);
    g_assert_cmpuint(MEMX_OFFER_BYTES, ==, 32);
    g_assert_cmpuint(MEMX_PROTOCOL_VERSION, ==, 1);
    g_assert_cmpuint(MEMX_BODY_MAX, ==, 1024);
    g_assert_cmpuint(MEMX_PAYLOAD_MAX, ==, 262144);
}

static void test_names(void)
{
    for (unsigned i = 0; i <= MEMX_ERR_DRAINING; i++) {
        g_assert_cmpstr(memx_error_name(i), !=, "unknown error");
    }
    g_assert_cmpstr(memx_error_name(MEMX_ERR_DRAINING + 1), ==,
                    "unknown error");
    g_assert_cmpstr(memx_error_name(UINT_MAX), ==, "unknown error");
    g_assert_cmpstr(memx_opcode_name(MEMX_OP_STORE), ==, "STORE");
    g_assert_cmpstr(memx_opcode_name(MEMX_OP_RESIGN), ==, "RESIGN");
    g_assert_cmpstr(memx_opcode_name(MEMX_OP_COPY), ==, "COPY");
    g_assert_cmpstr(memx_opcode_name(MEMX_OP_HASHES), ==, "HASHES");
    g_assert_cmpstr(memx_opcode_name(UINT_MAX), ==, "unknown opcode");
}

/* --- What is refused --- */

typedef struct Shape {
    unsigned opcode;
    uint64_t group;
    uint64_t mask;
    uint32_t body_bytes;
    uint32_t payload_bytes;
} Shape;

static int decode_shape(const Shape *shape)
{
    MemxRequest request = {
        .opcode = shape->opcode,
        .group = shape->group,
        .mask = shape->mask,
        .body_bytes = shape->body_bytes,
        .payload_bytes = shape->payload_bytes,
    }, decoded;
    uint8_t wire[MEMX_REQUEST_BYTES];

    memx_request_encode(wire, &request);
    return memx_request_decode(&decoded, wire);
}

#define LAST_GROUP (MEMX_PAGES_MAX / MEMX_GROUP_PAGES - 1)

static void test_request_shapes(void)
{
    static const Shape good[] = {
        { MEMX_OP_HELLO, 0, 0, 56, 0 },
        { MEMX_OP_AUTH, 0, 0, 32, 0 },
        { MEMX_OP_OPEN, 0, 0, 272, 0 },
        { MEMX_OP_PING, 0, 0, 0, 0 },
        { MEMX_OP_PING, MEMX_PAGES_MAX, 0, 0, 0 },
        { MEMX_OP_FETCH, 7, 1, 0, 0 },
        { MEMX_OP_FETCH, LAST_GROUP, UINT64_MAX, 0, 0 },
        { MEMX_OP_STORE, 0, 1, 16, 4096 },
        { MEMX_OP_STORE, 0, UINT64_MAX, 1024, 262144 },
        { MEMX_OP_COMPARE, 0, 5, 32, 0 },
        { MEMX_OP_DROP, 0, 5, 0, 0 },
        { MEMX_OP_RESERVE, 0, 0, 0, 0 },
        { MEMX_OP_RESERVE, MEMX_PAGES_MAX, 0, 0, 0 },
        { MEMX_OP_CLOSE, 0, 0, 0, 0 },
        { MEMX_OP_OFFER, 0, 0, 32, 0 },
        { MEMX_OP_RECLAIM, 0, 0, 16, 0 },
        { MEMX_OP_COMMIT, 0, 0, 16, 0 },
        { MEMX_OP_RESIGN, 0, 0, 16, 0 },
        { MEMX_OP_HASHES, 7, 1, 0, 0 },
        { MEMX_OP_COPY, LAST_GROUP, 5, 304, 0 },
    };
    static const Shape bad[] = {
        { 0, 0, 0, 0, 0 },
        { 4, 0, 0, 0, 0 },
        { 42, 0, 1, 304, 0 },
        { MEMX_OP_COPY, 0, 0, 304, 0 },
        { MEMX_OP_COPY, 0, 1, 303, 0 },
        { MEMX_OP_COPY, 0, 1, 304, 4096 },
        { MEMX_OP_COPY, LAST_GROUP + 1, 1, 304, 0 },
        { MEMX_OP_HASHES, 0, 0, 0, 0 },
        { MEMX_OP_HASHES, 0, 1, 16, 0 },
        { 0xffff, 0, 0, 0, 0 },
        { MEMX_OP_HELLO, 0, 0, 55, 0 },
        { MEMX_OP_HELLO, 1, 0, 56, 0 },
        { MEMX_OP_HELLO, 0, 1, 56, 0 },
        { MEMX_OP_HELLO, 0, 0, 56, 1 },
        { MEMX_OP_AUTH, 0, 0, 33, 0 },
        { MEMX_OP_OPEN, 0, 0, 0xffffffff, 0 },
        { MEMX_OP_PING, MEMX_PAGES_MAX + 1, 0, 0, 0 },
        { MEMX_OP_PING, 0, 1, 0, 0 },
        { MEMX_OP_PING, 0, 0, 1, 0 },
        { MEMX_OP_PING, MEMX_PAGES_MAX + 1, 0, 0, 0 },
        { MEMX_OP_PING, 0, 0, 0, 4096 },
        { MEMX_OP_FETCH, 7, 0, 0, 0 },
        { MEMX_OP_FETCH, 7, 1, 16, 0 },
        { MEMX_OP_FETCH, 7, 1, 0, 4096 },
        { MEMX_OP_FETCH, LAST_GROUP + 1, 1, 0, 0 },
        { MEMX_OP_FETCH, UINT64_MAX, 1, 0, 0 },
        { MEMX_OP_STORE, 0, 0, 0, 0 },
        { MEMX_OP_STORE, 0, 3, 16, 8192 },
        { MEMX_OP_STORE, 0, 3, 32, 4096 },
        { MEMX_OP_STORE, 0, 3, 32, 8191 },
        { MEMX_OP_STORE, 0, 3, 32, 0xffffffff },
        { MEMX_OP_STORE, 0, UINT64_MAX, 1024, 262145 },
        { MEMX_OP_STORE, LAST_GROUP + 1, 1, 16, 4096 },
        { MEMX_OP_COMPARE, 0, 5, 16, 0 },
        { MEMX_OP_COMPARE, 0, 5, 32, 4096 },
        { MEMX_OP_COMPARE, 0, 0, 0, 0 },
        { MEMX_OP_DROP, 0, 0, 0, 0 },
        { MEMX_OP_DROP, LAST_GROUP + 1, 5, 0, 0 },
        { MEMX_OP_RESERVE, 0, 1, 0, 0 },
        { MEMX_OP_RESERVE, MEMX_PAGES_MAX + 1, 0, 0, 0 },
        { MEMX_OP_CLOSE, 1, 0, 0, 0 },
        { MEMX_OP_OFFER, 0, 0, 16, 0 },
        { MEMX_OP_OFFER, 1, 0, 32, 0 },
        { MEMX_OP_OFFER, 0, 1, 32, 0 },
        { MEMX_OP_OFFER, 0, 0, 32, 4096 },
        { MEMX_OP_RECLAIM, 0, 0, 0, 0 },
        { MEMX_OP_RECLAIM, 0, 1, 16, 0 },
        { MEMX_OP_COMMIT, 0, 0, 32, 0 },
        { MEMX_OP_COMMIT, 1, 0, 16, 0 },
        { MEMX_OP_RESIGN, 0, 0, 17, 0 },
        { MEMX_OP_RESIGN, 0, 0, 16, 1 },
    };

    for (size_t i = 0; i < G_N_ELEMENTS(good); i++) {
        g_test_message("good shape %zu", i);
        g_assert_cmpint(decode_shape(&good[i]), ==, 0);
    }
    for (size_t i = 0; i < G_N_ELEMENTS(bad); i++) {
        g_test_message("bad shape %zu", i);
        g_assert_cmpint(decode_shape(&bad[i]), ==, -EPROTO);
    }
}

/* A good message in which some bytes are replaced. */
typedef struct Damage {
    const char *what;
    size_t offset;
    size_t n;
    const char *bytes;
} Damage;

typedef int Decode(const uint8_t *wire, size_t bytes);

static int decode_request(const uint8_t *wire, size_t bytes)
{
    MemxRequest request;

    return memx_request_decode(&request, wire);
}

static int decode_reply(const uint8_t *wire, size_t bytes)
{
    MemxReply reply;

    return memx_reply_decode(&reply, wire);
}

static int decode_hello(const uint8_t *wire, size_t bytes)
{
    MemxHello hello;

    return memx_hello_decode(&hello, wire, bytes);
}

static int decode_welcome(const uint8_t *wire, size_t bytes)
{
    MemxWelcome welcome;

    return memx_welcome_decode(&welcome, wire, bytes);
}

static int decode_open(const uint8_t *wire, size_t bytes)
{
    MemxOpen open;

    return memx_open_decode(&open, wire, bytes);
}

static int decode_opened(const uint8_t *wire, size_t bytes)
{
    MemxOpened opened;

    return memx_opened_decode(&opened, wire, bytes);
}

static int decode_offer(const uint8_t *wire, size_t bytes)
{
    MemxOffer offer;

    return memx_offer_decode(&offer, wire, bytes);
}

static int decode_session(const uint8_t *wire, size_t bytes)
{
    uint8_t session[MEMX_ID_BYTES];

    return memx_session_decode(session, wire, bytes);
}

static void refuse(Decode *decode, const char *hex, const Damage *damages,
                   size_t n)
{
    uint8_t wire[MEMX_OPEN_BYTES];
    size_t bytes = unhex(wire, hex);

    g_assert_cmpint(decode(wire, bytes), ==, 0);
    for (size_t i = 0; i < n; i++) {
        unhex(wire, hex);
        memcpy(wire + damages[i].offset, damages[i].bytes, damages[i].n);
        g_test_message("%s", damages[i].what);
        g_assert_cmpint(decode(wire, bytes), ==, -EPROTO);
    }
}

#define FF8 "\377\377\377\377\377\377\377\377"

static void test_request_refused(void)
{
    static const Damage damages[] = {
        { "magic", 0, 1, "X" },
        { "a reply's magic", 3, 1, "P" },
        { "opcode", 4, 1, "\077" },
        { "flags", 6, 1, "\001" },
        { "flags, high", 7, 1, "\200" },
        { "group", 23, 1, "\001" },
        { "mask", 24, 1, "\001" },
        { "body", 32, 1, "\040" },
        { "payload", 36, 4, "\001\060\0\0" },
    };

    refuse(decode_request, store_hex, damages, G_N_ELEMENTS(damages));
}

static void test_reply_refused(void)
{
    static const Damage damages[] = {
        { "magic", 0, 1, "X" },
        { "a request's magic", 3, 1, "Q" },
        { "opcode", 4, 1, "\077" },
        { "an error with a payload", 6, 1, "\011" },
        { "free pages", 24, 8, FF8 },
        { "capacity", 32, 8, FF8 },
        { "pages of the space", 40, 8, FF8 },
        { "load", 48, 2, "\351\003" },
        { "a body", 52, 1, "\001" },
        { "half a page", 56, 2, "\0\050" },
        { "no page", 56, 2, "\0\0" },
        { "65 pages", 56, 3, "\0\020\004" },
        { "payload", 56, 4, FF8 },
        { "an unknown flag", 60, 1, "\002" },
        { "reserved", 63, 1, "\001" },
        { "a PING's payload", 4, 1, "\010" },
    };

    refuse(decode_reply, fetch_reply_hex, damages, G_N_ELEMENTS(damages));
}

static void test_hello_refused(void)
{
    static const Damage damages[] = {
        { "version 0", 0, 1, "\0" },
        { "least above highest", 0, 1, "\004" },
        { "reserved", 55, 1, "\001" },
    };

    refuse(decode_hello, hello_hex, damages, G_N_ELEMENTS(damages));
}

static void test_welcome_refused(void)
{
    static const Damage damages[] = {
        { "version 0", 0, 1, "\0" },
        { "an unknown flag", 4, 1, "\003" },
        { "reserved", 64, 1, "\001" },
    };

    refuse(decode_welcome, welcome_hex, damages, G_N_ELEMENTS(damages));
}

static void test_open_refused(void)
{
    static const Damage damages[] = {
        { "no lane", 32, 1, "\0" },
        { "an unknown lane", 32, 1, "\005" },
        { "CREATE as a reader", 32, 1, "\004" },
        { "CREATE on the fault lane", 32, 1, "\002" },
        { "an unknown flag", 36, 1, "\005" },
        { "CREATE and HEIR", 36, 1, "\003" },
        { "attach with a secret and a reservation", 36, 1, "\0" },
        { "CREATE of size 0", 50, 1, "\0" },
        { "size", 48, 8, FF8 },
        { "reservation", 56, 8, FF8 },
        { "CREATE with a proof", 111, 1, "\001" },
        { "a name without end", 112, 64,
          "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef" },
        { "something behind a name's end", 150, 1, "x" },
        { "a name that is not UTF-8", 115, 1, "\377" },
        { "a newline in a name", 115, 2, "\n-" },
        { "a C1 control character in a name", 115, 2, "\302\233" },
        { "an escape in the region's name", 176, 1, "\033" },
        { "CREATE with a session", 256, 1, "\001" },
        { "CREATE with a session, end", 271, 1, "\001" },
    };

    refuse(decode_open, create_hex, damages, G_N_ELEMENTS(damages));
}

#define ZERO16 "\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0"

static void test_heir_refused(void)
{
    static const Damage damages[] = {
        { "a session without HEIR", 36, 1, "\0" },
        { "HEIR and CREATE", 36, 1, "\003" },
        { "no session", 256, 16, ZERO16 },
        { "a reservation", 56, 1, "\001" },
        { "a secret", 64, 1, "\001" },
    };

    refuse(decode_open, heir_hex, damages, G_N_ELEMENTS(damages));
}

static void test_offer_refused(void)
{
    static const Damage damages[] = {
        { "no session", 0, 16, ZERO16 },
        { "no heir", 16, 16, ZERO16 },
    };

    refuse(decode_offer, offer_hex, damages, G_N_ELEMENTS(damages));
    refuse(decode_session, session_hex, damages, 1);
}

static void test_attach(void)
{
    MemxOpen open = { .lane = MEMX_LANE_FAULT }, decoded;
    uint8_t wire[MEMX_OPEN_BYTES];

    open.proof[31] = 1;
    memx_open_encode(wire, &open);
    g_assert_cmpint(memx_open_decode(&decoded, wire, sizeof(wire)), ==, 0);
    wire[56] = 1;
    g_assert_cmpint(memx_open_decode(&decoded, wire, sizeof(wire)), ==,
                    -EPROTO);
    wire[56] = 0;
    wire[64] = 1;
    g_assert_cmpint(memx_open_decode(&decoded, wire, sizeof(wire)), ==,
                    -EPROTO);
}

static void test_opened_refused(void)
{
    static const Damage damages[] = {
        { "size 0", 8, 3, "\0\0\0" },
        { "size", 8, 8, FF8 },
        { "reservation", 16, 8, FF8 },
        { "more held than its size", 24, 8, "\001\0\020\0\0\0\0\0" },
    };

    refuse(decode_opened, opened_hex, damages, G_N_ELEMENTS(damages));
}

static void test_lengths_refused(void)
{
    uint8_t wire[MEMX_OPEN_BYTES + 1] = { 0 };
    static const struct {
        Decode *decode;
        const char *hex;
    } bodies[] = {
        { decode_hello, hello_hex },
        { decode_welcome, welcome_hex },
        { decode_open, create_hex },
        { decode_open, heir_hex },
        { decode_offer, offer_hex },
        { decode_session, session_hex },
        { decode_opened, opened_hex },
    };

    for (size_t i = 0; i < G_N_ELEMENTS(bodies); i++) {
        size_t bytes = unhex(wire, bodies[i].hex);

        for (size_t n = 0; n <= bytes + 1; n++) {
            g_assert_cmpint(bodies[i].decode(wire, n), ==,
                            n == bytes ? 0 : -EPROTO);
        }
    }
}

/* An error has neither body nor payload, whatever its number. */
static void test_errors(void)
{
    MemxReply reply = { .opcode = MEMX_OP_HELLO, .error = 0xffff }, decoded;
    uint8_t wire[MEMX_REPLY_BYTES];

    memx_reply_encode(wire, &reply);
    g_assert_cmpint(memx_reply_decode(&decoded, wire), ==, 0);
    g_assert_cmpuint(decoded.error, ==, 0xffff);
    reply.body_bytes = MEMX_WELCOME_BYTES;
    memx_reply_encode(wire, &reply);
    g_assert_cmpint(memx_reply_decode(&decoded, wire), ==, -EPROTO);
}

/* What an encoder makes of its caller's excess is still a good message. */
static void test_encoders_are_strict(void)
{
    MemxReply reply = { .opcode = MEMX_OP_PING, .load_permille = 5000 };
    MemxOpen open = {
        .lane = MEMX_LANE_ORDERED,
        .flags = MEMX_OPEN_CREATE,
        .size_pages = 1,
    }, decoded;
    uint8_t reply_wire[MEMX_REPLY_BYTES], open_wire[MEMX_OPEN_BYTES];

    memx_reply_encode(reply_wire, &reply);
    g_assert_cmpint(memx_reply_decode(&reply, reply_wire), ==, 0);
    g_assert_cmpuint(reply.load_permille, ==, 1000);

    memset(open.vm_name, 'x', MEMX_NAME_BYTES);
    memcpy(open.region_name, "a\n\377b", 4);
    memx_open_encode(open_wire, &open);
    g_assert_cmpint(memx_open_decode(&decoded, open_wire, sizeof(open_wire)),
                    ==, 0);
    g_assert_cmpuint(strlen(decoded.vm_name), ==, MEMX_NAME_BYTES - 1);
    g_assert_cmpstr(decoded.region_name, ==, "a??b");
}

static void test_name_set(void)
{
    char name[MEMX_NAME_BYTES];
    g_autofree char *a62 = g_strnfill(62, 'a');
    g_autofree char *cut = g_strconcat(a62, "\303\251", NULL);

    memx_name_set(name, NULL);
    g_assert_cmpstr(name, ==, "");
    memx_name_set(name, "web 1");
    g_assert_cmpstr(name, ==, "web 1");
    /* Two bytes that would not both fit. */
    memx_name_set(name, cut);
    g_assert_cmpstr(name, ==, a62);
}

int main(int argc, char **argv)
{
    g_test_init(&argc, &argv, NULL);
    g_test_add_func("/memx/protocol/golden/request", test_request_golden);
    g_test_add_func("/memx/protocol/golden/reply", test_reply_golden);
    g_test_add_func("/memx/protocol/golden/hello", test_hello_golden);
    g_test_add_func("/memx/protocol/golden/welcome", test_welcome_golden);
    g_test_add_func("/memx/protocol/golden/open", test_open_golden);
    g_test_add_func("/memx/protocol/golden/heir", test_heir_golden);
    g_test_add_func("/memx/protocol/golden/offer", test_offer_golden);
    g_test_add_func("/memx/protocol/golden/opened", test_opened_golden);
    g_test_add_func("/memx/protocol/golden/source", test_source_golden);
    g_test_add_func("/memx/protocol/numbers", test_numbers);
    g_test_add_func("/memx/protocol/names", test_names);
    g_test_add_func("/memx/protocol/request-shapes", test_request_shapes);
    g_test_add_func("/memx/protocol/refused/request", test_request_refused);
    g_test_add_func("/memx/protocol/refused/reply", test_reply_refused);
    g_test_add_func("/memx/protocol/refused/hello", test_hello_refused);
    g_test_add_func("/memx/protocol/refused/welcome", test_welcome_refused);
    g_test_add_func("/memx/protocol/refused/open", test_open_refused);
    g_test_add_func("/memx/protocol/refused/heir", test_heir_refused);
    g_test_add_func("/memx/protocol/refused/offer", test_offer_refused);
    g_test_add_func("/memx/protocol/refused/opened", test_opened_refused);
    g_test_add_func("/memx/protocol/refused/lengths", test_lengths_refused);
    g_test_add_func("/memx/protocol/attach", test_attach);
    g_test_add_func("/memx/protocol/errors", test_errors);
    g_test_add_func("/memx/protocol/encoders", test_encoders_are_strict);
    g_test_add_func("/memx/protocol/name-set", test_name_set);
    return g_test_run();
}
