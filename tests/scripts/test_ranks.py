"""Several processes that train together on the CPU, as a user starts them: how many there are, who is refused, what ends
them. CPU only.

Seen to catch: --gpus that a launcher's variables do not match, a missing rank that is not named, a plan that starts
processes.
"""

import os
import socket
import subprocess

from .trainer_case import TRAIN, TrainerCase

VARIABLES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT", "INGOT_RUN_NONCE")


def free_port():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


class Ranks(TrainerCase):
    def start(self, name, *arguments, environment=None, sets=()):
        clean = {key: value for key, value in os.environ.items() if key not in VARIABLES}
        command = [TRAIN, "--config", "config.json", "--device", "cpu", "--set", f"name={name}"]
        for assignment in sets:
            command += ["--set", assignment]
        return subprocess.Popen(command + list(arguments), cwd=self.folder, text=True, stdout=subprocess.PIPE,
                                stderr=subprocess.PIPE,
                                env={**clean, "OMP_NUM_THREADS": "1", **(environment or {})})

    def ends(self, process, code, *texts):
        output, error = process.communicate(timeout=120)
        self.assertEqual(process.returncode, code, output + error)
        for text in texts:
            self.assertIn(text, output + error)
        return output, error

    def rank(self, rank, size, port, **more):
        return {"RANK": str(rank), "WORLD_SIZE": str(size), "LOCAL_RANK": str(rank), "MASTER_ADDR": "127.0.0.1",
                "MASTER_PORT": str(port), **more}

    def test_a_plan_starts_nothing(self):
        output, error = self.ends(self.start("plan", "--gpus", "4", "--dry-run"), 0, "nothing was started")
        self.assertNotIn("[rank", error)
        self.assertEqual(output.count("nothing was started"), 1)

    def test_gpus_that_are_no_number(self):
        for value in ("0", "-1", "two", "1.5", "99999999"):
            self.ends(self.start("number", "--gpus", value), 2, f"--gpus is {value}: it must be a whole number from 1")
        self.ends(self.start("number", "--gpus"), 2, "--gpus")

    def test_gpus_and_a_launcher_that_disagree(self):
        process = self.start("disagree", "--gpus", "3", environment=self.rank(0, 2, 1))
        self.ends(process, 2, "error: --gpus is 3, but RANK and WORLD_SIZE started 2 ranks: leave --gpus out")

    def test_launchers_that_disagree(self):
        process = self.start("launchers", environment={**self.rank(0, 2, 1), "OMPI_COMM_WORLD_RANK": "1",
                                                       "OMPI_COMM_WORLD_SIZE": "2"})
        self.ends(process, 2, "two launchers disagree", "RANK=0 WORLD_SIZE=2",
                  "OMPI_COMM_WORLD_RANK=1 OMPI_COMM_WORLD_SIZE=2")

    def test_a_rank_that_never_comes(self):
        process = self.start("alone", environment=self.rank(0, 3, free_port()), sets=["distributed.timeout_seconds=1"])
        self.ends(process, 4, "error: ranks 1, 2 are not there after 1 s (distributed.timeout_seconds)")
        process = self.start("alone", environment=self.rank(1, 3, free_port()), sets=["distributed.timeout_seconds=1"])
        self.ends(process, 4, "error: rank 0 at 127.0.0.1:", "cannot be reached")

    def test_a_port_that_is_taken(self):
        with socket.socket() as listener:
            listener.bind(("127.0.0.1", 0))
            listener.listen()
            port = listener.getsockname()[1]
            self.ends(self.start("taken", environment=self.rank(0, 2, port)), 2, f"error: port {port} is taken")

    def test_two_runs_with_one_port(self):
        port = free_port()
        first = self.start("first", environment=self.rank(0, 2, port, INGOT_RUN_NONCE="a"),
                           sets=["distributed.timeout_seconds=4"])
        second = self.start("second", environment=self.rank(1, 2, port, INGOT_RUN_NONCE="b"),
                            sets=["distributed.timeout_seconds=4"])
        self.ends(second, 2, "refused this process: it belongs to another run")
        self.ends(first, 4, "rank 1 is not there", "was refused: it belongs to another run")

    def test_ranks_with_different_configs(self):
        port = free_port()
        sets = ["distributed.timeout_seconds=4"]
        first = self.start("same", environment=self.rank(0, 2, port, INGOT_RUN_NONCE="a"), sets=sets)
        second = self.start("same", environment=self.rank(1, 2, port, INGOT_RUN_NONCE="a"),
                            sets=sets + ["optimizer.lr=0.1"])
        self.ends(second, 2, "its configuration is not that of rank 0")
        self.ends(first, 4, "rank 1 is not there")

    def test_an_error_before_the_ranks_start_is_one_line(self):
        _, error = self.ends(self.start("wrong", "--gpus", "3", sets=["training.steps=0"]), 2, "training.steps")
        self.assertEqual(len(error.splitlines()), 1, error)

    def test_a_config_that_can_be_read_once(self):
        with open(self.folder / "config.json") as config:
            process = subprocess.run([TRAIN, "--config", "/dev/stdin", "--device", "cpu", "--gpus", "2", "--set",
                                      "name=pipe"], cwd=self.folder, text=True, capture_output=True, input=config.read())
        self.assertEqual(process.returncode, 2, process.stderr)
        self.assertIn("--config /dev/stdin is no file that each rank can read again", process.stderr)
