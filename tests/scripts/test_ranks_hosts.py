"""Two hosts that train together: network namespaces of Linux, joined by a cable of two ends (veth) that can be cut. CPU
only; needs the right to make namespaces.

Seen to catch: silence of a rank that does not count as a failure.
"""

import itertools
import os
import shutil
import subprocess
import time
import unittest

from .ranks_case import ENDLESS, RanksCase, wait_for

TIMEOUT = 8
SETS = ["checkpoint.every=50", "eval.every=0", "sample.every=0", f"distributed.timeout_seconds={TIMEOUT}"]
# After the timeout and the next beat (1 s), with some more for a machine that has much else to do.
MOST_SECONDS = TIMEOUT + 1 + 20
PORT = 29500  # of the namespace's own
numbers = itertools.count()


class Hosts(RanksCase):
    def setUp(self):
        super().setUp()
        if shutil.which("ip") is None:
            self.skipTest("no network namespaces here: the program ip is not installed (iproute2 on Debian)")
        name = f"ingot-{os.getpid()}-{next(numbers)}"
        self.hosts = [f"{name}-{host}" for host in "ab"]
        for host in self.hosts:
            made = self.ip("netns", "add", host, check=False)
            if made.returncode != 0:
                self.skipTest(f"no network namespaces here: {made.stderr.strip()}")
            self.addCleanup(self.ip, "netns", "delete", host)
        self.ip("link", "add", "cable", "netns", self.hosts[0], "type", "veth", "peer", "name", "cable", "netns",
                self.hosts[1])
        for number, host in enumerate(self.hosts, 1):
            self.ip("-n", host, "address", "add", f"10.0.0.{number}/24", "dev", "cable")
            for device in ("lo", "cable"):
                self.ip("-n", host, "link", "set", device, "up")

    def ip(self, *arguments, check=True):
        return subprocess.run(["ip", *arguments], text=True, capture_output=True, check=check)

    def cut(self, is_cut):
        """Cuts the cable at the second host, or mends it."""
        self.ip("-n", self.hosts[1], "link", "set", "cable", "down" if is_cut else "up")

    def start_both(self, name, sets):
        return [self.rank_by_hand(name, rank, 2, PORT, sets=sets, host="10.0.0.1",
                                  before=["ip", "netns", "exec", self.hosts[rank]]) for rank in (0, 1)]

    def test_it_trains(self):
        sets = SETS + ["training.steps=20"]
        for process in self.start_both("hosts", sets):
            self.ends(process, 0)
        self.run_ranks("one-host", 2, sets=sets)
        self.assert_same_bits("hosts", "one-host", 20)

    def test_the_cable_is_cut_for_two_seconds(self):
        first, second = self.start_both("cut", SETS + ENDLESS)
        self.wait_for_step(first, 60)
        self.cut(True)
        time.sleep(2)
        # Nothing goes on meanwhile: what was printed before the cut is all there is.
        before = self.steps("cut")[-1]
        time.sleep(0.2)
        self.assertEqual(self.steps("cut")[-1], before)
        self.cut(False)
        self.wait_for_step(first, before + 60)
        second.terminate()
        for process in (first, second):
            _, error = self.ends(process, 75)
            self.assertNotIn("error:", error)
        self.assert_goes_on("cut", 2, SETS)

    def test_the_cable_is_cut_for_good(self):
        processes = self.start_both("lost", SETS + ENDLESS)
        self.wait_for_step(processes[0], 60)
        wait_for(lambda: self.whole_checkpoints("lost"), "the first checkpoint is committed")
        start = time.monotonic()
        self.cut(True)
        for rank, process in enumerate(processes):
            _, error = self.ends(process, 4)
            other = 1 - rank
            self.assertRegex(error, rf"error: rank {other} \(host [^ ]+, process {processes[other].pid}\) has not been "
                                    rf"heard of for {TIMEOUT} s: it hangs, or it cannot be reached; its last "
                                    "collective was [a-z]")
        self.assertLess(time.monotonic() - start, MOST_SECONDS)
        self.assert_goes_on("lost", 2, SETS)


if __name__ == "__main__":
    unittest.main()
