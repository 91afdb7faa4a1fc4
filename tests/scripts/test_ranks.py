"""Several processes that train together, as a user starts them: how many there are, who is refused, what ends them. On
the CPU, or with INGOT_RANKS_DEVICE=cuda on two GPUs or more.

Seen to catch: --gpus that a launcher's variables do not match, a missing rank that is not named, a plan that starts
processes.
"""

import socket
import subprocess
import unittest

from . import TRAIN
from .ranks_case import DEVICE, ON_GPUS, RanksOnDevice, free_port

# Two ranks that are started at the same time need some of it before they meet, to open a GPU's driver.
PATIENT = [f"distributed.timeout_seconds={20 if ON_GPUS else 4}"]
IMPATIENT = ["distributed.timeout_seconds=1"]


class Ranks(RanksOnDevice):
    def start(self, name, *arguments, environment=None, sets=()):
        return self.open(self.command(name, *arguments, sets=sets), environment)

    def assert_ends(self, process, code, *texts):
        output, error = self.ends(process, code)
        for text in texts:
            self.assertIn(text, output + error)
        return output, error

    def test_a_plan_starts_nothing(self):
        output, error = self.assert_ends(self.start("plan", "--gpus", "4", "--dry-run"), 0, "nothing was started")
        self.assertNotIn("[rank", error)
        self.assertEqual(output.count("nothing was started"), 1)

    def test_gpus_that_are_no_number(self):
        for value in ("0", "-1", "two", "1.5", "99999999"):
            self.assert_ends(self.start("number", "--gpus", value), 2,
                             f"--gpus is {value}: it must be a whole number from 1")
        self.assert_ends(self.start("number", "--gpus"), 2, "--gpus")

    def test_gpus_and_a_launcher_that_disagree(self):
        process = self.rank_by_hand("disagree", 0, 2, 1, "--gpus", "3", nonce="")
        self.assert_ends(process, 2, "error: --gpus is 3, but RANK and WORLD_SIZE started 2 ranks: leave --gpus out")

    def test_launchers_that_disagree(self):
        process = self.start("launchers", environment={"RANK": "0", "WORLD_SIZE": "2", "OMPI_COMM_WORLD_RANK": "1",
                                                       "OMPI_COMM_WORLD_SIZE": "2"})
        self.assert_ends(process, 2, "two launchers disagree", "RANK=0 WORLD_SIZE=2",
                         "OMPI_COMM_WORLD_RANK=1 OMPI_COMM_WORLD_SIZE=2")

    def test_a_rank_that_never_comes(self):
        process = self.rank_by_hand("alone", 0, 3, free_port(), sets=IMPATIENT)
        self.assert_ends(process, 4, "error: ranks 1, 2 are not there after 1 s (distributed.timeout_seconds)")
        process = self.rank_by_hand("alone", 1, 3, free_port(), sets=IMPATIENT)
        self.assert_ends(process, 4, "error: rank 0 at 127.0.0.1:", "cannot be reached")

    def test_a_port_that_is_taken(self):
        with socket.socket() as listener:
            listener.bind(("127.0.0.1", 0))
            listener.listen()
            port = listener.getsockname()[1]
            self.assert_ends(self.rank_by_hand("taken", 0, 2, port), 2, f"error: port {port} is taken")

    def test_two_runs_with_one_port(self):
        port = free_port()
        first = self.rank_by_hand("first", 0, 2, port, nonce="a", sets=PATIENT)
        second = self.rank_by_hand("second", 1, 2, port, nonce="b", sets=PATIENT)
        self.assert_ends(second, 2, "refused this process: it belongs to another run")
        self.assert_ends(first, 4, "rank 1 is not there", "was refused: it belongs to another run")

    def test_ranks_with_different_configs(self):
        port = free_port()
        first = self.rank_by_hand("same", 0, 2, port, sets=PATIENT)
        second = self.rank_by_hand("same", 1, 2, port, sets=PATIENT + ["optimizer.lr=0.1"])
        self.assert_ends(second, 2, "its configuration is not that of rank 0")
        self.assert_ends(first, 4, "rank 1 is not there")

    def test_an_error_before_the_ranks_start_is_one_line(self):
        _, error = self.assert_ends(self.start("wrong", "--gpus", "3", sets=["training.steps=0"]), 2, "training.steps")
        self.assertEqual(len(error.splitlines()), 1, error)

    def test_a_config_that_can_be_read_once(self):
        with open(self.folder / "config.json") as config:
            process = subprocess.run([TRAIN, "--config", "/dev/stdin", "--device", DEVICE, "--gpus", "2", "--set",
                                      "name=pipe"], cwd=self.folder, text=True, capture_output=True,
                                     input=config.read())
        self.assertEqual(process.returncode, 2, process.stderr)
        self.assertIn("--config /dev/stdin is no file that each rank can read again", process.stderr)


if __name__ == "__main__":
    unittest.main()
