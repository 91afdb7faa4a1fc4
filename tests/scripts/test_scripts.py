"""quickstart, test and what they share: packages and who installs them, the choice of devices and of a processor,
old build folders, Ctrl-C, options; the pages; prepare.py's progress.

The commands that they ask (nvidia-smi, nvcc, id, apt-get) are stood in for by scripts of a line, so that every machine
can be had. The whole quickstart is no test here: it installs, builds and trains for minutes.

Seen to catch: versions compared as text (12.10 before 12.4); a package or a file that README.md names wrongly; no
question of sudo's at a terminal; no `trap` for Ctrl-C, and none of its own for training; a GPU taken unseen; the log of
an earlier run shown as the reason.
"""

import importlib.util
import io
import os
import pathlib
import pty
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import unittest
from unittest import mock

ROOT = pathlib.Path(__file__).resolve().parents[2]
TOOLS = ("bash", "sh", "cat", "dirname", "find", "grep", "head", "mkdir", "mktemp", "paste", "readlink", "rm", "sed", "sleep",
         "sort", "stat", "tail", "tee", "tr", "uname", "env", "chmod")
H100 = "9.0, GPU-1, NVIDIA H100 80GB HBM3"
DRIVER = """case "$*" in
  *compute_cap*) printf '%s\\n' GPUS ;;
  -L) echo 'GPU 0: of some kind (UUID: GPU-1)' ;;
  *) echo '| NVIDIA-SMI 580.65   Driver Version: 580.65   CUDA Version: DRIVER  |' ;;
esac"""
NVCC = """case "$*" in
  *list-gpu-arch*) printf 'compute_%s\\n' ARCHITECTURES ;;
  *) echo 'Cuda compilation tools, release TOOLKIT, VTOOLKIT.88' ;;
esac"""
# What nvcc --list-gpu-arch says.
ARCHITECTURES = {"12.0": "80 86 89 90", "12.4": "80 86 89 90", "12.8": "80 86 89 90 100 120",
                 "13.0": "75 80 86 89 90 100 120"}


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
        path.unlink(missing_ok=True)  # of TOOLS it is a link, and writing would go through it
        path.write_text(f"#!/bin/sh\n{body}\n")
        path.chmod(0o755)

    def environment(self, **more):
        return {"PATH": str(self.bin), "HOME": "/nonexistent", **more}

    def run_shell(self, code, *arguments, cwd=ROOT, **more):
        return subprocess.run(["bash", "-euo", "pipefail", "-c", code, *arguments], cwd=cwd, text=True,
                              capture_output=True, stdin=subprocess.DEVNULL, env=self.environment(**more))

    def copy_that_builds_nothing(self):
        """A checkout where everything is installed, built and prepared."""
        copy = self.bin / "copy"
        shutil.copytree(ROOT / "scripts", copy / "scripts", ignore=shutil.ignore_patterns("__pycache__"))
        (copy / "data/tiny").mkdir(parents=True)
        (copy / "data/tiny/meta.json").touch()
        common = copy / "scripts/common.sh"
        common.write_text(common.read_text() + "install_missing() { :; }; build() { :; }; make_venv() { return 1; }\n")
        return copy

    def at_terminal(self, code, typed=""):
        """What a terminal shows when a person types this, and the exit code."""
        process, terminal = pty.fork()
        if process == 0:
            os.chdir(ROOT)
            os.execve(shutil.which("bash"), ["bash", "-euo", "pipefail", "-c", code], self.environment())
        os.write(terminal, typed.encode())
        shown = b""
        while True:
            try:
                data = os.read(terminal, 4096)
            except OSError:  # Linux's way to say that the other side was closed
                break
            if not data:
                break
            shown += data
        os.close(terminal)
        return shown.decode().replace("\r\n", "\n"), os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])

    def shell(self, code, exit_code=0, **more):
        result = self.run_shell(f". {ROOT}/scripts/common.sh; . {ROOT}/scripts/cuda_toolkit.sh; {code}", **more)
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
                self.assertRegex(result.stderr, r"administrator.*  apt-get update && apt-get install -y .*"
                                                r"\bg\+\+ cmake ninja-build\b")
        self.fake("sudo", "exit 1")  # it would ask for a password, and nobody could answer
        result = self.run_shell("scripts/quickstart")
        self.assertEqual((result.returncode, len(result.stderr.splitlines())), (2, 1), result.stderr)
        self.assertRegex(result.stderr, r"  sudo apt-get update && sudo apt-get install -y .*\bg\+\+ cmake\b")

    def test_by_another_shell_and_by_a_link(self):
        link = self.bin / "link to it"
        link.symlink_to(ROOT / "scripts/quickstart")
        self.fake("dash", 'exec /bin/dash "$@"')
        for command in ("sh scripts/quickstart", "dash scripts/quickstart", "bash --posix scripts/quickstart",
                        f"'{link}'", f"sh '{link}'", "sh scripts/test"):
            with self.subTest(command):
                result = self.run_shell(f"{command} --help")
                self.assertEqual((result.returncode, result.stderr), (0, ""))
                self.assertIn("./scripts/", result.stdout)

    def test_without_apt_get(self):
        (self.bin / "apt-get").unlink()
        result = self.run_shell("scripts/quickstart")
        self.assertEqual(result.returncode, 2)
        self.assertIn("your system's package manager", result.stderr)


class Packages(Scripts):
    """Which ones, as long as there is no CMake to ask. tests/scripts/test_build.py has what CMake says."""

    def names(self):
        lines = (ROOT / "cmake/packages.txt").read_text().splitlines()
        return [line.split() for line in lines if line and line[0] != "#"]

    def test_readme_names_all_of_them(self):
        line = re.search(r"^sudo apt-get install -y (.*)$", (ROOT / "README.md").read_text(), re.MULTILINE)
        self.assertEqual(set(line[1].split()),
                         {package[0] for package in self.names() if package[1:] != ["clang"]} | {"python3-venv"})

    def test_cmake_misses_nothing_else(self):
        text = (ROOT / "cmake/dependencies.cmake").read_text()
        missed = set(re.findall(r"^ *ingot_missing\(([\w+.-]+)[ )]", text, re.MULTILINE))
        self.assertGreater(len(missed), 5)
        self.assertLessEqual(missed, {package[0] for package in self.names()})

    def test_without_cmake_all_of_them(self):
        self.fake("uname", "echo x86_64")
        self.assertEqual(self.shell("missing_packages tests").split(),  # python3 is among the tools above
                         [package[0] for package in self.names() if package[1:] != ["clang"] and package[0] != "python3"])
        self.assertNotIn("libgtest-dev", self.shell("missing_packages"))
        self.fake("c++", "echo Debian clang version 14.0.6")
        self.assertIn("libomp-dev", self.shell("missing_packages"))
        self.assertNotIn("g++", self.shell("missing_packages").split())  # there is a compiler
        self.fake("uname", "echo aarch64")  # whatever HOSTTYPE says, which tcsh sets to its own words
        self.assertNotIn("libdnnl-dev", self.shell("missing_packages", HOSTTYPE="x86_64"))
        self.fake("uname", "echo x86_64")
        self.assertIn("libdnnl-dev", self.shell("missing_packages", HOSTTYPE="x86_64-linux"))

    def test_a_system_with_openblas_and_without_onednn(self):
        self.fake("uname", "echo x86_64")
        self.fake("apt-cache", 'case "$2" in libdnnl-dev) exit 100 ;; esac')
        self.assertNotIn("libdnnl-dev", self.shell("missing_packages"))
        self.fake("apt-cache", "exit 100")  # no lists yet
        self.assertIn("libdnnl-dev", self.shell("missing_packages"))

    def test_a_compiler_that_is_not_there(self):
        result = self.run_shell("scripts/quickstart", CXX="clang++-99")
        self.assertEqual(result.returncode, 2)
        self.assertRegex(result.stderr, "^error: CXX is clang\\+\\+-99, and there is no such compiler.*\n$")

    def test_a_cmake_that_is_too_old(self):
        self.fake("cmake", "echo cmake version 3.18.4")
        result = self.run_shell("scripts/quickstart")
        self.assertEqual(result.returncode, 2)
        self.assertRegex(result.stderr, "^error: cmake is 3.18.4, and the build needs 3.22 or later.*\n$")

    def test_apt_get_is_asked_only_when_something_is_missing(self):
        quiet = "missing_packages() { :; }; missing_extras() { :; };"
        self.assertNotIn("apt-get", self.shell(f"{quiet} install_missing"))
        self.fake("id", "echo 0")
        once = "missing_packages() { [ -e $HOME ] || echo cmake; }; apt_update() { touch $HOME; };"
        (self.bin / "touch").symlink_to(shutil.which("touch"))
        output = self.shell(f"{quiet} {once} install_missing", HOME=str(self.bin / "once"))
        self.assertIn("apt-get -o DPkg::Lock::Timeout=600 install -y -q --no-install-recommends cmake", output)

    def test_what_is_installed_and_still_not_found_is_no_success(self):
        self.fake("id", "echo 0")
        result = self.run_shell(". scripts/common.sh; missing_packages() { echo libpcre2-dev; }; missing_extras() { :; };"
                                "install_missing")
        self.assertEqual((result.returncode, result.stdout.count("install -y")), (2, 2), result.stdout)
        self.assertRegex(result.stderr, "^error: apt-get has installed them, and yet .* libpcre2-dev.*\n$")

    def test_another_program_that_reads_the_lists_is_waited_for(self):
        self.fake("id", "echo 0")
        self.fake("sleep", f"echo slept >> {self.bin}/slept")
        self.fake("apt-get", f"[ -e {self.bin}/slept ] || {{ echo 'E: Could not get lock /var/lib/apt/lists/lock'; exit 100; }}")
        self.assertIn("waiting", self.shell("apt_update"))
        self.assertEqual((self.bin / "slept").read_text(), "slept\n")
        self.fake("apt-get", "echo 'E: no network'; exit 100")  # no reason to wait
        self.assertIn("going on with those that are here", self.shell("apt_update"))
        self.assertEqual((self.bin / "slept").read_text(), "slept\n")

    def test_sudo_that_asks(self):
        """At a terminal: what will be installed and that sudo asks is said, and then it asks."""
        missing = ". scripts/common.sh; missing_extras() { :; }; " \
                  f"missing_packages() {{ [ -e {self.bin}/done ] || echo cmake; }}; install_missing"
        self.fake("apt-get", f"echo apt-get \"$@\"; case \"$*\" in *install*) echo > {self.bin}/done ;; esac")
        self.fake("sudo", f"""case "$1" in
  -n) exit 1 ;;
  -v) printf 'password for ada: ' >/dev/tty; read -r answer </dev/tty; [ "$answer" = secret ] ;;
  *) while case "$1" in *=*) true ;; *) false ;; esac; do shift; done; "$@" ;;
esac""")
        shown, code = self.at_terminal(missing, "wrong\n")
        self.assertEqual(code, 2, shown)
        self.assertRegex(shown, "error: sudo does not let .* administrator .*  apt-get update && apt-get install -y .*cmake")
        shown, code = self.at_terminal(missing, "secret\n")
        self.assertEqual(code, 0, shown)
        self.assertRegex(shown, r"(?s)To install from this system's package lists: cmake\n.*sudo asks for your password"
                                r".*password for ada: .*apt-get -o \S+ update.*apt-get -o \S+ install .*cmake")

    def test_sudo_is_not_asked_for_the_picture(self):
        self.fake("sudo", "case $1 in -n) exit 1 ;; esac; echo asked")
        shown, code = self.at_terminal(". scripts/common.sh; missing_packages() { :; }; missing_extras() { echo x; };"
                                       "install_missing")
        self.assertEqual((code, "asked" in shown), (0, False), shown)

    def test_a_package_for_the_picture_alone_stops_nothing(self):
        extras = "missing_packages() { :; }; missing_extras() { echo python3-venv; };"
        self.assertNotIn("apt-get", self.shell(f"{extras} install_missing"))  # not root: not even tried
        self.fake("id", "echo 0")
        self.fake("apt-get", "exit 100")
        self.assertIn("Going on without python3-venv", self.shell(f"{extras} install_missing"))


class Devices(Scripts):
    def choose(self, mode="ask", driver=None, toolkit=None, system="debian 12", gpus=(H100,)):
        if driver is not None:
            self.fake("nvidia-smi", DRIVER.replace("DRIVER", driver).replace("GPUS", " ".join(f"'{gpu}'" for gpu in gpus)))
        if toolkit is not None:
            self.fake("nvcc", self.nvcc(toolkit))
        name, version = system.split()
        release = self.bin / "os-release"
        release.write_text(f'ID={name}\nVERSION_ID="{version}"\n')
        # A toolkit that this machine may have elsewhere does not count.
        find = 'find_nvcc() { command -v nvcc; }; uname() { echo x86_64; };'
        output = self.shell(f'{find} OS_RELEASE={release}; choose_devices {mode}; echo "${{cuda_options[*]}}$visible_gpus"')
        *lines, options = output.splitlines()
        return "\n".join(lines), options

    @staticmethod
    def nvcc(toolkit):
        return NVCC.replace("TOOLKIT", toolkit).replace("ARCHITECTURES", ARCHITECTURES[toolkit])

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
        text, options = self.choose(mode="yes", driver="13.0", system="fedora 42")
        self.assertIn("install the CUDA toolkit 13.0", text)
        self.assertEqual(options, "-DINGOT_CUDA=OFF")

    def test_toolkit_with_a_yes(self):
        self.fake("id", "echo 0")
        (self.bin / "python3").unlink()
        self.fake("python3", "echo fetch \"$3\"")
        nvcc = self.bin / "nvcc"
        self.fake("nvcc.new", self.nvcc("13.0"))
        # The last call of apt-get puts nvcc there.
        self.fake("apt-get", f"echo apt-get \"$@\"; case \"$*\" in *cuda-nvcc*) cat {nvcc}.new > {nvcc}; "
                             f"chmod 755 {nvcc};; esac")
        text, options = self.choose(mode="yes", driver="13.0", system="ubuntu 24.04")
        self.assertIn("/ubuntu2404/x86_64/cuda-keyring", text)
        self.assertIn("-DINGOT_CUDA=ON", options)

    def test_toolkit_that_cannot_be_installed(self):
        self.fake("id", "echo 0")
        (self.bin / "python3").unlink()
        self.fake("python3", "exit 1")  # no network
        text, options = self.choose(mode="yes", driver="13.0")
        self.assertIn("could not be installed", text)
        self.assertEqual(options, "-DINGOT_CUDA=OFF")


    def test_a_gpu_that_is_too_old(self):
        """Told before a toolkit is offered, and with one that would build for it."""
        self.fake("id", "echo 0")
        for gpu, name in (("7.5, GPU-1, Tesla T4", r"Tesla T4 \(sm_75\)"),
                          ("6.1, GPU-1, NVIDIA GeForce GTX 1080", r"GTX 1080 \(sm_61\)")):
            for toolkit in (None, "13.0"):
                for mode in ("yes", "test"):
                    with self.subTest(gpu=gpu, toolkit=toolkit, mode=mode):
                        text, options = self.choose(mode, driver="13.0", toolkit=toolkit, gpus=(gpu,))
                        self.assertRegex(text, rf"^Device: CPU\. The kernels need a GPU of sm_80 .*{name}\.$")
                        self.assertEqual(options, "-DINGOT_CUDA=OFF")

    def test_a_gpu_that_is_newer_than_the_toolkit(self):
        for mode in ("ask", "test"):
            text, options = self.choose(mode, driver="13.0", toolkit="12.4",
                                        gpus=("12.0, GPU-1, NVIDIA GeForce RTX 5090",))
            self.assertRegex(text, r"^Device: CPU\. The CUDA toolkit 12\.4 is older .*RTX 5090 \(sm_120\)\. Install a newer")
            self.assertEqual(options, "-DINGOT_CUDA=OFF")

    def test_several_gpus(self):
        cards = ("7.5, GPU-a, Tesla T4", "8.0, GPU-b, NVIDIA A100", "9.0, GPU-c, NVIDIA H100", "9.0, GPU-d, NVIDIA H100")
        text, options = self.choose(driver="13.0", toolkit="12.8", gpus=cards[1:])
        self.assertRegex(text, r"^Devices: CPU and NVIDIA A100 \(sm_80\) and NVIDIA H100 \(sm_90\)\.$")
        self.assertTrue(options.endswith("-DINGOT_CUDA_ARCHITECTURES=80;90"), options)
        text, options = self.choose(driver="13.0", toolkit="12.8", gpus=cards[:2])
        self.assertRegex(text, r"Left out.*: Tesla T4 \(sm_75\)\.\n.*CUDA_VISIBLE_DEVICES=GPU-b$")
        self.assertTrue(options.endswith("-DINGOT_CUDA_ARCHITECTURES=80GPU-b"), options)

    def test_a_driver_that_does_not_say_which_gpu(self):
        text, options = self.choose(driver="11.4", toolkit="12.8", gpus=('Field "compute_cap" is not a valid field.',))
        self.assertIn("is the driver old?", text)
        self.assertEqual(options, "-DINGOT_CUDA=OFF")

    def test_the_tests_compile_for_a_gpu_that_is_not_here(self):
        text, options = self.choose("test", toolkit="12.8")
        self.assertIn("their tests are skipped", text)
        self.assertTrue(options.endswith("-DINGOT_CUDA_ARCHITECTURES=80"), options)
        self.assertEqual(self.choose("test", toolkit="12.0")[1], "-DINGOT_CUDA=OFF")

    def test_the_tests_install_no_toolkit(self):
        self.fake("id", "echo 0")
        self.assertIn("install the CUDA toolkit", self.choose("test", driver="13.0")[0])


class Processor(Scripts):
    V2 = "fpu sse sse2 pni ssse3 cx16 sse4_1 sse4_2 popcnt lahf_lm"
    V3 = V2 + " movbe avx f16c avx2 fma bmi1 bmi2 abm"

    def choose(self, flags, machine="x86_64"):
        self.fake("uname", f"echo {machine}")
        cpuinfo = self.bin / "cpuinfo"
        cpuinfo.write_text(f"processor\t: 0\nflags\t\t: {flags}\nbugs\t\t:\n")
        return self.shell('choose_processor; echo "${processor_options[*]}"', CPUINFO=str(cpuinfo))

    def test_it_gets_what_it_can_run(self):
        self.assertEqual(self.choose(self.V3), "\n")
        self.assertEqual(self.choose("", machine="aarch64"), "\n")
        text = self.choose(self.V2)
        self.assertIn("This processor lacks avx avx2 fma bmi1 bmi2 f16c movbe abm: building for x86-64-v2", text)
        self.assertIn("-DINGOT_MARCH=x86-64-v2 -DINGOT_ONEDNN=OFF", text)
        self.assertIn("-DINGOT_MARCH=x86-64-v2 ", self.choose(self.V3.replace("avx2 ", "")))
        self.assertIn("-DINGOT_MARCH=x86-64 ", self.choose("fpu sse sse2 pni"))


class Owners(Scripts):
    def test_through_sudo_all_but_the_installation_is_the_persons(self):
        copy = self.copy_that_builds_nothing()
        self.fake("id", "echo 0")
        self.fake("sudo", 'echo sudo "$@"')
        for script in ("quickstart", "test"):
            with self.subTest(script):
                option = {"quickstart": "--yes", "test": "--long"}[script]
                result = self.run_shell(f"'{copy}/scripts/{script}' {option}", SUDO_USER="ada")
                self.assertEqual(result.returncode, 0, result.stderr)
                self.assertRegex(result.stdout, "Going on as ada: only installing needs root\\.\n"
                                                "sudo -u ada -H -- env INGOT_TOOLKIT_OFFERED=1 "
                                                f"bash scripts/{script} {option}\n$")
        for user, answer in (("ada", 0), ("root", 1), ("", 1)):
            self.shell("is_through_sudo", exit_code=answer, SUDO_USER=user)

    def test_files_that_belong_to_another(self):
        """Which file, whose it is, and the line to run: before anything is built, and no log of an earlier run."""
        if os.getuid() != 0:
            self.skipTest("only root can give a file to another")
        checkout = self.bin / "a checkout"
        (checkout / "build/release").mkdir(parents=True)
        nobody = 65534
        for place in (checkout, checkout / "build", checkout / "build/release"):
            os.chown(place, nobody, nobody)
        os.chmod(self.bin, 0o755)
        (self.bin / "id").unlink()
        (self.bin / "id").symlink_to(shutil.which("id"))

        def check():
            return subprocess.run(["bash", "-euo", "pipefail", "-c", f". '{ROOT}/scripts/common.sh'; check_owner"],
                                  cwd=checkout, text=True, capture_output=True, env=self.environment(), user=nobody,
                                  group=nobody)
        self.assertEqual(check().returncode, 0, check().stderr)
        log = checkout / "build/configure-release.log"
        log.write_text("of an earlier run\n")
        result = check()
        self.assertEqual(result.returncode, 2)
        self.assertRegex(result.stderr, r"^error: build/configure-release.log belongs to root, and nobody cannot write it"
                                        r".*  sudo chown -R nobody: '.*a checkout'\n$")


class Builds(Scripts):
    """What `build` does, with a cmake of two lines."""

    def setUp(self):
        super().setUp()
        self.checkout = self.bin / "checkout"
        (self.checkout / "build/release").mkdir(parents=True)
        self.fake("cmake", 'case $1 in --build) echo "BUILDS"; exit CODE ;; *) echo "-- Products on the CPU: some" ;; esac')
        self.fake("g++", "echo 12.2.0")

    def build(self, exit_code=0, says="fine", code=0, **more):
        cmake = self.bin / "cmake"
        cmake.write_text(cmake.read_text().replace("BUILDS", says).replace("CODE", str(code)))
        result = self.run_shell(f". {ROOT}/scripts/common.sh; . {ROOT}/scripts/cuda_toolkit.sh; build release",
                                cwd=self.checkout, **more)
        self.assertEqual(result.returncode, exit_code, result.stdout + result.stderr)
        return result.stdout + result.stderr

    def cache(self, version="12.2.0", **more):
        fields = {"CMAKE_HOME_DIRECTORY": self.checkout, "CMAKE_CACHEFILE_DIR": self.checkout / "build/release",
                  "CMAKE_GENERATOR": "Ninja", "CMAKE_COMMAND": self.bin / "cmake", "CMAKE_MAKE_PROGRAM": self.bin / "sh",
                  "CMAKE_CXX_COMPILER": self.bin / "g++", "INGOT_NVCC": "INGOT_NVCC-NOTFOUND", **more}
        folder = self.checkout / "build/release"
        (folder / "CMakeFiles/3.25.1").mkdir(parents=True, exist_ok=True)
        (folder / "CMakeCache.txt").write_text("".join(f"{name}:INTERNAL={value}\n" for name, value in fields.items()))
        (folder / "CMakeFiles/3.25.1/CMakeCXXCompiler.cmake").write_text(
            f'set(CMAKE_CXX_COMPILER_VERSION "{version}")\nset(CMAKE_CXX_COMPILER_VERSION_INTERNAL "")\n')

    def test_a_folder_of_this_checkout_is_kept(self):
        self.cache()
        self.assertNotIn("Removing", self.build())
        self.assertNotIn("Removing", self.build(CXX="g++"))
        self.assertTrue((self.checkout / "build/release/CMakeCache.txt").exists())

    def test_a_folder_from_elsewhere_is_made_anew(self):
        self.fake("clang++", "echo 14.0.6")
        for name, version, fields, more in (
                ("moved", "12.2.0", {"CMAKE_HOME_DIRECTORY": "/elsewhere/ingot"}, {}),
                ("copied", "12.2.0", {"CMAKE_CACHEFILE_DIR": self.bin}, {}),
                ("generator", "12.2.0", {"CMAKE_GENERATOR": "Unix Makefiles"}, {}),
                ("cmake gone", "12.2.0", {"CMAKE_COMMAND": "/opt/cmake/bin/cmake"}, {}),
                ("compiler gone", "12.2.0", {"CMAKE_CXX_COMPILER": "/usr/bin/g++-9"}, {}),
                ("toolkit gone", "12.2.0", {"INGOT_NVCC": "/opt/cuda/bin/nvcc"}, {}),
                ("compiler upgraded", "11.4.0", {}, {}),
                ("another compiler", "12.2.0", {}, {"CXX": "clang++"})):
            with self.subTest(name):
                self.cache(version, **fields)
                output = self.build(**more)
                self.assertRegex(output, "(?m)^build/release is from elsewhere: .*Removing it, to build anew\\.$")
                self.assertFalse((self.checkout / "build/release/CMakeCache.txt").exists())

    def test_memory_is_blamed_only_where_the_compiler_was_killed(self):
        for says, is_memory in (("error: expected ';'", False), ("x.cpp:1: note: candidate", False),
                                ("g++: fatal error: Killed signal terminated program cc1plus", True),
                                ("ninja: subcommand failed; Killed", True)):
            with self.subTest(says):
                self.setUp()
                output = self.build(2 if is_memory else 1, says, code=1)
                self.assertEqual("memory" in output, is_memory, output)

    def test_a_log_that_cannot_be_written(self):
        (self.checkout / "build/configure-release.log").mkdir()
        output = self.build(2)
        self.assertIn("build/configure-release.log cannot be written", output)


class Interrupts(Scripts):
    """Ctrl-C reaches all of a terminal's processes at once."""

    def interrupt(self, code):
        (self.bin / "started").unlink(missing_ok=True)
        process = subprocess.Popen(["bash", "-euo", "pipefail", "-c", code], cwd=ROOT, text=True,
                                   stdout=subprocess.PIPE, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL,
                                   env=self.environment(), start_new_session=True)
        for _ in range(1000):
            if (self.bin / "started").exists():
                break
            time.sleep(0.01)
        os.killpg(process.pid, signal.SIGINT)
        output, _ = process.communicate(timeout=60)
        return output, process.returncode

    def fake_that_catches(self, name, exit_code):
        self.fake(name, f"trap 'exit {exit_code}' INT; echo > {self.bin}/started; i=0; "
                        "while [ $i -lt 300 ]; do sleep 0.1; i=$((i + 1)); done")

    def test_apt_get_that_ends_with_0(self):
        self.fake("id", "echo 0")
        self.fake_that_catches("apt-get", 0)
        output, code = self.interrupt("scripts/quickstart")
        self.assertEqual(code, 130, output)
        self.assertIn("Stopped", output)
        self.assertNotIn("error", output)

    def steps(self, step):
        """quickstart where only one program of ours takes long."""
        copy = self.copy_that_builds_nothing()
        self.fake_that_catches("train", 75 if step == "train" else 130)
        train = copy / "train"
        train.write_text(f'#!/bin/sh\ncase "$1" in {"--config" if step == "train" else "generate"}) '
                         f'exec {self.bin}/train ;; esac\n')
        train.chmod(0o755)
        return self.interrupt(f"'{copy}/scripts/quickstart'")

    def test_training_saves_and_says_how_to_go_on(self):
        output, code = self.steps("train")
        self.assertEqual(code, 75, output)
        self.assertIn("Stopped and saved", output)

    def test_text_that_is_interrupted_is_no_fault(self):
        output, code = self.steps("generate")
        self.assertEqual(code, 130, output)
        self.assertNotIn("error", output)


class Pages(unittest.TestCase):
    def test_what_they_name_is_there(self):
        """Links, and paths in backticks that begin with a folder of ours; shards, runs and the like are made later."""
        for page in ("README.md", "CONTRIBUTING.md", "data/README.md", "kernels/README.md", "BENCHMARKS.md"):
            text = (ROOT / page).read_text()
            named = {(ROOT / page).parent / link for link in re.findall(r"\]\(([^)#:]+)\)", text)}
            named |= {ROOT / path for path in
                      re.findall(r"`((?:\./)?(?:cmake|configs|kernels|scripts|src|tests)/[\w./]*)[` ]", text)}
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
