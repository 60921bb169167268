/*
 * SPDX-License-Identifier: GPL-2.0-or-later
 *
 * accesses PATTERN [OPTION...]: touches memory in a way that is known exactly.
 *
 * Theory of operation
 *
 * The memory is --chunks places, --stride bytes apart, of which each has --pages
 * pages in use.  One access touches all pages of one place, one after another.
 * Which places are accessed in which order follows from --pattern's options and
 * --seed alone: with --print the order is printed instead, so that the host, with
 * the same program, knows the guest's trace exactly; a checksum of it is printed
 * at the end of both.  Only operations that every CPU rounds alike are used.
 *
 *   fixed    --hot places are accessed at random; one access in --noise goes to
 *            one of the others
 *   moving   the same; after each --move accesses a quarter of the hot ones is
 *            replaced by others
 *   zipf     all places at random, by Zipf's distribution with exponent 0.99
 *   scan     --hot places at random; one access in --noise goes to the others,
 *            one after the other in the order of their addresses
 *   fill     writes all pages, and ends
 *   price    how long touches take, see measure_prices()
 *
 * Places are shuffled: rank i of a pattern is somewhere.  Physical memory at
 * --at is used (/dev/mem; the kernel must have been told to leave it alone), so
 * that the host knows which of its pages are accessed, and nothing else is
 * there.  Each page says which it is; that is compared at each access, and a
 * difference ends the program.  Every fourth access writes.
 *
 * "at I" is printed before access I for every --report'th I.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <math.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

enum { PAGE_BYTES = 4096, WRITE_EVERY = 4, GAP_PAGES = 16 };
#define ZIPF 0.99
#define GO "/tmp/go"

typedef enum { FIXED, MOVING, ZIPFIAN, SCAN, FILL, PRICE } Pattern;

static const char *const pattern_name[] = {
    "fixed", "moving", "zipf", "scan", "fill", "price",
};

static struct {
    Pattern pattern;
    uint64_t at;            /* physical address */
    uint64_t chunks, stride, pages;
    uint64_t hot, noise, move;
    uint64_t count, report, seed;
    uint64_t fresh_at;      /* of price: mapped by the host, never touched */
    bool print;
} opt = {
    .chunks = 256, .stride = 256 << 10, .pages = 32, .hot = 64, .noise = 16,
    .move = 1000, .count = 1000, .report = 250, .seed = 1,
};

static uint8_t *memory;
static uint32_t *place;     /* of a rank */
static double *sum;         /* of the weights of ranks up to this one */
static uint32_t *sorted;    /* of scan: what isn't hot, by address */

static void __attribute__((noreturn, format(printf, 1, 2)))
die(const char *format, ...)
{
    va_list args;

    va_start(args, format);
    fprintf(stderr, "accesses: ");
    vfprintf(stderr, format, args);
    fprintf(stderr, "\n");
    va_end(args);
    exit(2);
}

/* The finalizer of splitmix64: a bijection that leaves no pattern. */
static uint64_t mix(uint64_t x)
{
    x = (x ^ (x >> 30)) * UINT64_C(0xbf58476d1ce4e5b9);
    x = (x ^ (x >> 27)) * UINT64_C(0x94d049bb133111eb);
    return x ^ (x >> 31);
}

static uint64_t next_random(void)
{
    return mix(opt.seed += UINT64_C(0x9e3779b97f4a7c15));
}

static uint64_t random_below(uint64_t n)
{
    return (next_random() >> 32) * n >> 32;
}

/* x to the power of e in (0, 1), of square roots, which are exact. */
static double power(double x, double e)
{
    double result = 1;

    for (int i = 0; i < 40; i++) {
        x = sqrt(x);
        e *= 2;
        if (e >= 1) {
            result *= x;
            e -= 1;
        }
    }
    return result;
}

static int by_number(const void *a, const void *b)
{
    uint32_t x = *(const uint32_t *)a, y = *(const uint32_t *)b;

    return x < y ? -1 : x > y;
}

static void *array(uint64_t n, size_t size)
{
    void *p = calloc(n, size);

    if (!p) {
        die("no memory");
    }
    return p;
}

static void set_up_pattern(void)
{
    place = array(opt.chunks, sizeof(*place));
    sum = array(opt.chunks, sizeof(*sum));
    sorted = array(opt.chunks, sizeof(*sorted));
    for (uint64_t i = 0; i < opt.chunks; i++) {
        place[i] = i;
        sum[i] = (i ? sum[i - 1] : 0) + 1 / power(i + 1, ZIPF);
    }
    for (uint64_t i = opt.chunks - 1; i > 0; i--) {
        uint64_t j = random_below(i + 1);
        uint32_t other = place[j];

        place[j] = place[i];
        place[i] = other;
    }
    memcpy(sorted, place + opt.hot,
           (opt.chunks - opt.hot) * sizeof(*sorted));
    qsort(sorted, opt.chunks - opt.hot, sizeof(*sorted), by_number);
}

static uint64_t zipf_rank(void)
{
    double x = (next_random() >> 11) * 0x1p-53 * sum[opt.chunks - 1];
    uint64_t low = 0, high = opt.chunks - 1;

    while (low < high) {
        uint64_t middle = (low + high) / 2;

        if (sum[middle] <= x) {
            low = middle + 1;
        } else {
            high = middle;
        }
    }
    return low;
}

/* The place of access @i. */
static uint32_t next_place(uint64_t i)
{
    uint64_t others = opt.chunks - opt.hot, first = 0;

    if (opt.pattern == ZIPFIAN) {
        return place[zipf_rank()];
    }
    if (opt.pattern == SCAN && i % opt.noise == 0) {
        return sorted[i / opt.noise % others];
    }
    if (opt.pattern == MOVING) {
        first = i / opt.move * (opt.hot / 4);
    }
    if (i % opt.noise == 0) {
        return place[(first + opt.hot + random_below(others)) % opt.chunks];
    }
    return place[(first + random_below(opt.hot)) % opt.chunks];
}

/* ---- memory ---- */

static uint8_t *map_physical(uint64_t at, uint64_t bytes)
{
    int fd = open("/dev/mem", O_RDWR | O_CLOEXEC);
    void *map;

    if (fd < 0) {
        die("/dev/mem: %s", strerror(errno));
    }
    map = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, fd, at);
    if (map == MAP_FAILED) {
        die("cannot map physical memory at %#" PRIx64 ": %s: it must be left "
            "out of the kernel's (memmap=)", at, strerror(errno));
    }
    close(fd);
    return map;
}

static volatile uint64_t *words_of(uint64_t c, uint64_t page)
{
    return (volatile uint64_t *)(memory + c * opt.stride + page * PAGE_BYTES);
}

static uint64_t stamp(uint64_t c, uint64_t page)
{
    return mix(c << 32 | page) | 1;
}

static void touch(uint64_t c, uint64_t number)
{
    for (uint64_t page = 0; page < opt.pages; page++) {
        volatile uint64_t *word = words_of(c, page);
        uint64_t found = *word;

        if (found != stamp(c, page)) {
            printf("MISMATCH place=%" PRIu64 " page=%" PRIu64 " expected=%016"
                   PRIx64 " found=%016" PRIx64 "\n", c, page,
                   stamp(c, page), found);
            exit(1);
        }
        if (number % WRITE_EVERY == 0) {
            word[1] = number;
        }
    }
}

static void fill(void)
{
    for (uint64_t c = 0; c < opt.chunks; c++) {
        for (uint64_t page = 0; page < opt.pages; page++) {
            *words_of(c, page) = stamp(c, page);
        }
    }
    printf("filled\n");
}

/* ---- what touches cost ---- */

static double now_ns(void)
{
    struct timespec t;

    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec * 1e9 + t.tv_nsec;
}

static int by_time(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;

    return x < y ? -1 : x > y;
}

/* Nanoseconds for a touch of a page, one of each place: the median, since the
 * host may run something else in between. */
static double time_page(uint64_t page, bool write)
{
    double *taken = array(opt.chunks, sizeof(*taken)), median;

    for (uint64_t c = 0; c < opt.chunks; c++) {
        double start = now_ns();

        if (write) {
            *words_of(c, page) = 1;
        } else {
            (void)*words_of(c, page);
        }
        taken[c] = now_ns() - start;
    }
    qsort(taken, opt.chunks, sizeof(*taken), by_time);
    median = taken[opt.chunks / 2];
    free(taken);
    return median;
}

/*
 * Touches of pages that
 *   ordinary   the host has mapped, but not for the guest
 *   again      are mapped for the guest, too
 *   user       nobody has written yet: a userfaultfd's handler fills them
 *   tracked    were touched before the file GO appeared, and not since: when the
 *              host knows that its tracker has looked at them
 * A page of each place; the first, or one in the gap behind those in use.
 */
static void measure_prices(void)
{
    uint8_t *paged = memory;
    uint64_t stride = opt.stride;
    double ordinary, again, user, tracked;

    opt.stride = PAGE_BYTES;
    memory = map_physical(opt.fresh_at, opt.chunks * opt.stride);
    ordinary = time_page(0, true);
    again = time_page(0, true);
    memory = paged;
    opt.stride = stride;
    user = time_page(opt.pages + GAP_PAGES, true);
    /* Whatever had to make room for them has gone by the second time. */
    for (int i = 0; i < 3; i++) {
        time_page(0, false);
        sleep(1);
    }
    printf("waiting\n");
    while (access(GO, F_OK)) {
        usleep(10000);
    }
    tracked = time_page(0, false);
    printf("prices ordinary=%.0f again=%.0f user=%.0f tracked=%.0f\n",
           ordinary, again, user, tracked);
}

/* ---- the program ---- */

static uint64_t number(const char *name, const char *text)
{
    char *end;
    uint64_t value;

    errno = 0;
    value = strtoull(text, &end, 0);
    if (errno || *text < '0' || *text > '9' || *end) {
        die("--%s: '%s' is not a number", name, text);
    }
    return value;
}

static void parse(int argc, char **argv)
{
    static const struct { const char *name; uint64_t *value; } numbers[] = {
        { "at", &opt.at }, { "chunks", &opt.chunks },
        { "stride", &opt.stride }, { "pages", &opt.pages },
        { "hot", &opt.hot }, { "noise", &opt.noise }, { "move", &opt.move },
        { "count", &opt.count }, { "report", &opt.report },
        { "seed", &opt.seed }, { "fresh-at", &opt.fresh_at },
    };
    enum { NUMBERS = sizeof(numbers) / sizeof(numbers[0]) };
    int i, pattern = -1;

    for (i = 0; argc > 1 && i <= PRICE; i++) {
        if (!strcmp(argv[1], pattern_name[i])) {
            pattern = i;
        }
    }
    if (pattern < 0) {
        die("accesses fixed|moving|zipf|scan|fill|price [--OPTION N]...");
    }
    opt.pattern = pattern;
    for (int at = 2; at < argc; at++) {
        if (!strcmp(argv[at], "--print")) {
            opt.print = true;
            continue;
        }
        for (i = 0; i < NUMBERS; i++) {
            if (!strncmp(argv[at], "--", 2) &&
                !strcmp(argv[at] + 2, numbers[i].name)) {
                break;
            }
        }
        if (i == NUMBERS || at + 1 == argc) {
            die("what is '%s'?", argv[at]);
        }
        *numbers[i].value = number(numbers[i].name, argv[at + 1]);
        at++;
    }
    if (!opt.chunks || opt.chunks > UINT32_MAX || !opt.pages ||
        !opt.noise || !opt.move || !opt.report || opt.hot < 4 ||
        opt.hot >= opt.chunks ||
        opt.stride < (opt.pages + GAP_PAGES + 1) * PAGE_BYTES) {
        die("these numbers don't go together");
    }
}

static void run_pattern(void)
{
    uint64_t sum_of_trace = 0;

    if (opt.print) {
        printf("places");
        for (uint64_t i = 0; i < opt.chunks; i++) {
            printf(" %u", place[i]);
        }
        printf("\n");
    }
    for (uint64_t i = 0; i < opt.count; i++) {
        uint32_t c = next_place(i);

        sum_of_trace = mix(sum_of_trace ^ c) + i;
        if (opt.print) {
            printf("%u\n", c);
            continue;
        }
        if (i % opt.report == 0) {
            printf("at %" PRIu64 "\n", i);
        }
        touch(c, i);
    }
    printf("checksum %016" PRIx64 "\n", sum_of_trace);
}

int main(int argc, char **argv)
{
    parse(argc, argv);
    if (!opt.print) {
        setvbuf(stdout, NULL, _IOLBF, BUFSIZ);
        memory = map_physical(opt.at, opt.chunks * opt.stride);
    }
    if (opt.pattern == FILL) {
        fill();
    } else if (opt.pattern == PRICE) {
        measure_prices();
    } else {
        set_up_pattern();
        run_pattern();
    }
    return 0;
}
