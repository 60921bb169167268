# SPDX-License-Identifier: GPL-2.0-or-later
"""The demo itself; run it through scripts/demo, which builds first.

The same work is done by the same guest four times: GNU sort of a generated
data set, whose checksum the host computes for itself.  Then it migrates to a
smaller host while it does it once more.
"""

import argparse
import ctypes
import os
import re
import subprocess
import sys
import textwrap
import time

sys.dont_write_bytecode = True
HERE = os.path.dirname(os.path.realpath(__file__))
sys.path[:0] = [HERE, os.path.join(HERE, "../tests/e2e")]
# pylint: disable=wrong-import-position
from demosplit import demo_split  # noqa: E402
from demovirsh import demo_virsh  # noqa: E402
from memxlib import e2e, hosts  # noqa: E402
from memxlib.vm import best_accel  # noqa: E402
from memxlib.wait import Failure, Skip, check  # noqa: E402

MIB = 1 << 20
GUEST_MIB = 1024
LOCAL_MIB = GUEST_MIB // 4
DATA_MIB = 224
LINE_LENGTH = 1023
WRITE_DATA = f"gendata {DATA_MIB * MIB} {LINE_LENGTH} > /tmp/data"
# Through files, since a pipe would mean a wake-up for every page.
SORT = ("gnu-sort -S 60% -o /tmp/sorted /tmp/data && "
        "gnu-b2sum /tmp/sorted | cut -d ' ' -f 1")
PR_SET_THP_DISABLE = 41


def host_checksum(t):
    """What sort must give: computed by the host's sort, not the guest's."""
    command = (f"'{t.guest_file('gendata')}' {DATA_MIB * MIB} {LINE_LENGTH} |"
               " LC_ALL=C sort -S 25% | b2sum")
    done = subprocess.run(["bash", "-c", command], capture_output=True,
                          text=True, check=True)
    return done.stdout.split()[0]


def no_huge_pages():
    ctypes.CDLL(None).prctl(PR_SET_THP_DISABLE, 1, 0, 0, 0)


def host_has_huge_pages():
    try:
        with open("/sys/kernel/mm/transparent_hugepage/enabled",
                  encoding="ascii") as file:
            return "[never]" not in file.read()
    except OSError:
        return False


class Resident:
    """How much anonymous memory a process had at most; programs and
    libraries are not charged to its cgroup, others have them already."""

    def __init__(self, pid):
        self._pid = pid
        self.ram_peak = 0
        self.other_peak = 0

    def sample(self):
        """Guest memory is the one mapping of its size."""
        ram = total = 0
        size = 0
        with open(f"/proc/{self._pid}/smaps", encoding="utf-8",
                  errors="replace") as smaps:
            for line in smaps:
                match = re.match(r"(Size|Anonymous): +(\d+) kB", line)
                if not match:
                    continue
                kib = int(match.group(2))
                if match.group(1) == "Size":
                    size = kib
                else:
                    total += kib
                    if size >= GUEST_MIB * 1024:
                        ram += kib
        self.ram_peak = max(self.ram_peak, ram * 1024)
        self.other_peak = max(self.other_peak, (total - ram) * 1024)


class Progress:
    """One line that changes on a terminal, one in five seconds elsewhere."""

    def __init__(self):
        self._tty = sys.stdout.isatty()
        self._shown = 0.0

    def show(self, text):
        if self._tty:
            print(f"\r\033[K{text}", end="", flush=True)
        elif time.monotonic() - self._shown >= 5:
            self._shown = time.monotonic()
            print(text, flush=True)

    def clear(self):
        if self._tty:
            print("\r\033[K", end="", flush=True)


def memx_line(backend, faults_per_s=None):
    latency = backend["fetch-latency"]
    rate = "" if faults_per_s is None else f"{faults_per_s:,.0f} faults/s, "
    return (f"    local {backend['local'] >> 20} MiB, "
            f"remote {backend['remote'] >> 20} MiB, "
            f"never written {backend['never-written'] >> 20} MiB; "
            f"{rate}fetch p50 {latency['p50'] / 1000:,.0f} us "
            f"p99 {latency['p99'] / 1000:,.0f} us")


class Run:
    """The guest does its work once; keeps what there is to tell of it."""

    def __init__(self, t, label, expected, is_small=False, **options):
        self.label = label
        self.is_small = is_small  # the host gives it less than it needs
        self.memx = None
        print(f"\n{label}", flush=True)
        self._vm = t.vm(size=f"{GUEST_MIB}M", name=re.sub(
            r"\W+", "-", label), **options)
        self._progress = Progress()
        self.resident = Resident(self._vm.process.pid)
        self._faults = (time.monotonic(), 0)
        self._has_memx = bool(options.get("local"))
        self._watch(WRITE_DATA, "writes its data")
        self.seconds, output = self._watch(SORT, "sorts")
        check(output == expected, f"{label}: the checksum is {output}, it "
                                  f"should be {expected}")
        print(f"    sorted {DATA_MIB} MiB in {self.seconds:.1f} s, "
              "the checksum is right", flush=True)
        if self._has_memx:
            self.memx = self._vm.backend()
        self._vm.end()

    def _watch(self, command, what):
        began = time.monotonic()
        job = self._vm.guest.start(command)
        while job.running:
            seconds = time.monotonic() - began
            if seconds > 150:
                raise Failure(f"{self.label}: not within 150 s: the guest "
                              f"{what}")
            self.resident.sample()
            if self._has_memx:
                self._progress.show(self._memx_text())
            else:
                self._progress.show(f"    the guest {what}: {seconds:.0f} s, "
                                    f"{self.resident.ram_peak >> 20} MiB")
            time.sleep(0.3)
        seconds = time.monotonic() - began
        self._progress.clear()
        return seconds, job.wait()

    def _memx_text(self):
        backend = self._vm.backend()
        # Staged pages and free frames are host memory, too.
        self.resident.ram_peak = max(self.resident.ram_peak, backend["local"])
        now, count = time.monotonic(), backend["faults"]["total"]
        before, old_count = self._faults
        self._faults = (now, count)
        return memx_line(backend, (count - old_count) / (now - before))


def run_with_swap(t, expected, accel, overhead_bytes):
    """The kernel pages: a memory cgroup as large as what memx holds locally
    plus what QEMU needs for itself, and a swap file."""
    t.swap_file(GUEST_MIB)
    cgroup = t.memory_cgroup(LOCAL_MIB * MIB + overhead_bytes, swap=True)
    return Run(t, "kernel swap to a file", expected, is_small=True,
               accel=accel, before_exec=cgroup.enter)


def table(runs, skipped):
    base = min(run.seconds for run in runs if not run.is_small)
    print(f"\n{'':32}{'sort':>8} {'slower':>8} {'host memory of guest':>22}")
    for run in runs:
        print(f"{run.label:32}{run.seconds:6.1f} s {run.seconds / base:7.2f}x"
              f" {run.resident.ram_peak >> 20:18} MiB")
    for label, reason in skipped:
        print(f"{label:32}skipped: {reason}")


def tell_memx(run):
    faults, paging = run.memx["faults"], run.memx["paging"]
    print("\nWhat memx did")
    for count, what in (
            (faults["first-touch"], "faults touched new memory"),
            (faults["remote"], "faults waited for a memory server"),
            (faults["staged"], "faults caught their page on its way out"),
            (paging["prefetched"], "pages came before anybody asked for them"),
            (paging["evicted"], "pages left the guest,"),
            (paging["evicted-unchanged"],
             "  of them unchanged, so they were not sent again")):
        print(f"{count:12,} {what}")
    print(memx_line(run.memx))
    tracking = run.memx["tracking"]
    print(textwrap.fill(f"tracker {tracking['tracker']}: {tracking['reason']}",
                        initial_indent=" " * 4, subsequent_indent=" " * 6))


def try_next(t):
    print(f"""
What to try next
  build/bin/memserver --listen 127.0.0.1:7701 --capacity 4G \\
    --control /tmp/m1 &
  build/bin/memxctl status --control /tmp/m1
  build/bin/qemu-system-x86_64 -machine pc,memory-backend=pc.ram -m 4G \\
    -object memory-backend-memx,id=pc.ram,size=4G,local-size=1G,\\
servers.0=127.0.0.1:7701 ...
  and in QEMU's monitor: "info memx"
  While a guest works: stop a server (kill -STOP, then -CONT), or restart it
  with "memserver --take-over /tmp/m1": the guest stalls and goes on.
  ./scripts/check           builds and runs all tests
  ./scripts/two-hosts       a shell with two libvirt hosts: docs/libvirt.md
  build/bin/memx-bench      what a remote page costs
  docs/troubleshooting.md   when something does not work
(logs of this run: {os.path.relpath(t.log_dir, e2e.TOP)})""")


def demo(t):
    print("The host sorts the same data to know the right checksum ...",
          flush=True)
    expected = host_checksum(t)
    accel, described = best_accel()
    print(f"The guest runs under {described}", flush=True)
    runs, skipped = [], []
    if host_has_huge_pages():
        runs.append(Run(t, "all local, huge pages", expected, accel=accel))
    else:
        skipped.append(("all local, huge pages",
                        "transparent huge pages are off on this host"))
    small_pages = Run(t, "all local, 4 KiB pages", expected, accel=accel,
                      before_exec=no_huge_pages)
    runs.append(small_pages)
    servers = t.memservers(2, capacity=f"{GUEST_MIB}M")
    memx = Run(t, f"memx, {LOCAL_MIB} MiB local", expected, accel=accel,
               is_small=True, local=f"{LOCAL_MIB}M", servers=servers)
    runs.append(memx)
    for server in servers:
        server.end()
    try:
        runs.append(run_with_swap(t, expected, accel,
                                  small_pages.resident.other_peak))
    except Skip as reason:
        skipped.append(("kernel swap to a file", reason))
    table(runs, skipped)
    tell_memx(memx)
    if OPTIONS.qmp:
        demo_split(t, GUEST_MIB, accel, WRITE_DATA, SORT, expected,
                   Progress())
    else:
        demo_virsh(t, GUEST_MIB, accel == "kvm", WRITE_DATA, SORT, expected,
                   Progress())
    try_next(t)


def arguments():
    parser = argparse.ArgumentParser(prog="demo", description="Builds MemX, "
                                     "and shows what it does.")
    parser.add_argument("--qmp", action="store_true", help="migrate by QMP "
                        "alone, without libvirt")
    parser.add_argument("-v", action="store_true", help="show the log")
    return parser.parse_args()


OPTIONS = arguments()
if not OPTIONS.qmp:
    hosts.inside()
e2e.main(demo, seconds=900)
