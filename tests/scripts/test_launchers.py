"""./train under srun, mpirun and torchrun, and scripts/slurm.sbatch, with two ranks on the CPU.

A launcher that is not here is skipped with the reason: Slurm (Debian: slurmctld slurmd slurm-client munge), Open MPI
(openmpi-bin), torchrun (PyTorch, of the PATH, beside INGOT_TORCH_PYTHON, or in .venv-interop).

Seen to catch, of the job script: a signal that is not passed on, a wait that the signal ends, a job that is queued
again after a refused config, one whose shell outlives its cancellation.
"""

import os
import pathlib
import re
import shutil
import subprocess
import time
import unittest

from . import ROOT, TRAIN
from .inputs import temporary_folder
from .slurm_cluster import SlurmCluster, missing_programs
from .trainer_case import TrainerCase

# What a launcher sets, in which these tests themselves may have been started.
LAUNCHER_VARIABLES = re.compile(
    "(SLURM|SBATCH|SRUN|OMPI|PMIX?|TORCHELASTIC|MASTER|LOCAL|GROUP|ROLE)_|RANK$|WORLD_SIZE$")


def find_torchrun():
    for folder in (pathlib.Path(os.environ.get("INGOT_TORCH_PYTHON", "/")).parent, ROOT / ".venv-interop/bin"):
        if (folder / "torchrun").exists():
            return str(folder / "torchrun")
    return shutil.which("torchrun")


class Launchers(TrainerCase):
    def setUp(self):
        self.clean = {key: value for key, value in os.environ.items() if not LAUNCHER_VARIABLES.match(key)}
        self.clean["OMP_NUM_THREADS"] = "1"

    def cluster(self):
        missing = missing_programs()
        if missing:
            self.skipTest(f"no Slurm here: {', '.join(missing)} not installed "
                          "(slurmctld slurmd slurm-client munge on Debian)")
        cluster = SlurmCluster(temporary_folder(self))
        self.addCleanup(cluster.close)
        return cluster

    def launch(self, launcher, name, **environment):
        """Runs 12 steps on the ranks that the launcher starts."""
        result = subprocess.run([*launcher, TRAIN, *self.arguments(name, "--device", "cpu")], cwd=self.folder,
                                text=True, capture_output=True, env={**self.clean, **environment}, timeout=240)
        self.assertEqual(result.returncode, 0, result.stdout + result.stderr)
        # One rank prints, and all its rows are those of a run of one rank, so that the losses differ by the order of
        # sums alone.
        self.assertEqual(len(re.findall("^step +12/12", result.stdout, re.MULTILINE)), 1, result.stdout)
        alone, log = self.log(self.reference()), self.log(name)
        self.assertEqual([entry["tokens"] for entry in log], [entry["tokens"] for entry in alone])
        for entry, other in zip(log, alone):
            self.assertLessEqual(abs(entry["loss"] / other["loss"] - 1), 1e-5, (entry, other))
        names = sorted(path.name for path in
                       (self.run_folder(name) / "checkpoints/step-00000012").glob("optimizer-*.safetensors"))
        self.assertEqual(names, ["optimizer-00000-of-00002.safetensors", "optimizer-00001-of-00002.safetensors"])

    def test_torchrun(self):
        torchrun = find_torchrun()
        if torchrun is None:
            self.skipTest("no torchrun here: PyTorch is not installed")
        self.launch([torchrun, "--no-python", "--nproc-per-node", "2"], "torchrun")
        self.launch([torchrun, "--standalone", "--no-python", "--nproc-per-node", "2"], "torchrun-standalone")

    def test_mpirun(self):
        if shutil.which("mpirun") is None:
            self.skipTest("no mpirun here: Open MPI is not installed (openmpi-bin on Debian)")
        self.launch(["mpirun", "--oversubscribe", "-n", "2"], "mpirun", OMPI_ALLOW_RUN_AS_ROOT="1",
                    OMPI_ALLOW_RUN_AS_ROOT_CONFIRM="1")

    def test_srun(self):
        cluster = self.cluster()
        self.launch(["srun", "-n", "2"], "srun", **cluster.environment)

    def test_a_job_of_slurm_that_is_interrupted_saves_and_is_queued_again(self):
        cluster = self.cluster()
        if not (self.folder / "train").exists():
            (self.folder / "train").symlink_to(TRAIN)
        more = ["--device", "cpu", "--set", "training.steps=400", "--set", "checkpoint.every=1000", "--set",
                "eval.every=0", "--set", "sample.every=0"]
        output = self.folder / "job.out"

        def submit(name, *arguments):
            submitted = cluster.run(
                "sbatch", "--parsable", "--gpus-per-node=0", "--ntasks-per-node=2", "--cpus-per-task=1",
                f"--output={output}", str(ROOT / "scripts/slurm.sbatch"), *arguments, cwd=self.folder)
            return submitted.stdout.strip()

        def state(job, key="JobState"):
            shown = cluster.run("scontrol", "show", "job", job).stdout
            return re.search(rf"\b{key}=(\S+)", shown).group(1)

        def said():
            return output.read_text() if output.exists() else ""

        job = submit("slurm", "config.json", "--set", "name=slurm", *more)
        cluster.wait(lambda: re.search("^step +3/400", said(), re.MULTILINE), "the job trains", 120)
        # What Slurm sends to the shell of the job ahead of the time limit.
        cluster.run("scancel", "--batch", "--signal=USR1", job)
        cluster.wait(lambda: state(job) == "PENDING", "the job is queued again", 120)
        self.assertIn("queued again", said())
        self.assertNotIn("400/400", said())
        self.assertEqual(state(job, "Restarts"), "1")
        cluster.run("scontrol", "update", f"jobid={job}", "StartTime=now")
        cluster.wait(lambda: state(job) not in ("PENDING", "RUNNING", "COMPLETING"), "the job ends", 240)
        self.assertEqual((state(job), state(job, "ExitCode")), ("COMPLETED", "0:0"), said())
        self.assertEqual([entry["step"] for entry in self.log("slurm")], list(range(1, 401)))
        # The same bits as a run that nothing interrupted.
        whole = subprocess.run([TRAIN, "--config", "config.json", "--gpus", "2", "--set", "name=whole", *more],
                               cwd=self.folder, text=True, capture_output=True, env=self.clean)
        self.assertEqual(whole.returncode, 0, whole.stderr)
        for key in ("loss", "grad_norm"):
            self.assertEqual([entry[key] for entry in self.log("slurm")], [entry[key] for entry in self.log("whole")])

        # Any other end is one that a person must look at.
        output.unlink()
        job = submit("slurm-bad", "config.json", "--set", "name=slurm-bad", "--set", "model.d_model=33")
        cluster.wait(lambda: state(job) not in ("PENDING", "RUNNING", "COMPLETING"), "the job ends", 120)
        self.assertEqual((state(job), state(job, "ExitCode"), state(job, "Restarts")), ("FAILED", "2:0", "0"), said())
        # A job that is cancelled saves too, and stays cancelled.
        output.unlink()
        job = submit("slurm-cancelled", "config.json", "--set", "name=slurm-cancelled", *more)
        cluster.wait(lambda: re.search("^step +3/400", said(), re.MULTILINE), "the job trains", 120)
        cluster.run("scancel", job)
        cluster.wait(lambda: state(job) == "CANCELLED", "the job is cancelled", 120)
        time.sleep(1)
        self.assertEqual((state(job), state(job, "Restarts")), ("CANCELLED", "0"), said())
        self.assertIn("which is saved", said())


class SlurmScript(unittest.TestCase):
    def test_it_refuses_to_run_without_a_job_or_a_config(self):
        folder = temporary_folder(self)
        for environment, arguments, expected in (
            ({}, ["c.json"], "no job of Slurm"),
            ({"SLURM_JOB_ID": "1"}, [], "no config"),
            ({"SLURM_JOB_ID": "1"}, ["c.json"], "./train is not in"),
        ):
            with self.subTest(expected=expected):
                result = subprocess.run(["bash", str(ROOT / "scripts/slurm.sbatch"), *arguments], cwd=folder, text=True,
                                        capture_output=True, env={"PATH": os.environ["PATH"], **environment})
                self.assertEqual(result.returncode, 2, result.stderr)
                self.assertEqual(len(result.stderr.splitlines()), 1)
                self.assertIn(expected, result.stderr)

    @unittest.skipIf(shutil.which("shellcheck") is None, "shellcheck is not installed")
    def test_shellcheck_finds_nothing(self):
        result = subprocess.run(["shellcheck", "--shell=bash", str(ROOT / "scripts/slurm.sbatch")], text=True,
                                capture_output=True)
        self.assertEqual(result.returncode, 0, result.stdout)


if __name__ == "__main__":
    unittest.main()
