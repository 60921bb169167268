/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Backing: the four memfds that hold everything that must outlive a process.
 *
 * Theory of operation
 *
 *   index   the superblock, then a record of 1 KiB for each space
 *   tables  the page sub-tables: 4 bytes for each page of a space, 1 + the
 *           number of the frame that holds it, 0 if the page is not held.
 *           The space in slot n has the 4 TiB that begin at n * 4 TiB;
 *           the file is sparse, so what was never stored takes nothing.
 *   hashes  16 bytes for each frame: the hash that came with its page
 *   frames  the pages themselves
 *
 * They live as long as any process, or systemd's descriptor store, has them
 * open.  A successor maps them and rebuilds from records and tables whatever
 * is not in them (store.c): no counter and no list of free frames is kept
 * here, hence none can be wrong.  All are sealed against shrinking, so that
 * no mapping can ever hit SIGBUS.
 *
 * What is written here is native-endian and of this layout version: it never
 * leaves the machine, and another version is refused, not guessed at.
 */
#ifndef MS_BACKING_H
#define MS_BACKING_H

#include <glib.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include "memx-protocol.h"

typedef enum MsBackingFile {
    MS_FILE_INDEX,
    MS_FILE_TABLES,
    MS_FILE_HASHES,
    MS_FILE_FRAMES,
    MS_N_FILES,
} MsBackingFile;

/* The names under which systemd keeps them. */
extern const char *const ms_backing_names[MS_N_FILES];

#define MS_LAYOUT_VERSION 2u
#define MS_RECORD_BYTES 1024u
#define MS_MAX_SPACES 65535u
#define MS_INDEX_BYTES ((MS_MAX_SPACES + 1ull) * MS_RECORD_BYTES)

#define MS_SPACE_PAGES_MAX (1ull << 40)
#define MS_TABLE_ENTRY_BYTES 4u
#define MS_TABLE_STRIDE (MS_SPACE_PAGES_MAX * MS_TABLE_ENTRY_BYTES)
/* Frames are numbered with 32 bits, one value being "none". */
#define MS_FRAMES_MAX 0xfffffff0ull

typedef struct MsSuperblock {
    char magic[8];
    uint32_t layout_version;
    uint32_t page_bytes;
    uint8_t instance[MEMX_ID_BYTES];
    _Atomic uint32_t draining;      /* memxctl drain; 0 before that existed */
} MsSuperblock;

/* Whether a space is being handed over; offer.c. */
typedef enum MsOfferState {
    MS_OFFER_NONE,
    MS_OFFER_MADE,      /* to the heir; the owner may take it back */
    MS_OFFER_RESIGNED,  /* the owner never will */
    MS_N_OFFER_STATES,
} MsOfferState;

/* Who may write a space, and who shall. */
typedef struct MsOwner {
    uint8_t client[MEMX_ID_BYTES];
    uint64_t epoch;
    uint8_t session[MEMX_ID_BYTES]; /* by which it became the owner, if by
                                       COMMIT; else zero */
    uint32_t offer_state;           /* MsOfferState; unless NONE: */
    uint32_t unused;
    MemxOffer offer;
} MsOwner;

/* A commit in progress; space.c says how it is used. */
typedef struct MsRedo {
    _Atomic uint32_t valid;
    uint32_t unused;
    uint64_t group;
    uint64_t mask;
    uint32_t entries[MEMX_GROUP_PAGES];
} MsRedo;

typedef struct MsRecord {
    _Atomic uint32_t in_use;        /* written last when created */
    _Atomic uint32_t current_owner; /* index into owner[] */
    MsOwner owner[2];
    uint8_t id[MEMX_ID_BYTES];
    uint8_t secret[MEMX_ID_BYTES];
    uint8_t vm_uuid[MEMX_ID_BYTES];
    uint64_t size_pages;
    _Atomic uint64_t reserved_pages;
    _Atomic int64_t created_s;      /* seconds since 1970 */
    _Atomic int64_t orphaned_s;     /* 0: has connections */
    char vm_name[MEMX_NAME_BYTES];
    char region_name[MEMX_NAME_BYTES];
    MsRedo redo;
    uint8_t unused[368];
} MsRecord;

_Static_assert(sizeof(MsRecord) == MS_RECORD_BYTES, "layout of the index");

typedef struct MsBacking {
    int fds[MS_N_FILES];
    MsSuperblock *super;    /* the index, mapped; record n at n + 1 KiB */
} MsBacking;

/* New, empty memfds with a new instance id. */
bool ms_backing_create(MsBacking *backing, GError **error);

/*
 * Takes over memfds of another process.  The descriptors belong to @backing
 * from now on, on failure too.  They come from a trusted place (our
 * predecessor or systemd); what is checked is that they are ours and of this
 * layout.
 */
bool ms_backing_adopt(MsBacking *backing, const int fds[MS_N_FILES],
                      GError **error);

/* Unmaps and closes. */
void ms_backing_close(MsBacking *backing);

static inline MsRecord *ms_backing_record(const MsBacking *backing,
                                          uint32_t slot)
{
    return (MsRecord *)((char *)backing->super + MS_RECORD_BYTES) + slot;
}

/* Maps [offset, offset + bytes) of a memfd: shared, never huge pages (one
 * page stored would take 2 MiB), never in a core dump.  NULL, errno set. */
void *ms_map_file(int fd, uint64_t offset, uint64_t bytes);
/* Maps memory that takes nothing until it is touched.  NULL, errno set. */
void *ms_map_anonymous(uint64_t bytes);
/* Gives a range of a memfd back to the system; it reads as zeros then. */
void ms_punch(int fd, uint64_t offset, uint64_t bytes);

#endif
