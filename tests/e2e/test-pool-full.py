#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0-or-later
# slow: /trims/of-another-server, /waits/full-and-another-away: without Linux
"""A server that refuses pages although it promised to take them is reported
as full, and nothing is lost: the guest stalls where it needs room, and goes
on when there is room again.

Here it was restarted with its pages and less capacity.  It keeps to what it
promised while it can, which is some 768 MiB beyond its capacity."""

from memxlib import e2e
from memxlib.guest import IN_ORDER
from memxlib.wait import check


def test(t):
    server = t.memserver(capacity="2G")
    vm = t.vm(size="1200M", local="64M", servers=[server],
              memx={"server_timeout": 2})
    server.capacity = "4M"
    server.restart_with_pages()
    job = vm.guest.start("memverify --percent 85 --seconds 3600 " + IN_ORDER)
    full = vm.qmp.wait_event("MEMX_POOL_FULL", 60)
    check(full["server"] == server.address,
          f"the event blames {full['server']}")
    stalled = vm.qmp.wait_event("MEMX_STALLED", 60)
    check(stalled["server"] == server.address and
          "is full" in stalled["message"],
          f"the event says {stalled}")
    backend = vm.backend(oob=True)
    check(backend["local"] <= backend["local-size"] * 1.02,
          "more is local than local-size allows")
    t.say(f"full: {full['message']}")
    server.capacity = "2G"
    server.restart_with_pages()
    vm.qmp.wait_event("MEMX_RESUMED", 60)
    t.say("there is room again")
    job.wait_line("^phase visit", 120)
    vm.guest.run("killall memverify")
    job.wait(200)


e2e.main(test)
