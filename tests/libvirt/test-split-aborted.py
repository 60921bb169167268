#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0-or-later
"""A split migration is aborted by virsh at several moments, each time the VM
goes on at the source with all of its memory; then it moves."""

import re

from memxlib import hosts
from memxlib.domain import Domain, split_options
from memxlib.wait import check, wait_until

SIZE, LOCAL = "256M", "96M"
# Slow enough for the transfer to be seen.
SLOWLY = ["--bandwidth", "8"]


def warming_up(domain, virsh):
    domain.wait_phase(virsh, "warm-up")


def transferring(domain, virsh):
    domain.wait_phase(virsh, "transfer", "drain")


def reporting(domain, virsh):
    """Sends something to servers, by what domjobinfo says."""
    def sent():
        check(virsh.running, f"virsh ended: {virsh.output()}")
        info = domain.host.virsh("domjobinfo", domain.name)
        return re.search(r"^Sent to servers:\s+[1-9]", info, re.M) and info
    info = wait_until("domjobinfo counts what goes to servers", sent)
    check("Split phase:" in info, f"domjobinfo has no phase:\n{info}")
    check(len(re.findall(r"^Memory server:\s+\S+ up: sent", info, re.M)) == 2,
          f"domjobinfo does not list both servers:\n{info}")


def test(t):
    network = hosts.Network(t)
    servers = network.memservers()
    domain = Domain(network.host1, size=SIZE)
    load = domain.guest.load("--percent 60 --write-percent 10")
    for moment, warm_up in ((warming_up, 60), (transferring, 0),
                            (reporting, 1)):
        virsh = domain.start_migration(
            network.host2, *SLOWLY,
            *split_options(servers, LOCAL, warm_up=warm_up))
        moment(domain, virsh)
        domain.host.virsh("domjobabort", domain.name)
        output = virsh.fail(60)
        check("cancel" in output or "abort" in output, f"virsh says: {output}")
        wait_until("nothing is left at the destination",
                   lambda: not domain.is_listed(network.host2))
        check(domain.state() == "running", f"the domain is {domain.state()}")
        for server in servers:
            server.wait_spaces("dropped what it had", lambda s: not s)
        load.wait_progress()
        t.say(f"aborted while {moment.__name__.replace('_', ' ')}")
    domain.migrate(network.host2, *split_options(servers, LOCAL))
    t.say("moved")
    load.wait_progress()
    load.finish()


hosts.main(test)
