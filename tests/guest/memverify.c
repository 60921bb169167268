/*
 * SPDX-License-Identifier: GPL-2.0-or-later
 *
 * memverify: does this machine's memory still hold what was written to it?
 *
 * Theory of operation
 *
 * One anonymous mapping is filled with pages that say about themselves which
 * page of which generation they are, followed by words that depend on both
 * and on a seed.  Then threads visit pages, in random order or one after
 * another, compare every word with what they wrote last, and rewrite some of
 * the pages as their next generation.  At the end every page is
 * compared once more, in an order without pattern unless --check-in-order
 * says that there is no time for that.
 *
 * A page belongs to one thread (page number modulo threads), so nothing is
 * locked; neighbouring pages, and so every chunk below us, are shared by all.
 * How far each page has come is kept beside the pages in ordinary memory.
 *
 * The first difference ends the program.  It is reported with what was found
 * there: zeros, an older generation (a write was lost), another page, or
 * neither.
 *
 * With --disk some pages are also written to a block device with O_DIRECT,
 * cleared, and read back: the device then reads and writes memory by DMA,
 * and is the first to do so since the page was visited last.
 *
 * SIGTERM ends the visits early; the comparison at the end is still made.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <getopt.h>
#include <inttypes.h>
#include <pthread.h>
#include <signal.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

enum { PAGE_BYTES = 4096, PAGE_WORDS = PAGE_BYTES / 8, MAX_THREADS = 64,
       PROGRESS_NS = 200000000 };

typedef uint64_t Page[PAGE_WORDS];

typedef struct Options {
    unsigned percent;       /* of MemTotal; 0: mbytes counts */
    uint64_t mbytes;
    unsigned threads;
    uint64_t seconds;       /* of visits; 0: rounds count */
    unsigned rounds;        /* visits per page, on average */
    unsigned write_percent; /* of visits that rewrite their page */
    unsigned hot_percent;   /* of pages, which get nine visits in ten */
    bool sequential;
    bool check_in_order;
    uint64_t seed;
    const char *disk;
    unsigned disk_percent;  /* of visits that begin with the disk */
} Options;

typedef struct Worker {
    pthread_t thread;
    unsigned index;
    uint64_t random;
    atomic_uint_fast64_t checked;
    atomic_uint_fast64_t rewritten;
    atomic_uint_fast64_t through_disk;
} Worker;

/* Constant once the workers run. */
static Options opt = {
    .percent = 50, .threads = 2, .rounds = 1, .write_percent = 30,
    .seed = 1, .disk_percent = 2,
};
static Page *pages;
static uint64_t page_count;
static int disk_fd = -1;

/* Each element belongs to the worker that owns the page. */
static uint32_t *generation;

static Worker workers[MAX_THREADS];
static pthread_barrier_t phase_barrier;
static atomic_bool stop_visits;
static atomic_bool found_mismatch;

static void __attribute__((noreturn, format(printf, 1, 2)))
die(const char *format, ...)
{
    va_list args;

    va_start(args, format);
    fprintf(stderr, "memverify: ");
    vfprintf(stderr, format, args);
    fprintf(stderr, "\n");
    va_end(args);
    exit(2);
}

static double now_s(void)
{
    struct timespec ts;

    clock_gettime(CLOCK_MONOTONIC, &ts);
    return ts.tv_sec + ts.tv_nsec / 1e9;
}

/* The finalizer of splitmix64: a bijection that leaves no pattern. */
static uint64_t mix(uint64_t x)
{
    x = (x ^ (x >> 30)) * UINT64_C(0xbf58476d1ce4e5b9);
    x = (x ^ (x >> 27)) * UINT64_C(0x94d049bb133111eb);
    return x ^ (x >> 31);
}

static uint64_t next_random(uint64_t *state)
{
    return mix(*state += UINT64_C(0x9e3779b97f4a7c15));
}

/* ---- what a page holds ---- */

static uint64_t page_base(uint64_t page, uint64_t gen)
{
    return mix(opt.seed ^ mix(page ^ (gen << 40)));
}

/* Words 0 and 1 name the page; cheap to make, no two words alike. */
static uint64_t page_word(uint64_t page, uint64_t gen, uint64_t base,
                          unsigned i)
{
    uint64_t x = base + i * UINT64_C(0x9e3779b97f4a7c15);

    return i == 0 ? page : i == 1 ? gen : x ^ (x >> 29);
}

static void page_write(Page *p, uint64_t page, uint64_t gen)
{
    uint64_t base = page_base(page, gen);

    for (unsigned i = 0; i < PAGE_WORDS; i++) {
        (*p)[i] = page_word(page, gen, base, i);
    }
}

/* Returns the first word that differs, or PAGE_WORDS. */
static unsigned page_compare(const Page *p, uint64_t page, uint64_t gen)
{
    uint64_t base = page_base(page, gen);

    for (unsigned i = 0; i < PAGE_WORDS; i++) {
        if ((*p)[i] != page_word(page, gen, base, i)) {
            return i;
        }
    }
    return PAGE_WORDS;
}

static void describe(const Page *p, uint64_t page, uint64_t gen,
                     char *text, size_t size)
{
    static const Page zeros;
    uint64_t found_page = (*p)[0], found_gen = (*p)[1];

    if (memcmp(p, zeros, PAGE_BYTES) == 0) {
        snprintf(text, size, "all zeros");
    } else if (page_compare(p, found_page, found_gen) < PAGE_WORDS) {
        snprintf(text, size, "neither zeros nor a page of ours");
    } else if (found_page != page) {
        snprintf(text, size, "page %" PRIu64 " generation %" PRIu64,
                 found_page, found_gen);
    } else {
        snprintf(text, size, "%s generation %" PRIu64,
                 found_gen < gen ? "older" : "newer", found_gen);
    }
}

static void report_mismatch(const Page *seen, uint64_t page, unsigned word)
{
    uint64_t gen = generation[page];
    uint64_t expected = page_word(page, gen, page_base(page, gen), word);
    char found[96], again[96];

    if (atomic_exchange(&found_mismatch, true)) {
        return;
    }
    describe(seen, page, gen, found, sizeof(found));
    describe(&pages[page], page, gen, again, sizeof(again));
    printf("MISMATCH page=%" PRIu64 " word=%u generation=%" PRIu64
           " expected=%016" PRIx64 " found=%016" PRIx64
           " holds: %s; a second later: %s\n",
           page, word, gen, expected, (*seen)[word], found, again);
    fflush(stdout);
}

/* Returns false at a mismatch, which it has reported. */
static bool check_page(Worker *w, uint64_t page)
{
    unsigned word = page_compare(&pages[page], page, generation[page]);

    w->checked++;
    if (word < PAGE_WORDS) {
        Page seen;

        memcpy(seen, pages[page], PAGE_BYTES);
        sleep(1);
        report_mismatch(&seen, page, word);
        return false;
    }
    return true;
}

/* ---- what a thread does ---- */

static void io_check(ssize_t n, const char *what)
{
    if (n != PAGE_BYTES) {
        die("%s: cannot %s: %s", opt.disk, what,
            n < 0 ? strerror(errno) : "short transfer");
    }
}

/* Clears the page in between, so that only the device can bring it back. */
static void send_through_disk(Worker *w, uint64_t page)
{
    off_t offset = (off_t)w->index * PAGE_BYTES;

    io_check(pwrite(disk_fd, pages[page], PAGE_BYTES, offset), "write");
    memset(pages[page], 0, PAGE_BYTES);
    io_check(pread(disk_fd, pages[page], PAGE_BYTES, offset), "read");
    w->through_disk++;
}

static uint64_t pages_of(const Worker *w)
{
    return (page_count - w->index + opt.threads - 1) / opt.threads;
}

static uint64_t pick_page(Worker *w, uint64_t visit)
{
    uint64_t own = pages_of(w), among = own;

    if (opt.sequential) {
        return visit % own * opt.threads + w->index;
    }
    if (opt.hot_percent && next_random(&w->random) % 10) {
        among = own * opt.hot_percent / 100;
        among = among ? among : 1;
    }
    return next_random(&w->random) % among * opt.threads + w->index;
}

static bool visit_pages(Worker *w, double deadline)
{
    uint64_t limit = opt.seconds ? UINT64_MAX : pages_of(w) * opt.rounds;

    for (uint64_t visit = 0; visit < limit; visit++) {
        uint64_t page = pick_page(w, visit);

        if (atomic_load_explicit(&stop_visits, memory_order_relaxed) ||
            (opt.seconds && visit % 16 == 0 && now_s() > deadline)) {
            break;
        }
        if (disk_fd >= 0 && next_random(&w->random) % 100 <
                            opt.disk_percent) {
            send_through_disk(w, page);
        }
        if (atomic_load(&found_mismatch) || !check_page(w, page)) {
            return false;
        }
        if (next_random(&w->random) % 100 < opt.write_percent) {
            page_write(&pages[page], page, ++generation[page]);
            w->rewritten++;
        }
    }
    return true;
}

/* A bijection of [0, 2^bits), so that every index comes exactly once. */
static uint64_t scatter(uint64_t i, unsigned bits)
{
    uint64_t mask = (UINT64_C(1) << bits) - 1;

    i = (i * UINT64_C(0x9e3779b97f4a7c15) + opt.seed) & mask;
    i ^= i >> (bits / 2 + 1);
    i = (i * UINT64_C(0xd1342543de82ef95)) & mask;
    return i ^ (i >> (bits / 2 + 1));
}

static bool check_all(Worker *w)
{
    uint64_t own = pages_of(w);
    unsigned bits = 1;

    while (UINT64_C(1) << bits < own) {
        bits++;
    }
    for (uint64_t i = 0; i < UINT64_C(1) << bits; i++) {
        uint64_t index = opt.check_in_order ? i : scatter(i, bits);

        if (index < own && (atomic_load(&found_mismatch) ||
                            !check_page(w, index * opt.threads + w->index))) {
            return false;
        }
    }
    return true;
}

/* The last one to come says what all do next. */
static void enter_phase(const char *name)
{
    if (pthread_barrier_wait(&phase_barrier) ==
        PTHREAD_BARRIER_SERIAL_THREAD) {
        printf("phase %s\n", name);
        fflush(stdout);
    }
}

static void *worker_run(void *opaque)
{
    Worker *w = opaque;

    enter_phase("fill");
    for (uint64_t page = w->index; page < page_count; page += opt.threads) {
        page_write(&pages[page], page, 0);
    }
    enter_phase("visit");
    visit_pages(w, now_s() + opt.seconds);
    enter_phase("check");
    check_all(w);
    return NULL;
}

/* ---- setting up ---- */

static uint64_t parse(const char *name, const char *text, uint64_t low,
                      uint64_t high)
{
    char *end;
    uint64_t value;

    errno = 0;
    value = strtoull(text, &end, 10);
    if (errno || *text < '0' || *text > '9' || *end || value < low ||
        value > high) {
        die("--%s: '%s' is not a number from %" PRIu64 " to %" PRIu64, name,
            text, low, high);
    }
    return value;
}

static void parse_options(int argc, char **argv)
{
    static const struct option longopts[] = {
        { "percent", required_argument, NULL, 'p' },
        { "mbytes", required_argument, NULL, 'm' },
        { "threads", required_argument, NULL, 't' },
        { "seconds", required_argument, NULL, 's' },
        { "rounds", required_argument, NULL, 'r' },
        { "write-percent", required_argument, NULL, 'w' },
        { "hot-percent", required_argument, NULL, 'h' },
        { "sequential", no_argument, NULL, 'q' },
        { "check-in-order", no_argument, NULL, 'o' },
        { "seed", required_argument, NULL, 'e' },
        { "disk", required_argument, NULL, 'd' },
        { "disk-percent", required_argument, NULL, 'D' },
        { NULL, 0, NULL, 0 },
    };
    int c, index;

    while ((c = getopt_long(argc, argv, "", longopts, &index)) != -1) {
        const char *name = c == '?' ? NULL : longopts[index].name;

        switch (c) {
        case 'p': opt.percent = parse(name, optarg, 1, 100); break;
        case 'm':
            opt.mbytes = parse(name, optarg, 1, 1 << 30);
            opt.percent = 0;
            break;
        case 't': opt.threads = parse(name, optarg, 1, MAX_THREADS); break;
        case 's': opt.seconds = parse(name, optarg, 1, 1 << 20); break;
        case 'r': opt.rounds = parse(name, optarg, 0, 1 << 20); break;
        case 'w': opt.write_percent = parse(name, optarg, 0, 100); break;
        case 'h': opt.hot_percent = parse(name, optarg, 1, 100); break;
        case 'q': opt.sequential = true; break;
        case 'o': opt.check_in_order = true; break;
        case 'e': opt.seed = parse(name, optarg, 0, UINT64_MAX); break;
        case 'd': opt.disk = optarg; break;
        case 'D': opt.disk_percent = parse(name, optarg, 0, 100); break;
        default: exit(2);
        }
    }
    if (optind < argc) {
        die("unexpected argument '%s'", argv[optind]);
    }
}

static uint64_t memory_total(void)
{
    uint64_t pages_total = sysconf(_SC_PHYS_PAGES);

    return pages_total * sysconf(_SC_PAGESIZE);
}

static void *map_or_die(size_t bytes)
{
    void *p = mmap(NULL, bytes, PROT_READ | PROT_WRITE,
                   MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);

    if (p == MAP_FAILED) {
        die("cannot map %zu bytes: %s", bytes, strerror(errno));
    }
    return p;
}

static void set_up(void)
{
    uint64_t bytes = opt.percent ? memory_total() / 100 * opt.percent
                                 : opt.mbytes << 20;

    page_count = bytes / PAGE_BYTES;
    if (page_count < opt.threads) {
        die("%" PRIu64 " bytes are less than a page for each thread", bytes);
    }
    pages = map_or_die(page_count * PAGE_BYTES);
    generation = map_or_die(page_count * sizeof(*generation));
    if (opt.disk) {
        disk_fd = open(opt.disk, O_RDWR | O_DIRECT | O_CLOEXEC);
        if (disk_fd < 0) {
            die("cannot open %s: %s", opt.disk, strerror(errno));
        }
    }
    if (pthread_barrier_init(&phase_barrier, NULL, opt.threads) != 0) {
        die("cannot make a barrier");
    }
}

static void on_sigterm(int sig)
{
    (void)sig;
    stop_visits = true;
}

static void print_counts(const char *label, double started)
{
    uint64_t checked = 0, rewritten = 0, through_disk = 0;

    for (unsigned i = 0; i < opt.threads; i++) {
        checked += workers[i].checked;
        rewritten += workers[i].rewritten;
        through_disk += workers[i].through_disk;
    }
    printf("%s pages=%" PRIu64 " checked=%" PRIu64 " rewritten=%" PRIu64
           " through-disk=%" PRIu64 " seconds=%.1f\n",
           label, page_count, checked, rewritten, through_disk,
           now_s() - started);
    fflush(stdout);
}

/* Waits for the thread, saying meanwhile how far all of them are. */
static void join_worker(Worker *w, double started)
{
    struct timespec ts;

    do {
        clock_gettime(CLOCK_REALTIME, &ts);
        ts.tv_nsec += PROGRESS_NS;
        ts.tv_sec += ts.tv_nsec / 1000000000;
        ts.tv_nsec %= 1000000000;
        if (pthread_timedjoin_np(w->thread, NULL, &ts) == 0) {
            return;
        }
        print_counts("progress", started);
    } while (true);
}

int main(int argc, char **argv)
{
    struct sigaction action = { .sa_handler = on_sigterm };
    double started = now_s();

    parse_options(argc, argv);
    set_up();
    sigaction(SIGTERM, &action, NULL);
    for (unsigned i = 0; i < opt.threads; i++) {
        workers[i].index = i;
        workers[i].random = mix(opt.seed + i + 1);
        if (pthread_create(&workers[i].thread, NULL, worker_run,
                           &workers[i]) != 0) {
            die("cannot start a thread");
        }
    }
    for (unsigned i = 0; i < opt.threads; i++) {
        join_worker(&workers[i], started);
    }
    print_counts(found_mismatch ? "FAILED" : "verified", started);
    return found_mismatch ? 1 : 0;
}
