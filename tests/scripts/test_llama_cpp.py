"""scripts/dev/llama_cpp, with stand-ins for pip and cmake: a library that cannot be had is a reason to skip tests, never
a failure, and is built once.

Seen to catch: a half-built library that is taken for a whole one; a download that is repeated after a time-out; a broken
draft that stays in the way.
"""

import fcntl
import platform
import shutil
import tarfile

from . import ROOT
from .scripts_case import Scripts

# Puts the source where pip would, and notes that it did.
PIP = """
case "$*" in *--version*) exit 0 ;; esac
[ -e "$FAKE/source.tar.gz" ] || { echo 'ERROR: no network' >&2; exit 1; }
echo pip >>"$FAKE/calls"
while [ "$1" != --dest ]; do shift; done
cp "$FAKE/source.tar.gz" "$2/llama_cpp_python-0.3.36.tar.gz"
"""
CMAKE = """
case "$1" in
    --build) sleep "${SECONDS_OF_CMAKE:-0}"; [ -z "${CMAKE_FAILS:-}" ] || exit 1
        mkdir -p "$2/src" "$2/ggml/src"; touch "$2/src/libllama.a" "$2/ggml/src/libggml.a" ;;
esac
"""


class Library(Scripts):
    def setUp(self):
        super().setUp()
        for tool in ("flock", "timeout", "nice", "tar", "gzip", "cp", "mv", "touch"):
            (self.bin / tool).symlink_to(shutil.which(tool))
        self.fake("python3", PIP)
        self.fake("cmake", CMAKE)
        self.cache = self.bin / "cache"
        self.folder = self.cache / f"ingot/llama.cpp-0.3.36-{platform.machine()}"
        # A checkout of its own, where there is no .venv.
        self.script = self.bin / "copy/scripts/dev/llama_cpp"
        self.script.parent.mkdir(parents=True)
        shutil.copy(ROOT / "scripts/dev/llama_cpp", self.script)

    def publish(self):
        for part in ("include/llama.h", "ggml/include/ggml.h"):
            header = self.bin / "package/vendor/llama.cpp" / part
            header.parent.mkdir(parents=True)
            header.touch()
        with tarfile.open(self.bin / "source.tar.gz", "w:gz") as archive:
            archive.add(self.bin / "package", "llama_cpp_python-0.3.36")

    def run_script(self, **more):
        return self.run_shell(str(self.script), FAKE=str(self.bin), XDG_CACHE_HOME=str(self.cache), **more)

    def assert_skipped(self, result, reason):
        self.assertEqual((result.returncode, result.stdout), (1, ""), result.stderr)
        self.assertEqual(result.stderr.count("\n"), 1)
        self.assertIn(reason, result.stderr)
        self.assertFalse(self.folder.exists())

    def assert_built(self, result, downloads):
        self.assertEqual((result.returncode, result.stdout, result.stderr), (0, f"{self.folder}\n", ""))
        self.assertEqual(sorted(path.name for path in self.folder.iterdir()), ["ggml.h", "libggml.a", "libllama.a", "llama.h"])
        self.assertEqual((self.bin / "calls").read_text().split(), ["pip"] * downloads)

    def test_without_network(self):
        self.assert_skipped(self.run_script(), "no network")

    def test_a_cache_that_cannot_be_made(self):
        self.cache.touch()
        self.assert_skipped(self.run_script(), f"{self.folder}.draft cannot be made")

    def test_it_is_built_once(self):
        self.publish()
        self.assert_built(self.run_script(), 1)
        self.fake("cmake", "exit 1")
        self.assert_built(self.run_script(), 1)

    def test_a_build_that_takes_long_is_gone_on_with(self):
        self.publish()
        self.assert_skipped(self.run_script(SECONDS_OF_CMAKE="60", INGOT_LLAMA_CPP_SECONDS="1"), "the next run goes on")
        self.assert_built(self.run_script(), 1)

    def test_a_build_that_fails_begins_anew(self):
        self.publish()
        self.assert_skipped(self.run_script(CMAKE_FAILS="1"), "it cannot be built")
        self.assert_built(self.run_script(), 2)

    def test_two_at_a_time(self):
        self.publish()
        self.folder.parent.mkdir(parents=True)
        with open(f"{self.folder}.lock", "w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            self.assert_skipped(self.run_script(), "another test builds it now")
        self.assert_built(self.run_script(), 1)
