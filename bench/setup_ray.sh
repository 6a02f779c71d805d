#!/bin/sh
# Creates the virtual environment in which the Ray side of the benchmarks runs; running it again repairs a half-made one.
# Usage: bench/setup_ray.sh [PYTHON] [DIRECTORY]   (default: python3, .venv-ray beside this folder)
# Ray and noded should run on the same Python: give the one that noded uses.
set -eu
root=$(cd "$(dirname "$0")/.." && pwd)
python=${1:-python3}
target=${2:-$root/.venv-ray}

"$python" -m venv "$target"
"$target/bin/python" -m pip install --quiet ray numpy
"$target/bin/python" -c 'import ray, numpy; print("ray", ray.__version__, "numpy", numpy.__version__)'
