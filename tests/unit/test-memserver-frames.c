/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Frames: nobody gets one that is in use, neighbours stay neighbours, and
 * what is free goes back to the system.
 */
#include <errno.h>
#include <glib.h>
#include <string.h>
#include <sys/stat.h>
#include "frames.h"

#define N_FRAMES 20000u

typedef struct Fixture {
    MsBacking backing;
    MsFrames *frames;
} Fixture;

static void set_up(Fixture *f, gconstpointer data)
{
    g_autoptr(GError) error = NULL;

    ms_backing_create(&f->backing, &error);
    g_assert_no_error(error);
    f->frames = ms_frames_new(&f->backing, N_FRAMES, NULL, &error);
    g_assert_no_error(error);
}

static void tear_down(Fixture *f, gconstpointer data)
{
    ms_frames_free(f->frames);
    ms_backing_close(&f->backing);
}

static uint64_t memory_bytes(Fixture *f, MsBackingFile file)
{
    struct stat st;

    g_assert_no_errno(fstat(f->backing.fds[file], &st));
    return st.st_blocks * 512ull;
}

static void take(Fixture *f, MsFrame *list, unsigned n)
{
    for (unsigned i = 0; i < n; i += 50) {
        g_assert_cmpint(ms_frames_take(f->frames, list + i, 50), ==, 0);
    }
    for (unsigned i = 0; i < n; i++) {
        memset(ms_frames_page(f->frames, list[i]), 1, MEMX_PAGE_BYTES);
        memset(ms_frames_hash(f->frames, list[i]), 1, MEMX_HASH_BYTES);
    }
}

static void test_distinct(Fixture *f, gconstpointer data)
{
    g_autofree MsFrame *list = g_new(MsFrame, N_FRAMES);
    g_autofree uint8_t *seen = g_malloc0(N_FRAMES);
    GRand *rand = g_rand_new_with_seed(1);
    unsigned n = 0;

    for (int round = 0; round < 200000; round++) {
        unsigned some = g_rand_int_range(rand, 1, 65);

        if (g_rand_boolean(rand) && n + some <= N_FRAMES) {
            g_assert_cmpint(ms_frames_take(f->frames, list + n, some), ==, 0);
            for (unsigned i = n; i < n + some; i++) {
                g_assert_cmpuint(list[i], <, N_FRAMES);
                g_assert_false(seen[list[i]]);
                seen[list[i]] = 1;
            }
            n += some;
        } else if (n >= some) {
            n -= some;
            for (unsigned i = n; i < n + some; i++) {
                seen[list[i]] = 0;
            }
            ms_frames_give(f->frames, list + n, some);
        }
        g_assert_cmpuint(ms_frames_used(f->frames), ==, n);
    }
    g_rand_free(rand);
}

static void test_exhausted(Fixture *f, gconstpointer data)
{
    g_autofree MsFrame *list = g_new(MsFrame, N_FRAMES);

    take(f, list, N_FRAMES);
    g_assert_cmpint(ms_frames_take(f->frames, list, 1), ==, -ENOSPC);
    ms_frames_give(f->frames, list, 63);
    g_assert_cmpint(ms_frames_take(f->frames, list, 64), ==, -ENOSPC);
    g_assert_cmpint(ms_frames_take(f->frames, list, 63), ==, 0);
    g_assert_cmpuint(ms_frames_used(f->frames), ==, N_FRAMES);
}

/* Few are kept warm; the others' memory and hashes are given back. */
static void test_memory_goes_back(Fixture *f, gconstpointer data)
{
    g_autofree MsFrame *list = g_new(MsFrame, N_FRAMES);
    uint64_t left = N_FRAMES / 4;

    take(f, list, N_FRAMES);
    g_assert_cmpuint(memory_bytes(f, MS_FILE_FRAMES), ==,
                     (uint64_t)N_FRAMES * MEMX_PAGE_BYTES);
    ms_frames_give(f->frames, list + left, N_FRAMES - left);
    g_assert_cmpuint(memory_bytes(f, MS_FILE_FRAMES), <=,
                     (left + 1024 + left / 128) * MEMX_PAGE_BYTES);
    g_assert_cmpuint(memory_bytes(f, MS_FILE_HASHES), <,
                     N_FRAMES * MEMX_HASH_BYTES / 2);
    for (unsigned i = 0; i < left; i++) {
        uint8_t *page = ms_frames_page(f->frames, list[i]);

        g_assert_cmpuint(page[0], ==, 1);
        g_assert_cmpuint(page[MEMX_PAGE_BYTES - 1], ==, 1);
        g_assert_cmpuint(ms_frames_hash(f->frames, list[i])[0], ==, 1);
    }
}

static void test_empty_holds_nothing(Fixture *f, gconstpointer data)
{
    g_autofree MsFrame *list = g_new(MsFrame, N_FRAMES);

    for (int round = 0; round < 3; round++) {
        take(f, list, N_FRAMES);
        ms_frames_give(f->frames, list, N_FRAMES);
        g_assert_cmpuint(memory_bytes(f, MS_FILE_FRAMES), ==, 0);
        g_assert_cmpuint(memory_bytes(f, MS_FILE_HASHES), ==, 0);
    }
}

static void test_neighbours(Fixture *f, gconstpointer data)
{
    MsFrame list[64];
    struct iovec iov[64];

    for (int round = 0; round < 100; round++) {
        g_assert_cmpint(ms_frames_take(f->frames, list, 64), ==, 0);
        g_assert_cmpint(ms_frames_iov(f->frames, list, 64, iov), ==, 1);
        g_assert_cmpuint(iov[0].iov_len, ==, 64 * MEMX_PAGE_BYTES);
        ms_frames_give(f->frames, list, 64);
    }
    list[0] = 7;
    list[1] = 9;
    list[2] = 10;
    g_assert_cmpint(ms_frames_iov(f->frames, list, 3, iov), ==, 2);
    g_assert_true(iov[0].iov_base == ms_frames_page(f->frames, 7));
    g_assert_true(iov[1].iov_base == ms_frames_page(f->frames, 9));
    g_assert_cmpuint(iov[0].iov_len, ==, MEMX_PAGE_BYTES);
    g_assert_cmpuint(iov[1].iov_len, ==, 2 * MEMX_PAGE_BYTES);
}

/* Taken over: those in use stay, the others can be had and hold nothing. */
static void test_taken_over(Fixture *f, gconstpointer data)
{
    g_autofree MsFrame *list = g_new(MsFrame, N_FRAMES);
    g_autofree uint64_t *bits = g_new0(uint64_t, MS_FRAMES_MAX / 64 + 1);
    MsUsed used = { bits, 0 };
    unsigned n_used = 0;

    take(f, list, 5000);
    for (unsigned i = 0; i < 5000; i += 3) {
        used.bits[list[i] / 64] |= 1ull << list[i] % 64;
        used.limit = MAX(used.limit, list[i] + 1ull);
        n_used++;
    }
    ms_frames_free(f->frames);
    f->frames = ms_frames_new(&f->backing, N_FRAMES, &used, NULL);
    g_assert_cmpuint(ms_frames_used(f->frames), ==, n_used);
    g_assert_cmpuint(memory_bytes(f, MS_FILE_FRAMES), ==,
                     (uint64_t)n_used * MEMX_PAGE_BYTES);
    for (unsigned i = 0; i < N_FRAMES - n_used; i++) {
        g_assert_cmpint(ms_frames_take(f->frames, list, 1), ==, 0);
        g_assert_cmpuint(list[0], <, N_FRAMES);
        g_assert_false(used.bits[list[0] / 64] >> list[0] % 64 & 1);
        used.bits[list[0] / 64] |= 1ull << list[0] % 64;
    }
    g_assert_cmpint(ms_frames_take(f->frames, list, 1), ==, -ENOSPC);
}

/* Threads that take, mark, check and give: a frame has one holder. */
static void *churn(void *opaque)
{
    MsFrames *frames = opaque;
    GRand *rand = g_rand_new();
    void *self = g_thread_self();
    MsFrame list[64];

    for (int round = 0; round < 4000; round++) {
        unsigned n = g_rand_int_range(rand, 1, 65);

        g_assert_cmpint(ms_frames_take(frames, list, n), ==, 0);
        for (unsigned i = 0; i < n; i++) {
            memcpy(ms_frames_page(frames, list[i]), &self, sizeof(self));
        }
        for (unsigned i = 0; i < n; i++) {
            g_assert_cmpint(memcmp(ms_frames_page(frames, list[i]), &self,
                                   sizeof(self)), ==, 0);
        }
        ms_frames_give(frames, list, n);
    }
    g_rand_free(rand);
    return NULL;
}

static void test_threads(Fixture *f, gconstpointer data)
{
    g_autofree MsFrame *list = g_new(MsFrame, 8000);
    GThread *threads[4];

    /* So much that giving punches now and then. */
    take(f, list, 8000);
    for (int i = 0; i < 4; i++) {
        threads[i] = g_thread_new("churn", churn, f->frames);
    }
    for (unsigned i = 0; i < 8000; i += 50) {
        ms_frames_give(f->frames, list + i, 50);
    }
    for (int i = 0; i < 4; i++) {
        g_thread_join(threads[i]);
    }
    g_assert_cmpuint(ms_frames_used(f->frames), ==, 0);
}

int main(int argc, char **argv)
{
#define ADD(path, function) \
    g_test_add("/memserver/frames/" path, Fixture, NULL, set_up, function, \
               tear_down)

    g_test_init(&argc, &argv, NULL);
    ADD("distinct", test_distinct);
    ADD("exhausted", test_exhausted);
    ADD("memory-goes-back", test_memory_goes_back);
    ADD("empty-holds-nothing", test_empty_holds_nothing);
    ADD("neighbours-stay-neighbours", test_neighbours);
    ADD("taken-over", test_taken_over);
    ADD("threads", test_threads);
    return g_test_run();
}
