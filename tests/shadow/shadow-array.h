/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * What each word of the region must hold.
 *
 * Theory of operation
 *
 * A page's content is a *base* (zeros, or what a key generates: the whole
 * page was discarded or read from a file) and over it each thread's own
 * words: word w belongs to thread w % threads, which counts how often it
 * wrote them.  So every value is exact, though all threads touch the same
 * pages at the same time and none waits for another.
 *
 * Whoever changes a whole page claims it, which only works while nobody is
 * in it; whoever is in it keeps claims away.
 */
#ifndef SHADOW_ARRAY_H
#define SHADOW_ARRAY_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#define PAGE_BYTES 4096ull
#define PAGE_WORDS (PAGE_BYTES / 8)
#define SHADOW_THREADS 6

typedef struct Shadow {
    uint64_t *region;
    uint64_t n_pages;
    atomic_int *users;      /* -1: claimed */
    uint64_t *base;         /* key, 0: zeros */
    uint32_t *writes[SHADOW_THREADS];
} Shadow;

void shadow_init(Shadow *shadow, void *region, uint64_t n_pages);
void shadow_destroy(Shadow *shadow);

/* False: claimed by somebody; leave the page alone. */
bool shadow_enter(Shadow *shadow, uint64_t page);
void shadow_leave(Shadow *shadow, uint64_t page);

/* Claims pages from @first on, @n at most; returns how many. */
uint64_t shadow_claim(Shadow *shadow, uint64_t first, uint64_t n);
void shadow_unclaim(Shadow *shadow, uint64_t first, uint64_t n);

/* In the page: verifies, writes a thread's words.  A wrong one ends the test
 * with a message.  @slowly gives others the CPU between words. */
void shadow_verify(Shadow *shadow, unsigned thread, uint64_t page);
void shadow_write(Shadow *shadow, unsigned thread, uint64_t page,
                  bool slowly);

/* Claimed: all words. */
void shadow_verify_page(Shadow *shadow, uint64_t page);
/* The page as it must be now, and as a base alone. */
void shadow_expect(const Shadow *shadow, uint64_t page, uint64_t *words);
void shadow_base_words(uint64_t key, uint64_t *words);
void shadow_set_base(Shadow *shadow, uint64_t page, uint64_t key);

#endif
