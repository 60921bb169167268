# SPDX-License-Identifier: GPL-2.0-or-later
"""Two hosts with libvirt, two with memory servers, and a shell.

host1, host2   virtqemud, virtsecretd and virtproxyd; each host has its own
               /run, /etc/libvirt and /var/lib/libvirt.  The shell, or the
               command, runs on host1
mem1, mem2     memserver, port 7701
demo           a VM with a small Linux guest, defined on host1

"on HOST COMMAND..." runs something on another host.  The servers' key is a
secret of libvirt's on both hosts; its UUID is in $KEY.  All of it is gone
when the shell ends.
"""

import argparse
import os
import signal
import subprocess
import sys

sys.dont_write_bytecode = True
HERE = os.path.dirname(os.path.realpath(__file__))
sys.path.insert(0, os.path.join(HERE, "../tests/e2e"))
# pylint: disable=wrong-import-position
from memxlib import e2e, hosts  # noqa: E402
from memxlib.domain import domain_xml  # noqa: E402
from memxlib.vm import best_accel, size_bytes  # noqa: E402

PORT = 7701
ON = """#!/bin/sh
# on HOST COMMAND...: runs a command on one of the hosts
case ${{1:-}} in
{cases}
*) echo "on: usage: on {names} COMMAND..." >&2; exit 2 ;;
esac
shift
exec nsenter --target "$pid" --net --mount --uts -- "$@"
"""
HELLO = """
host1, host2 run libvirt (this shell is on host1), mem1 and mem2 run memserver:

  virsh start demo
  virsh migrate --live --verbose demo {uri} --split-migration \\
      --split-hosts mem1:{port},mem2:{port} --split-local-size {local}MiB \\
      --split-secret $KEY
  on host2 virsh domstats --memx demo
  on mem1 memxctl status

QEMU runs as {user}, {accel}.  "exit" ends all of it.
"""


def arguments():
    parser = argparse.ArgumentParser(
        prog="two-hosts", description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--memory", default="1G", metavar="SIZE",
                        type=size, help="of the VM (default: 1G)")
    parser.add_argument("--capacity", default="2G", metavar="SIZE",
                        type=size, help="of each memserver (default: 2G)")
    parser.add_argument("--root", action="store_true",
                        help="run QEMU as root")
    parser.add_argument("command", nargs=argparse.REMAINDER,
                        help="what to run on host1 (default: a shell)")
    return parser.parse_args()


def size(text):
    try:
        size_bytes(text)
    except AttributeError:
        raise argparse.ArgumentTypeError(
            f"'{text}' is no size; 512M or 4G are") from None
    return text


def write_on(test, network):
    """The program "on"; returns its folder."""
    folder = os.path.join(test.socket_dir, "bin")
    os.mkdir(folder)
    path = os.path.join(folder, "on")
    with open(path, "w", encoding="utf-8") as file:
        file.write(ON.format(names="|".join(network.hosts), cases="\n".join(
            f"{name}) pid={host.pid} ;;"
            for name, host in network.hosts.items())))
        os.fchmod(file.fileno(), 0o755)
    return folder


def run(test, network, argv):
    host = network.host1
    env = {**host.environment(), "KEY": hosts.KEY_SECRET,
           "PATH": ":".join([write_on(test, network),
                             os.path.dirname(test.binary("virsh")),
                             os.environ["PATH"]])}
    if not argv:
        argv = ["bash", "--norc", "-i"]
        env["PS1"] = r"\h:\w\$ "
    return subprocess.run(argv, env=env, cwd="/", preexec_fn=host.enter,
                          check=False).returncode


def main():
    options = arguments()
    hosts.inside()
    os.environ["PATH"] = "/usr/sbin:/usr/bin:/sbin:/bin:" + os.environ["PATH"]
    for number in signal.SIGTERM, signal.SIGHUP, signal.SIGINT:
        signal.signal(number, lambda number, _frame: sys.exit(128 + number))
    test = e2e.Test("two-hosts")
    status = 1
    try:
        accel, described = best_accel()
        network = hosts.Network(test, qemu_as_root=options.root,
                                kvm=accel == "kvm")
        for server in network.memservers(capacity=options.capacity,
                                         port=PORT):
            # Where memxctl looks, on the server's host.
            folder = network.hosts[server.name].path("/run/memx")
            os.mkdir(folder)
            os.symlink(server.control, os.path.join(folder, "memserver.sock"))
        host = network.host1
        host.write("/run/vm/demo.xml",
                   domain_xml(network, "demo", size=options.memory))
        host.virsh("define", "/run/vm/demo.xml")
        if not options.command:
            print(HELLO.format(
                uri=network.host2.uri, port=PORT,
                local=size_bytes(options.memory) >> 21,
                user="root" if network.qemu_user == "+0" else
                f"user {network.qemu_user[1:]}", accel=described))
        status = run(test, network, options.command)
    finally:
        test.close()
    return status if status >= 0 else 128 - status


if __name__ == "__main__":
    sys.exit(main())
