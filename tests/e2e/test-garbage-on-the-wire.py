#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0-or-later
# slow: /memserver/admission/garbage, /memx/protocol/refused/reply and the fuzz targets send it, too
"""Garbage from a server, or to one, costs a connection, never a byte."""

from memxlib import e2e
from memxlib.proxy import TO_CLIENT, TO_SERVER
from memxlib.wait import check, wait_until


def test(t):
    servers = t.memservers(2)
    proxies = [t.proxy(server) for server in servers]
    vm = t.vm(size="320M", local="80M", servers=proxies)
    load = vm.guest.load()
    for direction in [TO_CLIENT, TO_SERVER] * 4:
        for proxy in proxies:
            proxy.garble(2, direction)
            wait_until("garbage was sent", proxy.garbled_all, 60)
            load.wait_progress()
        t.say(f"garbage {direction}")
    load.finish()
    vm.check_never_stopped()
    for server in servers:
        check(server.process.running, f"{server.name} ended")


e2e.main(test)
