"""A Slurm of one node for a test: munged, slurmctld and slurmd of this user, in a folder and on ports of their own."""

import os
import pathlib
import pwd
import shutil
import socket
import subprocess
import time

PROGRAMS = ("munged", "slurmctld", "slurmd", "srun", "sbatch", "scancel", "scontrol", "squeue", "sinfo")
SEARCH = os.pathsep.join([os.environ.get("PATH", ""), "/usr/sbin", "/sbin"])


def missing_programs():
    return [program for program in PROGRAMS if shutil.which(program, path=SEARCH) is None]


def free_ports(count):
    sockets = [socket.socket() for _ in range(count)]
    try:
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]
    finally:
        for one in sockets:
            one.close()


class SlurmCluster:
    """Its node says that it has 8 CPUs, however many there are. Call close() when done."""

    def __init__(self, folder):
        self.folder = pathlib.Path(folder)
        self.folder.chmod(0o711)  # munged wants its socket to be within everybody's reach
        self.daemons = []
        try:
            self.start_all()
        except BaseException:
            self.close()
            raise

    def start_all(self):
        self.environment = {"SLURM_CONF": str(self.folder / "slurm.conf"), "PATH": SEARCH}
        for name in ("state", "spool"):
            (self.folder / name).mkdir()
        key = self.folder / "munge.key"
        key.write_bytes(os.urandom(1024))
        key.chmod(0o400)
        user, host = pwd.getpwuid(os.geteuid()).pw_name, socket.gethostname().split(".")[0]
        controller_port, node_port = free_ports(2)
        (self.folder / "slurm.conf").write_text(f"""
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/munge
AuthInfo=socket={self.folder}/munge.socket
SlurmctldPort={controller_port}
SlurmdPort={node_port}
StateSaveLocation={self.folder}/state
SlurmdSpoolDir={self.folder}/spool
SlurmctldPidFile={self.folder}/slurmctld.pid
SlurmdPidFile={self.folder}/slurmd.pid
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SwitchType=switch/none
MpiDefault=none
SchedulerType=sched/builtin
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SlurmdParameters=config_overrides
ReturnToService=2
MailProg=/bin/true
KillWait=10
NodeName={host} NodeAddr=127.0.0.1 CPUs=8 State=UNKNOWN
PartitionName=main Nodes={host} Default=YES MaxTime=INFINITE State=UP
""")
        own = self.folder
        self.start("munged", "--foreground", f"--key-file={key}", f"--socket={own}/munge.socket",
                   f"--pid-file={own}/munged.pid", f"--log-file={own}/munged.log", f"--seed-file={own}/munge.seed")
        self.wait(lambda: (own / "munge.socket").exists(), "munged opens its socket")
        self.start("slurmctld", "-D")
        self.start("slurmd", "-D")
        self.wait(lambda: "idle" in self.run("sinfo", "--noheader", "--format=%t", check=False).stdout,
                  "the node is idle")

    def start(self, program, *arguments):
        output = open(self.folder / f"{program}.out", "wb")
        with output:
            self.daemons.append(subprocess.Popen([shutil.which(program, path=SEARCH), *arguments], stdout=output,
                                                 stderr=output, env={**os.environ, **self.environment}))

    def wait(self, is_so, what, seconds=60):
        end = time.monotonic() + seconds
        while not is_so():
            dead = [daemon.args[0] for daemon in self.daemons if daemon.poll() is not None]
            if dead or time.monotonic() > end:
                said = "\n".join(path.read_text(errors="replace")[-2000:] for path in self.folder.glob("*.out"))
                raise RuntimeError(f"waited for this: {what}; ended: {dead}\n{said}")
            time.sleep(0.1)

    def run(self, program, *arguments, check=True, **options):
        return subprocess.run([shutil.which(program, path=SEARCH), *arguments], text=True, capture_output=True,
                              check=check, env={**os.environ, **self.environment}, timeout=120, **options)

    def close(self):
        for daemon in reversed(self.daemons):
            daemon.terminate()
            try:
                daemon.wait(20)
            except subprocess.TimeoutExpired:
                daemon.kill()
                daemon.wait()
