#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0-or-later
"""A VM with ordinary RAM moves to a host with less memory than it has, the
rest to two servers, while its guest writes and verifies, also through a disk
that both hosts see."""

from memxlib import e2e
from memxlib.migration import Migration
from memxlib.wait import check

SIZE, LOCAL = "384M", "160M"
DEVICES_PAGES = 1000    # more than their rings and buffers are


def test(t):
    servers = t.memservers(2)
    disk = t.disk()
    source = t.vm(size=SIZE, name="source", extra=disk, balloon="")
    load = source.guest.load("--percent 70 --write-percent 10 "
                             "--disk /dev/vda")
    dest = t.vm(size=SIZE, local=LOCAL, source=source, name="dest",
                extra=disk, balloon="")
    migration = Migration(source, dest, servers, LOCAL).start()
    info = migration.finish()
    t.say(f"moved in {info['total-time']} ms, stopped for "
          f"{info['downtime']} ms")
    check(source.quit() == 0, "the source did not end well")
    load.wait_progress()

    backend = dest.backend()
    check(backend["local"] <= backend["local-size"],
          f"{backend['local']} bytes are local")
    check(backend["remote"] > 0, "nothing is remote")
    split = info["split"]
    check(split["main"] <= split["main-limit"], "more than its limit went to "
          f"the main host: {split}")
    check(split["fetched"] == 0, "the source fetched what it had sent")
    check(all(server["sent"] > 0 for server in split["servers"]),
          f"a server got nothing: {split}")
    for_devices = backend["paging"]["fetched-before-commit"]
    t.say(f"{split['main'] >> 20} MiB went to the main host, "
          f"{split['sent'] >> 20} MiB to servers; {for_devices} pages were "
          "fetched for devices")
    check(for_devices < DEVICES_PAGES, "that is more than devices need")
    load.wait_progress()
    summary = load.finish()
    t.say(summary.splitlines()[-1])
    dest.check_never_stopped()


e2e.main(test)
