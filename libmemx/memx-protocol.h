/*
 * The wire protocol between a client (the engine in libmemx) and a memserver.
 *
 * docs/protocol.md is normative; this header changes with it in one commit,
 * and tests/unit/test-protocol.c pins every size, offset and number.
 *
 * Every integer on the wire is little-endian.  A message is a fixed header, a
 * body of header.body_bytes (small: hashes, strings, proofs) and a payload of
 * header.payload_bytes (whole pages, in ascending order of their number).
 * Pages are addressed as a group of 64 consecutive pages and a mask of the
 * pages in it, bit 0 being the group's first page.
 *
 * SPDX-License-Identifier: LGPL-2.1-or-later
 */
#ifndef MEMX_PROTOCOL_H
#define MEMX_PROTOCOL_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define MEMX_PROTOCOL_VERSION 1

#define MEMX_PAGE_BYTES 4096u
#define MEMX_GROUP_PAGES 64u
#define MEMX_GROUP_BYTES (MEMX_GROUP_PAGES * MEMX_PAGE_BYTES)
#define MEMX_HASH_BYTES 16u
#define MEMX_ID_BYTES 16u       /* space id, client id, instance id, secret */
#define MEMX_NONCE_BYTES 32u
#define MEMX_PROOF_BYTES 32u    /* HMAC-SHA256 */
#define MEMX_NAME_BYTES 64u     /* UTF-8, padded with zeros, last byte zero */

#define MEMX_REQUEST_MAGIC 0x5158454du /* "MEXQ" */
#define MEMX_REPLY_MAGIC 0x5058454du   /* "MEXP" */
#define MEMX_REQUEST_BYTES 40u
#define MEMX_REPLY_BYTES 64u
#define MEMX_BODY_MAX (MEMX_GROUP_PAGES * MEMX_HASH_BYTES) /* 1024 */
#define MEMX_PAYLOAD_MAX MEMX_GROUP_BYTES
#define MEMX_PAGES_MAX (1ull << 40)    /* every count of pages, 4 PiB */

typedef enum MemxOpcode {
    /* Handshake: in this order, on each connection. */
    MEMX_OP_HELLO = 1,    /* body: MemxHello; reply body: MemxWelcome */
    MEMX_OP_AUTH = 2,     /* body: client's proof; reply body: server's */
    MEMX_OP_OPEN = 3,     /* body: MemxOpen; reply body: MemxOpened */

    /* Any lane, also without a space. */
    MEMX_OP_PING = 8,     /* the reply header says it all; group: pages that
                             the client would reserve, 0: just asking */

    /* Any lane of a space, a reader's too. */
    MEMX_OP_FETCH = 16,   /* mask; reply payload: the pages of mask */
    MEMX_OP_HASHES = 17,  /* mask; reply payload: a page, see below */

    /* The ordered lane only. */
    MEMX_OP_STORE = 32,   /* mask, body: a hash per page, payload: pages */
    MEMX_OP_COMPARE = 33, /* mask, body: a hash per page; reply mask: pages
                             that differ from, or are not in, the space */
    MEMX_OP_DROP = 34,    /* mask: these pages are given up; idempotent */
    MEMX_OP_RESERVE = 35, /* group: pages to reserve from now on (absolute) */
    MEMX_OP_CLOSE = 36,   /* the space ends and is dropped with its pages */

    /* The ordered lane only: hand-over from the owner to its heir. */
    MEMX_OP_OFFER = 37,   /* owner; body: MemxOffer */
    MEMX_OP_RECLAIM = 38, /* owner; body: session: takes the offer back */
    MEMX_OP_COMMIT = 39,  /* heir; body: session: is the owner from now on */
    MEMX_OP_RESIGN = 40,  /* owner; body: session: will never reclaim */

    /* The ordered lane only. */
    MEMX_OP_COPY = 41,    /* mask, body: MemxSource: as STORE, but the server
                             fetches pages and hashes from another one */
} MemxOpcode;

/* Reply.error.  MEMX_ERR_NO_SPACE covers a wrong secret too, on purpose. */
typedef enum MemxError {
    MEMX_ERR_NONE = 0,
    MEMX_ERR_MALFORMED = 1,   /* then the server closes the connection */
    MEMX_ERR_VERSION = 2,     /* no common protocol version; closes */
    MEMX_ERR_AUTH = 3,        /* key missing or wrong; closes */
    MEMX_ERR_NO_SPACE = 4,    /* no such space, or not with this secret */
    MEMX_ERR_OWNED = 5,       /* another client owns the space */
    MEMX_ERR_EXISTS = 6,      /* CREATE of a space id that is in use */
    MEMX_ERR_FULL = 7,        /* capacity; nothing was changed */
    MEMX_ERR_RANGE = 8,       /* a page beyond the space's size */
    MEMX_ERR_NOT_HELD = 9,    /* FETCH of a page that the space lacks */
    MEMX_ERR_EPOCH = 10,      /* fenced: a newer owner exists, or the offer
                                 was taken back; final */
    MEMX_ERR_LANE = 11,       /* this opcode isn't for this lane or state */
    MEMX_ERR_SHUTDOWN = 12,   /* the server is going; connect again */
    MEMX_ERR_INTERNAL = 13,   /* the server's log says what */
    MEMX_ERR_OFFERED = 14,    /* not while the space is offered to an heir */
    MEMX_ERR_SOURCE = 15,     /* COPY: the source can't be reached, does not
                                 answer in time, or refuses; nothing done */
    MEMX_ERR_DRAINING = 16,   /* the server is being emptied: no new space, no
                                 larger reservation */
} MemxError;

/* What a connection is for; one of each kind per space and side
 * (owner, heir). */
typedef enum MemxLane {
    MEMX_LANE_NONE = 0,    /* no space: PING only (memxctl doctor) */
    MEMX_LANE_ORDERED = 1, /* all that changes a space, in order */
    MEMX_LANE_FAULT = 2,   /* reads that a vCPU waits for */
    MEMX_LANE_FETCH = 3,   /* prefetch reads */
    MEMX_LANE_READER = 4,  /* another server's, for COPY: reads only, with the
                              space's reader secret; several per space */
} MemxLane;

/* Feature bits of hello; what both sides set is in force. */
#define MEMX_FEATURE_TLS (1ull << 0) /* reserved, not implemented */

/* Welcome.flags */
#define MEMX_WELCOME_AUTH (1u << 0)  /* AUTH is required before OPEN */

/* Open.flags */
#define MEMX_OPEN_CREATE (1u << 0)   /* else: attach to an existing space */
#define MEMX_OPEN_HEIR (1u << 1)     /* attach by an offer; see session */

/* Decoded headers; host byte order. */
typedef struct MemxRequest {
    uint16_t opcode;
    uint16_t flags;         /* zero */
    uint64_t id;            /* echoed by the reply */
    uint64_t group;
    uint64_t mask;
    uint32_t body_bytes;
    uint32_t payload_bytes;
} MemxRequest;

typedef struct MemxReply {
    uint16_t opcode;
    uint16_t error;         /* MemxError */
    uint64_t id;
    uint64_t mask;
    uint64_t free_pages;    /* neither held nor reserved, on the server */
    uint64_t capacity_pages;
    uint64_t space_pages;   /* held in this space; 0 before OPEN */
    uint32_t load_permille; /* of the server's CPUs, 0..1000 */
    uint32_t body_bytes;
    uint32_t payload_bytes;
    uint32_t flags;
} MemxReply;

/* Reply.flags */
#define MEMX_REPLY_DRAINING (1u << 0) /* the server's administrator wants it
                                         to be emptied */

/* Wire layout of the request header (40 bytes)
 *  0 u32 magic   4 u16 opcode   6 u16 flags   8 u64 id  16 u64 group
 * 24 u64 mask   32 u32 body_bytes            36 u32 payload_bytes
 * and of the reply header (64 bytes)
 *  0 u32 magic   4 u16 opcode   6 u16 error   8 u64 id  16 u64 mask
 * 24 u64 free_pages  32 u64 capacity_pages   40 u64 space_pages
 * 48 u32 load_permille  52 u32 body_bytes    56 u32 payload_bytes
 * 60 u32 flags
 */

/* Body of HELLO, 56 bytes:  0 u32 version_min  4 u32 version_max
 *  8 u64 features  16 u8 nonce[32]  48 u64 reserved (zero) */
typedef struct MemxHello {
    uint32_t version_min;
    uint32_t version_max;
    uint64_t features;
    uint8_t nonce[MEMX_NONCE_BYTES];
} MemxHello;
#define MEMX_HELLO_BYTES 56u

/* Body of HELLO's reply, 72 bytes:  0 u32 version  4 u32 flags
 *  8 u64 features  16 u8 instance[16]  32 u8 nonce[32]  64 u64 reserved */
typedef struct MemxWelcome {
    uint32_t version;
    uint32_t flags;
    uint64_t features;
    uint8_t instance[MEMX_ID_BYTES]; /* of the page store: new = came back
                                        empty, same = came back with all */
    uint8_t nonce[MEMX_NONCE_BYTES];
} MemxWelcome;
#define MEMX_WELCOME_BYTES 72u

/* Body of OPEN, 272 bytes:
 *   0 u8 space[16]    16 u8 client[16]   32 u32 lane      36 u32 flags
 *  40 u64 epoch       48 u64 size_pages  56 u64 reserve_pages
 *  64 u8 secret[16] (CREATE: wrapped, see docs/protocol.md; else zero)
 *  80 u8 proof[32]  (attach: HMAC with the secret; CREATE: zero)
 * 112 u8 vm_name[64] 176 u8 region_name[64] 240 u8 vm_uuid[16]
 * 256 u8 session[16] (HEIR; else zero) */
typedef struct MemxOpen {
    uint8_t space[MEMX_ID_BYTES];
    uint8_t client[MEMX_ID_BYTES];
    uint32_t lane;              /* MemxLane */
    uint32_t flags;
    uint64_t epoch;             /* HEIR: the offering owner's + 1 */
    uint64_t size_pages;        /* CREATE: at least 1; attach: 0, the same */
    uint64_t reserve_pages;     /* CREATE only */
    uint8_t secret[MEMX_ID_BYTES];
    uint8_t proof[MEMX_PROOF_BYTES];
    char vm_name[MEMX_NAME_BYTES];
    char region_name[MEMX_NAME_BYTES];
    uint8_t vm_uuid[MEMX_ID_BYTES];
    uint8_t session[MEMX_ID_BYTES]; /* HEIR: of the offer; never zero */
} MemxOpen;
#define MEMX_OPEN_BYTES 272u

/* Body of OPEN's reply, 32 bytes:  0 u64 epoch  8 u64 size_pages
 * 16 u64 reserved_pages  24 u64 held_pages */
typedef struct MemxOpened {
    uint64_t epoch;             /* the owner's: an heir that finds its own
                                   has committed */
    uint64_t size_pages;
    uint64_t reserved_pages;
    uint64_t held_pages;
} MemxOpened;
#define MEMX_OPENED_BYTES 32u

/* Body of OFFER, 32 bytes:  0 u8 session[16]  16 u8 heir[16]
 * and of RECLAIM, COMMIT and RESIGN, 16 bytes:  0 u8 session[16] */
typedef struct MemxOffer {
    uint8_t session[MEMX_ID_BYTES]; /* random, new for each; never zero */
    uint8_t heir[MEMX_ID_BYTES];    /* its client id; never zero */
} MemxOffer;
#define MEMX_OFFER_BYTES 32u

/* Body of COPY, 304 bytes:  0 u8 space[16]
 * 16 u8 secret[16] (the reader secret, wrapped)  32 u8 address[272] */
#define MEMX_ADDRESS_BYTES 272u
typedef struct MemxSource {
    uint8_t space[MEMX_ID_BYTES];
    uint8_t secret[MEMX_ID_BYTES];
    char address[MEMX_ADDRESS_BYTES]; /* "host:port"; printable ASCII, padded
                                         with zeros, last byte zero */
} MemxSource;
#define MEMX_SOURCE_BYTES 304u

/*
 * Encoders write exactly the named number of bytes; decoders read as many and
 * return 0, or -EPROTO for what no correct peer sends (bad magic, a length
 * above the maximum, a payload that doesn't fit the mask, a name without its
 * final zero, reserved fields not zero ...).  Nothing is allocated.
 */
void memx_request_encode(uint8_t *wire, const MemxRequest *request);
int memx_request_decode(MemxRequest *request, const uint8_t *wire);
void memx_reply_encode(uint8_t *wire, const MemxReply *reply);
int memx_reply_decode(MemxReply *reply, const uint8_t *wire);
void memx_hello_encode(uint8_t *wire, const MemxHello *hello);
int memx_hello_decode(MemxHello *hello, const uint8_t *wire, size_t bytes);
void memx_welcome_encode(uint8_t *wire, const MemxWelcome *welcome);
int memx_welcome_decode(MemxWelcome *w, const uint8_t *wire, size_t bytes);
void memx_open_encode(uint8_t *wire, const MemxOpen *open);
int memx_open_decode(MemxOpen *open, const uint8_t *wire, size_t bytes);
void memx_opened_encode(uint8_t *wire, const MemxOpened *opened);
int memx_opened_decode(MemxOpened *o, const uint8_t *wire, size_t bytes);
void memx_offer_encode(uint8_t *wire, const MemxOffer *offer);
int memx_offer_decode(MemxOffer *offer, const uint8_t *wire, size_t bytes);
void memx_source_encode(uint8_t *wire, const MemxSource *source);
int memx_source_decode(MemxSource *source, const uint8_t *wire, size_t bytes);
/* The body of RECLAIM, COMMIT and RESIGN is the session as it is. */
int memx_session_decode(uint8_t session[MEMX_ID_BYTES], const uint8_t *wire,
                        size_t bytes);

/* Fills @name from @text (or NULL: empty) the way an Open's names must be:
 * cut at a character's border, control characters replaced, padded. */
void memx_name_set(char name[MEMX_NAME_BYTES], const char *text);

/* "full", "wrong key", ...: for messages and logs; never NULL. */
const char *memx_error_name(unsigned error);
const char *memx_opcode_name(unsigned opcode);

static inline unsigned memx_mask_pages(uint64_t mask)
{
    return (unsigned)__builtin_popcountll(mask);
}

#endif
