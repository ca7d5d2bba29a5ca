"""SLURM on this machine: two nodes, all daemons on loopback, started and ended with the test."""

import os
import re
import secrets
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import final

CONFIGURATION = """
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ports[0]}
CommunicationParameters=NoCtldInAddrAny,NoInAddrAny
SlurmUser=root
SlurmdUser=root
AuthInfo=socket={folder}/munge/socket
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool-%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd-%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd-%n.log
SlurmctldDebug=verbose
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SwitchType=switch/none
MpiDefault=none
MailProg=/bin/true
ReturnToService=2
KillWait=5
SlurmdParameters=config_overrides
NodeName=second NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[1]} CPUs=8 State=UNKNOWN
NodeName=localhost NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[2]} CPUs=8 State=UNKNOWN
PartitionName=main Nodes=ALL Default=YES MaxTime=INFINITE State=UP
"""
NODES = ("localhost", "second")
"""In their order within a job: its ranks meet at the first, whose name must lead somewhere."""

LOOPBACK = "0100007F"
"""127.0.0.1 as the kernel writes it."""

DAEMONS = ("munged", "slurmctld", "slurmd")
ADMINISTRATION = f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin"
PATIENCE = 180.0
"""Seconds to wait for what takes one on an idle machine."""


def missing() -> str | None:
    """Why there can be no cluster here, if so."""
    absent = [name for name in (*DAEMONS, "sbatch", "srun") if shutil.which(name, path=ADMINISTRATION) is None]
    if absent:
        return f"{', '.join(absent)} not found: install the Debian packages slurm-wlm and munge"
    return None if os.geteuid() == 0 else "the SLURM daemons of the tests run as root"


def wait(what: str, condition: Callable[[], bool], seconds: float = PATIENCE) -> None:
    """Look until a condition holds."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, f"{seconds:g} s passed without {what}"
        time.sleep(0.1)


def seconds_until(moment: str) -> float:
    """From now to a time as SLURM prints it; "Unknown" is any time from now on."""
    return 0.0 if moment == "Unknown" else (datetime.fromisoformat(moment) - datetime.now()).total_seconds()


@final
class Cluster:
    """The daemons, and what a user says to them.

    Args:
        folder: of configuration, keys, state and logs.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.ports = free_ports(1 + len(NODES))
        self.daemons: list[subprocess.Popen] = []
        self.environment = {**os.environ, "SLURM_CONF": str(folder / "slurm.conf")}
        # As in an activated virtual environment.
        self.environment["PATH"] = f"{Path(sys.executable).parent}:{os.environ['PATH']}"

    def __enter__(self) -> "Cluster":
        for name in ("munge", "state", *(f"spool-{node}" for node in NODES)):
            (self.folder / name).mkdir()
        key = self.folder / "munge" / "key"
        key.write_bytes(secrets.token_bytes(128))
        key.chmod(0o400)
        host = socket.gethostname().split(".")[0]
        text = CONFIGURATION.format(host=host, folder=self.folder, ports=self.ports)
        (self.folder / "slurm.conf").write_text(text)
        try:
            self._start()
        except BaseException:
            self._stop()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.call("scancel", "--user=root", check=False)
        try:
            wait("an empty queue", lambda: not self.call("squeue", "--noheader", check=False), 30.0)
        finally:
            self._stop()

    def call(self, *command: str, check: bool = True, cwd: Path | None = None) -> str:
        """What a command prints."""
        done = subprocess.run(command, env=self.environment, cwd=cwd, capture_output=True, text=True, timeout=PATIENCE)
        assert not check or done.returncode == 0, f"{command}: {done.stderr}"
        return done.stdout.strip()

    def submit(self, *words: str, cwd: Path) -> str:
        """Give a script to sbatch; the job's number."""
        return self.call("sbatch", "--parsable", *words, cwd=cwd)

    def job(self, job: str) -> dict[str, str]:
        """What SLURM knows of a job, or of one task of an array (`7_2`)."""
        return dict(re.findall(r"(\S+?)=(\S*)", self.call("scontrol", "show", "job", "--oneliner", job)))

    def wait_for(self, job: str, state: str) -> None:
        """Wait until a job is in a state, such as COMPLETED; one that comes back into the queue need not wait there."""

        def reached() -> bool:
            found = self.job(job)
            if found["Reason"] == "BeginTime" and seconds_until(found["StartTime"]) > 3:
                # Not at once: a node refuses a job in the second in which it has killed it.
                self.call("scontrol", "update", f"JobId={job}", "StartTime=now+2seconds", check=False)
            over = {"COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL"} - {state}
            assert found["JobState"] not in over, f"job {job} is {found['JobState']}, not {state}\n{self.log(job)}"
            return found["JobState"] == state

        wait(f"job {job} being {state}", reached)

    def log(self, job: str) -> str:
        """What a job has printed so far."""
        path = Path(self.job(job)["StdOut"])
        return path.read_text() if path.exists() else ""

    def controller_log(self) -> str:
        """What the controller has done."""
        return (self.folder / "slurmctld.log").read_text()

    def _start(self) -> None:
        munge = self.folder / "munge"
        names = {"key-file": "key", "socket": "socket", "pid-file": "pid", "log-file": "log", "seed-file": "seed"}
        self._spawn("munged", "--foreground", "--force", *(f"--{name}={munge / file}" for name, file in names.items()))
        wait("munged's socket", (munge / "socket").exists)
        self._spawn("slurmctld", "-D")
        for node in NODES:
            self._spawn("slurmd", "-D", "-N", node)
        wait("idle nodes", self._is_idle)

    def _is_idle(self) -> bool:
        assert all(daemon.poll() is None for daemon in self.daemons), f"a daemon ended: see {self.folder}/*.out"
        return self.call("sinfo", "--noheader", "--Node", "--format=%T", check=False).split() == ["idle"] * len(NODES)

    def _spawn(self, name: str, *options: str) -> None:
        program = shutil.which(name, path=ADMINISTRATION)
        assert program
        with (self.folder / f"{name}.out").open("a") as output:
            command = [program, *options]
            self.daemons.append(subprocess.Popen(command, env=self.environment, stdout=output, stderr=output))

    def _stop(self) -> None:
        for daemon in reversed(self.daemons):
            daemon.terminate()
            try:
                daemon.wait(timeout=30)
            except subprocess.TimeoutExpired:
                daemon.kill()
                daemon.wait()


def listening(ports: list[int]) -> list[tuple[int, str]]:
    """Which of these ports something listens on, and the address, as the kernel writes it."""
    tables = [Path(f"/proc/net/{name}").read_text().splitlines()[1:] for name in ("tcp", "tcp6")]
    sockets = [line.split() for table in tables for line in table]
    addresses = [fields[1].split(":") for fields in sockets if fields[3] == "0A"]
    return sorted((int(port, 16), address) for address, port in addresses if int(port, 16) in ports)


def free_ports(count: int) -> list[int]:
    """Ports of the loopback interface that nothing listens on."""
    listeners = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [listener.getsockname()[1] for listener in listeners]
    for listener in listeners:
        listener.close()
    return ports
