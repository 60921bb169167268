/* SPDX-License-Identifier: GPL-2.0-or-later */
#include <errno.h>
#include <string.h>
#include "memserver-client.h"

#define PAGE_WORDS (MEMX_PAGE_BYTES / sizeof(uint64_t))

Client *client_new(const char *address, GBytes *key)
{
    g_autoptr(GError) error = NULL;
    Client *client = g_new0(Client, 1);

    client->peer = memx_peer_new(&memx_transport_tcp, address, key, &error);
    g_assert_no_error(error);
    memx_random(client->open.space, MEMX_ID_BYTES);
    memx_random(client->open.client, MEMX_ID_BYTES);
    memx_random(client->open.secret, MEMX_ID_BYTES);
    memx_random(client->open.vm_uuid, MEMX_ID_BYTES);
    client->open.epoch = 1;
    strcpy(client->open.vm_name, "test-vm");
    strcpy(client->open.region_name, "ram");
    return client;
}

Client *client_new_rival(const Client *client)
{
    Client *rival = client_new(client->peer->address, client->peer->key);

    memcpy(rival->open.space, client->open.space, MEMX_ID_BYTES);
    memcpy(rival->open.secret, client->open.secret, MEMX_ID_BYTES);
    rival->open.size_pages = client->open.size_pages;
    return rival;
}

Client *client_new_heir(const Client *owner, const uint8_t *session)
{
    Client *heir = client_new_rival(owner);

    heir->inherits = true;
    heir->open.epoch = owner->open.epoch + 1;
    memcpy(heir->open.session, session, MEMX_ID_BYTES);
    return heir;
}

void client_free(Client *client)
{
    client_cut_all(client);
    memx_peer_free(client->peer);
    g_free(client);
}

void client_cut(Client *client, MemxLane lane)
{
    memx_channel_close(client->lanes[lane]);
    client->lanes[lane] = NULL;
}

void client_cut_all(Client *client)
{
    for (int lane = 0; lane <= MEMX_LANE_READER; lane++) {
        client_cut(client, lane);
    }
    memx_channel_close(client->abandoned);
    client->abandoned = NULL;
}

static void abandon(Client *client, MemxLane lane)
{
    memx_channel_close(client->abandoned);
    client->abandoned = client->lanes[lane];
    client->lanes[lane] = NULL;
}

static int open_lane(Client *client, MemxLane lane, uint32_t flags)
{
    g_autoptr(GError) error = NULL;
    MemxOpen open = client->open;
    MemxChannel *channel;

    open.lane = lane;
    open.flags = flags;
    if (!(flags & MEMX_OPEN_HEIR)) {
        memset(open.session, 0, sizeof(open.session));
    }
    client->info.protocol_error = 0;
    channel = memx_peer_connect(client->peer, &open, CLIENT_TIMEOUT_MS, -1,
                                &client->info, &error);
    if (!channel) {
        return client->info.protocol_error ? (int)client->info.protocol_error
                                           : -ECONNREFUSED;
    }
    client_cut(client, lane);
    client->lanes[lane] = channel;
    return 0;
}

int client_create(Client *client, uint64_t size_pages,
                  uint64_t reserve_pages)
{
    client->open.size_pages = size_pages;
    client->open.reserve_pages = reserve_pages;
    return open_lane(client, MEMX_LANE_ORDERED, MEMX_OPEN_CREATE);
}

int client_attach(Client *client, MemxLane lane)
{
    return open_lane(client, lane, 0);
}

int client_inherit(Client *client, MemxLane lane)
{
    return open_lane(client, lane, MEMX_OPEN_HEIR);
}

void client_reattach(Client *client)
{
    int64_t deadline = g_get_monotonic_time() + 30 * G_USEC_PER_SEC;

    for (int lane = MEMX_LANE_ORDERED; lane <= MEMX_LANE_FETCH; lane++) {
        int ret;

        while ((ret = client_attach(client, lane)) != 0) {
            g_assert_true(ret < 0 || ret == MEMX_ERR_SHUTDOWN);
            g_assert_cmpint(g_get_monotonic_time(), <, deadline);
            g_usleep(1000);
        }
    }
}

int client_open(Client *client, MemxLane lane)
{
    int64_t deadline = g_get_monotonic_time() + 30 * G_USEC_PER_SEC;
    int ret;

    while ((ret = open_lane(client, lane, client->inherits ?
                            MEMX_OPEN_HEIR : 0)) < 0 ||
           ret == MEMX_ERR_SHUTDOWN) {
        g_assert_cmpint(g_get_monotonic_time(), <, deadline);
        g_usleep(1000);
    }
    return ret;
}

static int call_once(Client *client, MemxLane lane, const MemxCall *call)
{
    MemxCall attempt = *call;
    int ret;

    g_assert_nonnull(client->lanes[lane]);
    if (client->loses) {
        client->loses = false;
        memx_channel_submit(client->lanes[lane], &attempt);
        if (client->abandons) {
            abandon(client, lane);
        }
        client_cut(client, lane);
        return -ECONNABORTED;
    }
    ret = memx_channel_call(client->lanes[lane], &attempt, CLIENT_TIMEOUT_MS,
                            -1);
    g_assert_cmpint(ret, !=, -ETIMEDOUT);
    if (ret < 0) {
        return ret;
    }
    client->reply = attempt.reply;
    return attempt.reply.error;
}

static int call(Client *client, MemxLane lane, const MemxCall *call)
{
    int ret;

    while (client->persists) {
        ret = client->lanes[lane] ? 0 : client_open(client, lane);
        if (ret == 0) {
            ret = call_once(client, lane, call);
        }
        if (ret >= 0) {
            return ret;
        }
        client_cut(client, lane);
    }
    return call_once(client, lane, call);
}

static int call_mask(Client *client, MemxLane lane, MemxOpcode opcode,
                     uint64_t group, uint64_t mask)
{
    MemxCall simple = {
        .request = { .opcode = opcode, .group = group, .mask = mask },
    };

    return call(client, lane, &simple);
}

static void fill_words(uint64_t *words, unsigned n, uint64_t generation,
                       uint64_t group, unsigned page)
{
    words[0] = generation;
    for (unsigned i = 1; i < n; i++) {
        words[i] = generation * 0x9e3779b97f4a7c15 + (group << 20) +
                   (page << 10) + i;
    }
}

static void fill_hashes(uint64_t *hashes, uint64_t generation, uint64_t group,
                        uint64_t mask)
{
    unsigned n = 0;

    for (unsigned bit = 0; bit < MEMX_GROUP_PAGES; bit++) {
        if (mask >> bit & 1) {
            fill_words(hashes + 2 * n++, 2, generation, group, bit);
        }
    }
}

int client_store(Client *client, uint64_t group, uint64_t mask,
                 uint64_t generation)
{
    unsigned n = memx_mask_pages(mask);
    g_autofree uint64_t *pages = g_malloc(MEMX_GROUP_BYTES);
    uint64_t hashes[MEMX_GROUP_PAGES * 2];
    struct iovec out = { pages, n * MEMX_PAGE_BYTES };
    MemxCall store = {
        .request = {
            .opcode = MEMX_OP_STORE, .group = group, .mask = mask,
            .body_bytes = n * MEMX_HASH_BYTES, .payload_bytes = out.iov_len,
        },
        .body = hashes, .out = &out, .n_out = 1,
    };
    unsigned i = 0;

    for (unsigned bit = 0; bit < MEMX_GROUP_PAGES; bit++) {
        if (mask >> bit & 1) {
            fill_words(pages + PAGE_WORDS * i++, PAGE_WORDS, generation,
                       group, bit);
        }
    }
    fill_hashes(hashes, generation, group, mask);
    return call(client, MEMX_LANE_ORDERED, &store);
}

int client_fetch(Client *client, MemxLane lane, uint64_t group, uint64_t mask,
                 uint64_t *generation)
{
    unsigned n = memx_mask_pages(mask), i = 0;
    g_autofree uint64_t *pages = g_malloc(MEMX_GROUP_BYTES);
    struct iovec in = { pages, n * MEMX_PAGE_BYTES };
    uint64_t expected[PAGE_WORDS];
    MemxCall fetch = {
        .request = { .opcode = MEMX_OP_FETCH, .group = group, .mask = mask },
        .in = &in, .n_in = 1,
    };
    int ret = call(client, lane, &fetch);

    if (ret != 0) {
        return ret;
    }
    *generation = pages[0];
    for (unsigned bit = 0; bit < MEMX_GROUP_PAGES; bit++) {
        if (mask >> bit & 1) {
            fill_words(expected, PAGE_WORDS, *generation, group, bit);
            g_assert_cmpmem(pages + PAGE_WORDS * i++, MEMX_PAGE_BYTES,
                            expected, MEMX_PAGE_BYTES);
        }
    }
    return 0;
}

int client_compare(Client *client, uint64_t group, uint64_t mask,
                   uint64_t generation, uint64_t *differ)
{
    uint64_t hashes[MEMX_GROUP_PAGES * 2];
    MemxCall compare = {
        .request = {
            .opcode = MEMX_OP_COMPARE, .group = group, .mask = mask,
            .body_bytes = memx_mask_pages(mask) * MEMX_HASH_BYTES,
        },
        .body = hashes,
    };
    int ret;

    fill_hashes(hashes, generation, group, mask);
    ret = call(client, MEMX_LANE_ORDERED, &compare);
    *differ = client->reply.mask;
    return ret;
}

int client_copy(Client *client, GBytes *key, const Client *source,
                const char *address, uint64_t group, uint64_t mask)
{
    uint8_t body[MEMX_SOURCE_BYTES];
    MemxSource from = { 0 };
    MemxCall copy = {
        .request = { .opcode = MEMX_OP_COPY, .group = group, .mask = mask,
                     .body_bytes = sizeof(body) },
        .body = body,
    };

    memcpy(from.space, source->open.space, sizeof(from.space));
    memx_auth_reader_secret(source->open.secret, from.space, from.secret);
    if (key) {
        memx_auth_wrap_reader(key, from.space, client->info.client_nonce,
                              client->info.server_nonce, from.secret);
    }
    g_strlcpy(from.address, address, sizeof(from.address));
    memx_source_encode(body, &from);
    return call(client, MEMX_LANE_ORDERED, &copy);
}

int client_attach_reader(Client *client)
{
    uint8_t secret[MEMX_ID_BYTES];
    int ret;

    memcpy(secret, client->open.secret, sizeof(secret));
    memx_auth_reader_secret(secret, client->open.space, client->open.secret);
    ret = open_lane(client, MEMX_LANE_READER, 0);
    memcpy(client->open.secret, secret, sizeof(secret));
    return ret;
}

int client_drop(Client *client, uint64_t group, uint64_t mask)
{
    return call_mask(client, MEMX_LANE_ORDERED, MEMX_OP_DROP, group, mask);
}

int client_reserve(Client *client, uint64_t pages)
{
    return call_mask(client, MEMX_LANE_ORDERED, MEMX_OP_RESERVE, pages, 0);
}

int client_close(Client *client)
{
    return call_mask(client, MEMX_LANE_ORDERED, MEMX_OP_CLOSE, 0, 0);
}

int client_ping(Client *client, MemxLane lane)
{
    return call_mask(client, lane, MEMX_OP_PING, 0, 0);
}

int client_offer(Client *client, const uint8_t *session, const Client *heir)
{
    uint8_t body[MEMX_OFFER_BYTES];
    MemxOffer offer;
    MemxCall request = {
        .request = {
            .opcode = MEMX_OP_OFFER, .body_bytes = sizeof(body),
        },
        .body = body,
    };

    memcpy(offer.session, session, MEMX_ID_BYTES);
    memcpy(offer.heir, heir->open.client, MEMX_ID_BYTES);
    memx_offer_encode(body, &offer);
    return call(client, MEMX_LANE_ORDERED, &request);
}

int client_decide(Client *client, MemxOpcode opcode, const uint8_t *session)
{
    MemxCall request = {
        .request = { .opcode = opcode, .body_bytes = MEMX_ID_BYTES },
        .body = session,
    };

    return call(client, MEMX_LANE_ORDERED, &request);
}
