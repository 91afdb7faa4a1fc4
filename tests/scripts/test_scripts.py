"""quickstart, test and what they share: packages and who installs them, old build folders, Ctrl-C, options; the pages;
the modules of scripts/; prepare.py's progress.

The commands that they ask (id, apt-get, sudo, cmake) are stood in for by scripts of a line, so that every machine can
be had. The whole quickstart is no test here: it installs, builds and trains for minutes, in scripts/dev/first_contact.

Seen to catch: a package or a file that README.md names wrongly; no question of sudo's at a terminal; no `trap` for
Ctrl-C, and none of its own for training; the log of an earlier run shown as the reason.
"""

import ast
import graphlib
import io
import os
import pathlib
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import unittest
from unittest import mock

from .scripts_case import ROOT, Scripts

from prepare import common


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
        commands = ["sh scripts/quickstart", "bash --posix scripts/quickstart", f"'{link}'", f"sh '{link}'",
                    "sh scripts/test"]
        if shutil.which("dash"):
            commands.append(f"{shutil.which('dash')} scripts/quickstart")
        for command in commands:
            with self.subTest(command):
                result = self.run_shell(f"{command} --help")
                self.assertEqual((result.returncode, result.stderr), (0, ""))
                self.assertIn("./scripts/", result.stdout)

    def test_python_finds_the_packages_beside_a_script(self):
        """Seen to catch: PYTHONSAFEPATH left as the user has set it (Python 3.11 and later read it)."""
        self.shell("python3 scripts/compare_runs.py --help", PYTHONSAFEPATH="1")

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
                         [name for name, *condition in self.names() if condition != ["clang"] and name != "python3"])
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
        result = self.run_shell(". scripts/common.sh; missing_packages() { echo libpcre2-dev; };"
                                "missing_extras() { :; }; install_missing")
        self.assertEqual((result.returncode, result.stdout.count("install -y")), (2, 2), result.stdout)
        self.assertRegex(result.stderr, "^error: apt-get has installed them, and yet .* libpcre2-dev.*\n$")

    def test_another_program_that_reads_the_lists_is_waited_for(self):
        self.fake("id", "echo 0")
        self.fake("sleep", f"echo slept >> {self.bin}/slept")
        self.fake("apt-get", f"[ -e {self.bin}/slept ] || {{ echo 'E: Could not get lock /var/lib/apt/lists/lock'; "
                             "exit 100; }")
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
        self.assertRegex(shown, "error: sudo does not let .* administrator .*  apt-get update && apt-get .*cmake")
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

    def test_pytorch_is_not_fetched_again_nor_onto_a_full_disk(self):
        command = f". {ROOT}/scripts/common.sh; make_interop_venv"
        self.fake("df", "printf 'head\\n/dev/x 9 1 1048576 90%% /\\n'")
        self.fake("python3", "exit 1")  # has no package
        result = self.run_shell(command, cwd=self.bin)
        self.assertEqual((result.returncode, result.stdout), (1, "1 GiB are free, and they need 10\n"), result.stderr)
        self.fake("python3", "exit 0")
        result = self.run_shell(command, cwd=self.bin)
        self.assertEqual((result.returncode, result.stdout), (0, ""), result.stderr)


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
        common = self.bin / "common.sh"  # where anybody may read it, as perhaps not in this checkout
        shutil.copy(ROOT / "scripts/common.sh", common)
        os.chmod(common, 0o644)

        def check():
            return subprocess.run(["bash", "-euo", "pipefail", "-c", f". '{common}'; check_owner"],
                                  cwd=checkout, text=True, capture_output=True, env=self.environment(), user=nobody,
                                  group=nobody)
        self.assertEqual(check().returncode, 0, check().stderr)
        log = checkout / "build/configure-release.log"
        log.write_text("of an earlier run\n")
        result = check()
        self.assertEqual(result.returncode, 2)
        self.assertRegex(result.stderr, r"^error: build/configure-release.log belongs to root, and nobody cannot write "
                                        r"it.*  sudo chown -R nobody: '.*a checkout'\n$")


class Builds(Scripts):
    """What `build` does, with a cmake of two lines."""

    def setUp(self):
        super().setUp()
        self.checkout = self.bin / "checkout"
        (self.checkout / "build/release").mkdir(parents=True)
        self.fake("cmake", 'case $1 in --build) echo "BUILDS"; exit CODE ;; esac; echo "-- Products on the CPU: some"')
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
                  "CMAKE_GENERATOR": "Ninja", "CMAKE_COMMAND": self.bin / "cmake",
                  "CMAKE_MAKE_PROGRAM": self.bin / "sh", "CMAKE_CXX_COMPILER": self.bin / "g++",
                  "INGOT_NVCC": "INGOT_NVCC-NOTFOUND", **more}
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
    """Seen to catch: a link, a heading and a path that are not there; a page of 201 lines; a note without an entry."""

    def pages(self):
        names = ("README.md", "CONTRIBUTING.md", "data/README.md", "kernels/README.md", "BENCHMARKS.md")
        pages = [ROOT / name for name in names] + sorted((ROOT / "docs").rglob("*.md"))
        return {page: page.read_text() for page in pages}

    def test_what_they_name_is_there(self):
        """Links, and paths in backticks that begin with a folder of ours; shards, runs and the like are made later."""
        for page, text in self.pages().items():
            named = {page.parent / link for link in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", text)}
            named |= {ROOT / path for path in
                      re.findall(r"`((?:\./)?(?:cmake|configs|docs|kernels|scripts|src|tests)/[\w./]*)[` ]", text)}
            if page.name == "CONTRIBUTING.md":
                self.assertGreater(len(named), 10)  # else the patterns above miss what they look for
            for path in sorted(named):
                with self.subTest(page=str(page), path=str(path)):
                    self.assertTrue(path.exists())

    def test_headings_that_links_name_are_there(self):
        for page, text in self.pages().items():
            for link, anchor in re.findall(r"\]\(([^)#:]*)#([^)]*)\)", text):
                other = (page.parent / link).read_text() if link else text
                headings = re.findall(r"^#+ (.*)$", other, re.MULTILINE)
                with self.subTest(page=str(page), anchor=anchor):
                    self.assertIn(anchor, [re.sub(r"[^\w -]", "", one.lower()).replace(" ", "-") for one in headings])

    def test_the_page_of_answers_stays_one_page(self):
        self.assertLessEqual(len((ROOT / "BENCHMARKS.md").read_text().splitlines()), 200)

    def test_the_index_names_each_note(self):
        notes = {path.name for path in (ROOT / "docs/lab").glob("*.md")} - {"README.md"}
        index = (ROOT / "docs/lab/README.md").read_text()
        self.assertEqual(notes, set(re.findall(r"\]\((\w[\w-]*\.md)\)", index)))


class Modules(unittest.TestCase):
    def test_no_import_cycle_in_prepare(self):
        """Imports inside functions count too. Seen to catch: parquet.py with Cursor from read.py, which imports it."""
        imports = {}
        for path in (ROOT / "scripts/prepare").glob("*.py"):
            found = imports[path.stem] = set()
            for node in ast.walk(ast.parse(path.read_text())):
                if isinstance(node, ast.ImportFrom) and node.level == 1:
                    found |= {node.module} if node.module else {alias.name for alias in node.names}
        self.assertIn("parquet", imports["read"])
        self.assertLessEqual(set().union(*imports.values()), imports.keys())
        graphlib.TopologicalSorter(imports).prepare()  # CycleError names the modules

    def test_commands_from_another_folder_and_by_a_link(self):
        """Seen to catch: modules that are looked for beside the link."""
        with tempfile.TemporaryDirectory() as folder:
            for command in ("prepare.py", "plot.py", "compare_runs.py"):
                link = pathlib.Path(folder) / "link"
                link.symlink_to(ROOT / "scripts" / command)
                for path in (ROOT / "scripts" / command, link):
                    with self.subTest(path=path):
                        result = subprocess.run([sys.executable, path, "--help"], cwd=folder, capture_output=True)
                        self.assertEqual((result.returncode, result.stderr), (0, b""))
                link.unlink()


class PrepareProgress(unittest.TestCase):
    def progress(self, is_terminal):
        """What half of 200 MB in ten seconds shows."""
        stream = io.StringIO()
        stream.isatty = lambda: is_terminal
        clock = iter([0.0, 10.0])
        with mock.patch.object(common.sys, "stderr", stream), \
                mock.patch.object(common.time, "monotonic", lambda: next(clock)):
            bar = common.Progress(200_000_000)
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
