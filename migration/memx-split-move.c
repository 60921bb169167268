/*
 * The source of a split migration: memx RAM whose servers are not those of
 * split-hosts gets these first, as with the property "servers".
 *
 * Chunks go from server to server while the VM runs, and before anything goes
 * to the destination, so that all that is split and sent later, and the
 * hand-over, concerns servers that stay.  If it fails or is cancelled, the
 * memory has both, the old servers that were not released yet and the new
 * ones, and nothing moves any more.
 *
 * Servers that are being left already, since somebody changed the property or
 * drains them, are waited for in the same way.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#include "qemu/osdep.h"
#include "exec/ramblock.h"
#include "qapi/error.h"
#include "memx-backend.h"
#include "memx-split.h"

static bool begin_moves(Error **errp)
{
    unsigned i;

    for (i = 0; i < memx_split.n_blocks; i++) {
        MemxSplitBlock *block = &memx_split.blocks[i];
        g_autoptr(GError) gerr = NULL;

        if (block->moves &&
            !memx_region_set_servers(block->region,
                                     (const char *const *)memx_split.hosts,
                                     &gerr)) {
            error_setg(errp, "split-hosts, for '%s': %s", block->rb->idstr,
                       gerr->message);
            return false;
        }
    }
    return true;
}

static uint64_t count_moves(uint64_t *to_move)
{
    g_autofree MemxStats *stats = g_new(MemxStats, 1);
    uint64_t moved = 0;
    unsigned i, k;

    *to_move = 0;
    for (i = 0; i < memx_split.n_blocks; i++) {
        if (memx_split.blocks[i].passive) {
            continue;
        }
        memx_region_stats(memx_split.blocks[i].region, stats);
        for (k = 0; k < stats->n_servers; k++) {
            const MemxServerStats *s = &stats->servers[k];

            moved += s->moved_bytes;
            if (s->state == MEMX_SERVER_LEAVING ||
                (s->state == MEMX_SERVER_DRAINING && s->to_move)) {
                *to_move += s->remote_bytes;
            }
        }
    }
    return moved;
}

static bool wait_moved(MemxSplitBlock *block, uint64_t before, Error **errp)
{
    uint64_t moved, to_move;

    while (!memx_region_servers_settle(block->region, MEMX_POLL_MS)) {
        moved = count_moves(&to_move);
        memx_split_figures_moves(moved - MIN(before, moved), to_move);
        /* A server that does not come back is why it would never end. */
        if (memx_split_unwanted(errp) || !memx_split_figures_refresh(errp)) {
            return false;
        }
    }
    return true;
}

static bool wait_all_moved(Error **errp)
{
    uint64_t to_move, before = count_moves(&to_move);
    unsigned i;

    for (i = 0; i < memx_split.n_blocks; i++) {
        if (!memx_split.blocks[i].passive &&
            !wait_moved(&memx_split.blocks[i], before, errp)) {
            return false;
        }
    }
    memx_split_figures_moves(count_moves(&to_move) - before, 0);
    return true;
}

bool memx_split_move(Error **errp)
{
    bool moves = false;
    unsigned i;

    for (i = 0; i < memx_split.n_blocks; i++) {
        const MemxSplitBlock *block = &memx_split.blocks[i];

        moves |= block->moves || (!block->passive &&
                 !memx_region_servers_settle(block->region, 0));
    }
    if (!moves) {
        return true;
    }
    memx_split_set_phase(MEMX_SPLIT_PHASE_MOVE);
    if (begin_moves(errp) && wait_all_moved(errp)) {
        return true;
    }
    for (i = 0; i < memx_split.n_blocks; i++) {
        if (memx_split.blocks[i].moves) {
            memx_region_keep_servers(memx_split.blocks[i].region);
        }
    }
    return false;
}
