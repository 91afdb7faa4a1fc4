"""quickstart, test and what they share: packages, the choice of devices, options; the pages; prepare.py's progress.

The commands that they ask (nvidia-smi, nvcc, id, apt-get) are stood in for by scripts of a line, so that every machine
can be had. The whole quickstart is no test here: it installs, builds and trains for minutes.

Seen to catch: versions compared as text (12.10 before 12.4); a package or a file that README.md names wrongly.
"""

import importlib.util
import io
import os
import pathlib
import re
import shutil
import subprocess
import sys
import tempfile
import unittest
from unittest import mock

ROOT = pathlib.Path(__file__).resolve().parents[2]
TOOLS = ("bash", "sh", "cat", "dirname", "find", "grep", "head", "mkdir", "mktemp", "rm", "sed", "sort", "tail", "tr",
         "uname", "env", "chmod")
DRIVER = """case "$*" in
  *compute_cap*) echo 9.0 ;;
  *name*) echo NVIDIA H100 80GB HBM3 ;;
  -L) echo 'GPU 0: NVIDIA H100 80GB HBM3 (UUID: GPU-1)' ;;
  *) echo '| NVIDIA-SMI 580.65   Driver Version: 580.65   CUDA Version: DRIVER  |' ;;
esac"""
NVCC = "echo 'Cuda compilation tools, release TOOLKIT, VTOOLKIT.88'"


class Scripts(unittest.TestCase):
    """Runs shell code over the scripts on a machine that has the tools above and what a test adds."""

    def setUp(self):
        self.temporary = tempfile.TemporaryDirectory()
        self.addCleanup(self.temporary.cleanup)
        self.bin = pathlib.Path(self.temporary.name)
        for tool in TOOLS:
            (self.bin / tool).symlink_to(shutil.which(tool))
        (self.bin / "python3").symlink_to(sys.executable)
        self.fake("id", "echo 1000")  # no root, and no sudo
        self.fake("apt-get", "echo apt-get \"$@\"")

    def fake(self, name, body):
        path = self.bin / name
        path.write_text(f"#!/bin/sh\n{body}\n")
        path.chmod(0o755)

    def run_shell(self, code, *arguments):
        return subprocess.run(["bash", "-euo", "pipefail", "-c", code, *arguments], cwd=ROOT, text=True,
                              capture_output=True, stdin=subprocess.DEVNULL,
                              env={"PATH": str(self.bin), "HOME": "/nonexistent"})

    def shell(self, code, exit_code=0):
        result = self.run_shell(f". scripts/common.sh; . scripts/cuda_toolkit.sh; {code}")
        self.assertEqual(result.returncode, exit_code, result.stdout + result.stderr)
        return result.stdout


class Options(Scripts):
    def test_help_and_unknown_options(self):
        for script in ("quickstart", "test"):
            with self.subTest(script):
                result = self.run_shell(f"scripts/{script} --help")
                self.assertEqual((result.returncode, result.stderr), (0, ""))
                self.assertIn(f"./scripts/{script}", result.stdout)
                result = self.run_shell(f"scripts/{script} --fast")
                self.assertEqual(result.returncode, 2)
                self.assertEqual(len(result.stderr.splitlines()), 1)
                self.assertIn("--fast", result.stderr)

    def test_without_root_and_sudo_they_say_the_one_line(self):
        for script in ("quickstart", "test"):  # there is no g++ among the tools above
            with self.subTest(script):
                result = self.run_shell(f"scripts/{script}")
                self.assertEqual(result.returncode, 2, result.stdout + result.stderr)
                self.assertEqual(len(result.stderr.splitlines()), 1)
                self.assertRegex(result.stderr, r"sudo apt-get install -y .*\bg\+\+ cmake ninja-build\b")

    def test_without_apt_get(self):
        (self.bin / "apt-get").unlink()
        result = self.run_shell("scripts/quickstart")
        self.assertEqual(result.returncode, 2)
        self.assertIn("your system's package manager", result.stderr)


class Packages(Scripts):
    def names(self):
        text = (ROOT / "scripts/common.sh").read_text()
        lists = re.findall(r"^missing_(?:packages|extras)\(\) \{\n(.*?)^\}", text, re.MULTILINE | re.DOTALL)
        self.assertEqual(len(lists), 2)
        return set(re.findall(r"\|\| echo ([\w+.-]+)$", "".join(lists), re.MULTILINE))

    def test_readme_names_all_of_them(self):
        line = re.search(r"^sudo apt-get install -y (.*)$", (ROOT / "README.md").read_text(), re.MULTILINE)
        self.assertEqual(set(line[1].split()), self.names())

    def test_only_the_tests_need_googletest(self):
        missing = self.shell("have_file() { return 1; }; missing_packages")
        self.assertIn("libcli11-dev", missing)
        self.assertNotIn("libgtest-dev", missing)
        self.assertIn("libgtest-dev", self.shell("have_file() { return 1; }; missing_packages tests"))

    def test_apt_get_is_asked_only_when_something_is_missing(self):
        quiet = "missing_packages() { :; }; missing_extras() { :; }; can_install() { return 0; };"
        self.assertNotIn("apt-get", self.shell(f"{quiet} install_missing"))
        self.fake("id", "echo 0")
        output = self.shell(f"{quiet} missing_packages() {{ echo cmake; }}; install_missing")
        self.assertIn("apt-get install -y -q --no-install-recommends cmake", output)

    def test_a_package_for_the_picture_alone_stops_nothing(self):
        extras = "missing_packages() { :; }; missing_extras() { echo python3-venv; };"
        self.assertNotIn("apt-get", self.shell(f"{extras} install_missing"))  # not root: not even tried
        self.fake("id", "echo 0")
        self.fake("apt-get", "exit 100")
        self.assertIn("Going on without python3-venv", self.shell(f"{extras} install_missing"))


class Devices(Scripts):
    def choose(self, says_yes=0, driver=None, toolkit=None, system="debian 12"):
        if driver is not None:
            self.fake("nvidia-smi", DRIVER.replace("DRIVER", driver))
        if toolkit is not None:
            self.fake("nvcc", NVCC.replace("TOOLKIT", toolkit))
        name, version = system.split()
        release = self.bin / "os-release"
        release.write_text(f'ID={name}\nVERSION_ID="{version}"\n')
        # A toolkit that this machine may have elsewhere does not count.
        find = 'find_nvcc() { command -v nvcc; }; uname() { echo x86_64; };'
        output = self.shell(f'{find} OS_RELEASE={release}; choose_devices {says_yes}; echo "${{cuda_options[*]}}"')
        *lines, options = output.splitlines()
        return "\n".join(lines), options

    def test_versions_are_compared_as_numbers(self):
        for a, b, code in (("12.10", "12.4", 0), ("12.4", "12.4", 0), ("12.3", "12.4", 1), ("9.2", "12.4", 1),
                           ("13.0", "12.9", 0)):
            with self.subTest(f"{a} {b}"):
                self.shell(f"at_least {a} {b}", exit_code=code)

    def test_no_gpu(self):
        text, options = self.choose(toolkit="13.0")
        self.assertIn("Device: CPU", text)
        self.assertEqual(options, "-DINGOT_CUDA=OFF")

    def test_driver_that_does_not_answer(self):
        self.fake("nvidia-smi", "echo 'NVIDIA-SMI has failed'; exit 9")
        self.assertEqual(self.choose(toolkit="13.0")[1], "-DINGOT_CUDA=OFF")

    def test_gpu_and_toolkit_that_fits(self):
        for driver, toolkit in (("13.0", "13.0"), ("13.1", "12.8"), ("12.4", "12.8")):
            with self.subTest(f"{driver} {toolkit}"):
                text, options = self.choose(driver=driver, toolkit=toolkit)
                self.assertIn("NVIDIA H100", text)
                self.assertIn("-DINGOT_CUDA=ON", options)
                self.assertIn("-DINGOT_CUDA_ARCHITECTURES=90", options)

    def test_driver_and_toolkit_that_do_not_fit(self):
        for driver, toolkit, says in (("12.8", "13.0", "update the driver"), ("13.0", "12.0", "12.4 or later")):
            with self.subTest(f"{driver} {toolkit}"):
                text, options = self.choose(driver=driver, toolkit=toolkit)
                self.assertIn(says, text)
                self.assertEqual(options, "-DINGOT_CUDA=OFF")

    def test_no_toolkit_without_a_yes(self):
        self.fake("id", "echo 0")
        text, options = self.choose(driver="13.0")  # standard input is no terminal: nobody can say yes
        self.assertIn("cuda-nvcc-13-0 cuda-cudart-dev-13-0 libcublas-dev-13-0", text)
        self.assertIn("GB to download", text)
        self.assertIn("--yes", text)
        self.assertEqual(options, "-DINGOT_CUDA=OFF")

    def test_toolkit_for_an_older_driver(self):
        self.assertIn("cuda-nvcc-12-8", self.choose(driver="12.2")[0])
        self.assertIn("update the driver", self.choose(driver="11.8")[0])

    def test_toolkit_on_another_system(self):
        text, options = self.choose(says_yes=1, driver="13.0", system="fedora 42")
        self.assertIn("install the CUDA toolkit 13.0", text)
        self.assertEqual(options, "-DINGOT_CUDA=OFF")

    def test_toolkit_with_a_yes(self):
        self.fake("id", "echo 0")
        (self.bin / "python3").unlink()
        self.fake("python3", "echo fetch \"$3\"")
        nvcc = self.bin / "nvcc"
        content = f"#!/bin/sh\\n{NVCC.replace('TOOLKIT', '13.0')}\\n"
        # The last call of apt-get puts nvcc there.
        self.fake("apt-get", f"echo apt-get \"$@\"; case \"$*\" in *cuda-nvcc*) printf \"{content}\" > {nvcc}; "
                             f"chmod 755 {nvcc};; esac")
        text, options = self.choose(says_yes=1, driver="13.0", system="ubuntu 24.04")
        self.assertIn("/ubuntu2404/x86_64/cuda-keyring", text)
        self.assertIn("-DINGOT_CUDA=ON", options)

    def test_toolkit_that_cannot_be_installed(self):
        self.fake("id", "echo 0")
        (self.bin / "python3").unlink()
        self.fake("python3", "exit 1")  # no network
        text, options = self.choose(says_yes=1, driver="13.0")
        self.assertIn("could not be installed", text)
        self.assertEqual(options, "-DINGOT_CUDA=OFF")


class Pages(unittest.TestCase):
    def test_what_they_name_is_there(self):
        """Links, and paths in backticks that begin with a folder of ours; shards, runs and the like are made later."""
        for page in ("README.md", "CONTRIBUTING.md", "data/README.md", "kernels/README.md", "BENCHMARKS.md"):
            text = (ROOT / page).read_text()
            named = {(ROOT / page).parent / link for link in re.findall(r"\]\(([^)#:]+)\)", text)}
            named |= {ROOT / path for path in
                      re.findall(r"`((?:\./)?(?:configs|kernels|scripts|src|tests)/[\w./]*)[` ]", text)}
            if page == "CONTRIBUTING.md":
                self.assertGreater(len(named), 10)  # else the patterns above miss what they look for
            for path in sorted(named):
                with self.subTest(page=page, path=str(path)):
                    self.assertTrue(path.exists())


class PrepareProgress(unittest.TestCase):
    def progress(self, is_terminal):
        """What half of 200 MB in ten seconds shows."""
        specification = importlib.util.spec_from_file_location("prepare_progress", ROOT / "scripts/prepare.py")
        prepare = importlib.util.module_from_spec(specification)
        sys.modules["prepare_progress"] = prepare  # dataclasses look their module up
        specification.loader.exec_module(prepare)
        stream = io.StringIO()
        stream.isatty = lambda: is_terminal
        clock = iter([0.0, 10.0])
        with mock.patch.object(prepare.sys, "stderr", stream), \
                mock.patch.object(prepare.time, "monotonic", lambda: next(clock)):
            bar = prepare.Progress(200_000_000)
            bar.advance(100_000_000)
            bar.finish()
        return stream.getvalue()

    def test_a_bar_on_a_terminal(self):
        text = self.progress(True)
        self.assertIn(f"[{'#' * 15}{'.' * 15}] 100.0 of 200.0 MB, 10.0 MB/s, 0m10s left", text)
        self.assertTrue(text.startswith("\r"))
        self.assertTrue(text.endswith("\r\033[K"))  # taken away at the end

    def test_lines_in_a_file(self):
        self.assertEqual(self.progress(False), "prepare: 100.0 of 200.0 MB, 10.0 MB/s, 0m10s left\n")


if __name__ == "__main__":
    unittest.main()
