#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0-or-later
# slow: shadow-tcp-on-copy delays its connections, too
"""A slow network makes the guest slow, not wrong."""

from memxlib import e2e


def test(t):
    proxies = [t.proxy(server) for server in t.memservers(2)]
    vm = t.vm(size="256M", local="80M", servers=proxies)
    load = vm.guest.load("--percent 60 --hot-percent 20")
    proxies[0].delay(0.02)
    load.wait_progress()
    t.say("one server is 20 ms away")
    proxies[1].delay(0.002)
    load.wait_progress()
    proxies[0].stall()
    vm.qmp.wait_event("MEMX_SERVER_LOST", 60)
    t.say("one connection is silent")
    proxies[0].resume()
    for proxy in proxies:
        proxy.delay(0)
    load.wait_progress()
    load.finish()


e2e.main(test)
