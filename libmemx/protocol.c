/*
 * The wire protocol's codec: see memx-protocol.h and docs/protocol.md.
 *
 * A decoder is the border between a peer's bytes and the rest of the
 * program: what passes it has lengths that fit its opcode, counts that can
 * be added without overflow, and strings that end and can be printed.
 *
 * SPDX-License-Identifier: LGPL-2.1-or-later
 */
#include <assert.h>
#include <errno.h>
#include <glib.h>
#include <string.h>
#include "memx-protocol.h"

#define GROUPS_MAX (MEMX_PAGES_MAX / MEMX_GROUP_PAGES)

static void put16(uint8_t *wire, uint16_t value)
{
    value = GUINT16_TO_LE(value);
    memcpy(wire, &value, sizeof(value));
}

static void put32(uint8_t *wire, uint32_t value)
{
    value = GUINT32_TO_LE(value);
    memcpy(wire, &value, sizeof(value));
}

static void put64(uint8_t *wire, uint64_t value)
{
    value = GUINT64_TO_LE(value);
    memcpy(wire, &value, sizeof(value));
}

static uint16_t get16(const uint8_t *wire)
{
    uint16_t value;

    memcpy(&value, wire, sizeof(value));
    return GUINT16_FROM_LE(value);
}

static uint32_t get32(const uint8_t *wire)
{
    uint32_t value;

    memcpy(&value, wire, sizeof(value));
    return GUINT32_FROM_LE(value);
}

static uint64_t get64(const uint8_t *wire)
{
    uint64_t value;

    memcpy(&value, wire, sizeof(value));
    return GUINT64_FROM_LE(value);
}

static bool is_zero(const uint8_t *bytes, size_t n)
{
    uint8_t sum = 0;

    for (size_t i = 0; i < n; i++) {
        sum |= bytes[i];
    }
    return sum == 0;
}

/* --- Request header --- */

void memx_request_encode(uint8_t *wire, const MemxRequest *request)
{
    put32(wire, MEMX_REQUEST_MAGIC);
    put16(wire + 4, request->opcode);
    put16(wire + 6, request->flags);
    put64(wire + 8, request->id);
    put64(wire + 16, request->group);
    put64(wire + 24, request->mask);
    put32(wire + 32, request->body_bytes);
    put32(wire + 36, request->payload_bytes);
}

/* Whether the lengths, group and mask are those of the opcode. */
static bool request_fits(const MemxRequest *r)
{
    unsigned pages = memx_mask_pages(r->mask);
    bool paged = pages > 0 && r->group < GROUPS_MAX;
    bool unpaged = r->mask == 0 && r->group == 0 && r->payload_bytes == 0;

    switch (r->opcode) {
    case MEMX_OP_HELLO:
        return unpaged && r->body_bytes == MEMX_HELLO_BYTES;
    case MEMX_OP_AUTH:
        return unpaged && r->body_bytes == MEMX_PROOF_BYTES;
    case MEMX_OP_OPEN:
        return unpaged && r->body_bytes == MEMX_OPEN_BYTES;
    case MEMX_OP_CLOSE:
        return unpaged && r->body_bytes == 0;
    case MEMX_OP_OFFER:
        return unpaged && r->body_bytes == MEMX_OFFER_BYTES;
    case MEMX_OP_RECLAIM:
    case MEMX_OP_COMMIT:
    case MEMX_OP_RESIGN:
        return unpaged && r->body_bytes == MEMX_ID_BYTES;
    case MEMX_OP_COPY:
        return paged && r->body_bytes == MEMX_SOURCE_BYTES &&
               r->payload_bytes == 0;
    case MEMX_OP_FETCH:
    case MEMX_OP_HASHES:
    case MEMX_OP_DROP:
        return paged && r->body_bytes == 0 && r->payload_bytes == 0;
    case MEMX_OP_STORE:
        return paged && r->body_bytes == pages * MEMX_HASH_BYTES &&
               r->payload_bytes == pages * MEMX_PAGE_BYTES;
    case MEMX_OP_COMPARE:
        return paged && r->body_bytes == pages * MEMX_HASH_BYTES &&
               r->payload_bytes == 0;
    case MEMX_OP_PING:
    case MEMX_OP_RESERVE:
        return r->group <= MEMX_PAGES_MAX && r->mask == 0 &&
               r->body_bytes == 0 && r->payload_bytes == 0;
    default:
        return false;
    }
}

int memx_request_decode(MemxRequest *request, const uint8_t *wire)
{
    if (get32(wire) != MEMX_REQUEST_MAGIC) {
        return -EPROTO;
    }
    *request = (MemxRequest) {
        .opcode = get16(wire + 4),
        .flags = get16(wire + 6),
        .id = get64(wire + 8),
        .group = get64(wire + 16),
        .mask = get64(wire + 24),
        .body_bytes = get32(wire + 32),
        .payload_bytes = get32(wire + 36),
    };
    return request->flags == 0 && request_fits(request) ? 0 : -EPROTO;
}

/* --- Reply header --- */

void memx_reply_encode(uint8_t *wire, const MemxReply *reply)
{
    put32(wire, MEMX_REPLY_MAGIC);
    put16(wire + 4, reply->opcode);
    put16(wire + 6, reply->error);
    put64(wire + 8, reply->id);
    put64(wire + 16, reply->mask);
    put64(wire + 24, reply->free_pages);
    put64(wire + 32, reply->capacity_pages);
    put64(wire + 40, reply->space_pages);
    put32(wire + 48, MIN(reply->load_permille, 1000));
    put32(wire + 52, reply->body_bytes);
    put32(wire + 56, reply->payload_bytes);
    put32(wire + 60, reply->flags);
}

static bool reply_fits(const MemxReply *r)
{
    uint32_t body_bytes = 0;
    bool payload = false;

    switch (r->opcode) {
    case MEMX_OP_HELLO:
        body_bytes = MEMX_WELCOME_BYTES;
        break;
    case MEMX_OP_AUTH:
        body_bytes = MEMX_PROOF_BYTES;
        break;
    case MEMX_OP_OPEN:
        body_bytes = MEMX_OPENED_BYTES;
        break;
    case MEMX_OP_FETCH:
    case MEMX_OP_HASHES:
        payload = true;
        break;
    case MEMX_OP_PING:
    case MEMX_OP_STORE:
    case MEMX_OP_COMPARE:
    case MEMX_OP_DROP:
    case MEMX_OP_RESERVE:
    case MEMX_OP_CLOSE:
    case MEMX_OP_OFFER:
    case MEMX_OP_RECLAIM:
    case MEMX_OP_COMMIT:
    case MEMX_OP_RESIGN:
    case MEMX_OP_COPY:
        break;
    default:
        return false;
    }
    if (r->error != MEMX_ERR_NONE) {
        return r->body_bytes == 0 && r->payload_bytes == 0;
    }
    if (r->body_bytes != body_bytes) {
        return false;
    }
    return payload ? r->payload_bytes > 0 &&
                     r->payload_bytes <= MEMX_PAYLOAD_MAX &&
                     r->payload_bytes % MEMX_PAGE_BYTES == 0
                   : r->payload_bytes == 0;
}

/* Fault path. */
int memx_reply_decode(MemxReply *reply, const uint8_t *wire)
{
    if (get32(wire) != MEMX_REPLY_MAGIC) {
        return -EPROTO;
    }
    *reply = (MemxReply) {
        .opcode = get16(wire + 4),
        .error = get16(wire + 6),
        .id = get64(wire + 8),
        .mask = get64(wire + 16),
        .free_pages = get64(wire + 24),
        .capacity_pages = get64(wire + 32),
        .space_pages = get64(wire + 40),
        .load_permille = get32(wire + 48),
        .body_bytes = get32(wire + 52),
        .payload_bytes = get32(wire + 56),
        .flags = get32(wire + 60),
    };
    if (reply->free_pages > MEMX_PAGES_MAX ||
        reply->capacity_pages > MEMX_PAGES_MAX ||
        reply->space_pages > MEMX_PAGES_MAX || reply->load_permille > 1000 ||
        (reply->flags & ~MEMX_REPLY_DRAINING)) {
        return -EPROTO;
    }
    return reply_fits(reply) ? 0 : -EPROTO;
}

/* --- HELLO --- */

void memx_hello_encode(uint8_t *wire, const MemxHello *hello)
{
    put32(wire, hello->version_min);
    put32(wire + 4, hello->version_max);
    put64(wire + 8, hello->features);
    memcpy(wire + 16, hello->nonce, MEMX_NONCE_BYTES);
    put64(wire + 48, 0);
}

int memx_hello_decode(MemxHello *hello, const uint8_t *wire, size_t bytes)
{
    if (bytes != MEMX_HELLO_BYTES || get64(wire + 48) != 0) {
        return -EPROTO;
    }
    hello->version_min = get32(wire);
    hello->version_max = get32(wire + 4);
    hello->features = get64(wire + 8);
    memcpy(hello->nonce, wire + 16, MEMX_NONCE_BYTES);
    if (hello->version_min == 0 ||
        hello->version_min > hello->version_max) {
        return -EPROTO;
    }
    return 0;
}

void memx_welcome_encode(uint8_t *wire, const MemxWelcome *welcome)
{
    put32(wire, welcome->version);
    put32(wire + 4, welcome->flags);
    put64(wire + 8, welcome->features);
    memcpy(wire + 16, welcome->instance, MEMX_ID_BYTES);
    memcpy(wire + 32, welcome->nonce, MEMX_NONCE_BYTES);
    put64(wire + 64, 0);
}

int memx_welcome_decode(MemxWelcome *w, const uint8_t *wire, size_t bytes)
{
    if (bytes != MEMX_WELCOME_BYTES || get64(wire + 64) != 0) {
        return -EPROTO;
    }
    w->version = get32(wire);
    w->flags = get32(wire + 4);
    w->features = get64(wire + 8);
    memcpy(w->instance, wire + 16, MEMX_ID_BYTES);
    memcpy(w->nonce, wire + 32, MEMX_NONCE_BYTES);
    if (w->version == 0 || (w->flags & ~MEMX_WELCOME_AUTH)) {
        return -EPROTO;
    }
    return 0;
}

/* --- OPEN --- */

void memx_name_set(char name[MEMX_NAME_BYTES], const char *text)
{
    size_t used = 0;

    memset(name, 0, MEMX_NAME_BYTES);
    while (text && *text) {
        gunichar c = g_utf8_get_char_validated(text, -1);
        bool valid = c != (gunichar)-1 && c != (gunichar)-2;
        const char *next = valid ? g_utf8_next_char(text) : text + 1;
        bool keep = valid && !g_unichar_iscntrl(c);
        size_t bytes = keep ? (size_t)(next - text) : 1;

        if (used + bytes >= MEMX_NAME_BYTES) {
            break;
        }
        memcpy(name + used, keep ? text : "?", bytes);
        used += bytes;
        text = next;
    }
}

/* Whatever @name holds, what goes out is a name that decodes. */
static void name_encode(uint8_t *wire, const char name[MEMX_NAME_BYTES])
{
    char text[MEMX_NAME_BYTES], clean[MEMX_NAME_BYTES];

    memcpy(text, name, MEMX_NAME_BYTES);
    text[MEMX_NAME_BYTES - 1] = '\0';
    memx_name_set(clean, text);
    memcpy(wire, clean, MEMX_NAME_BYTES);
}

/* Names end up on terminals and in logs: no control characters. */
static int name_decode(char name[MEMX_NAME_BYTES], const uint8_t *wire)
{
    size_t length = strnlen((const char *)wire, MEMX_NAME_BYTES);

    if (length == MEMX_NAME_BYTES ||
        !is_zero(wire + length, MEMX_NAME_BYTES - length) ||
        !g_utf8_validate((const char *)wire, length, NULL)) {
        return -EPROTO;
    }
    for (const char *p = (const char *)wire; *p; p = g_utf8_next_char(p)) {
        if (g_unichar_iscntrl(g_utf8_get_char(p))) {
            return -EPROTO;
        }
    }
    memcpy(name, wire, MEMX_NAME_BYTES);
    return 0;
}

void memx_open_encode(uint8_t *wire, const MemxOpen *open)
{
    memset(wire, 0, MEMX_OPEN_BYTES);
    memcpy(wire, open->space, MEMX_ID_BYTES);
    memcpy(wire + 16, open->client, MEMX_ID_BYTES);
    put32(wire + 32, open->lane);
    put32(wire + 36, open->flags);
    put64(wire + 40, open->epoch);
    put64(wire + 48, open->size_pages);
    put64(wire + 56, open->reserve_pages);
    memcpy(wire + 64, open->secret, MEMX_ID_BYTES);
    memcpy(wire + 80, open->proof, MEMX_PROOF_BYTES);
    name_encode(wire + 112, open->vm_name);
    name_encode(wire + 176, open->region_name);
    memcpy(wire + 240, open->vm_uuid, MEMX_ID_BYTES);
    memcpy(wire + 256, open->session, MEMX_ID_BYTES);
}

/* A session comes with HEIR, and with nothing else. */
static bool session_fits(const MemxOpen *open)
{
    bool heir = open->flags & MEMX_OPEN_HEIR;

    return heir != is_zero(open->session, MEMX_ID_BYTES) &&
           !(heir && ((open->flags & MEMX_OPEN_CREATE) ||
                      open->lane == MEMX_LANE_READER));
}

int memx_open_decode(MemxOpen *open, const uint8_t *wire, size_t bytes)
{
    if (bytes != MEMX_OPEN_BYTES) {
        return -EPROTO;
    }
    memcpy(open->space, wire, MEMX_ID_BYTES);
    memcpy(open->client, wire + 16, MEMX_ID_BYTES);
    open->lane = get32(wire + 32);
    open->flags = get32(wire + 36);
    open->epoch = get64(wire + 40);
    open->size_pages = get64(wire + 48);
    open->reserve_pages = get64(wire + 56);
    memcpy(open->secret, wire + 64, MEMX_ID_BYTES);
    memcpy(open->proof, wire + 80, MEMX_PROOF_BYTES);
    memcpy(open->vm_uuid, wire + 240, MEMX_ID_BYTES);
    memcpy(open->session, wire + 256, MEMX_ID_BYTES);
    if (open->lane < MEMX_LANE_ORDERED || open->lane > MEMX_LANE_READER ||
        (open->flags & ~(MEMX_OPEN_CREATE | MEMX_OPEN_HEIR)) ||
        !session_fits(open) ||
        open->size_pages > MEMX_PAGES_MAX ||
        open->reserve_pages > MEMX_PAGES_MAX) {
        return -EPROTO;
    }
    if (open->flags & MEMX_OPEN_CREATE) {
        if (open->lane != MEMX_LANE_ORDERED || open->size_pages == 0 ||
            !is_zero(open->proof, MEMX_PROOF_BYTES)) {
            return -EPROTO;
        }
    } else if (open->reserve_pages ||
               !is_zero(open->secret, MEMX_ID_BYTES)) {
        return -EPROTO;
    }
    if (name_decode(open->vm_name, wire + 112) < 0) {
        return -EPROTO;
    }
    return name_decode(open->region_name, wire + 176);
}

void memx_opened_encode(uint8_t *wire, const MemxOpened *opened)
{
    put64(wire, opened->epoch);
    put64(wire + 8, opened->size_pages);
    put64(wire + 16, opened->reserved_pages);
    put64(wire + 24, opened->held_pages);
}

int memx_opened_decode(MemxOpened *o, const uint8_t *wire, size_t bytes)
{
    if (bytes != MEMX_OPENED_BYTES) {
        return -EPROTO;
    }
    o->epoch = get64(wire);
    o->size_pages = get64(wire + 8);
    o->reserved_pages = get64(wire + 16);
    o->held_pages = get64(wire + 24);
    if (o->size_pages == 0 || o->size_pages > MEMX_PAGES_MAX ||
        o->reserved_pages > MEMX_PAGES_MAX ||
        o->held_pages > o->size_pages) {
        return -EPROTO;
    }
    return 0;
}

/* --- Hand-over --- */

void memx_offer_encode(uint8_t *wire, const MemxOffer *offer)
{
    memcpy(wire, offer->session, MEMX_ID_BYTES);
    memcpy(wire + 16, offer->heir, MEMX_ID_BYTES);
}

int memx_offer_decode(MemxOffer *offer, const uint8_t *wire, size_t bytes)
{
    if (bytes != MEMX_OFFER_BYTES || is_zero(wire, MEMX_ID_BYTES) ||
        is_zero(wire + 16, MEMX_ID_BYTES)) {
        return -EPROTO;
    }
    memcpy(offer->session, wire, MEMX_ID_BYTES);
    memcpy(offer->heir, wire + 16, MEMX_ID_BYTES);
    return 0;
}

void memx_source_encode(uint8_t *wire, const MemxSource *source)
{
    memset(wire, 0, MEMX_SOURCE_BYTES);
    memcpy(wire, source->space, MEMX_ID_BYTES);
    memcpy(wire + 16, source->secret, MEMX_ID_BYTES);
    g_strlcpy((char *)wire + 32, source->address, MEMX_ADDRESS_BYTES);
}

int memx_source_decode(MemxSource *source, const uint8_t *wire, size_t bytes)
{
    const char *address = (const char *)wire + 32;
    size_t length;

    if (bytes != MEMX_SOURCE_BYTES) {
        return -EPROTO;
    }
    length = strnlen(address, MEMX_ADDRESS_BYTES);
    if (!length || length == MEMX_ADDRESS_BYTES ||
        !is_zero(wire + 32 + length, MEMX_ADDRESS_BYTES - length)) {
        return -EPROTO;
    }
    for (size_t i = 0; i < length; i++) {
        if (!g_ascii_isgraph(address[i])) {
            return -EPROTO;
        }
    }
    memcpy(source->space, wire, MEMX_ID_BYTES);
    memcpy(source->secret, wire + 16, MEMX_ID_BYTES);
    memcpy(source->address, address, MEMX_ADDRESS_BYTES);
    return 0;
}

int memx_session_decode(uint8_t session[MEMX_ID_BYTES], const uint8_t *wire,
                        size_t bytes)
{
    if (bytes != MEMX_ID_BYTES || is_zero(wire, MEMX_ID_BYTES)) {
        return -EPROTO;
    }
    memcpy(session, wire, MEMX_ID_BYTES);
    return 0;
}

/* --- Names --- */

static const char *const error_names[] = {
    [MEMX_ERR_NONE] = "no error",
    [MEMX_ERR_MALFORMED] = "malformed message",
    [MEMX_ERR_VERSION] = "no common protocol version",
    [MEMX_ERR_AUTH] = "wrong key",
    [MEMX_ERR_NO_SPACE] = "no such space, or wrong secret",
    [MEMX_ERR_OWNED] = "space is owned by another client",
    [MEMX_ERR_EXISTS] = "space exists already",
    [MEMX_ERR_FULL] = "full",
    [MEMX_ERR_RANGE] = "beyond the space's size",
    [MEMX_ERR_NOT_HELD] = "page is not held",
    [MEMX_ERR_EPOCH] = "a newer owner exists",
    [MEMX_ERR_LANE] = "not on this lane or in this state",
    [MEMX_ERR_SHUTDOWN] = "server is shutting down",
    [MEMX_ERR_INTERNAL] = "internal error",
    [MEMX_ERR_OFFERED] = "space is being handed over",
    [MEMX_ERR_SOURCE] = "the server to copy from does not serve it",
    [MEMX_ERR_DRAINING] = "server is being drained",
};
static_assert(G_N_ELEMENTS(error_names) == MEMX_ERR_DRAINING + 1,
              "each error has a name");

const char *memx_error_name(unsigned error)
{
    return error < G_N_ELEMENTS(error_names) ? error_names[error]
                                             : "unknown error";
}

const char *memx_opcode_name(unsigned opcode)
{
    switch (opcode) {
    case MEMX_OP_HELLO:
        return "HELLO";
    case MEMX_OP_AUTH:
        return "AUTH";
    case MEMX_OP_OPEN:
        return "OPEN";
    case MEMX_OP_PING:
        return "PING";
    case MEMX_OP_FETCH:
        return "FETCH";
    case MEMX_OP_HASHES:
        return "HASHES";
    case MEMX_OP_COPY:
        return "COPY";
    case MEMX_OP_STORE:
        return "STORE";
    case MEMX_OP_COMPARE:
        return "COMPARE";
    case MEMX_OP_DROP:
        return "DROP";
    case MEMX_OP_RESERVE:
        return "RESERVE";
    case MEMX_OP_CLOSE:
        return "CLOSE";
    case MEMX_OP_OFFER:
        return "OFFER";
    case MEMX_OP_RECLAIM:
        return "RECLAIM";
    case MEMX_OP_COMMIT:
        return "COMMIT";
    case MEMX_OP_RESIGN:
        return "RESIGN";
    default:
        return "unknown opcode";
    }
}
