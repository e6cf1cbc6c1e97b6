#!/bin/sh
# Regenerates the locks from pyproject.toml: `make lock`. Each holds for every Python that pyproject.toml allows:
# made for the oldest, and a package that only newer ones need is added with that condition.
#
# cpu.txt and cuda.txt are full locks of the engine, each for one kind of machine; dev.txt adds the tools
# of `make test`, on versions that agree with both, and docs.txt is that of `make docs`, in an environment of its own, on
# versions that the others have where they have the package. All are installed with `pip install --no-deps`, so
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
OLDEST=3.11
NEWER="3.12 3.13"
compile() {
    python=$1; output=$2; shift 2
    "$uv" pip compile --quiet --no-header --no-annotate --python-version "$python" \
        --python-platform x86_64-manylinux_2_28 "$@" -o "$output"
}
# Appends what newer Pythons need beyond a lock, at the versions of the lock for all else.
# torch for the CPU is left out of the comparison: its wheels for other Pythons may not be at hand, and it is pinned.
widen() {
    lock=$1; shift
    grep -v '^torch==' "$lock" > "$pins"
    for python in $NEWER; do
        compile "$python" "$newer" -c "$pins" "$@"
        sed 's/ ;.*//' "$lock" | grep -vxFf - "$newer" | grep -vE '^(torch|nvidia-|cuda-)' > "$extra" || true
        sed "s/$/ ; python_version >= \"$python\"/" "$extra" >> "$lock"
    done
}
# Triton compiles for GPUs only; xgrammar names it on every machine, and the CPU engine runs without it.
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
no_triton=$work/no_triton; any_torch=$work/any_torch; all=$work/all; pins=$work/pins; newer=$work/newer; extra=$work/extra
echo "triton; sys_platform == 'never'" > "$no_triton"
echo "torch==$(sed -n 's/.*"torch==\([0-9.]*\)".*/\1/p' pyproject.toml)" > "$any_torch"
# vLLM asks for it on newer Pythons only; one version serves all.
echo "setuptools<81" > "$work/bounds"

compile $OLDEST requirements/cpu.txt pyproject.toml --extra cpu --overrides "$no_triton" -c "$work/bounds" $torch_source "$@"
widen requirements/cpu.txt pyproject.toml --extra cpu --overrides "$no_triton" --overrides "$any_torch"
compile $OLDEST requirements/cuda.txt pyproject.toml --extra cuda -c "$work/bounds" "$@"
widen requirements/cuda.txt pyproject.toml --extra cuda
# The tools alone: what the dev resolution has beyond the engine's own lock.
compile $OLDEST "$all" pyproject.toml --extra cpu --extra dev --overrides "$no_triton" -c requirements/cpu.txt $torch_source
grep -vxFf requirements/cpu.txt "$all" > requirements/dev.txt
compile $OLDEST requirements/docs.txt --group docs -c requirements/cpu.txt -c requirements/cuda.txt -c requirements/dev.txt
widen requirements/docs.txt --group docs
