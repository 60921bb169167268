#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0-or-later
"""After a split migration all memory comes home when local-size is raised to
the VM's size, and the servers can go, while the guest works."""

from memxlib import e2e
from memxlib.migration import Migration
from memxlib.wait import wait_until

SIZE, LOCAL = "384M", "160M"


def released(server):
    status = server.status()
    return status["used_bytes"] == 0 and status["reserved_bytes"] == 0


def test(t):
    servers = t.memservers(2)
    source = t.vm(size=SIZE, name="source")
    load = source.guest.load("--percent 70 --write-percent 10")
    dest = t.vm(size=SIZE, local=LOCAL, source=source, name="dest")
    Migration(source, dest, servers, LOCAL).start().finish()
    source.end()
    load.wait_progress()
    t.say("moved")
    dest.set_local_size(SIZE)
    dest.wait_backend("all of it came home", lambda b: b["remote"] == 0, 120)
    for server in servers:
        wait_until(f"{server.name} is released", lambda s=server: released(s))
    t.say("came home")
    for server in servers:
        server.end()
    load.wait_progress()
    load.finish()
    dest.check_never_stopped()


e2e.main(test)
