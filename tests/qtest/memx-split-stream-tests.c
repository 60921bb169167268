/*
 * Split migration: a stream that is not what a source sends.  The destination
 * refuses it, says why to its user and to the source, and lives on.
 *
 * The test itself is the source: a socket, and a stream of nothing but the
 * section "memx" (migration/memx-stream.c).
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#include "qemu/osdep.h"
#include <arpa/inet.h>
#include <netinet/in.h>
#include <sys/socket.h>
#include "qemu/bswap.h"
#include "migration/migration-qmp.h"
#include "migration/migration-util.h"
#include "memx-split-helpers.h"

/* QEMU's stream: magic, version; the command to open the return path; the
 * beginning of section 1. */
#define STREAM "QEVM" "\0\0\0\3" "\x08\0\1\0\0"
#define SECTION(version) "\1" "\0\0\0\1" "\4memx" "\0\0\0\0" \
    "\0\0\0" version

/* Our part. */
#define SESSION "0123456789abcdef"
#define MIB_32 "\0\0\0\0\2\0\0\0"
#define MIB_64 "\0\0\0\0\4\0\0\0"
#define CHUNK "\0\0\0\0\0\x10\0\0"
#define BLOCK "\6pc.ram" MIB_64 MIB_32 CHUNK
#define SETUP "\1" SESSION "\0\0\0\1" BLOCK
#define RECORD "\2"
#define END "\4"

typedef struct BadStream {
    const char *name;
    const char *version;    /* NULL: 1 */
    const char *bytes;
    size_t n_bytes;
    const char *expected;
    const char *more;       /* arguments of the destination; NULL: none */
} BadStream;

#define BYTES(text) text, sizeof(text) - 1

static const BadStream bad_streams[] = {
    { "version/newer", "\2", BYTES(SETUP "\3"), "version 2 for 'memx'" },
    { "version/zero", "\0", BYTES(SETUP "\3"), "version 0" },
    { "type/zero", NULL, BYTES("\0"), "a message of type 0" },
    { "type/unknown", NULL, BYTES(SETUP "\5"), "a message of type 5" },
    { "setup/no-blocks", NULL, BYTES("\1" SESSION "\0\0\0\0"),
      "0 blocks of split memory" },
    { "setup/too-many-blocks", NULL, BYTES("\1" SESSION "\0\0\4\1" BLOCK),
      "1025 blocks of split memory" },
    { "setup/no-name", NULL,
      BYTES("\1" SESSION "\0\0\0\1" "\0" MIB_64 MIB_32 CHUNK),
      "without a name" },
    { "setup/other-name", NULL,
      BYTES("\1" SESSION "\0\0\0\1" "\4m%sn" MIB_64 MIB_32 CHUNK),
      "splits 'm%sn', which is no memory-backend-memx here" },
    { "setup/twice-the-same", NULL,
      BYTES("\1" SESSION "\0\0\0\2" BLOCK BLOCK), "names 'pc.ram' twice" },
    { "setup/other-size", NULL,
      BYTES("\1" SESSION "\0\0\0\1" "\6pc.ram" MIB_32 MIB_32 CHUNK),
      "'pc.ram' has 32 MiB at the source and 64 MiB here" },
    { "setup/more-than-local-size", NULL,
      BYTES("\1" SESSION "\0\0\0\1" "\6pc.ram" MIB_64 MIB_64 CHUNK),
      "the source may send 65536 KiB" },
    { "setup/again", NULL, BYTES(SETUP SETUP), "a second split migration" },
    { "setup/not-all", NULL, BYTES(SETUP),
      "'m1' waits for its part of the split migration",
      "-object memory-backend-memx,id=m1,size=64M,local-size=32M" },
    { "record/first", NULL,
      BYTES(RECORD "\0\0\0\0" "\0\0\0\x08" "\1\0\0\0\0\0\0\0"),
      "a record of block 0, which there is not" },
    { "record/other-block", NULL,
      BYTES(SETUP RECORD "\0\0\0\1" "\0\0\0\x08" "\1\0\0\0\0\0\0\0"),
      "a record of block 1, which there is not" },
    { "record/empty", NULL, BYTES(SETUP RECORD "\0\0\0\0" "\0\0\0\0"),
      "a record of 0 bytes" },
    { "record/too-long", NULL,
      BYTES(SETUP RECORD "\0\0\0\0" "\0\1\0\1" "\1\0\0\0"),
      "a record of 65537 bytes" },
    { "record/longest", NULL,
      BYTES(SETUP RECORD "\0\0\0\0" "\xff\xff\xff\xff" "\1\0\0\0"),
      "a record of 4294967295 bytes" },
    { "record/malformed", NULL,
      BYTES(SETUP RECORD "\0\0\0\0" "\0\0\0\x08" "\x09\0\0\0\0\0\0\0"),
      "'pc.ram': " },
    { "end/first", NULL, BYTES(END), "did not begin" },
    { "end/without-records", NULL, BYTES(SETUP END),
      "has not told all of its memory" },
};

/* Ends in the middle: after so many bytes of this. */
#define WHOLE SETUP RECORD "\0\0\0\0" "\0\0\0\x08" "\1\0\0\0\0\0\0\0"

static const struct {
    const char *name;
    size_t n_bytes;
} cuts[] = {
    { "at-once", 0 },
    { "session", 1 + 10 },
    { "count", 1 + 16 + 2 },
    { "name", 1 + 16 + 4 + 3 },
    { "sizes", 1 + 16 + 4 + 7 + 20 },
    { "setup", sizeof(SETUP) - 1 },
    { "block-number", sizeof(SETUP RECORD) - 1 + 2 },
    { "length", sizeof(SETUP RECORD) - 1 + 6 },
    { "record", sizeof(WHOLE) - 1 - 3 },
};

/* --- */

static void connect_and_send(QTestState *to, int *fd, const char *version,
                             const char *bytes, size_t n_bytes)
{
    g_autofree char *uri = migrate_get_connect_uri(to);
    struct sockaddr_in sin = {
        .sin_family = AF_INET,
        .sin_addr.s_addr = htonl(INADDR_LOOPBACK),
        .sin_port = htons(atoi(strrchr(uri, ':') + 1)),
    };
    g_autoptr(GByteArray) stream = g_byte_array_new();
    static const char begin[] = STREAM SECTION("\1");

    g_byte_array_append(stream, (const uint8_t *)begin, sizeof(begin) - 1);
    stream->data[stream->len - 1] = *version;
    g_byte_array_append(stream, (const uint8_t *)bytes, n_bytes);
    *fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    g_assert_cmpint(connect(*fd, (struct sockaddr *)&sin, sizeof(sin)), ==, 0);
    g_assert_cmpint(send(*fd, stream->data, stream->len, MSG_NOSIGNAL), ==,
                    stream->len);
    shutdown(*fd, SHUT_WR);
}

/* Its log goes to @log, the stream is in @fd. */
static QTestState *incoming(const char *log, const char *more, int *fd,
                            const char *version, const char *bytes,
                            size_t n_bytes)
{
    g_autofree char *args = g_strdup_printf(
        "-m 64M -object memory-backend-memx,id=pc.ram,size=64M,local-size=32M "
        "-machine memory-backend=pc.ram -global migration.send-configuration="
        "off -incoming defer %s 2> %s", more, log);
    QTestState *to = memx_plain_vm(args);

    migrate_set_capability(to, "split-migration", true);
    migrate_incoming_qmp(to, "tcp:127.0.0.1:0", NULL,
                         "{ 'exit-on-error': false }");
    connect_and_send(to, fd, version, bytes, n_bytes);
    return to;
}

/* What the destination said on the return path, or NULL. */
static char *read_answer(int fd)
{
    uint8_t header[4];
    char *text;

    if (recv(fd, header, sizeof(header), MSG_WAITALL) != sizeof(header) ||
        lduw_be_p(header) != 0x6d78) {
        return NULL;
    }
    text = g_malloc0(lduw_be_p(header + 2) + 1);
    g_assert_cmpint(recv(fd, text, lduw_be_p(header + 2), MSG_WAITALL), ==,
                    lduw_be_p(header + 2));
    return text;
}

static void assert_says(const char *text, const char *expected)
{
    if (!text || !strstr(text, expected)) {
        g_error("'%s' is not in: %s", expected, text ?: "(nothing)");
    }
}

static void test_bad_stream(const void *opaque)
{
    const BadStream *bad = opaque;
    g_autofree char *path = memx_tmp_path("target-log");
    g_autofree char *said = NULL;
    bool newer = bad->version && *bad->version > 1;
    QTestState *to;
    int fd;

    to = incoming(path, bad->more ?: "", &fd, bad->version ?: "\1", bad->bytes,
                  bad->n_bytes);
    split_wait_failed(to, newer ? "" : bad->expected);
    if (newer) {                /* QEMU itself refuses it: see the log */
        g_assert_true(g_file_get_contents(path, &said, NULL, NULL));
    } else {
        said = read_answer(fd);
    }
    assert_says(said, bad->expected);
    memx_quit(to);
    close(fd);
}

/* Nothing was wrong with it: the connection broke. */
static void test_cut(const void *opaque)
{
    size_t n_bytes = GPOINTER_TO_SIZE(opaque);
    g_autofree char *path = memx_tmp_path("target-log");
    QTestState *to;
    int fd;

    to = incoming(path, "", &fd, "\1", WHOLE, n_bytes);
    split_wait_failed(to, strerror(EIO));
    g_assert_null(read_answer(fd));
    memx_quit(to);
    close(fd);
}

void memx_add_split_stream_tests(void)
{
    unsigned i;

    for (i = 0; i < G_N_ELEMENTS(bad_streams); i++) {
        g_autofree char *path = g_strdup_printf("/migration/split/stream/%s",
                                                bad_streams[i].name);

        qtest_add_data_func(path, &bad_streams[i], test_bad_stream);
    }
    for (i = 0; i < G_N_ELEMENTS(cuts); i++) {
        g_autofree char *path = g_strdup_printf(
            "/migration/split/stream/cut/%s", cuts[i].name);

        qtest_add_data_func(path, GSIZE_TO_POINTER(cuts[i].n_bytes),
                            test_cut);
    }
}
