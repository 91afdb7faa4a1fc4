"""What several processes that train together survive, and how they end: kills, hangs, signals, full disks, values that
are not finite. (Launchers and places that are refused: test_ranks.py; values that are not finite on one rank:
test_ranks_run.py; two hosts: test_ranks_hosts.py.) On the CPU, or with INGOT_RANKS_DEVICE=cuda on two GPUs or more.
INGOT_LONG=1 kills a rank at 20 moments.

Seen to catch: a signal at the start or during reading that ends the ranks with two codes, a stop that one rank decides
for itself, a failed save that the other ranks do not learn of, a nonce that is not compared.
"""

import os
import pathlib
import random
import re
import resource
import signal
import subprocess
import time
import unittest

from .inputs import shard
from .ranks_case import ENDLESS, MOST_RANKS, ON_GPUS, RanksOnDevice, free_port, is_alive, wait_for

NUM_KILLS = 20 if os.environ.get("INGOT_LONG") == "1" else 8
RANKS = min(3, MOST_RANKS)
TIMEOUT = 5
# From the start of a rank to its first step: a GPU's driver, NCCL and GEMMs are set up.
SECONDS_OF_START = 6 if ON_GPUS else 0.1
# A rank on a GPU that cannot abort what the GPU does has so long to end (src/parallel/gpu_ranks.cpp).
GRACE = 10 if ON_GPUS else 0
SETS = [*ENDLESS, "model.d_model=64", "checkpoint.every=20", "eval.every=100", "sample.every=0",
        f"distributed.timeout_seconds={TIMEOUT}"]
# A rank that is stopped is heard of no more for the timeout, seen at the next beat (1 s), and the others end. They wait
# for no goodbye of it, for which they would have 5 s; a machine that has much else to do may need half of that.
MOST_SECONDS_OF_SURVIVORS = TIMEOUT + 1 + GRACE + 2.5
# Then the launcher gives the stopped one time (the timeout and 5 s), and 5 s more between SIGTERM and SIGKILL. The rest
# is for a machine that has much else to do.
MOST_SECONDS = TIMEOUT + 1 + GRACE + TIMEOUT + 5 + 5 + 20


class Faults(RanksOnDevice):
    def end_in_time(self, process, code, seconds=MOST_SECONDS):
        start = time.monotonic()
        output, error = self.ends(process, code)
        self.assertLess(time.monotonic() - start, seconds, error)
        wait_for(lambda: not any(map(is_alive, self.seen)), "no rank outlives its launcher", 10)
        return output, error

    # ---- Kills and hangs ----

    def test_one_rank_is_killed(self):
        """At random moments, also while the ranks save."""
        generator = random.Random(2)
        for number in range(NUM_KILLS):
            process = self.launch("killed", RANKS, "--resume", "auto", sets=SETS)
            ranks = self.ranks_of(process, RANKS)
            self.wait_for_step(process, 30 * number + generator.randint(21, 50))
            victim = number // 2 % RANKS
            drafts = self.run_folder("killed") / "checkpoints"
            if number % 2 == 1:
                wait_for(lambda: list(drafts.glob("*.tmp-*")) or process.poll() is not None, "the ranks save")
            else:
                time.sleep(generator.uniform(0, 0.02))
            os.kill(ranks[victim], signal.SIGKILL)
            _, error = self.end_in_time(process, 4)
            self.assertIn(f"error: rank {victim} (process {ranks[victim]}) was ended by signal 9", error)
            # The others say so, too: rank 0 learns it itself, and the others from it.
            names = re.findall(rf"error: rank {victim} \(host [^ ]+, process {ranks[victim]}\) is gone without a word",
                               error)
            self.assertEqual(len(names), RANKS - 1, error)
            self.assertNotIn("damaged", error)
            self.assertGreater(len(self.whole_checkpoints("killed")), 0)
        self.assert_goes_on("killed", RANKS, SETS)

    def test_one_rank_is_stopped(self):
        runs = []
        for victim in (0, 1):
            process = self.launch(f"stopped-{victim}", RANKS, sets=SETS)
            runs.append((victim, process, self.ranks_of(process, RANKS)))
        stopped = []
        for victim, process, ranks in runs:
            self.wait_for_step(process, 30)
            os.kill(ranks[victim], signal.SIGSTOP)
            stopped.append(time.monotonic())
        for (victim, process, ranks), start in zip(runs, stopped):
            survivors = [rank for rank in ranks if rank != ranks[victim]]
            wait_for(lambda: not any(map(is_alive, survivors)), "the others have ended",
                     start + MOST_SECONDS_OF_SURVIVORS - time.monotonic())
        for victim, process, ranks in runs:
            with self.subTest(victim=victim):
                _, error = self.end_in_time(process, 4)
                names = re.findall(rf"error: rank {victim} \(host [^ ]+, process {ranks[victim]}\) has not been heard "
                                   rf"of for {TIMEOUT} s: .*its last collective was [a-z]", error)
                self.assertEqual(len(names), RANKS - 1, error)
                self.assertIn(f"error: rank {victim} (process {ranks[victim]}) does not end after another has failed",
                              error)

    # ---- Signals ----

    def test_a_signal_to_the_launcher_or_to_one_rank(self):
        generator = random.Random(3)
        for number in range(6):
            kind = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)[number % 3]
            victim = (None, 0, RANKS - 1)[number // 2]
            process = self.launch("signals", RANKS, "--resume", "auto", sets=SETS)
            ranks = self.ranks_of(process, RANKS)
            self.wait_for_step(process, 30 * number + generator.randint(1, 30))
            time.sleep(generator.uniform(0, 0.02))
            os.kill(process.pid if victim is None else ranks[victim], kind)
            _, error = self.end_in_time(process, 75)
            self.assertNotIn("error:", error)
            saved = re.search(rf"stopped by signal {kind:d}, after step ([0-9]+), which is saved", error)
            self.assertIsNotNone(saved, error)
            self.assertEqual(self.manifest("signals", int(saved[1]))["step"], int(saved[1]))
        self.assert_goes_on("signals", RANKS, SETS)

    def test_a_signal_at_the_start(self):
        """Before all ranks are there, while they read, or at the first steps: never anything but an interruption."""
        generator = random.Random(4)
        for number in range(12):
            victim = (None, *range(RANKS))[number % (RANKS + 1)]
            process = self.launch("started", RANKS, "--resume", "auto", sets=SETS)
            ranks = self.ranks_of(process, RANKS)
            time.sleep(generator.uniform(0, SECONDS_OF_START))
            os.kill(process.pid if victim is None else ranks[victim], signal.SIGTERM)
            self.end_in_time(process, 75)

    def test_a_signal_while_the_data_are_read(self):
        """One rank stops reading, and the others come to the end of the data."""
        count = 50_000_000  # tokens, in a file with a hole
        with open(self.folder / "long.bin", "wb") as file:
            file.write(shard(ids=[], count=count))
            file.truncate(1024 + 2 * count)
        generator = random.Random(6)
        for victim in range(RANKS):
            port, sets = free_port(), SETS + ['data.train=["long.bin"]']
            ranks = [self.rank_by_hand(f"read-{victim}", rank, RANKS, port, sets=sets) for rank in range(RANKS)]
            maps = pathlib.Path(f"/proc/{ranks[victim].pid}/maps")
            wait_for(lambda: "long.bin" in maps.read_text(), "it reads the data")
            time.sleep(generator.uniform(0, 0.05))
            ranks[victim].terminate()
            for rank in ranks:
                self.ends(rank, 75)

    def test_the_time_is_up(self):
        minutes = 0.2 if ON_GPUS else 0.02  # the start counts
        sets = SETS + [f"training.max_minutes={minutes}"]
        _, error = self.run_ranks("time", RANKS, sets=sets, code=75)
        self.assertIn(f"stopped after training.max_minutes {minutes}, after step ", error)
        self.run_ranks("time", 2, "--resume", "auto", sets=sets, code=75)

    # ---- Disks ----

    def test_a_full_disk_on_one_rank(self):
        """No file of rank 1 may be longer than 20 kB for a while, which stands for a disk that is full."""
        process = self.launch("full", RANKS, sets=SETS)
        ranks = self.ranks_of(process, RANKS)
        self.wait_for_step(process, 21)
        soft, hard = resource.prlimit(ranks[1], resource.RLIMIT_FSIZE)
        resource.prlimit(ranks[1], resource.RLIMIT_FSIZE, (20 << 10, hard))
        warning = process.stderr.readline()
        resource.prlimit(ranks[1], resource.RLIMIT_FSIZE, (soft, hard))
        self.assertRegex(warning, "^WARNING: rank 1: .*; training goes on without this checkpoint")
        self.wait_for_step(process, max(map(int, re.findall("step-([0-9]+)", warning))) + 41)
        process.send_signal(signal.SIGTERM)
        _, error = self.end_in_time(process, 75)
        self.assertNotIn("error:", error)
        self.assertEqual(self.checkpoints("full"), self.whole_checkpoints("full"))
        self.assert_goes_on("full", RANKS, SETS)

    def test_a_disk_that_stays_full(self):
        """Nothing is committed, nothing is left behind, and the run says with code 5 that its last save failed."""
        port, limit = free_port(), 20 << 10  # bytes of a file of rank 1
        if ON_GPUS:
            # NCCL shares memory by files, so that the limit comes when it has them, long before the first save.
            every = 2000
            sets = SETS + [f"checkpoint.every={every}", f"training.steps={3 * every}"]
            first, second = (self.rank_by_hand("small", rank, 2, port, sets=sets) for rank in (0, 1))
            self.wait_for_step(first, 1)
            resource.prlimit(second.pid, resource.RLIMIT_FSIZE, (limit, limit))
        else:
            every = 20
            sets = SETS + [f"training.steps={3 * every}"]
            small = ["bash", "-c", f'ulimit -f {limit >> 10}; exec "$@"', "bash"]
            first = self.rank_by_hand("small", 0, 2, port, sets=sets)
            second = self.rank_by_hand("small", 1, 2, port, sets=sets, before=small)
        _, error = self.ends(first, 5)
        self.ends(second, 5)
        self.assertEqual(len(re.findall("WARNING: rank 1: .*; training goes on without this checkpoint", error)), 2)
        self.assertRegex(error, "error: rank 1: .*")
        self.assertEqual(self.checkpoints("small"), [])
        # The last step's save comes before its line.
        self.assertEqual(self.steps("small"), list(range(1, 3 * every)))

    # ---- Other runs ----

    def test_a_process_of_another_run_disturbs_nobody(self):
        port, sets = free_port(), SETS
        first, second = (self.rank_by_hand("mine", rank, 2, port, sets=sets) for rank in (0, 1))
        self.wait_for_step(first, 10)
        _, error = self.ends(self.rank_by_hand("other", 1, 2, port, nonce="other", sets=sets), 2)
        self.assertIn("refused this process: it belongs to another run", error)
        _, error = self.ends(self.rank_by_hand("other", 0, 2, port, nonce="other", sets=sets), 2)
        self.assertIn(f"port {port} is taken", error)
        _, error = self.ends(self.rank_by_hand("mine", 1, 2, port, sets=sets), 2)
        self.assertIn("rank 1 is here already", error)
        self.assertIsNone(first.poll())
        second.send_signal(signal.SIGTERM)
        _, error = self.ends(first, 75)
        self.assertIn("was refused: it belongs to another run", error)
        self.ends(second, 75)


if __name__ == "__main__":
    unittest.main()
