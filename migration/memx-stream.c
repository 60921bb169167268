/*
 * The section "memx" of a migration stream: what a split migration's
 * destination must know.  Without the capability there is none, and the
 * stream is as it was.
 *
 * It is a sequence of messages, each beginning with a byte that says which;
 * integers are big-endian, as everywhere in QEMU's streams.
 *
 *   SETUP   session 16, u32 blocks, and for each u8 length of its name, the
 *           name, u64 bytes, u64 bytes that may be local at the destination,
 *           u64 bytes of a chunk.  In the first part.
 *   RECORD  u32 block, u32 bytes, the bytes: of libmemx, for libmemx.  In all
 *           parts but the first.
 *   EOS     this part ends here.
 *   END     the last part ends here, after all records and all of RAM.
 *
 * A destination that refuses any of it says why on the return path, before it
 * closes that: u16 type, u16 bytes, and the text, as QEMU's own answers.
 *
 * The handlers run after RAM's own, in each step, since they are registered
 * later: at END all memory has been sent.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#include "qemu/osdep.h"
#include "exec/ramblock.h"
#include "migration/migration.h"
#include "migration/migration-stats.h"
#include "migration/qemu-file.h"
#include "migration/ram.h"
#include "migration/register.h"
#include "qapi/error.h"
#include "qemu/error-report.h"
#include "qemu/lockable.h"
#include "system/runstate.h"
#include "hooks.h"
#include "memx-split.h"

#define VERSION 1
#define BLOCKS_MAX 1024
#define ANSWER_REFUSED 0x6d78   /* QEMU's own types are small numbers */
#define ANSWER_MAX 1000

enum { SETUP = 1, RECORD, EOS, END };

/* What went wrong is the migration's error, for query-migrate. */
static int failed(Error *err)
{
    migrate_set_error(migrate_get_current(), err);
    error_free(err);
    return -EINVAL;
}

/* --- source ------------------------------------------------------------ */

static bool is_active(void *opaque)
{
    return memx_split_migration() ||
           (runstate_check(RUN_STATE_INMIGRATE) && memx_arrival_expected());
}

static int save_prepare(void *opaque, Error **errp)
{
    return memx_split_prepare(errp);
}

static int save_setup(QEMUFile *f, void *opaque, Error **errp)
{
    unsigned i;

    if (!memx_split_setup(errp)) {
        return -EINVAL;
    }
    qemu_put_byte(f, SETUP);
    qemu_put_buffer(f, memx_split.session, MEMX_SESSION_BYTES);
    qemu_put_be32(f, memx_split.n_blocks);
    for (i = 0; i < memx_split.n_blocks; i++) {
        const MemxSplitBlock *block = &memx_split.blocks[i];

        qemu_put_counted_string(f, block->rb->idstr);
        qemu_put_be64(f, block->bytes);
        qemu_put_be64(f, block->main_bytes);
        qemu_put_be64(f, block->chunk_bytes);
    }
    qemu_put_byte(f, EOS);
    return 0;
}

/* All that are due; the last ones when nothing changes any more. */
static void put_records(QEMUFile *f, bool last)
{
    g_autofree uint8_t *record = g_malloc(MEMX_SPLIT_RECORD_MAX);
    unsigned i;
    size_t n;

    for (i = 0; i < memx_split.n_blocks; i++) {
        while ((last || !migration_rate_exceeded(f)) &&
               !qemu_file_get_error(f) &&
               (n = memx_split_record(memx_split.blocks[i].region, last,
                                      record))) {
            qemu_put_byte(f, RECORD);
            qemu_put_be32(f, i);
            qemu_put_be32(f, n);
            qemu_put_buffer(f, record, n);
        }
    }
}

static int save_iterate(QEMUFile *f, void *opaque)
{
    Error *err = NULL;

    if (memx_split.state != MEMX_SPLIT_RUNNING) {
        qemu_put_byte(f, EOS);
        return 1;
    }
    put_records(f, false);
    qemu_put_byte(f, EOS);
    if (!memx_split_iterate(&err)) {
        return failed(err);
    }
    return memx_split_pending_bytes() == 0;
}

/* The last bytes may leave any time after END was put. */
static int save_complete(QEMUFile *f, void *opaque)
{
    Error *err = NULL;

    if (!memx_split_finish(&err)) {
        return failed(err);
    }
    put_records(f, true);
    memx_split_sent();
    qemu_put_byte(f, END);
    return 0;
}

static void state_pending(void *opaque, uint64_t *must_precopy,
                          uint64_t *can_postcopy)
{
    if (memx_split_active) {
        memx_split_refresh();
        *must_precopy += memx_split_pending_weighed(
            ram_bytes_remaining() - memx_split_pending_bytes());
    }
}

static void save_cleanup(void *opaque)
{
    memx_split_cleanup();
}

/* What the destination says beside QEMU's own answers. */
bool memx_split_answer(QEMUFile *rp, unsigned type, unsigned bytes)
{
    g_autofree char *text = g_malloc0(bytes + 1);
    g_autofree char *valid = NULL;
    Error *err = NULL;

    if (!memx_split_migration() || type != ANSWER_REFUSED ||
        bytes > ANSWER_MAX) {
        return false;
    }
    if (qemu_get_buffer(rp, (uint8_t *)text, bytes) == bytes) {
        valid = g_utf8_make_valid(text, bytes);
        qatomic_set(&memx_split.refused, true);
        error_setg(&err, "the destination refused: %s", valid);
        failed(err);
    }
    return true;
}

/* --- destination ------------------------------------------------------- */

static void tell_source(const char *why)
{
    MigrationIncomingState *mis = migration_incoming_get_current();
    size_t bytes = MIN(strlen(why), ANSWER_MAX);

    QEMU_LOCK_GUARD(&mis->rp_mutex);
    if (mis->to_src_file) {
        qemu_put_be16(mis->to_src_file, ANSWER_REFUSED);
        qemu_put_be16(mis->to_src_file, bytes);
        qemu_put_buffer(mis->to_src_file, (const uint8_t *)why, bytes);
        qemu_fflush(mis->to_src_file);
    }
}

static int load_setup(QEMUFile *f, void *opaque, Error **errp)
{
    ERRP_GUARD();

    if (!memx_arrival_check(errp)) {
        migrate_set_error(migrate_get_current(), *errp);
        return -EINVAL;
    }
    return 0;
}

static bool get_setup(QEMUFile *f, Error **errp)
{
    uint8_t session[MEMX_SESSION_BYTES];
    uint64_t bytes, main_bytes, chunk_bytes;
    char name[256];
    bool named;
    uint32_t n;

    qemu_get_buffer(f, session, sizeof(session));
    n = qemu_get_be32(f);
    if (qemu_file_get_error(f)) {
        return true;            /* the caller's to tell */
    }
    if (n > BLOCKS_MAX || !n) {
        error_setg(errp, "%u blocks of split memory", n);
        return false;
    }
    if (!memx_arrival_begin(session, errp)) {
        return false;
    }
    for (; n; n--) {
        named = qemu_get_counted_string(f, name);
        bytes = qemu_get_be64(f);
        main_bytes = qemu_get_be64(f);
        chunk_bytes = qemu_get_be64(f);
        if (qemu_file_get_error(f)) {
            return true;
        }
        if (!named) {
            error_setg(errp, "a block of split memory without a name");
            return false;
        }
        if (!memx_arrival_block(name, bytes, main_bytes, chunk_bytes, errp)) {
            return false;
        }
    }
    return memx_arrival_complete(errp);
}

static bool get_record(QEMUFile *f, Error **errp)
{
    uint32_t block = qemu_get_be32(f);
    uint32_t bytes = qemu_get_be32(f);
    g_autofree uint8_t *record = NULL;

    if (qemu_file_get_error(f)) {
        return true;            /* the caller's to tell */
    }
    if (!bytes || bytes > MEMX_SPLIT_RECORD_MAX) {
        error_setg(errp, "a record of %u bytes", bytes);
        return false;
    }
    record = g_malloc(bytes);
    if (qemu_get_buffer(f, record, bytes) != bytes) {
        return true;
    }
    return memx_arrival_add_record(block, record, bytes, errp);
}

static int load_state(QEMUFile *f, void *opaque, int version_id)
{
    Error *err = NULL;
    bool ok = version_id == VERSION;

    if (!ok) {                  /* QEMU itself refuses what is newer */
        error_setg(&err, "version %d of the section 'memx': this QEMU knows "
                   "%d", version_id, VERSION);
    }
    while (ok) {
        uint8_t kind = qemu_get_byte(f);
        int ret = qemu_file_get_error(f);

        if (ret) {
            return ret;
        }
        switch (kind) {
        case SETUP:
            ok = get_setup(f, &err);
            break;
        case RECORD:
            ok = get_record(f, &err);
            break;
        case EOS:
            return 0;
        case END:
            ok = memx_arrival_attach(&err);
            if (ok) {
                return 0;
            }
            break;
        default:
            error_setg(&err, "a message of type %u", kind);
            ok = false;
        }
    }
    tell_source(error_get_pretty(err));
    error_prepend(&err, "split-migration: ");
    return failed(err);
}

static int load_cleanup(void *opaque)
{
    memx_arrival_cleanup();
    return 0;
}

static SaveVMHandlers handlers = {
    .is_active = is_active,
    .save_prepare = save_prepare,
    .save_setup = save_setup,
    .save_live_iterate = save_iterate,
    .save_live_complete_precopy = save_complete,
    .state_pending_exact = state_pending,
    .state_pending_estimate = state_pending,
    .save_cleanup = save_cleanup,
    .load_setup = load_setup,
    .load_state = load_state,
    .load_cleanup = load_cleanup,
};

void memx_stream_init(void)
{
    register_savevm_live("memx", 0, VERSION, &handlers, NULL);
}
