#!/bin/sh
# Makes an environment for `make`, or checks the one that is there:
#
#     requirements/environment.sh DIR [PYTHON]
#
# PYTHON is what the user gave; without it the newest Python that can make one is taken. A version manager may put a name
# on the path that does not run, Debian packages ensurepip separately, and a Python that was built without some library's
# headers lacks that library's module.
set -eu
place=$1
given=${2-}
case $given in "~/"*) given=$HOME/${given#"~/"} ;; esac # not every shell expands it in PYTHON=~/…
have=$place/bin/python
version='import sys; print("Python %d.%d" % sys.version_info[:2])'
fits='import bz2, ctypes, ensurepip, lzma, ssl, sys, venv
if not (3, 11) <= sys.version_info < (3, 14): sys.exit("it is Python " + sys.version.split()[0])'

fail() {
    printf '%s\n' "$@" >&2
    exit 2
}

# Prints the first of these Pythons that fits, or why none does.
first_of() {
    reasons=
    for python; do
        command -v "$python" >/dev/null || { [ -z "$given" ] && continue; }
        if said=$("$python" -c "$fits" 2>&1); then
            echo "$python"
            return
        fi
        reason=$(echo "$said" | sed -n '/^[A-Za-z]*Error: /s///p; /not found/p; /^it is/p' | tail -n 1)
        reasons="$reasons
  $python: ${reason:-it does not run}"
    done
    fail "rl_engine needs CPython 3.11, 3.12 or 3.13 with venv, and none was found that serves${reasons:+:}$reasons" \
        "On Debian or Ubuntu: apt-get install python3.12 python3.12-venv" \
        "or give one by name: make PYTHON=/path/to/python3.12"
}

if [ -e "$have" ] || [ -L "$have" ]; then
    stands=$("$have" -c "$version" 2>/dev/null) || fail "$have does not run:  make clean  removes $place, to be made again"
    if [ -n "$given" ]; then
        asked=$("$given" -c "$version" 2>/dev/null) || asked="none that runs"
        [ "$stands" = "$asked" ] || fail "$place has $stands, and PYTHON=$given is $asked:  make clean  removes $place"
    fi
    case $stands in
        "Python 3.11" | "Python 3.12" | "Python 3.13") ;;
        *) fail "$place has $stands, and rl_engine needs 3.11, 3.12 or 3.13:  make clean  removes $place" ;;
    esac
else
    [ -n "$given" ] && set -- "$given" || set -- python3.13 python3.12 python3.11 python3
    chosen=$(first_of "$@") # on a line of its own, so that a failure ends the script
    "$chosen" -m venv "$place"
fi
# uv makes an environment without pip, and so does a Python that is interrupted.
"$have" -c "import pip" 2>/dev/null || "$have" -m ensurepip >/dev/null ||
    fail "$place has no pip:  make clean  removes $place"
