/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * What each word of the region must hold; see the header.
 */
#include <glib.h>
#include <sched.h>
#include <string.h>
#include "coverage.h"
#include "shadow-array.h"

static uint64_t mix(uint64_t x)
{
    x ^= x >> 32;
    x *= 0xd6e8feb86659fd93ull;
    x ^= x >> 32;
    x *= 0xd6e8feb86659fd93ull;
    return x ^ x >> 32;
}

static uint64_t base_word(uint64_t key, unsigned word)
{
    return key ? mix(key * PAGE_WORDS + word) : 0;
}

static uint64_t expected(const Shadow *s, uint64_t page, unsigned word)
{
    uint32_t writes = s->writes[word % SHADOW_THREADS][page];

    return writes ? mix((uint64_t)writes << 40 | (page * PAGE_WORDS + word))
                  : base_word(s->base[page], word);
}

void shadow_init(Shadow *s, void *region, uint64_t n_pages)
{
    s->region = region;
    s->n_pages = n_pages;
    s->users = g_new0(atomic_int, n_pages);
    s->base = g_new0(uint64_t, n_pages);
    for (unsigned i = 0; i < SHADOW_THREADS; i++) {
        s->writes[i] = g_new0(uint32_t, n_pages);
    }
}

void shadow_destroy(Shadow *s)
{
    g_free(s->users);
    g_free(s->base);
    for (unsigned i = 0; i < SHADOW_THREADS; i++) {
        g_free(s->writes[i]);
    }
}

bool shadow_enter(Shadow *s, uint64_t page)
{
    int users = atomic_load(&s->users[page]);

    while (users >= 0) {
        if (atomic_compare_exchange_weak(&s->users[page], &users,
                                         users + 1)) {
            return true;
        }
    }
    return false;
}

void shadow_leave(Shadow *s, uint64_t page)
{
    atomic_fetch_sub(&s->users[page], 1);
}

uint64_t shadow_claim(Shadow *s, uint64_t first, uint64_t n)
{
    uint64_t got = 0;

    while (got < n && first + got < s->n_pages) {
        int none = 0;

        if (!atomic_compare_exchange_strong(&s->users[first + got], &none,
                                            -1)) {
            break;
        }
        got++;
    }
    return got;
}

void shadow_unclaim(Shadow *s, uint64_t first, uint64_t n)
{
    for (uint64_t i = 0; i < n; i++) {
        atomic_store(&s->users[first + i], 0);
    }
}

static void G_GNUC_NORETURN wrong(const Shadow *s, uint64_t page,
                                  unsigned word, uint64_t is)
{
    unsigned thread = word % SHADOW_THREADS;
    uint32_t writes = s->writes[thread][page];
    g_autoptr(GString) why = g_string_new("");

    if (!is) {
        g_string_append(why, "it is zero");
    } else if (is == base_word(s->base[page], word)) {
        g_string_append(why, "that is older than all writes");
    }
    for (uint32_t i = 1; i <= 64 && i <= writes; i++) {
        if (is == mix((uint64_t)(writes - i) << 40 |
                      (page * PAGE_WORDS + word))) {
            g_string_append_printf(why, "that is %u writes old", i);
        }
    }
    g_error("WRONG BYTES: page %" G_GUINT64_FORMAT ", word %u (of thread %u)"
            " is %016" G_GINT64_MODIFIER "x and must be %016"
            G_GINT64_MODIFIER "x (write %u, base %" G_GINT64_MODIFIER
            "x); %s; fault now: %s", page, word, thread, is,
            expected(s, page, word), writes, s->base[page], why->str,
            fault_names[coverage_fault()]);
}

static void check(const Shadow *s, uint64_t page, unsigned word)
{
    const volatile uint64_t *at = s->region + page * PAGE_WORDS;
    uint64_t is = at[word];

    if (is != expected(s, page, word)) {
        wrong(s, page, word, is);
    }
}

void shadow_verify(Shadow *s, unsigned thread, uint64_t page)
{
    for (unsigned w = thread; w < PAGE_WORDS; w += SHADOW_THREADS) {
        check(s, page, w);
    }
}

void shadow_write(Shadow *s, unsigned thread, uint64_t page, bool slowly)
{
    volatile uint64_t *at = s->region + page * PAGE_WORDS;

    s->writes[thread][page]++;
    for (unsigned w = thread; w < PAGE_WORDS; w += SHADOW_THREADS) {
        at[w] = expected(s, page, w);
        if (slowly && w % 8 == thread) {
            sched_yield();
        }
    }
}

void shadow_verify_page(Shadow *s, uint64_t page)
{
    for (unsigned w = 0; w < PAGE_WORDS; w++) {
        check(s, page, w);
    }
}

void shadow_expect(const Shadow *s, uint64_t page, uint64_t *words)
{
    for (unsigned w = 0; w < PAGE_WORDS; w++) {
        words[w] = expected(s, page, w);
    }
}

void shadow_base_words(uint64_t key, uint64_t *words)
{
    for (unsigned w = 0; w < PAGE_WORDS; w++) {
        words[w] = base_word(key, w);
    }
}

void shadow_set_base(Shadow *s, uint64_t page, uint64_t key)
{
    s->base[page] = key;
    for (unsigned i = 0; i < SHADOW_THREADS; i++) {
        s->writes[i][page] = 0;
    }
}
