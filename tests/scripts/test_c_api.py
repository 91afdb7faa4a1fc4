"""libingot.so shows the functions of kernels/c_api.h, and nothing else.

Seen to catch: the version script left out, a function declared and not defined.
"""

import os
import pathlib
import re
import shutil
import subprocess
import unittest

from . import ROOT

LIBRARY = pathlib.Path(os.environ.get("INGOT_LIBRARY") or ROOT / "libingot.so")


@unittest.skipUnless(shutil.which("nm"), "no nm: apt-get install binutils")
class Symbols(unittest.TestCase):
    def test_the_header_and_no_more(self):
        listing = subprocess.run(["nm", "-D", "--defined-only", str(LIBRARY)], check=True, text=True,
                                 capture_output=True).stdout
        shown = sorted(line.split()[-1] for line in listing.splitlines())
        declared = sorted(re.findall(r"^INGOT_API .*?(ingot_\w+)\(", (ROOT / "kernels/c_api.h").read_text(), re.M))
        self.assertGreater(len(declared), 10)
        self.assertEqual(shown, declared)
