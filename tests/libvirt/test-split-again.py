#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0-or-later
"""A VM that has memx memory from its start moves from daemon to daemon, and
keeps its servers; then it moves back, to one server of the two."""

from memxlib import hosts
from memxlib.domain import Domain, memx_backing, split_options
from memxlib.wait import check, wait_until

SIZE, LOCAL = "256M", "112M"


def test(t):
    network = hosts.Network(t)
    servers = network.memservers()
    domain = Domain(network.host1, size=SIZE,
                    backing=memx_backing(LOCAL, servers))
    load = domain.guest.load("--percent 60 --write-percent 10")
    domain.migrate(network.host2, "--p2p", "--persistent",
                   *split_options([], LOCAL))
    t.say("moved from daemon to daemon")
    load.wait_progress()
    saved = domain.host.virsh("dumpxml", "--inactive", domain.name)
    for server in servers:
        host, port = server.address.split(":")
        check(f"host='{host}' port='{port}'" in saved,
              f"the persistent definition lacks {server.address}:\n{saved}")

    domain.migrate(network.host1, *split_options(servers[1:], LOCAL))
    t.say("moved back, to other servers")
    load.wait_progress()
    wait_until("the first server is released",
               lambda: not servers[0].spaces(), 60)
    servers[0].end()
    load.wait_progress()
    load.finish()


hosts.main(test)
