"""The build: every CUDA file is compiled, and as C++20.

CMake before 3.26 does not know that nvcc takes -std=c++20 and drops CUDA_STANDARD 20 without a word. Seen to catch: the two
CMAKE_CUDA20_* lines removed from CMakeLists.txt.
"""

import json
import os
import pathlib
import unittest

ROOT = pathlib.Path(__file__).resolve().parents[2]


class CudaStandard(unittest.TestCase):
    def test_every_cuda_file_is_compiled_as_cpp20(self):
        if os.environ.get("INGOT_HAS_CUDA") != "1":
            self.skipTest("this build has no CUDA")
        build = pathlib.Path(os.environ["INGOT_BUILD_DIR"])
        commands = json.loads((build / "compile_commands.json").read_text())
        compiled = {pathlib.Path(entry["file"]): entry["command"] for entry in commands}
        sources = sorted((ROOT / "kernels").rglob("*.cu"))
        self.assertTrue(sources, "no .cu file found")
        for source in sources:
            with self.subTest(source=str(source.relative_to(ROOT))):
                self.assertIn(source, compiled, "is not compiled")
                self.assertRegex(compiled[source], r"-std=c\+\+20\b")


if __name__ == "__main__":
    unittest.main()
