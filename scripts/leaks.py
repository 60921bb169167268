# SPDX-License-Identifier: GPL-2.0-or-later
"""Finds what a test left behind: processes, namespaces, mounts, swap ...

Processes: the runner is a "subreaper", so whatever a test started and did
not end becomes the runner's own child, however it was daemonized.  A
namespace without a name lives as long as its processes.  The rest is
compared with a snapshot from before.  Of what has a name, only names with
"memx" in them count, and not those that carry the number of a live process:
the machine's other users come and go as they like.
"""

import ctypes
import os
import re
import signal
import time

PR_SET_CHILD_SUBREAPER = 36
# The kernel removes interfaces and namespaces a moment after their last user.
SETTLE_SECONDS = 5


def adopt_orphans():
    if ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0):
        raise OSError("cannot become the reaper of the tests' processes")


def _read(path):
    try:
        with open(path, "rb") as file:
            return file.read().decode(errors="replace")
    except OSError:
        return ""


def reap_orphans(but):
    """A program may wait until a daemon that it left is really gone.  But
    those are ours, and somebody else waits for them."""
    for pid in _read(f"/proc/self/task/{os.getpid()}/children").split():
        try:
            if int(pid) not in but:
                os.waitpid(int(pid), os.WNOHANG)
        except ChildProcessError:
            pass


def _children(but):
    """Live children of this process; reaps those that have ended."""
    while True:
        try:
            if os.waitpid(-1, os.WNOHANG)[0] == 0:
                break
        except ChildProcessError:
            return []
    pids = _read(f"/proc/self/task/{os.getpid()}/children").split()
    return [int(pid) for pid in pids if int(pid) != but]


def end_orphans(but=None):
    """Ends what the last test left running; returns what that was.

    Call it only while no child of the runner's own is running, but one.
    """
    deadline = time.monotonic() + SETTLE_SECONDS
    while _children(but) and time.monotonic() < deadline:
        time.sleep(0.05)
    left = []
    while True:
        pids = _children(but)
        if not pids:
            return left
        for pid in pids:
            command = _read(f"/proc/{pid}/cmdline").replace("\0", " ").strip()
            left.append(f"process {pid}: {command[:200] or '(no command)'}")
            try:
                os.kill(pid, signal.SIGKILL)
                os.waitpid(pid, 0)
            except (ProcessLookupError, ChildProcessError):
                pass


def _names(what, folder):
    try:
        return {f"{what} {name}" for name in os.listdir(folder)
                if "memx" in name}
    except OSError:
        return set()


def _cgroups():
    found = set()
    for root, names, _ in os.walk("/sys/fs/cgroup"):
        found |= {f"cgroup {root}/{name}" for name in names if "memx" in name}
        if root.count("/") >= 6:
            names.clear()
    return found


def _swaps():
    return {f"swap on {line.split()[0]}"
            for line in _read("/proc/swaps").splitlines()[1:]}


def _mounted():
    """(source, mount point) of each mount."""
    for line in _read("/proc/self/mountinfo").splitlines():
        fields = line.split()
        yield fields[fields.index("-") + 2], fields[4]


def mounts_below(folder):
    return [point for _, point in _mounted() if point.startswith(folder)]


def _mounts(places):
    found = set()
    for source, point in _mounted():
        for text in point, source:
            if "memx" in text or any(text.startswith(p) for p in places):
                found.add(f"mount {source} on {point}")
    return found


def snapshot(places):
    return (_names("network namespace", "/run/netns")
            | _names("network interface", "/sys/class/net")
            | _names("shared memory", "/dev/shm")
            | _cgroups() | _swaps() | _mounts(places))


def _belongs_to_the_living(name):
    """Our own tests have ended by now, so this is another user's."""
    return any(os.path.exists(f"/proc/{number}")
               for number in re.findall(r"memx\D*(\d{2,})", name))


def since(before, places):
    """What exists now and did not exist before, once it has settled."""
    deadline = time.monotonic() + SETTLE_SECONDS
    while True:
        left = {name for name in snapshot(places) - before
                if not _belongs_to_the_living(name)}
        if not left or time.monotonic() >= deadline:
            return sorted(left)
        time.sleep(0.05)
