"""Which devices quickstart and test build for: the GPU, its driver and its toolkit; the processor.

Seen to catch: versions compared as text (12.10 before 12.4); a card that is too old or too new taken unseen; a toolkit
offered before the card was looked at.
"""


from .scripts_case import Scripts

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


class Devices(Scripts):
    def choose(self, mode="ask", driver=None, toolkit=None, system="debian 12", gpus=(H100,)):
        if driver is not None:
            lines = " ".join(f"'{gpu}'" for gpu in gpus)
            self.fake("nvidia-smi", DRIVER.replace("DRIVER", driver).replace("GPUS", lines))
        if toolkit is not None:
            self.fake("nvcc", self.nvcc(toolkit))
        name, version = system.split()
        release = self.bin / "os-release"
        release.write_text(f'ID={name}\nVERSION_ID="{version}"\n')
        # A toolkit that this machine may have elsewhere does not count.
        find = 'find_nvcc() { command -v nvcc; }; uname() { echo x86_64; };'
        output = self.shell(f'{find} OS_RELEASE={release}; choose_devices {mode}; '
                            'echo "${cuda_options[*]}$visible_gpus"')
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
            self.assertRegex(text, r"^Device: CPU\. The CUDA toolkit 12\.4 is older .*RTX 5090 \(sm_120\)\. Install a ")
            self.assertEqual(options, "-DINGOT_CUDA=OFF")

    def test_several_gpus(self):
        cards = ("7.5, GPU-a, Tesla T4", "8.0, GPU-b, NVIDIA A100", "9.0, GPU-c, NVIDIA H100",
                 "9.0, GPU-d, NVIDIA H100")
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
