# SPDX-License-Identifier: GPL-2.0-or-later
"""What is measured: patterns of accesses, and how much of their memory is
local.  Both the hosts of the lab and who judges afterwards go by it."""

PAGE_BYTES = 4096
CHUNK_BYTES = 256 << 10         # and of a chunk's 64 pages:
PAGES = 32                      # so many are in use
# So many chunks that the least local-size that an engine takes, 8 MiB, is that
# share of them, and a little more; fetching is slow in the lab.
CHUNKS = {25: 224, 50: 128, 75: 96}
PERCENTS = list(CHUNKS)
TRACKERS = {                    # and the lab's kernel that has it
    "rwp": "7.3", "idle": "idle", "sample": "7.3", "damon": "7.3",
    "off": "7.3",
}
PATTERNS = ["fixed", "moving", "zipf", "scan"]
COST = "cost"                   # what tracking costs, half local
# What the engine keeps free (memx_low_watermark()) and its fetch buffers: at
# this size a large part of local-size, at any usual one very little.  They
# come on top of what is to be local, so that it is the choice that is judged.
RESERVE_PAGES = 256 + 64

# Where the memory is: below and above it ordinary memory for the guest's
# kernel, in between what nobody but the pattern uses.
LOW_MIB, TOP_MIB = 128, 64
FRESH_MIB = 4                   # of the lower: left alone, too

# Accesses to get used to it, and to be judged; the scale multiplies both.  A
# history has 8 periods, each as long as some hundred accesses here.
WARM = {"fixed": 1400, "moving": 1000, "zipf": 4000, "scan": 1000}
COUNT = {"fixed": 2000, "moving": 2000, "zipf": 4000, "scan": 2000}


REPORT = 50     # accesses; numbers of them are multiples


def _scaled(accesses, scale):
    return max(round(accesses * scale / REPORT), 1) * REPORT


def local_chunks(percent):
    return CHUNKS[percent] * percent // 100


def local_bytes(percent):
    return (local_chunks(percent) * PAGES + RESERVE_PAGES) * PAGE_BYTES


def options(pattern, percent, scale):
    """Of tests/guest/accesses.c."""
    local = local_chunks(percent)
    words = {"chunks": CHUNKS[percent], "pages": PAGES, "stride": CHUNK_BYTES,
             "count": warm(pattern, scale) + _scaled(COUNT[pattern], scale),
             "report": REPORT, "seed": 1}
    if pattern == "fixed":
        words.update(hot=local * 2 // 3, noise=16)
    elif pattern == "moving":
        words.update(hot=local // 2, noise=16, move=500)
    elif pattern == "scan":
        words.update(hot=CHUNKS[percent] // 10, noise=8)
    return words


def command(pattern, percent, scale):
    words = options(pattern, percent, scale)
    return ["accesses", pattern, *(str(word) for name, value in words.items()
                                   for word in (f"--{name}", value))]


def warm(pattern, scale):
    return _scaled(WARM[pattern], scale)


def hot(pattern, words, places, access):
    """The chunks that are hot at an access; none with zipf."""
    if pattern == "zipf":
        return set()
    first = 0
    if pattern == "moving":
        first = access // words["move"] * (words["hot"] // 4)
    return {places[(first + i) % len(places)] for i in range(words["hot"])}
