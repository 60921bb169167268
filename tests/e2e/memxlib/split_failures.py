# SPDX-License-Identifier: GPL-2.0-or-later
"""The failure table of docs/split-migration.md with a Linux guest, whose
program writes and verifies across the switch.

A case is a row and a moment.  It brings a split migration to the moment, lets
the row's failure happen, and looks who runs the VM: that the guest gets on
there and its memory verifies, that nobody else runs it, what is left on the
servers and what the user is told.

The moments are reached so:

  setup          while the source watches its guest (split-warm-up)
  first-round    a slow link
  later-round    a slow link, and a guest that writes faster
  pre-switchover the VM is stopped, the source's last byte not sent: before an
                 OFFER (pause-before-switchover)
  before-commit  the destination has all and was started paused (-S)
  half-committed the same, then "cont", while the second server hears nothing
  committed      the destination runs
"""

import os
import re
import time
import traceback

from .migration import Migration
from .proxy import Relay
from .qmp import QmpError
from .wait import Failure, check, stays, wait_until

SIZE, LOCAL = "192M", "80M"
SLOW = 24 << 20      # bytes per second
LOAD = "--percent 60 --hot-percent 40 --write-percent 10"
BUSY = "--percent 60 --write-percent 60"


class Case:
    """capacity: of each server.  dest_memx: options of the destination's
    backend; key, source_key, dest_key: files with what the servers, the
    source and the destination believe to be the servers' key."""

    def __init__(self, test, row, moment, capacity="1G", dest_local=LOCAL,
                 key=None, source_key=None, dest_key=None):
        self.t = test
        self.row, self.moment = row, moment
        self.servers = test.memservers(2, capacity=capacity, key_file=key)
        self.proxies = [test.proxy(server) for server in self.servers]
        self.source = test.vm(size=SIZE, name="source", cpus=1,
                              extra=self._secret(source_key))
        self.load = self.source.guest.load(
            BUSY if moment == "later-round" else LOAD)
        memx = {"server_timeout": 5}
        if dest_key:
            memx["key_secret"] = "key"
        self.dest = test.vm(
            size=SIZE, local=dest_local, source=self.source, name="dest",
            cpus=1, memx=memx, extra=self._secret(dest_key) +
            (["-S"] if moment in ("before-commit", "half-committed") else []))
        self.migration = Migration(
            self.source, self.dest, self.proxies, LOCAL,
            warm_up=8 if moment == "setup" and row in ROWS else 1,
            key_secret="key" if source_key else None,
            capabilities=["pause-before-switchover"]
            if moment == "pre-switchover" else [],
            max_bandwidth=SLOW if moment in ("first-round", "later-round")
            else 0)
        self.relay = Relay(self.migration.listen()[len("tcp:"):])
        test.cleanup(self.relay.close)

    @staticmethod
    def _secret(path):
        return ["-object", f"secret,id=key,file={path}"] if path else []

    # --- to the moment

    def start(self):
        self.migration.start(f"tcp:{self.relay.address}")

    def reach(self):
        self.start()
        getattr(self, "_reach_" + self.moment.replace("-", "_"))()

    def go_on(self):
        """From pre-switchover."""
        self.source.qmp.command("migrate-continue", state="pre-switchover")

    def _wait_phase(self, vm, phase, seconds=60):
        def look():
            if vm is self.source:
                self._check_not_failed()
            return any(event["data"]["phase"] == phase
                       for event in vm.qmp.events("MEMX_SPLIT_PHASE"))
        wait_until(f"{vm.name}'s phase is {phase}", look, seconds)

    def _check_not_failed(self):
        info = self.migration.info()
        check(info.get("status") != "failed",
              f"the migration failed: {info.get('error-desc')}")

    def _reach_setup(self):
        self._wait_phase(self.source, "warm-up")

    def _wait_round(self, number):
        def look():
            self._check_not_failed()
            info = self.migration.info()
            ram = info.get("ram", {})
            return (info["status"] == "active" and
                    ram.get("dirty-sync-count", 0) >= number and
                    ram["transferred"] > 8 << 20)
        wait_until(f"round {number}", look, 60)

    def _reach_first_round(self):
        self._wait_phase(self.source, "transfer")
        self._wait_round(1)

    def _reach_later_round(self):
        self._wait_round(2)

    def _reach_pre_switchover(self):
        self.migration.wait_status("pre-switchover")

    def _reach_before_commit(self):
        self._wait_phase(self.dest, "attached")
        self.migration.wait_status("completed")

    def _reach_half_committed(self):
        self._reach_before_commit()
        self.proxies[1].stall()
        self.dest.resume()  # the VM, not the server
        self.dest.wait_status("running")

    def _reach_committed(self):
        self.migration.finish()
        self.load.wait_progress()

    # --- who runs it

    def ask(self, vm):
        """"cont": None, or why it is refused."""
        try:
            vm.resume()
            return None
        except QmpError as refusal:
            return str(refusal)

    @staticmethod
    def _runs(vm):
        """One that ends meanwhile does not."""
        try:
            return vm.process.running and vm.status() == "running"
        except Failure:
            vm.process.wait_exit(10)
            return False

    def check_runs(self, vm):
        """It runs here and nowhere else, and all of its memory is right."""
        other = self.dest if vm is self.source else self.source
        vm.wait_status("running", 60)
        self.load.wait_progress(90)
        check(not self._runs(other), "both sides run the VM")
        if vm is self.dest and other.process.running:
            refusal = self.ask(other)
            check(refusal and other.status() != "running",
                  f"{other.name} may run the VM, too: {refusal}")
            check("destination" in refusal or "finish" in refusal or
                  "migrat" in refusal,
                  f"the refusal does not tell who has it: {refusal}")
        self.load.finish(180)

    def check_failed(self, *words, status="failed"):
        info = self.migration.wait_status(status, seconds=90)
        text = info.get("error-desc", "")
        for word in words:
            check(re.search(word, text),
                  f"'{text}' says nothing of '{word}'")
        self.t.log(f"told: {text}")

    def check_dropped(self, servers=None):
        """The servers have nothing any more."""
        for server in servers or self.servers:
            server.wait_spaces("has dropped what was sent",
                               lambda spaces: not spaces, 60)

    def check_orphaned(self, servers=None):
        for server in servers or self.servers:
            server.wait_spaces(
                "lists the space as orphaned", lambda spaces: spaces and all(
                    space["state"] == "orphaned" for space in spaces), 60)

    def check_stopped(self, vm, *words):
        """It does not run, and "cont" is refused with these words."""
        refusal = self.ask(vm)
        check(refusal, f"{vm.name} may run the VM")
        for word in words:
            check(word in refusal, f"'{refusal}' says nothing of '{word}'")
        self.t.log(f"told: {refusal}")
        check(vm.qmp.events("MEMX_SPLIT_REFUSED"), "no event says so")
        stays(f"{vm.name} is stopped", lambda: vm.status() != "running", 1)

    def check_dest_ended(self):
        self.dest.process.wait_exit(60)

    def stop_all(self):
        for vm in self.source, self.dest:
            vm.end()
        for proxy in self.proxies:
            proxy.close()
        for server in self.servers:
            server.end()


# --- what happens, and what then -------------------------------------------

def _source_keeps_it(case, *words):
    """The migration fails, the source goes on, the servers drop it."""
    if case.moment == "pre-switchover":
        case.go_on()
    case.check_failed(*words)
    case.check_runs(case.source)


def dest_killed(case):
    case.dest.kill()
    if case.moment == "before-commit":
        check(case.ask(case.source) is None, "the arbiter refuses RECLAIM")
        case.check_runs(case.source)
        case.check_dropped()
    elif case.moment in ("half-committed", "committed"):
        case.proxies[1].resume()
        case.check_stopped(case.source, "destination")
        case.check_orphaned()
    else:
        _source_keeps_it(case)
        case.check_dropped()


def source_killed(case):
    case.source.kill()
    case.proxies[1].resume()
    if case.moment in ("before-commit", "half-committed", "committed"):
        if case.moment == "before-commit":
            check(case.ask(case.dest) is None, "the arbiter refuses COMMIT")
        case.check_runs(case.dest)
    else:
        case.check_dest_ended()
        case.check_orphaned()


def server_killed(case):
    address = case.proxies[1].address
    case.servers[1].kill()
    if case.moment in ("half-committed", "committed"):
        case.proxies[1].resume()
        lost = case.dest.qmp.wait_event("MEMX_SERVER_LOST", 60)
        check(lost["server"] == address, f"the event blames {lost}")
        case.dest.qmp.wait_event("MEMX_STALLED", 90)
        case.load.check_no_mismatch()
        case.check_stopped(case.source, "destination")
        return
    if case.moment == "before-commit":
        check(case.ask(case.source) is None, "the arbiter refuses RECLAIM")
        case.check_runs(case.source)
    else:
        _source_keeps_it(case, address)
    case.check_dropped(case.servers[:1])


def _server_away(case, leave, come_back, index=1):
    """One does not answer for a while."""
    leave()
    if case.moment == "pre-switchover":
        _source_keeps_it(case)
        come_back()
        case.check_dropped()
    elif case.moment in ("setup", "later-round"):
        case.migration.cancel()
        case.check_failed(status="cancelled")
        come_back()
        case.check_runs(case.source)
        case.check_dropped()
    elif case.moment == "first-round":
        wait_until("bytes are pending", lambda: any(
            server["pending"] for server in
            case.migration.info()["split"]["servers"]))
        case.source.qmp.command("migrate-set-parameters", max_bandwidth=0)
        come_back()
        case.migration.finish()
        case.check_runs(case.dest)
    else:
        if case.moment == "before-commit":
            check(case.ask(case.dest) is None, "the arbiter refuses COMMIT")
        # QEMU's main loop may soon wait for a page: nothing is asked of it.
        case.dest.qmp.wait_event("RESUME")
        come_back()
        case.check_runs(case.dest)


def server_stopped(case):
    def come_back():
        case.proxies[1].resume()
        case.servers[1].resume()
    _server_away(case, case.servers[1].pause, come_back)


def server_link_cut(case):
    def leave():
        case.proxies[1].resume()
        case.proxies[1].refuse()
    _server_away(case, leave, case.proxies[1].accept)


def main_link_cut(case):
    case.relay.refuse()
    case.proxies[1].resume()
    if case.moment == "before-commit":
        check(case.ask(case.dest) is None, "the arbiter refuses COMMIT")
    if case.moment in ("before-commit", "half-committed", "committed"):
        case.check_runs(case.dest)
    else:
        _source_keeps_it(case)
        case.check_dropped()


def arbiter_unreachable(case):
    arbiter = case.proxies[0]
    if case.moment in ("setup", "first-round", "later-round",
                       "pre-switchover"):
        _server_away(case, arbiter.refuse, arbiter.accept, index=0)
        return
    arbiter.refuse()
    if case.moment == "before-commit":
        for vm in case.source, case.dest:
            case.check_stopped(vm, arbiter.address)
        arbiter.accept()
        wait_until("the arbiter lets the destination have it",
                   lambda: case.ask(case.dest) is None, 60)
    else:
        case.proxies[1].resume()
        case.check_stopped(case.source)
        arbiter.accept()
    case.check_runs(case.dest)


def cancel(case):
    case.migration.cancel()
    if case.moment in ("half-committed", "committed"):
        case.proxies[1].resume()
        case.check_runs(case.dest)
        return
    if case.moment == "before-commit":
        check(case.ask(case.source) is None, "the arbiter refuses RECLAIM")
    else:
        case.check_failed(status="cancelled")
    case.check_runs(case.source)
    case.check_dropped()


def server_full(case):
    """It refuses what it has reserved room for."""
    full = case.proxies[1]
    full.be_full(True)
    full.resume()
    if case.moment in ("before-commit", "half-committed", "committed"):
        if case.moment == "before-commit":
            check(case.ask(case.dest) is None, "the arbiter refuses COMMIT")
        told = case.dest.qmp.wait_event("MEMX_POOL_FULL", 60)
        check(told["server"] == full.address, f"the event blames {told}")
        case.load.wait_progress()
        full.be_full(False)
        case.check_runs(case.dest)
    else:
        _source_keeps_it(case, full.address)
        case.check_dropped()


# --- rows that are about how things are from the start ---------------------

def _refused(case, *words):
    """By "migrate" itself, or by what it finds first."""
    try:
        case.start()
    except QmpError as refusal:
        for word in words:
            check(re.search(word, str(refusal)),
                  f"'{refusal}' says nothing of '{word}'")
        check(case.source.status() == "running", "the VM stopped")
    else:
        case.check_failed(*words)
    case.check_runs(case.source)
    case.check_dropped()


def no_room(test):
    case = Case(test, "server-full", "setup", capacity="24M")
    _refused(case, r"[0-9]+\s[KM]i?B", "server")
    return case


def _key(test, name):
    path = test.log_path(f"{name}.key")
    with open(path, "w", encoding="ascii") as file:
        os.chmod(path, 0o600)
        file.write(f"the {name} key, which must have some length\n")
    return path


def wrong_key_at_source(test):
    case = Case(test, "wrong-secret", "setup", key=_key(test, "right"),
                source_key=_key(test, "wrong"), dest_key=_key(test, "right"))
    _refused(case, "key")
    return case


def wrong_key_at_dest(test):
    case = Case(test, "wrong-secret", "before-commit-attach",
                key=_key(test, "right"), source_key=_key(test, "right"),
                dest_key=_key(test, "wrong"))
    case.start()
    case.check_failed()
    case.check_dest_ended()
    check("key" in case.dest.process.output(),
          f"the destination says: {case.dest.process.output()[-500:]}")
    case.check_runs(case.source)
    case.check_dropped()
    return case


def dest_too_small(test):
    case = Case(test, "dest-too-small", "setup", dest_local="64M")
    case.start()
    case.check_failed()
    check("65536 KiB" in case.dest.process.output() and
          "local-size" in case.dest.process.output(),
          f"the destination says: {case.dest.process.output()[-500:]}")
    case.check_runs(case.source)
    case.check_dropped()
    return case


MOMENTS = ["setup", "first-round", "later-round", "pre-switchover",
           "before-commit", "half-committed", "committed"]
ROWS = {
    "dest-killed": dest_killed,
    "source-killed": source_killed,
    "server-killed": server_killed,
    "server-stopped": server_stopped,
    "main-link-cut": main_link_cut,
    "server-link-cut": server_link_cut,
    "arbiter-unreachable": arbiter_unreachable,
    "cancel": cancel,
    "server-full": server_full,
}
FROM_THE_START = {
    "server-full/setup": no_room,
    "wrong-secret/setup": wrong_key_at_source,
    "wrong-secret/before-commit": wrong_key_at_dest,
    "dest-too-small/setup": dest_too_small,
}
ALL = list(FROM_THE_START) + [
    name for row in ROWS for moment in MOMENTS
    if (name := f"{row}/{moment}") not in FROM_THE_START]


def run_case(test, name):
    if name in FROM_THE_START:
        FROM_THE_START[name](test).stop_all()
        return
    row, moment = name.split("/")
    case = Case(test, row, moment)
    case.reach()
    ROWS[row](case)
    case.stop_all()


def run_cases(test, names):
    """Each in a test of its own; TAP."""
    failed = []
    print(f"1..{len(names)}", flush=True)
    for number, name in enumerate(names, 1):
        inner = test.inner(name.replace("/", "-"))
        began = time.monotonic()
        try:
            run_case(inner, name)
            word = "ok"
        except Failure as failure:
            inner.log(traceback.format_exc())
            print("\n".join(f"# {line}" for line in
                            str(failure).splitlines()))
            word = "not ok"
            failed.append(name)
        finally:
            inner.close()
        print(f"# {time.monotonic() - began:.1f} s\n"
              f"{word} {number} - {name}", flush=True)
    check(not failed, f"failed: {', '.join(failed)}")
