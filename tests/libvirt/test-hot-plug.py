#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0-or-later
"""A DIMM is plugged into a running VM with memx memory, moves with it, and is
unplugged: the local size grows and shrinks with it, in the definition as in
QEMU; and memtune changes what is running, and what will be started."""

import re
import xml.etree.ElementTree as ElementTree

from memxlib import hosts
from memxlib.domain import Domain, memx_backing, split_options
from memxlib.wait import check, wait_until

MIB = 1 << 20
CELL, LOCAL, DIMM = 192, 96, 128    # MiB
# As with the cell: half of it is local.
MORE = LOCAL + DIMM // 2
LESS = MORE * 3 // 4
DIMM_XML = f"""
<memory model='dimm'>
  <target><size unit='MiB'>{DIMM}</size><node>0</node></target>
</memory>
"""
EXTRA = f"""
<maxMemory slots='2' unit='MiB'>1024</maxMemory>
<cpu><numa><cell id='0' cpus='0-1' memory='{CELL}' unit='MiB'/></numa></cpu>
"""


def limits(domain):
    """What QEMU may hold of each backend, in MiB."""
    return {backend["id"]: backend["local-size"] / MIB
            for backend in domain.qmp("query-memx")}


def defined(domain, *options):
    """The definition's local size, in MiB."""
    text = domain.host.virsh("dumpxml", domain.name, *options)
    local = ElementTree.fromstring(text).find("memoryBacking/source/local")
    return int(local.get("size")) / 1024


def tuned(domain, *options):
    """memtune's local size, in MiB."""
    output = domain.host.virsh("memtune", domain.name, *options)
    return int(re.search(r"^local_size\s*: (\d+)", output, re.M)[1]) / 1024


def check_limits(domain, wanted):
    """wanted: {backend: MiB}"""
    total = sum(wanted.values())
    check(limits(domain) == wanted, f"QEMU's limits are {limits(domain)}")
    for what, found in (
            ("the definition", defined(domain)), ("memtune", tuned(domain)),
            ("domstats", int(domain.stats()["local_limit"]) / 1024)):
        check(found == total, f"{what} says {found} MiB, not {total}")


def test(t):
    network = hosts.Network(t)
    servers = network.memservers()
    domain = Domain(network.host1, size=f"{CELL}M", extra=EXTRA,
                    kernel_args="memhp_default_state=online_movable",
                    backing=memx_backing(f"{LOCAL}M", servers))
    check_limits(domain, {"ram-node0": LOCAL})
    for host in network.host1, network.host2:
        host.write("/run/vm/dimm.xml", DIMM_XML)
    domain.host.virsh("attach-device", domain.name, "/run/vm/dimm.xml",
                      "--live")
    check_limits(domain, {"ram-node0": LOCAL, "memdimm0": MORE - LOCAL})

    def total():
        output = domain.guest.run("cat /proc/meminfo")
        return int(re.search(r"MemTotal:\s+(\d+)", output)[1]) >> 10
    wait_until("the guest has it", lambda: total() > CELL)
    load = domain.guest.load("--percent 60 --write-percent 10")
    t.say("plugged")

    domain.make_persistent()
    domain.host.virsh("memtune", domain.name, "--config", "--local-size",
                      "64MiB")
    check(tuned(domain, "--config") == 64 == defined(domain, "--inactive"),
          "the next start has another local size")
    check_limits(domain, {"ram-node0": LOCAL, "memdimm0": MORE - LOCAL})
    less = {"ram-node0": LOCAL * 3 // 4, "memdimm0": DIMM * 3 // 8}
    domain.host.virsh("memtune", domain.name, "--live", "--local-size",
                      f"{LESS}MiB")
    check_limits(domain, less)
    t.say("memtune")

    domain.migrate(network.host2, "--undefinesource",
                   *split_options([], f"{LESS}M"))
    check_limits(domain, less)
    load.wait_progress()
    load.finish()
    t.say("moved")

    domain.host.virsh("detach-device", domain.name, "/run/vm/dimm.xml",
                      "--live", succeed=None)
    wait_until("the guest has let it go", lambda: "memdimm0" not in
               limits(domain), 60)
    del less["memdimm0"]
    check_limits(domain, less)
    domain.guest.load("--percent 50").finish()
    t.say("unplugged")


hosts.main(test)
