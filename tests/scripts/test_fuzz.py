"""libFuzzer on the readers of token files and checkpoints, ten minutes each: with INGOT_LONG=1 alone."""

import os
import shutil
import subprocess
import sys
import tempfile
import unittest

from . import ROOT


def can_fuzz():
    """clang++ with its libFuzzer, which some systems have in a package of its own."""
    if shutil.which("clang++") is None:
        return False
    source = 'extern "C" int LLVMFuzzerTestOneInput(const unsigned char*, unsigned long) { return 0; }'
    with tempfile.TemporaryDirectory() as folder:
        command = ["clang++", "-fsanitize=fuzzer,address", "-std=c++20", "-x", "c++", "-", "-lcrypto", "-o",
                   f"{folder}/fuzz"]
        return subprocess.run(command, input=source, capture_output=True, text=True).returncode == 0


IS_LONG = os.environ.get("INGOT_LONG") == "1"


@unittest.skipUnless(IS_LONG, "takes forty minutes: with INGOT_LONG=1")
@unittest.skipUnless(not IS_LONG or can_fuzz(), "needs clang++ and its libFuzzer (apt-get install clang llvm)")
class Fuzz(unittest.TestCase):
    def test_no_reader_breaks(self):
        """Seen to catch, within seconds: the bound on a Megatron index's counts left out, or computed by a product that
        overflows (an access outside the file); memory for as many sequences as the header says; a loop over them; the
        bound on a document index's starts left out; a tensor beyond the end of its file."""
        with tempfile.TemporaryDirectory() as folder:
            result = subprocess.run([sys.executable, str(ROOT / "scripts/dev/fuzz"), "--output", folder],
                                    capture_output=True, text=True)
        print(result.stdout, file=sys.stderr)
        self.assertEqual(result.returncode, 0, result.stdout + result.stderr)
