#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0-or-later
# slow: VMs that move as they always did
"""A VM without memx moves as it always did, by virsh and from daemon to
daemon; with --xml it gets memx memory on the way, keeps it in a migration
that is not split, and loses it again; while its guest verifies its memory."""

from memxlib import hosts
from memxlib.domain import Domain, memx_backing
from memxlib.wait import check

SIZE, LOCAL = "192M", "96M"


def migrate(domain, dest, backing):
    """With another element memoryBacking at the destination."""
    xml = domain.host.virsh("dumpxml", domain.name, "--migratable")
    start, end = "<memoryBacking>", "</memoryBacking>"
    if start in xml:
        xml = xml[:xml.index(start)] + xml[xml.index(end) + len(end):]
    xml = xml.replace("</vcpu>", "</vcpu>" + backing)
    domain.host.write("/run/vm/other.xml", xml)
    domain.migrate(dest, "--xml", "/run/vm/other.xml")


def test(t):
    network = hosts.Network(t)
    servers = network.memservers()
    domain = Domain(network.host1, size=SIZE)
    load = domain.guest.load("--percent 50")
    domain.migrate(network.host2)
    t.say("moved")
    load.wait_progress()
    domain.migrate(network.host1, "--p2p")
    t.say("and back, from daemon to daemon")
    load.wait_progress()

    migrate(domain, network.host2, memx_backing(LOCAL, servers))
    check(domain.backend()["remote"] > 0, "nothing is remote")
    t.say("to memx memory")
    load.wait_progress()
    domain.migrate(network.host1)
    check(domain.backend()["remote"] > 0, "nothing is remote")
    t.say("from memx memory to memx memory")
    load.wait_progress()
    migrate(domain, network.host2, "")
    check(domain.qmp("query-memx") == [], "it has memx memory")
    for server in servers:
        server.wait_spaces("has nothing any more", lambda s: not s)
    t.say("to ordinary memory")
    load.wait_progress()
    load.finish()


hosts.main(test)
