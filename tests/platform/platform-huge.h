/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Huge pages in armed memory: MADV_COLLAPSE (Linux 6.1). */
#ifndef MEMX_TESTS_PLATFORM_HUGE_H
#define MEMX_TESTS_PLATFORM_HUGE_H

#include "platform.h"

#ifndef MADV_COLLAPSE
#define MADV_COLLAPSE 25
#endif

#define HUGE_BYTES ((size_t)2 << 20)

/* @n times 2 MiB, aligned, registered, empty; huge pages are not forbidden. */
static inline char *map_aligned(int uffd, size_t n)
{
    g_autoptr(GError) error = NULL;
    char *p = mmap(NULL, (n + 1) * HUGE_BYTES, PROT_READ | PROT_WRITE,
                   MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);

    check(p != MAP_FAILED, "%s", strerror(errno));
    p += -(uintptr_t)p & (HUGE_BYTES - 1);
    check(memx_uffd_register(uffd, p, n * HUGE_BYTES, &error), "%s",
          error->message);
    return p;
}

static inline void fill_by_copy(int uffd, char *p, size_t bytes, int byte)
{
    g_autofree char *from = g_malloc(bytes);

    memset(from, byte, bytes);
    expect(memx_uffd_copy(uffd, p, from, bytes, 0), bytes);
}

/* Ends with 77 where the kernel has no huge page to give.  Somebody may be busy
 * with a page for a moment. */
static inline void collapse(char *p)
{
    int err = EAGAIN;

    for (int i = 0; i < 1000 && err == EAGAIN; i++) {
        err = madvise(p, HUGE_BYTES, MADV_COLLAPSE) < 0 ? errno : 0;
        linger(err ? 1 : 0);
    }
    if (err) {
        skip("MADV_COLLAPSE: %s (no huge page free, or none supported)",
             strerror(err));
    }
}

/* In KiB, of the mapping that has @p.  (Others have some now and then: stacks
 * and the heap, where huge pages are not only on request.) */
static inline long huge_kib(const char *p)
{
    g_autofree char *text = NULL;
    g_auto(GStrv) lines = NULL;
    bool inside = false;

    check(g_file_get_contents("/proc/self/smaps", &text, NULL, NULL),
          "/proc/self/smaps");
    lines = g_strsplit(text, "\n", -1);
    for (char **line = lines; *line; line++) {
        unsigned long first, end;

        if (sscanf(*line, "%lx-%lx ", &first, &end) == 2) {
            inside = (uintptr_t)p >= first && (uintptr_t)p < end;
        } else if (inside && g_str_has_prefix(*line, "AnonHugePages:")) {
            return strtol(*line + strlen("AnonHugePages:"), NULL, 10);
        }
    }
    return 0;
}

#endif
