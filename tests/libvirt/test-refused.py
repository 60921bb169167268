#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0-or-later
"""What can't be done is refused with a message that says what is wrong, and
nothing has changed then."""

import re

from memxlib import hosts
from memxlib.domain import (KEY_SECRET, Domain, domain_xml, memx_backing,
                            split_options)
from memxlib.wait import check

SIZE, LOCAL = "192M", "64M"
DISK = "/run/vm/disk.qcow2"
OTHER_SECRET = "00000000-1111-4222-8333-444444444444"
WRONG_KEY = "0badc0de-1111-4222-8333-444444444444"


def migrations(servers):
    """Of a VM with ordinary memory: (message, options)"""
    whole = split_options(servers, LOCAL)
    nowhere = ["--split-hosts", "mem1:1"]
    size = ["--split-local-size", LOCAL + "iB"]
    flag = ["--split-migration"]
    secret = ["--split-secret", KEY_SECRET]
    alone = "Turn split migration on|--split-migration is required"
    return [
        (alone, nowhere),
        (alone, size),
        ("needs memory servers", flag + size),
        ("needs a local size", flag + nowhere),
        ("invalid memory server", [*flag, *size, "--split-hosts", "mem1"]),
        ("invalid memory server", [*flag, *size, "--split-hosts", "mem1:x"]),
        ("invalid memory server", [*flag, *size, "--split-hosts",
                                   "mem1:7701,,mem2:7701"]),
        ("local size.*larger than", split_options(servers, "1G")),
        ("not supported with post-copy", [*whole, "--postcopy"]),
        ("not supported with zero-copy", [*whole, "--zerocopy",
                                          "--parallel"]),
        ("not supported with tunnelled", [*whole, "--p2p", "--tunnelled"]),
        ("0 to 60 seconds", split_options(servers, LOCAL, warm_up=61)),
        ("must be the UUID", split_options(servers, LOCAL, secret="x")),
        ("TLS is refused", [*whole, "--tls"]),
        (OTHER_SECRET, split_options(servers, LOCAL, secret=OTHER_SECRET)),
        # From here on it is QEMU that refuses, and libvirt that tells it.
        ("connect to mem1:1", [*flag, *size, *nowhere, *secret]),
        ("key", split_options(servers, LOCAL, secret=None)),
        ("key", split_options(servers, LOCAL, secret=WRONG_KEY)),
    ]


# Together with memx memory: (message, elements of memoryBacking, devices)
CONFLICTS = [
    ("huge pages", "<hugepages/>", ""),
    ("locked memory", "<locked/>", ""),
    ("immediate allocation", "<allocation mode='immediate'/>", ""),
    ("shared memory", "<access mode='shared'/>", ""),
    ("VFIO", "", """
<hostdev mode='subsystem' type='pci' managed='no'><source>
<address domain='0' bus='1' slot='0' function='0'/></source></hostdev>"""),
    ("vDPA", "", """
<interface type='vdpa'><source dev='/dev/vhost-vdpa-0'/></interface>"""),
    ("vhost-user", "", """
<interface type='vhostuser'><source type='unix' path='/run/x' mode='client'/>
<model type='virtio'/></interface>"""),
    ("vhost-user", "", """
<disk type='vhostuser' device='disk'><driver name='qemu' type='raw'/>
<source type='unix' path='/run/x'/><target dev='vda' bus='virtio'/></disk>"""),
]


def check_refusal(host, pattern, *words):
    output = host.virsh(*words, succeed=False)
    check(re.search(pattern, output),
          f"refused, but not with '{pattern}': {output.strip()}")


def test(t):
    network = hosts.Network(t)
    servers = network.memservers()
    host = network.host1
    for each in host, network.host2:
        each.define_key(WRONG_KEY, "of other servers")

    ordinary = Domain(host, "ordinary", boot=False, size=SIZE)
    for pattern, options in migrations(servers):
        ordinary.migration_refused(network.host2, pattern, *options)
        check(ordinary.is_listed(), "the domain is gone")
    check(ordinary.state() == "paused", f"it is {ordinary.state()}")
    check(not any(server.spaces() for server in servers),
          "a server still has something of it")
    t.say("migrations are refused")

    for what, more, devices in CONFLICTS:
        backing = memx_backing(LOCAL, servers).replace(
            "</memoryBacking>", more + "</memoryBacking>")
        host.write("/run/vm/conflict.xml", domain_xml(
            network, "conflict", size=SIZE, backing=backing,
            devices=devices))
        check_refusal(host, what + " can't be used together with memory "
                      "source type 'memx'", "define", "/run/vm/conflict.xml")
    t.say("so is what does not go together")

    host.run(t.binary("qemu-img"), "create", "-f", "qcow2", DISK, "1M")
    small = network.memserver("mem1", label="small", capacity="150M")
    memx = Domain(host, "memx", boot=False, size=SIZE,
                  backing=memx_backing(LOCAL, [small]), devices=f"""
<disk type='file' device='disk'><driver name='qemu' type='qcow2'/>
<source file='{DISK}'/><target dev='vda' bus='virtio'/></disk>""")
    saved = "type 'memx' can't be saved to a file"
    check_refusal(host, saved, "save", "memx", "/run/vm/saved")
    check_refusal(host, saved, "dump", "memx", "/run/vm/dumped", "--live")
    check_refusal(host, saved, "snapshot-create", "memx")
    check_refusal(host, saved, "snapshot-create-as", "memx", "--memspec",
                  "file=/run/vm/memory", "--diskspec", "vda,snapshot=no")
    memx.make_persistent()
    check_refusal(host, saved, "managedsave", "memx")
    check_refusal(host, "not larger than the domain's memory", "memtune",
                  "memx", "--local-size", "1GiB", "--live")
    check_refusal(host, "must be reserved", "memtune", "memx",
                  "--local-size", "32MiB", "--live")
    check_refusal(host, "has a local size", "memtune", "ordinary",
                  "--local-size", "64MiB", "--live")
    check(memx.is_listed(), "the domain is gone")
    t.say("so are saving and snapshots")
    host.virsh("snapshot-create-as", "memx", "--disk-only", "--diskspec",
               "vda,file=/run/vm/snapshot.qcow2")
    check("snapshot.qcow2" in memx.live_xml(), "it has its old disk")
    t.say("a snapshot of the disk alone is made")


hosts.main(test)
