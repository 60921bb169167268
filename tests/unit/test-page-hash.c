/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * The page hash: equal for equal pages, different for what differs in a bit,
 * and of no use to who doesn't know the key.
 */
#include <glib.h>
#include <string.h>
#include "page-hash.h"

static MemxPageHash *hash_new(void)
{
    g_autoptr(GError) error = NULL;
    uint8_t key[MEMX_HASH_KEY_BYTES];
    MemxPageHash *hash;

    for (unsigned i = 0; i < sizeof(key); i++) {
        key[i] = g_test_rand_int();
    }
    hash = memx_page_hash_new(key, &error);

    g_assert_no_error(error);
    return hash;
}

static void random_page(uint8_t *page)
{
    for (unsigned i = 0; i < MEMX_PAGE_BYTES; i++) {
        page[i] = g_test_rand_int();
    }
}

static void test_equal_pages_equal_hashes(void)
{
    MemxPageHash *hash = hash_new();
    uint8_t page[MEMX_PAGE_BYTES], copy[MEMX_PAGE_BYTES];
    uint8_t a[MEMX_HASH_BYTES], b[MEMX_HASH_BYTES];

    for (unsigned i = 0; i < 100; i++) {
        random_page(page);
        memcpy(copy, page, sizeof(page));
        g_assert_true(memx_page_hash(hash, page, a));
        g_assert_true(memx_page_hash(hash, copy, b));
        g_assert_cmpmem(a, sizeof(a), b, sizeof(b));
    }
    memx_page_hash_free(hash);
}

/* Each single bit of a page, and all-zero against all-zero but one. */
static void test_each_bit_counts(void)
{
    MemxPageHash *hash = hash_new();
    g_autoptr(GHashTable) seen = g_hash_table_new_full(g_bytes_hash,
        g_bytes_equal, (GDestroyNotify)g_bytes_unref, NULL);
    uint8_t page[MEMX_PAGE_BYTES] = { 0 };
    uint8_t out[MEMX_HASH_BYTES];

    g_assert_true(memx_page_hash(hash, page, out));
    g_hash_table_add(seen, g_bytes_new(out, sizeof(out)));
    for (unsigned bit = 0; bit < MEMX_PAGE_BYTES * 8; bit++) {
        page[bit / 8] ^= 1 << bit % 8;
        g_assert_true(memx_page_hash(hash, page, out));
        if (!g_hash_table_add(seen, g_bytes_new(out, sizeof(out)))) {
            g_error("bit %u: a collision", bit);
        }
        page[bit / 8] ^= 1 << bit % 8;
    }
    memx_page_hash_free(hash);
}

/* Swapped blocks are what a sum of blocks would not see. */
static void test_order_counts(void)
{
    MemxPageHash *hash = hash_new();
    uint8_t page[MEMX_PAGE_BYTES], block[16];
    uint8_t a[MEMX_HASH_BYTES], b[MEMX_HASH_BYTES];

    random_page(page);
    g_assert_true(memx_page_hash(hash, page, a));
    memcpy(block, page, 16);
    memmove(page, page + 16, 16);
    memcpy(page + 16, block, 16);
    g_assert_true(memx_page_hash(hash, page, b));
    g_assert_true(memcmp(a, b, sizeof(a)));
    memx_page_hash_free(hash);
}

static void test_each_region_has_its_key(void)
{
    MemxPageHash *one = hash_new(), *two = hash_new();
    uint8_t page[MEMX_PAGE_BYTES];
    uint8_t a[MEMX_HASH_BYTES], b[MEMX_HASH_BYTES];

    random_page(page);
    g_assert_true(memx_page_hash(one, page, a));
    g_assert_true(memx_page_hash(two, page, b));
    g_assert_true(memcmp(a, b, sizeof(a)));
    memx_page_hash_free(one);
    memx_page_hash_free(two);
}

static void test_zero(void)
{
    uint8_t page[MEMX_PAGE_BYTES] = { 0 };

    g_assert_true(memx_page_is_zero(page));
    for (unsigned i = 0; i < MEMX_PAGE_BYTES; i++) {
        page[i] = 1 << i % 8;
        g_assert_false(memx_page_is_zero(page));
        page[i] = 0;
    }
    g_assert_true(memx_page_is_zero(page));
}

int main(int argc, char **argv)
{
    g_test_init(&argc, &argv, NULL);
    g_test_add_func("/page-hash/equal-pages-equal-hashes",
                    test_equal_pages_equal_hashes);
    g_test_add_func("/page-hash/each-bit-counts", test_each_bit_counts);
    g_test_add_func("/page-hash/order-counts", test_order_counts);
    g_test_add_func("/page-hash/each-region-has-its-key",
                    test_each_region_has_its_key);
    g_test_add_func("/page-hash/zero", test_zero);
    return g_test_run();
}
