# SPDX-License-Identifier: GPL-2.0-or-later
"""One migration, measured."""

import contextlib
import os
import statistics
import threading
import time

from memxlib.migration import ENDED, Migration
from memxlib.wait import Failure, check

from .loads import LOADS
from .ticks import Ticks, gaps_ms, percentile
from . import memory

MIB, PAGE = 1 << 20, 4096
# What QEMU needs besides the guest's memory, with tb-size=64 under TCG.
QEMU_OWN_MIB = 192
DEADLINE_S = 900
TICK_SECONDS = 10
KEY = "key of a benchmark, of no use elsewhere\n"

MODES = {
    "ideal": "plain precopy to a host with enough memory",
    "split": "split migration, by history",
    "no-history": "split migration without history: by number of the chunk",
    "swap": "plain precopy to a host with half the memory, and swap",
    "ideal-beside": "two VMs moved plainly, whose vCPUs share a CPU",
    "split-beside": "one moved plainly and one split, in the same way",
}


def stamp_s(event):
    stamp = event["timestamp"]
    return stamp["seconds"] + stamp["microseconds"] / 1e6


def fetched_pages(backend):
    """Of all servers; backend: what query-memx says."""
    return sum(server["fetched"] for server in backend["servers"]) // PAGE


def waited_ms(backend):
    """At most: how long the guest waited for remote pages, all faults
    together."""
    histogram = backend["fetch-latency"]["histogram"]
    return sum(n * 2 ** (i + 1) for i, n in enumerate(histogram)) / 1000


class Watch:
    """What a backend's counters come to, second by second."""

    def __init__(self, vm, since):
        self._vm, self._since = vm, since
        self._ended = threading.Event()
        self._series = []
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self):
        while not self._ended.wait(1):
            backend = self._vm.backend()
            self._series.append({
                "s": round(time.monotonic() - self._since, 1),
                "fetched": fetched_pages(backend),
                "faults": backend["faults"]["remote"],
                "waited_ms": round(waited_ms(backend), 3),
                "evicted": backend["paging"]["evicted"],
                "local_mib": backend["local"] // MIB,
                "huge_mib": backend["huge"] // MIB})

    def end(self):
        self._ended.set()
        self._thread.join()
        return self._series


class Run:
    """Once one mode with one load.  load: what the guest does."""

    def __init__(self, options, lab, size_mib, load, mode, number):
        self.mode, self.size_mib = mode, size_mib
        self._options, self._lab = options, lab
        self._is_split = mode in ("split", "no-history")
        self.vcpus_on = None    # a set of CPUs; None: any
        self.load = LOADS[load](size_mib, options.rate_bits_per_s)
        self.name = (f"{size_mib}M-{load}-{'multi' if lab.multi else 'one'}-"
                      f"{lab.rate}-{mode}-{number}")
        self.what = {
            "mode": mode, "load": load, "size_mib": size_mib,
            "rate": lab.rate, "uplinks": "multi" if lab.multi else "one"}
        self._result = dict(self.what)

    def measure(self, outer):
        """A dictionary; whatever happens, nothing of the run is left."""
        self._result["load_average"] = os.getloadavg()[0]
        busy = memory.CpuTime()
        with contextlib.closing(outer.inner(self.name)) as test:
            self._measure(test)
        self._result["others_cpus"] = busy.others()
        return self._result

    def arrive(self, test):
        """Migrates and looks no further: the VM at the destination, and since
        when it has run there."""
        source, dest, servers = self._hosts(test)
        _, switched = self._migrate(source, dest, servers)
        return dest, switched

    # --- the two hosts

    def _vm(self, test, name, host, **options):
        tick = os.path.join(test.socket_dir, f"{name}.tick")
        before_exec = options.pop("before_exec", lambda: None)

        def enter():
            host.enter()
            before_exec()
        extra = ["-chardev", f"socket,id=tick,path={tick},server=on,wait=off",
                 "-device", "isa-debugcon,iobase=0xe9,chardev=tick",
                 *options.pop("extra", [])]
        vm = test.vm(size=f"{self.size_mib}M", name=name, cpus=1, extra=extra,
                     accel=self._options.accel, initrd="bench-initramfs",
                     before_exec=enter, **options)
        vm.tick_path = tick
        for vcpu in vm.qmp.command("query-cpus-fast") if self.vcpus_on else []:
            os.sched_setaffinity(vcpu["thread-id"], self.vcpus_on)
        vm.guest.size_mib = self.size_mib
        return vm

    def _servers(self, test, key):
        capacity = f"{self.size_mib}M"
        return [test.memserver(host=host.address, before_exec=host.enter,
                               key_file=key, capacity=capacity)
                for host in self._lab.subs]

    def _destination(self, test, source, secret):
        memory.warm(self.size_mib * MIB)
        options = {"source": source, "name": "dest"}
        if self._is_split:
            options.update(local=f"{self.size_mib // 2}M", extra=secret,
                           memx={"key_secret": "key"})
        if self.mode == "swap":
            test.swap_file(self.size_mib)
            cgroup = test.memory_cgroup(
                (self.size_mib // 2 + QEMU_OWN_MIB) * MIB, swap=True)
            options["before_exec"] = cgroup.enter
        return self._vm(test, host=self._lab.main, **options)

    def _tracker(self):
        """Watches the source's memory, so that its split has a history."""
        if self.mode != "split" or self._options.tracker == "off":
            return []
        return ["-object",
                f"memx-tracker,id=tracker,tracker={self._options.tracker}"]

    def _migration(self, source, dest, servers):
        parameters, capabilities = {"downtime_limit": 300,
                                    "max_bandwidth": 12 << 30}, []
        if self._options.multifd:
            capabilities.append("multifd")
            parameters["multifd_channels"] = self._options.multifd
        return Migration(
            source, dest, servers, f"{self.size_mib // 2}M",
            host=self._lab.main.address, key_secret="key",
            warm_up=0 if self.mode == "no-history" else self._options.warm_up,
            capabilities=capabilities, **parameters)

    # --- what is measured

    def _measure(self, test):
        source, dest, servers = self._hosts(test)
        ticks = Ticks(test, [source.tick_path, dest.tick_path])
        source.guest.start("tick")
        began, switched = self._migrate(source, dest, servers)
        if self.mode == "swap":
            self._result["swapped_mib"] = memory.swapped_mib()
        self._after(dest, switched)
        times = ticks.stop()
        check(len(times) > 1000, "no ticks came from the guest")
        self._stalls(times, began, switched)

    def _hosts(self, test):
        """Source, destination and servers; the source is under its load."""
        key = test.log_path("key")
        with open(key, "w", encoding="ascii") as file:
            os.chmod(key, 0o600)
            file.write(KEY)
        secret = ["-object", f"secret,id=key,file={key}"]
        servers = self._servers(test, key) if self._is_split else []
        source = self._vm(test, "source", self._lab.source,
                          extra=[*(secret if servers else []),
                                 *self._tracker()])
        self.load.prepare(source.guest)
        return source, self._destination(test, source, secret), servers

    def _migrate(self, source, dest, servers):
        """When it began, and when the guest ran at the destination."""
        if self._tracker():
            self._result["tracking"] = source.qmp.command(
                "query-memx-tracker")
        migration = self._migration(source, dest, servers)
        uri = migration.listen()
        traffic = self._lab.traffic()
        began = time.monotonic()
        migration.start(uri)
        info, switched = self._watch(migration)
        self._count(info, traffic)
        if self._is_split:
            self._split_figures(info, source, dest)
        source.end()
        self.load.moved(dest.guest)
        return began, switched

    def _watch(self, migration):
        """Until the guest runs at the destination: (query-migrate, when)."""
        is_moving = False
        deadline = time.monotonic() + DEADLINE_S
        while True:
            info = migration.info()
            status = info.get("status")
            if status not in ("none", "setup") and not is_moving:
                is_moving = True
                if status == "active":
                    self.load.moving(migration.source.guest)
            if status in ENDED:
                break
            check(time.monotonic() < deadline, f"{self.name}: not migrated "
                  f"within {DEADLINE_S} s")
            time.sleep(0.05)
        if status != "completed":
            raise Failure(f"{self.name}: {status}: {info.get('error-desc')}")
        return info, self._resumed(migration.destination)

    @staticmethod
    def _resumed(vm):
        """When it began to run, in seconds of time.monotonic()."""
        vm.wait_status("running")
        vm.qmp.wait_event("RESUME")
        return (stamp_s(vm.qmp.events("RESUME")[-1])
                - time.time() + time.monotonic())

    def _count(self, info, traffic):
        after = self._lab.traffic()
        moved = {link: after[link] - traffic[link] for link in after}
        ram = info["ram"]
        self._result.update(
            total_ms=info["total-time"], downtime_ms=info["downtime"],
            setup_ms=info["setup-time"],
            transfer_ms=info["total-time"] - info["setup-time"],
            rounds=ram["dirty-sync-count"],
            transferred_mib=ram["transferred"] / MIB,
            link_mib={link: round(count / MIB, 1)
                      for link, count in moved.items() if count > MIB})

    def _after(self, dest, switched):
        """Pages fetched, and what the load has to tell."""
        if not self._is_split:
            self._result.update(self.load.result(switched,
                                                 self._options.after))
            return
        self._result["memx_at_switchover"] = dest.backend()
        watch = Watch(dest, switched)
        try:
            self._result.update(self.load.result(switched,
                                                 self._options.after))
            left = switched + self._options.after - time.monotonic()
            time.sleep(max(0, left))
        finally:
            series = watch.end()
        backend = dest.backend()
        self._result.update(
            memx_after=backend, memx_series=series,
            fetched_for_devices=backend["paging"]["fetched-before-commit"],
            fetched_pages=fetched_pages(backend))

    def _split_figures(self, info, source, dest):
        """pageins_before_switchover: the destination has no pager until the
        stream's end, so only what the source took back can be one."""
        phases = []
        for side, vm in ("source", source), ("dest", dest):
            for name in "MEMX_SPLIT_PHASE", "STOP", "RESUME":
                for event in vm.qmp.events(name):
                    phase = event.get("data", {}).get("phase", name.lower())
                    phases.append((stamp_s(event), f"{side} {phase}"))
        phases.sort()
        stopped = [at for at, name in phases if name == "source stop"]
        self._result.update(
            split=info["split"], phases_ms=[
                (round((at - stopped[-1]) * 1000, 1), name)
                for at, name in phases] if stopped else [],
            pageins_before_switchover=info["split"]["fetched"] // PAGE)

    def _stalls(self, times, began, switched):
        around = gaps_ms(times, began, switched + TICK_SECONDS)
        after = gaps_ms(times, switched, switched + TICK_SECONDS)
        before = gaps_ms(times, 0, began)
        self._result.update(
            longest_gap_ms=max(around), stall_p99_ms=percentile(after, 99),
            gap_before_p99_ms=percentile(before, 99) if before else None,
            tick_ms=statistics.median(after) if after else None)
