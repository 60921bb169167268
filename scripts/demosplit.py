# SPDX-License-Identifier: GPL-2.0-or-later
"""The demo's second part, by QMP: the guest moves to a host with half of its
memory while it sorts, and then all of its memory comes home to that host."""

import time

from memxlib.migration import ENDED, Migration
from memxlib.wait import Failure, check

MIB = 1 << 20


def _split_text(info):
    split = info.get("split")
    if not split:
        return "    connects"
    rates = "".join(f", {server['sent'] >> 20} MiB to {server['address']}"
                    for server in split["servers"])
    return (f"    {split['phase']}: {split['main'] >> 20} MiB to the main "
            f"host{rates}")


def _watch_migration(migration, progress):
    deadline = time.monotonic() + 120
    while True:
        info = migration.info()
        if info.get("status") in ENDED:
            break
        check(time.monotonic() < deadline, "not migrated within 120 s")
        progress.show(_split_text(info))
        time.sleep(0.2)
    progress.clear()
    if info["status"] != "completed":
        raise Failure(f"the migration {info['status']}: "
                      f"{info.get('error-desc')}")
    migration.destination.wait_status("running")
    return info


def watch_merge(vm, progress):
    began = time.monotonic()
    while True:
        backend = vm.backend()
        if backend["remote"] == 0:
            break
        check(time.monotonic() < began + 120, "not merged within 120 s")
        progress.show(f"    local {backend['local'] >> 20} MiB, "
                      f"remote {backend['remote'] >> 20} MiB")
        time.sleep(0.2)
    progress.clear()
    return time.monotonic() - began


def wait_sorted(job, progress):
    began = time.monotonic()
    while job.running:
        check(time.monotonic() < began + 150, "not sorted within 150 s")
        progress.show(f"    the guest sorts: {time.monotonic() - began:.0f} s")
        time.sleep(0.2)
    progress.clear()
    return job.wait()


def tell_sorted(output, expected, was_running):
    check(output == expected, f"after the split migration the checksum is "
                              f"{output}, it should be {expected}")
    print("    sorted" + (", from before the move until after it"
                          if was_running else "") +
          "; the checksum is right", flush=True)


def demo_split(t, size_mib, accel, prepare, command, expected, progress):
    """prepare and command: what the guest does; expected: its output."""
    local_mib = size_mib // 2
    print(f"\nSplit migration: a guest with {size_mib} MiB of ordinary memory "
          f"sorts, and moves to a\nhost that has {local_mib} MiB for it and "
          "two memory servers", flush=True)
    source = t.vm(size=f"{size_mib}M", name="source", accel=accel)
    source.guest.run(prepare, 150)
    job = source.guest.start(command)
    servers = t.memservers(2, capacity=f"{size_mib}M")
    dest = t.vm(size=f"{size_mib}M", local=f"{local_mib}M", source=source,
                name="main-host", accel=accel)
    info = _watch_migration(Migration(source, dest, servers, f"{local_mib}M")
                            .start(), progress)
    source.end()
    split, backend = info["split"], dest.backend()
    print(f"    moved in {info['total-time'] / 1000:.1f} s, of these "
          f"{info['setup-time'] / 1000:.1f} s to see what it writes to; "
          f"it stood still for {info['downtime']} ms\n"
          f"    {split['main'] >> 20} MiB went to the main host, "
          f"{split['sent'] >> 20} MiB straight to the servers; "
          f"{backend['local'] >> 20} MiB are local", flush=True)
    was_running = job.running
    dest.set_local_size(f"{size_mib}M")
    print("    local-size raised: all of it comes home in "
          f"{watch_merge(dest, progress):.1f} s, and the servers may go",
          flush=True)
    for server in servers:
        server.end()
    tell_sorted(wait_sorted(job, progress), expected, was_running)
    dest.end()
