#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0-or-later
"""A server that does not answer for longer than server-timeout stalls the
VM, which says so and goes on by itself once the server does."""

from memxlib import e2e
from memxlib.wait import check


def test(t):
    servers = t.memservers(2)
    vm = t.vm(size="320M", local="80M", servers=servers,
              memx={"server_timeout": 3})
    load = vm.guest.load()
    servers[0].pause()
    event = vm.qmp.wait_event("MEMX_STALLED", 60)
    check(event["server"] == servers[0].address,
          f"the event blames {event['server']}")
    check(event["remote"] > 0, "the event does not say how much is missing")
    check(vm.backend(oob=True)["stalled"], "query-memx says nothing of it")
    t.say("stalled")
    servers[0].resume()
    vm.qmp.wait_event("MEMX_RESUMED", 60)
    t.say("resumed")
    load.wait_progress()
    load.finish()
    check(not vm.backend()["stalled"], "query-memx still says stalled")
    vm.wait_status("running")


e2e.main(test)
