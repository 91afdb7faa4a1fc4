"""What the tests of quickstart and test share: a machine of a few tools, where stand-ins of a line answer the rest."""

import os
import pty
import shutil
import subprocess
import sys
import unittest

from . import ROOT
from .inputs import temporary_folder

TOOLS = ("bash", "sh", "cat", "dirname", "find", "grep", "head", "mkdir", "mktemp", "paste", "readlink", "rm", "sed",
         "sleep", "sort", "stat", "tail", "tee", "tr", "uname", "env", "chmod")


class Scripts(unittest.TestCase):
    """Runs shell code over the scripts on a machine that has the tools above and what a test adds."""

    def setUp(self):
        self.bin = temporary_folder(self)
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
        (copy / "scripts/dev/llama_cpp").write_text("#!/bin/sh\nexit 1\n")
        common = copy / "scripts/common.sh"
        common.write_text(common.read_text() + "install_missing() { :; }; build() { :; }; make_venv() { return 1; }\n"
                          "make_interop_venv() { return 1; }\n")
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
