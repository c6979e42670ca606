"""wheel.py SOURCE BUILD: builds the wheel, without nvcc, puts it into an environment that has nothing else, and tests it there."""

import pathlib
import subprocess
import sys
import venv
import zipfile

source, build = map(pathlib.Path, sys.argv[1:])
build.mkdir(parents=True, exist_ok=True)


def run(*command, **options):
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True, **options)
    if done.returncode != 0:
        sys.exit(f"{' '.join(map(str, command))}:\n{done.stdout[-4000:]}{done.stderr[-4000:]}")
    return done.stdout


if subprocess.run([sys.executable, "-c", "import cffi"], capture_output=True).returncode != 0:
    print("skipped: this Python is not that of tools/python.sh")
    sys.exit(77)
for old in build.glob("*.whl"):
    old.unlink()
run(
    sys.executable, "-m", "pip", "wheel", source, "--no-deps", "--wheel-dir", build,
    "--config-settings", f"build-dir={build / 'cmake'}", "--config-settings", "cmake.define.CMAKE_CUDA_COMPILER=NOTFOUND",
)  # fmt: skip
[wheel] = build.glob("*.whl")
assert wheel.name.endswith("-py3-none-linux_x86_64.whl") or "linux" in wheel.name, wheel.name
assert "adamas/report.html" in zipfile.ZipFile(wheel).namelist(), "the page of adamas.eval"
clean = build / "clean"
venv.create(clean, clear=True, with_pip=True)
python = clean / "bin/python"
run(python, "-m", "pip", "install", "--quiet", wheel, "pytest", "ml_dtypes")
print(run(python, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-c", "/dev/null", source / "tests/python/test_numpy.py", cwd=build))
