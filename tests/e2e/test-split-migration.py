#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0-or-later
"""A VM with ordinary RAM moves to a host with less memory than it has, the
rest to two servers, while its guest writes and verifies."""

from memxlib import e2e
from memxlib.migration import Migration
from memxlib.wait import check

SIZE, LOCAL = "384M", "160M"


def test(t):
    servers = t.memservers(2)
    source = t.vm(size=SIZE, name="source")
    load = source.guest.load("--percent 70 --write-percent 10")
    dest = t.vm(size=SIZE, local=LOCAL, source=source, name="dest")
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
    t.say(f"{split['main'] >> 20} MiB went to the main host, "
          f"{split['sent'] >> 20} MiB to servers; "
          f"{backend['paging']['fetched-before-commit']} pages were fetched "
          "for devices")
    load.wait_progress()
    load.finish()
    dest.check_never_stopped()


e2e.main(test)
