# SPDX-License-Identifier: GPL-2.0-or-later
"""A libvirt domain with the Linux guest of scripts/build-guest."""

import json
import re
import xml.etree.ElementTree as ElementTree
from xml.sax.saxutils import escape

from .guest import Guest
from .hosts import KEY_SECRET
from .vm import KERNEL_ARGS, size_bytes
from .wait import Failure, check, wait_until

XML = """
<domain type='{type}'>
  <name>{name}</name>
  <memory unit='KiB'>{kib}</memory>
  {backing}
  <vcpu>{cpus}</vcpu>
  <os>
    <type arch='x86_64' machine='pc'>hvm</type>
    <kernel>{kernel}</kernel>
    <initrd>{initrd}</initrd>
    <cmdline>{cmdline}</cmdline>
  </os>
  <features><acpi/>{features}</features>
  {cpu}
  <on_reboot>destroy</on_reboot>
  <on_crash>destroy</on_crash>
  <devices>
    <emulator>{emulator}</emulator>
    <controller type='usb' model='none'/>
    <serial type='file'>
      <source path='/var/log/libvirt/{name}-console.log' append='on'/>
      <target port='0'/>
    </serial>
    <serial type='unix'>
      <source mode='bind' path='/run/vm/{name}.agent'/>
      <target port='1'/>
    </serial>
    <video><model type='none'/></video>
    <memballoon model='none'/>
    {devices}
  </devices>
  {extra}
</domain>
"""


def memx_backing(local, servers, secret=KEY_SECRET, more=""):
    """The element memoryBacking.  Servers: anything with an address.  more:
    elements after the secret."""
    lines = [f"<local size='{size_bytes(local) >> 10}' unit='KiB'/>"]
    for server in servers:
        host, port = server.address.rsplit(":", 1)
        lines.append(f"<server host='{host}' port='{port}'/>")
    if secret:
        lines.append(f"<secret uuid='{secret}'/>")
    return ("<memoryBacking><source type='memx'>" + "".join(lines) + more
            + "</source></memoryBacking>")


def domain_xml(network, name="vm", size="384M", backing="", cpus=2,
               kernel_args="", devices="", extra=""):
    test = network.test
    kvm = network.domain_type == "kvm"
    return XML.format(
        type=network.domain_type, name=name, kib=size_bytes(size) >> 10,
        backing=backing, cpus=cpus, kernel=test.guest_file("vmlinuz"),
        initrd=test.guest_file("initramfs"), emulator=test.qemu(),
        cmdline=escape(f"{KERNEL_ARGS} {kernel_args}".strip()),
        # A quarter of what QEMU takes by itself does for such a guest.
        features="" if kvm else "<tcg><tb-cache unit='MiB'>64</tb-cache></tcg>",
        cpu="<cpu mode='host-passthrough'/>" if kvm else "",
        devices=devices, extra=extra)


def split_options(servers, local, warm_up=1, secret=KEY_SECRET):
    """Of virsh migrate."""
    words = ["--split-migration", "--split-local-size", str(size_bytes(local))
             + "B", "--split-warm-up", str(warm_up)]
    if servers:
        words += ["--split-hosts",
                  ",".join(server.address for server in servers)]
    if secret:
        words += ["--split-secret", secret]
    return words


class Domain:
    """Started on a host; host says where it is now.  Options are those of
    domain_xml().  boot=False: it is started paused, and has no guest."""

    def __init__(self, host, name="vm", boot=True, **options):
        self.test = host.test
        self.host = host
        self.name = name
        self.xml = domain_xml(host.network, name, **options)
        host.write(f"/run/vm/{name}.xml", self.xml)
        host.virsh("create", f"/run/vm/{name}.xml",
                   *([] if boot else ["--paused"]), seconds=180)
        self.guest = None
        if boot:
            self.guest = Guest(self._agent(host), self.test.log)
            self.test.cleanup(self.guest.close)
            self.guest.wait_boot()

    def _agent(self, host):
        return host.path(f"/run/vm/{self.name}.agent")

    # --- moving

    def start_migration(self, dest, *options, follow=True, uri=None):
        """Returns the running virsh.  follow: the guest will be heard at the
        destination.  uri: of dest's libvirt, if virsh is to use another."""
        virsh = self.host.start_virsh("migrate", "--live", *options,
                                      self.name, uri or dest.uri)
        if follow and self.guest:
            self.guest.follow(self._agent(dest), lambda: virsh.running)
        return virsh

    def migrate(self, dest, *options, seconds=180):
        """To its success; returns what virsh printed."""
        output = self.start_migration(dest, *options).succeed(seconds)
        self.arrived(dest)
        return output

    def arrived(self, dest):
        source, self.host = self.host, dest
        check(self.state() == "running", f"the domain is {self.state()} at "
              "the destination")
        check(self.name not in source.virsh("list", "--name").split(),
              "the domain still runs at the source")

    def migration_refused(self, dest, pattern, *options, seconds=60):
        """It must be refused with such a message, and change nothing."""
        output = self.start_migration(dest, *options, follow=False).fail(
            seconds)
        check(re.search(pattern, output),
              f"refused, but not with '{pattern}': {output.strip()}")
        check(self.name not in dest.virsh("list", "--all", "--name").split(),
              "the domain is still there at the destination")
        return output

    def wait_phase(self, virsh, *phases, seconds=60):
        """Of the split migration that virsh does; returns what query-migrate
        says."""
        def look():
            if not virsh.running:
                raise Failure(f"the migration ended: {virsh.output()}")
            info = self.qmp("query-migrate")
            if info.get("status") in ("completed", "failed", "cancelled"):
                return None     # of an earlier one
            return info if info.get("split", {}).get("phase") in phases \
                else None
        return wait_until(f"the migration is in phase {' or '.join(phases)}",
                          look, seconds)

    # --- how it is

    def state(self, *options):
        return self.host.virsh("domstate", self.name, *options).strip()

    def is_listed(self, host=None):
        names = (host or self.host).virsh("list", "--name").split()
        return self.name in names

    def qmp(self, command, **arguments):
        """What QEMU itself says."""
        arguments = {k.replace("_", "-"): v for k, v in arguments.items()}
        text = json.dumps({"execute": command, "arguments": arguments})
        reply = json.loads(self.host.virsh("qemu-monitor-command", self.name,
                                           text))
        if "error" in reply:
            raise Failure(f"{command}: {reply['error']['desc']}")
        return reply["return"]

    def backend(self):
        """query-memx's of the machine's memory."""
        for backend in self.qmp("query-memx"):
            if backend["id"] == "pc.ram":
                return backend
        raise Failure("query-memx does not list pc.ram")

    def wait_backend(self, what, predicate, seconds=120):
        wait_until(what, lambda: predicate(self.backend()), seconds)

    def stats(self):
        """domstats --memx, as a dictionary."""
        output = self.host.virsh("domstats", "--memx", self.name)
        return dict(re.findall(r"^\s*memx\.([^=]+)=(.*)$", output, re.M))

    def live_xml(self):
        return self.host.virsh("dumpxml", self.name)

    def memory_backing(self):
        """That element of the live definition, as text."""
        element = ElementTree.fromstring(self.live_xml()).find("memoryBacking")
        check(element is not None, "the definition has no memoryBacking")
        return ElementTree.tostring(element, encoding="unicode")

    def make_persistent(self):
        path = f"/run/vm/{self.name}-persistent.xml"
        self.host.write(path, self.host.virsh("dumpxml", self.name,
                                              "--inactive"))
        self.host.virsh("define", path)

    def qemu_pid(self):
        """In the namespace that all of this runs in."""
        with open(self.host.path(f"/run/libvirt/qemu/{self.name}.pid"),
                  encoding="ascii") as file:
            return int(file.read())

    def destroy(self):
        self.host.virsh("destroy", self.name)
