# SPDX-License-Identifier: GPL-2.0-or-later
"""A live migration, plain or split, between two Vms of one test."""

from .vm import size_bytes
from .wait import Failure, check, wait_until

ENDED = ("completed", "failed", "cancelled")


class Migration:
    """From source to destination, a Vm made with source=.

    servers: a split migration to these, with local bytes at the destination;
    none: a plain one.  parameters: of migrate-set-parameters, with underscores
    for hyphens; they are set on both sides.  source or destination may be
    None: another host has it.
    """

    def __init__(self, source, destination, servers=(), local=None,
                 host="127.0.0.1", warm_up=1, key_secret=None,
                 capabilities=(), **parameters):
        self.source = source
        self.destination = destination
        self.servers = list(servers)
        self._host = host
        self._capabilities = list(capabilities)
        self._parameters = parameters
        self._source_parameters = {}
        if self.servers:
            self._capabilities += ["split-migration", "return-path"]
            self._source_parameters = {
                "split_hosts": ",".join(getattr(s, "address", s)
                                        for s in self.servers),
                "split_local_size": size_bytes(local),
                "split_warm_up": warm_up}
            if key_secret:
                self._source_parameters["split_key_secret"] = key_secret

    # --- its course

    def listen(self):
        """The destination listens; returns where, as an URI."""
        self._prepare(self.destination)
        self.destination.qmp.command("migrate-incoming",
                                     uri=f"tcp:{self._host}:0")
        address = self.destination.qmp.command("query-migrate")
        return f"tcp:{self._host}:{address['socket-address'][0]['port']}"

    def start(self, uri=None):
        """uri: where the source connects to, if not to listen()'s."""
        uri = uri or self.listen()
        self._prepare(self.source)
        if self._source_parameters:
            self.source.qmp.command("migrate-set-parameters",
                                    **self._source_parameters)
        self.source.qmp.command("migrate", uri=uri)
        return self

    def _prepare(self, vm):
        if self._capabilities:
            vm.qmp.command("migrate-set-capabilities", capabilities=[
                {"capability": name, "state": True}
                for name in self._capabilities])
        if self._parameters:
            vm.qmp.command("migrate-set-parameters", **self._parameters)

    def cancel(self):
        self.source.qmp.command("migrate_cancel")

    # --- how it goes

    def info(self):
        """query-migrate at the source."""
        return self.source.qmp.command("query-migrate")

    def status(self):
        return self.info().get("status", "none")

    def wait_status(self, *wanted, seconds=120):
        """Waits for one of these; another end than that is a failure."""
        def look():
            info = self.info()
            status = info.get("status", "none")
            if status not in wanted and status in ENDED:
                raise Failure(f"the migration has {status}, not "
                              f"{' or '.join(wanted)}: "
                              f"{info.get('error-desc', 'no reason given')}")
            return info if status in wanted else None
        return wait_until(f"the migration is {' or '.join(wanted)}", look,
                          seconds)

    def finish(self, seconds=180):
        """To its success, and until the destination runs; returns what
        query-migrate says."""
        info = self.wait_status("completed", seconds=seconds)
        if self.destination:
            self.destination.wait_status("running")
        check(self.source.status() == "postmigrate",
              f"the source is {self.source.status()}")
        return info

    def runs(self):
        """Whose VM runs: a list of the Vms, of one at most or we throw."""
        running = [vm for vm in (self.source, self.destination)
                   if vm.process.running and vm.status() == "running"]
        check(len(running) < 2, "both sides run the VM")
        return running
