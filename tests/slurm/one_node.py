"""A real SLURM on this machine: two nodes that are both this machine, two made-up GPUs each, nothing but loopback.

Started as root, without systemd; all of its state is in one directory. `python -m tests.slurm.one_node` starts it for
looking around, until Ctrl-C.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

NEEDED = ("slurmctld", "slurmd", "sbatch", "srun", "squeue", "munged")
FOR_ACCOUNTING = ("slurmdbd", "sacct", "mariadbd")
HOSTS, MARK = Path("/etc/hosts"), "# tests of trace-transfer"
PORT = 16817  # of slurmctld; those of the others follow
SLURM_CONF = """
ClusterName=one
SlurmctldHost=localhost
AuthType=auth/munge
CryptoType=crypto/munge
SlurmUser=root
SlurmdUser=root
StateSaveLocation={state}/ctld
SlurmdSpoolDir={state}/%n
SlurmctldPidFile={state}/slurmctld.pid
SlurmdPidFile={state}/slurmd-%n.pid
SlurmctldLogFile={state}/slurmctld.log
SlurmdLogFile={state}/slurmd-%n.log
SlurmctldPort={port}
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
ReturnToService=2
SlurmctldTimeout=30
SlurmdTimeout=20
KillWait=10
MinJobAge={min_job_age}
SchedulerParameters=sched_interval=2,batch_sched_delay=1,bf_interval=2
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
MpiDefault=none
GresTypes=gpu
NodeName={nodes[0]} NodeHostname={nodes[0]} NodeAddr=127.0.0.1 Port={ports[0]} CPUs={cpus} RealMemory=8000 Gres=gpu:2
NodeName={nodes[1]} NodeHostname={nodes[1]} NodeAddr=127.0.0.1 Port={ports[1]} CPUs={cpus} RealMemory=8000 Gres=gpu:2
PartitionName=main Nodes={nodes[0]} Default=YES MaxTime=INFINITE State=UP PriorityTier=1 GraceTime=30
PartitionName=both Nodes={nodes[0]},{nodes[1]} MaxTime=INFINITE State=UP PriorityTier=1
PartitionName=urgent Nodes={nodes[0]} MaxTime=INFINITE State=UP PriorityTier=10 PreemptMode=OFF
"""
NO_ACCOUNTING = "JobAcctGatherType=jobacct_gather/none\nAccountingStorageType=accounting_storage/none\n"
ACCOUNTING = """
JobAcctGatherType=jobacct_gather/linux
AccountingStorageType=accounting_storage/slurmdbd
AccountingStorageHost=localhost
AccountingStoragePort={port}
"""
SLURMDBD_CONF = """
AuthType=auth/munge
DbdHost=localhost
DbdPort={port}
SlurmUser=root
PidFile={state}/slurmdbd.pid
LogFile={state}/slurmdbd.log
StorageType=accounting_storage/mysql
StorageHost=127.0.0.1
StoragePort={mariadb_port}
StorageUser=slurm
StoragePass=slurm
"""


def missing(accounting: bool = False) -> str | None:
    """Why no SLURM can be started here; None if it can."""
    if os.geteuid() != 0:
        return "starting SLURM needs root"
    names = [name for name in (*NEEDED, *(FOR_ACCOUNTING if accounting else ())) if shutil.which(name) is None]
    return f"not installed: {', '.join(names)} (make slurm installs SLURM)" if names else None


@dataclass
class OneNode:
    """The daemons, and what tests do to them."""

    accounting: bool = False
    min_job_age: int = 300
    state: Path = field(default_factory=lambda: Path(tempfile.mkdtemp(prefix="slurm-")))
    daemons: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)
    nodes: tuple[str, str] = ("node1", "node2")

    @property
    def environment(self) -> dict[str, str]:
        """For commands that talk to it."""
        return {**os.environ, "SLURM_CONF": str(self.state / "slurm.conf")}

    def start(self) -> None:
        if self.works("pgrep", "-x", "slurmctld"):
            raise RuntimeError("another slurmctld runs on this machine")
        (self.state / "ctld").mkdir(parents=True)
        self.state.chmod(0o755)
        values = {
            "state": self.state, "port": PORT, "ports": (PORT + 1, PORT + 2),
            "nodes": self.nodes, "cpus": max(2, (os.cpu_count() or 1) // 2), "min_job_age": self.min_job_age,
        }  # fmt: skip
        conf = SLURM_CONF.format(**values) + (ACCOUNTING.format(port=PORT + 3) if self.accounting else NO_ACCOUNTING)
        (self.state / "slurm.conf").write_text(conf)
        gpus = [f"NodeName={node} Name=gpu File=/dev/tty[0-1]\n" for node in self.nodes]
        (self.state / "gres.conf").write_text("".join(gpus))
        self._hosts([f"127.0.0.1 {' '.join(self.nodes)} {MARK}"])  # ranks find each other by the names of nodes
        self._munge()
        if self.accounting:
            self._database()
        self.start_controller()
        for node in self.nodes:
            self.start_node(node)
        self.wait(lambda: self.ask("sinfo", "-h", "-o", "%T", "-N").split() == ["idle"] * 4, "nodes that are idle")

    def start_controller(self) -> None:
        self._begin("slurmctld", ["slurmctld", "-D", "-i"])

    def start_node(self, node: str, *, apart: Path | None = None) -> None:
        """Start a node's slurmd; `apart` is a directory that it sees empty, as on a disk that is not shared."""
        command = ["slurmd", "-D", "-N", node]
        if apart is not None:
            command = ["unshare", "-m", "sh", "-c", f"mount -t tmpfs none {apart} && exec slurmd -D -N {node}"]
        (self.state / node).mkdir(exist_ok=True)
        self._begin(f"slurmd-{node}", command)

    def crash_node(self, node: str) -> None:
        """End a node's slurmd and all that it runs at once, as when the power goes."""
        self.stop_daemon(f"slurmd-{node}", signal.SIGKILL)
        for job in self.ask("squeue", "-h", "-o", "%i", "-t", "running", "-w", node).split():
            for place in Path("/proc").glob("[0-9]*"):
                with suppress(OSError):
                    name, variables = (place / "cmdline").read_bytes(), (place / "environ").read_bytes()
                    mine = f"SLURM_JOB_ID={job}\0".encode() in variables and str(self.state).encode() in variables
                    if mine or name.startswith(f"slurmstepd: [{job}.".encode()):
                        os.kill(int(place.name), signal.SIGKILL)

    def works(self, *command: str) -> bool:
        """Whether a command ends well."""
        return subprocess.run(command, env=self.environment, capture_output=True, check=False).returncode == 0

    def ask(self, *command: str) -> str:
        """What a command of SLURM prints."""
        return subprocess.run(command, env=self.environment, capture_output=True, text=True, check=False).stdout

    def wait(self, condition: Callable[[], bool], what: str, seconds: float = 60.0) -> None:
        end = time.monotonic() + seconds
        while not condition():
            if time.monotonic() > end:
                logs = "\n".join(f.read_text(errors="replace")[-2000:] for f in sorted(self.state.glob("*.log")))
                raise TimeoutError(f"waited in vain for {what}\n{self.ask('sinfo', '-R')}\n{logs}")
            time.sleep(0.3)

    def stop(self) -> None:
        self.ask("scancel", "--full", "--user", "root", "--signal", "KILL")
        for name in list(self.daemons):
            self.stop_daemon(name)
        self._hosts([])
        shutil.rmtree(self.state, ignore_errors=True)

    def _begin(self, name: str, command: list[str]) -> None:
        with (self.state / f"{name}.out").open("ab") as said:
            self.daemons[name] = subprocess.Popen(["nice", *command], env=self.environment, stdout=said, stderr=said)

    def stop_daemon(self, name: str, number: int = signal.SIGTERM) -> None:
        daemon = self.daemons.pop(name)
        daemon.send_signal(number)
        try:
            daemon.wait(20)
        except subprocess.TimeoutExpired:
            daemon.kill()
            daemon.wait()

    def _hosts(self, lines: list[str]) -> None:
        kept = [line for line in HOSTS.read_text().splitlines() if MARK not in line]
        HOSTS.write_text("\n".join([*kept, *lines]) + "\n")

    def _munge(self) -> None:
        """The daemon that SLURM's parts know each other by, with a key of its own, unless one runs already."""
        if self.works("munge", "-n"):
            return
        for place in ("/run/munge", "/var/log/munge", "/var/lib/munge", "/etc/munge"):
            Path(place).mkdir(exist_ok=True)
            subprocess.run(["chown", "-R", "munge:", place], check=True)
        self._begin("munged", ["runuser", "-u", "munge", "--", "munged", "--foreground"])
        self.wait(lambda: self.works("munge", "-n"), "munged")

    def _database(self) -> None:
        place = self.state / "mariadb"
        subprocess.run(["mariadb-install-db", f"--datadir={place}", "--user=mysql", "--skip-test-db"], check=True,
                       capture_output=True)  # fmt: skip
        port = PORT + 4
        self._begin("mariadbd", [
            "mariadbd", "--no-defaults", f"--datadir={place}", "--user=mysql", f"--port={port}",
            "--bind-address=127.0.0.1", f"--socket={place}/sock", f"--pid-file={place}/pid",
        ])  # fmt: skip
        user = "'slurm'@'%' IDENTIFIED BY 'slurm'"
        sql = f"CREATE DATABASE slurm_acct_db; GRANT ALL ON slurm_acct_db.* TO {user};"
        client = ["mariadb", "--no-defaults", f"--socket={place}/sock", "-uroot"]
        self.wait(lambda: self.works(*client, "-e", "SELECT 1"), "mariadbd")
        subprocess.run([*client, "-e", sql], check=True)
        conf = self.state / "slurmdbd.conf"
        conf.touch(mode=0o600)
        conf.write_text(SLURMDBD_CONF.format(state=self.state, port=PORT + 3, mariadb_port=port))
        self._begin("slurmdbd", ["slurmdbd", "-D"])
        self.wait(lambda: self.works("sacctmgr", "-n", "list", "cluster"), "slurmdbd")
        assert self.works("sacctmgr", "-i", "add", "cluster", "one")


@contextmanager
def one_node(**options: object) -> Iterator[OneNode]:
    """A SLURM while it lasts."""
    cluster = OneNode(**options)  # type: ignore[arg-type]
    try:
        cluster.start()
        yield cluster
    finally:
        cluster.stop()


if __name__ == "__main__":
    import sys

    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell lets those behind it ignore it
    with one_node(accounting="--accounting" in sys.argv) as started, suppress(KeyboardInterrupt):
        print(f"export SLURM_CONF={started.state / 'slurm.conf'}", flush=True)
        signal.pause()
