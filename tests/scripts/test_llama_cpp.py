"""scripts/dev/llama_cpp, with stand-ins for pip and cmake: a library that cannot be downloaded or built is a reason to
skip tests, never a failure, and is built once.

Seen to catch: a half-built library that is taken for a whole one; a broken draft that stays in the way.
"""

import platform
import shutil
import tarfile

from . import ROOT
from .scripts_case import Scripts

# Puts the source where pip would.
PIP = """
case "$*" in *--version*) exit 0 ;; esac
[ -e "$FAKE/source.tar.gz" ] || { echo 'ERROR: no network' >&2; exit 1; }
while [ "$1" != --dest ]; do shift; done
cp "$FAKE/source.tar.gz" "$2/llama_cpp_python-0.3.36.tar.gz"
"""
CMAKE = """
case "$1" in
    --build) mkdir -p "$2/src" "$2/ggml/src"; touch "$2/src/libllama.a"; [ -z "${CMAKE_FAILS:-}" ] || exit 1
        touch "$2/ggml/src/libggml.a" ;;
esac
"""


class Library(Scripts):
    def test_it_is_built_once_or_says_why_not(self):
        for tool in ("flock", "timeout", "nice", "tar", "gzip", "cp", "mv", "touch"):
            (self.bin / tool).symlink_to(shutil.which(tool))
        self.fake("python3", PIP)
        self.fake("cmake", CMAKE)
        folder = self.bin / f"cache/ingot/llama.cpp-0.3.36-{platform.machine()}"
        script = self.bin / "copy/scripts/dev/llama_cpp"  # a checkout of its own, where there is no .venv
        script.parent.mkdir(parents=True)
        shutil.copy(ROOT / "scripts/dev/llama_cpp", script)

        def run(**more):
            result = self.run_shell(str(script), FAKE=str(self.bin), XDG_CACHE_HOME=str(self.bin / "cache"), **more)
            return result.returncode, result.stdout, result.stderr

        def assert_skipped(reason, **more):
            code, output, error = run(**more)
            self.assertEqual((code, output, error.count("\n")), (1, "", 1), error)
            self.assertIn(reason, error)
            self.assertFalse(folder.exists())

        assert_skipped("no network")
        for part in ("include/llama.h", "ggml/include/ggml.h"):
            header = self.bin / "package/vendor/llama.cpp" / part
            header.parent.mkdir(parents=True)
            header.touch()
        with tarfile.open(self.bin / "source.tar.gz", "w:gz") as archive:
            archive.add(self.bin / "package", "llama_cpp_python-0.3.36")
        assert_skipped("it cannot be built", CMAKE_FAILS="1")
        for _ in range(2):
            self.assertEqual(run(), (0, f"{folder}\n", ""))
            self.assertEqual(sorted(path.name for path in folder.iterdir()),
                             ["ggml.h", "libggml.a", "libllama.a", "llama.h"])
            self.fake("cmake", "exit 1")
