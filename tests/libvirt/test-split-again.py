#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0-or-later
# slow: e2e/test-split-again.py, /migration/split/other-hosts/*: without libvirt
"""A VM that has memx memory from its start moves from daemon to daemon, and
keeps its servers; one of these does not answer for a while; then the VM moves
back, to one server of the two."""

from memxlib import hosts
from memxlib.domain import Domain, memx_backing, split_options
from memxlib.wait import check, wait_until

SIZE, LOCAL = "256M", "112M"
MORE = "<timeout seconds='2'/><copies keep='off'/>"


def stall(domain, server):
    """For longer than the timeout of MORE.  (Under KVM the VM would be
    stopped.)  Nothing is asked of QEMU
    meanwhile: its main loop may be the one that waits."""
    daemon = domain.host.daemons["virtqemud"]
    server.pause()
    wait_until("libvirt knows that the VM is stalled",
               lambda: "is stalled: " in daemon.output(), 60)
    check(domain.state("--reason") == "running (migrated)",
          f"the VM is {domain.state('--reason')}")
    server.resume()
    wait_until("libvirt knows that the VM goes on",
               lambda: "is not stalled any more" in daemon.output(), 60)


def test(t):
    network = hosts.Network(t)
    servers = network.memservers()
    domain = Domain(network.host1, size=SIZE,
                    backing=memx_backing(LOCAL, servers, more=MORE))
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
    for option, value in ("server-timeout", 2), ("keep-copies", "off"):
        found = domain.qmp("qom-get", path="/objects/pc.ram", property=option)
        check(found == value, f"QEMU's {option} is {found}")

    stall(domain, servers[1])
    load.wait_progress()
    t.say("a server did not answer for a while")

    domain.migrate(network.host1, *split_options(servers[1:], LOCAL))
    t.say("moved back, to other servers")
    load.wait_progress()
    wait_until("the first server is released",
               lambda: not servers[0].spaces(), 60)
    servers[0].end()
    load.wait_progress()
    load.finish()


hosts.main(test)
