# SPDX-License-Identifier: GPL-2.0-or-later
"""The demo's second part, by virsh: the guest moves to a host with half of
its memory while it sorts, and then all of its memory comes home there."""

import re
import time

from demosplit import tell_sorted, wait_sorted, watch_merge
from memxlib import hosts
from memxlib.domain import Domain, split_options
from memxlib.wait import check

PORT = 7701
MIB = 1 << 20


def _watch_migration(virsh, progress):
    began = time.monotonic()
    while virsh.running:
        check(time.monotonic() < began + 120, "not migrated within 120 s")
        shown = re.findall(r"[^\r\n]+", virsh.output())
        progress.show(f"    {shown[-1].strip()}" if shown else
                      "    virsh connects")
        time.sleep(0.2)
    progress.clear()
    virsh.succeed()
    return time.monotonic() - began


def demo_virsh(t, size_mib, kvm, prepare, command, expected, progress):
    """prepare and command: what the guest does; expected: its output."""
    local = f"{size_mib // 2}M"
    network = hosts.Network(t, kvm=kvm)
    servers = network.memservers(capacity=f"{size_mib}M", port=PORT)
    print(f"\nSplit migration: a guest with {size_mib} MiB of ordinary memory "
          "sorts, and moves from host1\nto host2, which has "
          f"{size_mib // 2} MiB for it, and to two memory servers", flush=True)
    domain = Domain(network.host1, "demo", size=f"{size_mib}M")
    domain.guest.run(prepare, 150)
    job = domain.guest.start(command)
    dest = network.host2
    print(f"""    host1$ virsh migrate --live --verbose demo {dest.uri} \\
        --split-migration --split-hosts mem1:{PORT},mem2:{PORT} \\
        --split-local-size {local}iB --split-secret ...""", flush=True)
    seconds = _watch_migration(domain.start_migration(
        dest, "--verbose", *split_options(servers, local, warm_up=3)),
        progress)
    domain.arrived(dest)
    backend = domain.backend()
    print(f"    moved in {seconds:.1f} s; {backend['local'] >> 20} MiB are "
          f"local, {backend['remote'] >> 20} MiB are on the servers",
          flush=True)
    was_running = job.running
    print(f"    host2$ virsh memtune demo --local-size {size_mib}MiB --live",
          flush=True)
    dest.virsh("memtune", "demo", "--local-size", f"{size_mib}MiB", "--live")
    print(f"    all of it comes home in {watch_merge(domain, progress):.1f} s,"
          " and the servers may go", flush=True)
    for server in servers:
        server.end()
    tell_sorted(wait_sorted(job, progress), expected, was_running)
    domain.destroy()
