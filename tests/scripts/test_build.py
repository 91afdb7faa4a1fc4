"""The build: every CUDA file is compiled, and as C++20; what the build misses; the processor that programs are for.

CMake before 3.26 does not know that nvcc takes -std=c++20 and drops CUDA_STANDARD 20 without a word. Seen to catch: the
two CMAKE_CUDA20_* lines removed from CMakeLists.txt; a BLAS taken because its header or its library is there; the check
of the processor left out of a program.
"""

import json
import os
import pathlib
import platform
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
import unittest

from . import ROOT
from .inputs import temporary_folder

COMPILER = shutil.which(os.environ.get("CXX") or "c++") or "c++"


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


class Options(unittest.TestCase):
    def test_a_warning_is_an_error_only_where_that_was_asked_for(self):
        build = pathlib.Path(os.environ["INGOT_BUILD_DIR"])
        is_asked_for = "INGOT_WARNINGS_AS_ERRORS:BOOL=ON" in (build / "CMakeCache.txt").read_text()
        ours = [entry for entry in json.loads((build / "compile_commands.json").read_text())
                if pathlib.Path(entry["file"]).is_relative_to(ROOT) and "/_deps/" not in entry["file"]]
        self.assertGreater(len(ours), 20)
        for entry in ours:
            with self.subTest(entry["file"]):
                # -Werror=NAME of one warning may be the user's own: Ubuntu's default flags have it.
                options = {"-Werror", "-Werror=all-warnings"} & set(shlex.split(entry["command"]))
                self.assertEqual(bool(options), is_asked_for)

    def test_an_architecture_that_the_kernels_are_not_for(self):
        for architectures in ("75", "80;61", "native"):
            with self.subTest(architectures), tempfile.TemporaryDirectory() as build:
                result = subprocess.run(["cmake", "-G", "Ninja", "-S", ROOT, "-B", build, "-DINGOT_TESTS=OFF",
                                         "-DINGOT_CUDA=ON", "-DINGOT_NVCC=/bin/true",
                                         f"-DINGOT_CUDA_ARCHITECTURES={architectures}"], text=True, capture_output=True)
                self.assertEqual(result.returncode, 1)
                self.assertRegex(" ".join(result.stderr.split()), "kernels need sm_80 or later.*-DINGOT_CUDA=OFF")


class Missing(unittest.TestCase):
    """What CMake says is missing on a system that has nothing but its compiler and what a test puts there."""

    CBLAS = """EXTERN
enum CBLAS_ORDER { CblasRowMajor = 101 };
enum CBLAS_TRANSPOSE { CblasNoTrans = 111, CblasTrans = 112 };
double cblas_ddot(INT, const double*, INT, const double*, INT);
void cblas_sgemm(enum CBLAS_ORDER, enum CBLAS_TRANSPOSE, enum CBLAS_TRANSPOSE, INT, INT, INT, float, const float*, INT,
                 const float*, INT, float, float*, INT);
void cblas_dgemm(enum CBLAS_ORDER, enum CBLAS_TRANSPOSE, enum CBLAS_TRANSPOSE, INT, INT, INT, double, const double*,
                 INT, const double*, INT, double, double*, INT);
END
"""

    def setUp(self):
        self.prefix = temporary_folder(self)
        (self.prefix / "include").mkdir()
        (self.prefix / "lib").mkdir()

    def header(self, name="cblas.h", integer="int", extern="extern \"C\" {", end="}"):
        path = self.prefix / "include" / name
        path.parent.mkdir(exist_ok=True, parents=True)
        path.write_text(self.CBLAS.replace("INT", integer).replace("EXTERN", extern).replace("END", end))

    def library(self, path, has_cblas=True):
        source = "extern \"C\" { double cblas_ddot() { return 0; } void cblas_sgemm() {} void cblas_dgemm() {} }"
        subprocess.run([COMPILER, "-x", "c++", "-shared", "-fPIC", "-o", self.prefix / path, "-"],
                       input=source if has_cblas else "int other;", text=True, check=True)

    def missing(self):
        with tempfile.TemporaryDirectory() as build:
            result = subprocess.run(
                ["cmake", "-G", "Ninja", "-S", ROOT, "-B", build, f"-DINGOT_LIST_MISSING={build}/missing",
                 f"-DCMAKE_CXX_COMPILER={COMPILER}", f"-DCMAKE_MAKE_PROGRAM={shutil.which('ninja')}",
                 f"-DCMAKE_PREFIX_PATH={self.prefix}", "-DCMAKE_FIND_USE_CMAKE_SYSTEM_PATH=OFF",
                 "-DCMAKE_FIND_USE_SYSTEM_ENVIRONMENT_PATH=OFF", "-DCMAKE_FIND_USE_PACKAGE_REGISTRY=OFF"],
                env={**os.environ, "PKG_CONFIG_LIBDIR": "/nonexistent"}, text=True, capture_output=True)
            self.assertEqual(result.returncode, 0, result.stdout + result.stderr)
            return (pathlib.Path(build) / "missing").read_text().split()

    def test_headers_that_look_like_another_library(self):
        """The reference BLAS and wolfSSL: a cblas.h and an evp.h are there."""
        self.header()
        self.library("lib/libblas.so")
        self.header("wolfssl/openssl/evp.h")
        missing = self.missing()
        for package in ("libopenblas-openmp-dev", "libssl-dev", "libpcre2-dev", "libutf8proc-dev", "libgtest-dev",
                        "libcli11-dev", "nlohmann-json3-dev"):
            self.assertIn(package, missing)
        lines = (ROOT / "cmake/packages.txt").read_text().splitlines()
        named = {line.split()[0] for line in lines if line[:1] != "#"}
        # clang's own have its version in their names; that of its sanitizers only CMake asks for.
        missing = {re.sub(r"^libomp-\d+-dev$", "libomp-dev", package) for package in missing
                   if not re.match(r"libclang-rt-\d+-dev$", package)}
        self.assertLessEqual(missing, named)

    def test_only_a_blas_that_a_program_links_against(self):
        for name, header, library, is_taken in (
                ("fine", {}, True, True),
                ("64-bit integers", {"integer": "long"}, True, False),
                ("no extern C", {"extern": "", "end": ""}, True, False),
                ("no C interface in the library", {}, False, False)):
            with self.subTest(name):
                self.header(**header)
                self.library("lib/libblis.so", library)
                self.assertEqual("libopenblas-openmp-dev" not in self.missing(), is_taken)

    def test_header_and_library_belong_together(self):
        """Alternatives chose another package's header; the library's own is in a folder of its variant's name."""
        self.header(integer="long")
        self.header("openblas-pthread/cblas.h")
        (self.prefix / "lib/openblas-pthread").mkdir()
        self.library("lib/openblas-pthread/libopenblas.so")
        (self.prefix / "lib/libopenblas.so").symlink_to("openblas-pthread/libopenblas.so")
        self.assertNotIn("libopenblas-openmp-dev", self.missing())


class Processor(unittest.TestCase):
    """On a processor that the build is not for: one line and code 2, whatever was asked for."""

    @classmethod
    def setUpClass(cls):
        if platform.machine() != "x86_64":
            raise unittest.SkipTest("the check is for x86-64")
        cls.qemu = shutil.which("qemu-x86_64") or shutil.which("qemu-x86_64-static")
        if cls.qemu is None:
            raise unittest.SkipTest("no qemu-x86_64 here: apt-get install qemu-user")

    def run_on(self, processor, *command):
        return subprocess.run([self.qemu, "-cpu", processor, *command], text=True, capture_output=True,
                              stdin=subprocess.DEVNULL, cwd=ROOT)

    def assert_says_so(self, result):
        lines = [line for line in result.stderr.splitlines() if not line.startswith("qemu-x86_64: warning")]
        self.assertEqual((result.returncode, result.stdout, len(lines)), (2, "", 1), result.stderr)
        self.assertRegex(lines[0], r"^error: this build is for processors with .*avx2.*and this processor lacks that: "
                                   r".*-DINGOT_MARCH=x86-64-v2 ")

    def test_programs(self):
        build = pathlib.Path(os.environ["INGOT_BUILD_DIR"])
        train = os.environ["INGOT_TRAIN_BINARY"]
        programs = [train, str(pathlib.Path(train).with_name("bench")),
                    *(str(build / "tests" / name) for name in ("test_kernels", "test_trainer", "test_c_api"))]
        for program in programs:
            for option in ("--version", "info", "--help"):
                with self.subTest(program=program, option=option):
                    self.assert_says_so(self.run_on("Nehalem", program, option))

    def test_the_library(self):
        load = f"import ctypes; ctypes.CDLL({os.environ['INGOT_LIBRARY']!r}); print('loaded')"
        self.assert_says_so(self.run_on("Nehalem", os.path.realpath(sys.executable), "-c", load))

    def test_a_processor_that_fits(self):
        result = self.run_on("Haswell", os.environ["INGOT_TRAIN_BINARY"], "--version")
        self.assertEqual((result.returncode, result.stdout[:6]), (0, "ingot "), result.stderr)

    def test_any_march(self):
        """The two files of the check alone, for other values of INGOT_MARCH than this build has."""
        with tempfile.TemporaryDirectory() as folder:
            for march, processor, code, advice in (
                    ("x86-64-v4", "Haswell", 2, "x86-64-v3"), ("x86-64-v2", "Nehalem", 0, ""),
                    ("x86-64-v2", "qemu64,-ssse3,-sse4.1,-sse4.2,-popcnt", 2, "x86-64"),
                    ("haswell", "Nehalem", 2, "x86-64-v2")):
                with self.subTest(march=march, processor=processor):
                    core = ROOT / "kernels/core"
                    compile_it = [COMPILER, "-std=c++20", f"-I{ROOT}"]
                    subprocess.run([*compile_it, f"-march={march}", f'-DINGOT_MARCH="{march}"', "-c",
                                    core / "cpu_features.cpp", "-o", f"{folder}/features.o"], check=True)
                    subprocess.run([*compile_it, core / "cpu_check.cpp", f"{folder}/features.o", "-x", "c++", "-",
                                    "-o", f"{folder}/program"], input="int main() {}", text=True, check=True)
                    result = self.run_on(processor, f"{folder}/program")
                    self.assertEqual(result.returncode, code, result.stderr)
                    self.assertEqual(f"(INGOT_MARCH={march})" in result.stderr, code == 2, result.stderr)
                    if code == 2:
                        self.assertIn(f"-DINGOT_MARCH={advice} ", result.stderr)
