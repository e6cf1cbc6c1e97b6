#!/bin/sh
# Regenerates the three locks from pyproject.toml: `make lock`.
#
# cpu.txt and cuda.txt are full locks of the engine, each for one kind of machine; dev.txt adds the tools
# of `make test`, on versions that agree with both. All are installed with `pip install --no-deps`, so
# what stands in them is exactly what is installed.
#
# torch for the CPU has a local version (+cpu) that the public index does not carry. uv does not read pip's
# configuration, so a directory with the wheel that pip knows of is handed over; otherwise PyTorch's own
# index is asked, for torch alone.
set -eu
cd "$(dirname "$0")/.."
uv=.venv/bin/uv
if links=$(.venv/bin/pip config get global.find-links 2>/dev/null); then
    torch_source="--find-links $links"
else
    torch_source="--extra-index-url https://download.pytorch.org/whl/cpu --index-strategy first-index"
fi
compile() {
    output=$1; shift
    "$uv" pip compile pyproject.toml --quiet --no-header --no-annotate --python-version 3.11 \
        --python-platform x86_64-manylinux_2_28 "$@" -o "requirements/$output"
}
# Triton compiles for GPUs only; xgrammar names it on every machine, and the CPU engine runs without it.
no_triton=$(mktemp)
all=$(mktemp)
trap 'rm -f "$no_triton" "$all"' EXIT
echo "triton; sys_platform == 'never'" > "$no_triton"

compile cpu.txt --extra cpu --overrides "$no_triton" $torch_source "$@"
compile cuda.txt --extra cuda "$@"
# The tools alone: what the dev resolution has beyond the engine's own lock.
"$uv" pip compile pyproject.toml --quiet --no-header --no-annotate --python-version 3.11 \
    --python-platform x86_64-manylinux_2_28 --extra cpu --extra dev \
    --overrides "$no_triton" -c requirements/cpu.txt $torch_source -o "$all"
grep -vxFf requirements/cpu.txt "$all" > requirements/dev.txt
