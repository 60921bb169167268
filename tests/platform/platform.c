/* SPDX-License-Identifier: GPL-2.0-or-later */
/* What the proofs of this folder share: see platform.h. */
#include "platform.h"

#include <fcntl.h>
#include <linux/magic.h>
#include <poll.h>
#include <signal.h>
#include <stdarg.h>
#include <sys/vfs.h>

#define PROGRAM_DEADLINE_S 60
#define EMULATED_DEADLINE_S 360 /* in a host of the lab */
#define LONG_ENOUGH_S 10
#define FAULT_DEADLINE_MS 10000

static gint64 began_us;

static void on_alarm(int sig)
{
    static const char text[] = "deadline: something waits for ever\n";

    (void)sig;
    if (write(STDERR_FILENO, text, sizeof(text) - 1) < 0) {
        _exit(2);
    }
    _exit(1);
}

__attribute__((constructor)) static void set_deadline(void)
{
    signal(SIGALRM, on_alarm);
    alarm(g_getenv("LAB_HOST") ? EMULATED_DEADLINE_S : PROGRAM_DEADLINE_S);
    began_us = g_get_monotonic_time();
}

bool long_enough(void)
{
    return g_get_monotonic_time() - began_us > LONG_ENOUGH_S * G_USEC_PER_SEC;
}

void skip(const char *fmt, ...)
{
    va_list ap;

    printf("SKIP: ");
    va_start(ap, fmt);
    vprintf(fmt, ap);
    va_end(ap);
    printf("\n");
    exit(77);
}

int open_uffd(void)
{
    g_autoptr(GError) error = NULL;
    int fd = memx_uffd_open(UFFD_FEATURE_THREAD_ID, NULL, &error);

    if (fd < 0) {
        skip("%s", error->message);
    }
    return fd;
}

char *map_pages(size_t pages)
{
    char *p = mmap(NULL, pages * PAGE, PROT_READ | PROT_WRITE,
                   MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);

    check(p != MAP_FAILED, "%s", strerror(errno));
    /* EINVAL: a kernel without huge pages, which is as good */
    check(madvise(p, pages * PAGE, MADV_NOHUGEPAGE) == 0 || errno == EINVAL,
          "%s", strerror(errno));
    return p;
}

static char *registered(int uffd, char *p, size_t pages)
{
    g_autoptr(GError) error = NULL;

    check(memx_uffd_register(uffd, p, pages * PAGE, &error),
          "%s", error->message);
    return p;
}

char *map_registered(int uffd, size_t pages)
{
    return registered(uffd, map_pages(pages), pages);
}

char *map_filled(int uffd, size_t pages, int byte)
{
    char *p = memset(map_pages(pages), byte, pages * PAGE);

    return registered(uffd, p, pages);
}

bool page_is(const char *page, int byte)
{
    for (size_t i = 0; i < PAGE; i++) {
        if ((unsigned char)page[i] != (unsigned char)byte) {
            return false;
        }
    }
    return true;
}

bool mapped(const void *page)
{
    int fd = open("/proc/self/pagemap", O_RDONLY | O_CLOEXEC);
    int ret;

    check(fd >= 0, "/proc/self/pagemap: %s", strerror(errno));
    ret = memx_page_mapped(fd, page);
    check(ret >= 0, "%s", strerror(-ret));
    close(fd);
    return ret;
}

struct uffd_msg wait_fault(int uffd)
{
    struct pollfd pfd = { .fd = uffd, .events = POLLIN };
    struct uffd_msg msg;
    int n;

    do {
        check(poll(&pfd, 1, FAULT_DEADLINE_MS) == 1, "no fault message came");
        n = memx_uffd_read(uffd, &msg, 1);
        check(n >= 0, "%s", strerror(-n));
    } while (n == 0);
    check(msg.event == UFFD_EVENT_PAGEFAULT, "event 0x%x", msg.event);
    return msg;
}

char thread_state(pid_t tid)
{
    g_autofree char *path = g_strdup_printf("/proc/self/task/%d/stat", tid);
    g_autofree char *text = NULL;
    char *name_end;

    check(g_file_get_contents(path, &text, NULL, NULL), "no thread %d", tid);
    name_end = strrchr(text, ')');
    check(name_end && name_end[1] == ' ', "%s: %s", path, text);
    return name_end[2];
}

void wait_asleep(pid_t tid)
{
    while (!strchr("SD", thread_state(tid))) {
        linger(1);
    }
}

void linger(int ms)
{
    poll(NULL, 0, ms);
}

static void *thread_main(void *opaque)
{
    struct thread *t = opaque;

    atomic_store(&t->tid, gettid());
    t->fn(t);
    atomic_store(&t->done, true);
    return NULL;
}

void thread_start(struct thread *t, void (*fn)(struct thread *t))
{
    int err;

    t->fn = fn;
    atomic_store(&t->tid, 0);
    atomic_store(&t->done, false);
    err = pthread_create(&t->thread, NULL, thread_main, t);
    check(err == 0, "%s", strerror(err));
    while (!atomic_load(&t->tid)) {
        linger(1);
    }
}

void thread_join(struct thread *t)
{
    pthread_join(t->thread, NULL);
}

void touch_byte(struct thread *t)
{
    t->result = *t->addr;
}

int open_direct_file(size_t bytes, int byte)
{
    const char *dir = getenv("MEMX_TEST_DIR") ?: "/var/tmp";
    int fd = open(dir, O_TMPFILE | O_RDWR | O_DIRECT | O_CLOEXEC, 0600);
    struct statfs fs;
    char *buf;

    if (fd < 0) {
        skip("no O_DIRECT file in %s: %s (set MEMX_TEST_DIR to a folder on "
             "a disk)", dir, strerror(errno));
    }
    if (fstatfs(fd, &fs) == 0 && fs.f_type == TMPFS_MAGIC) {
        skip("%s is a tmpfs, whose O_DIRECT is no DMA (set MEMX_TEST_DIR to "
             "a folder on a disk)", dir);
    }
    check(posix_memalign((void **)&buf, PAGE, bytes) == 0, "no memory");
    memset(buf, byte, bytes);
    if (pwrite(fd, buf, bytes, 0) != (ssize_t)bytes) {
        skip("cannot write %zu bytes with O_DIRECT in %s: %s", bytes, dir,
             strerror(errno));
    }
    free(buf);
    return fd;
}
