#!/bin/sh
# Makes .venv hold what a command needs: scripts/venv.sh [EXTRA ...]   (called by make; stands on sh and Python alone)
#
# Does nothing where .venv already holds these extras at today's pins. .venv/extras remembers both: a fingerprint of the
# pins, of the interpreter asked for and of this folder, then the extras. An install that was cut off leaves no fingerprint.
set -eu

venv=.venv
state=$venv/extras

# Two commands at once in one folder: the second waits until the first has set up.
if command -v flock >/dev/null 2>&1; then
    exec 9<"$0"
    flock 9
fi

# What decides about an install: all of pyproject.toml above its tool settings, the pins, and where .venv stands (its
# scripts and the editable install hold this path, so that a copied folder must be installed anew).
fingerprint() {
    { sed '/^\[tool\.ruff/,$d' pyproject.toml; cat constraints.txt; pwd; } | cksum | tr ' ' '-'
}

in_range='import ensurepip, sys, venv; sys.exit(not (3, 11) <= sys.version_info[:2] < (3, 13))'

# The interpreter is run, not just looked for: a version manager's shims exist on PATH for versions that do not start.
find_python() {
    for candidate in ${PYTHON:-python3.11 python3.12 python3 python}; do
        if "$candidate" -c "$in_range" >/dev/null 2>&1; then
            echo "$candidate"
            return
        fi
    done
    echo "error: found no Python 3.11 or 3.12 that starts and can make environments (tried: ${PYTHON:-python3.11 python3.12 python3 python})." >&2
    echo "Install one (Debian and Ubuntu: apt install python3.11 python3.11-venv), or name yours: make PYTHON=/path/to/python3.12 ..." >&2
    exit 2
}

version_of() { "$1" -c 'import sys; print("%d.%d" % sys.version_info[:2])' 2>/dev/null || echo none; }

missing() { # the wanted extras that .venv does not hold
    for extra in "$@"; do
        case " $held " in *" $extra "*) ;; *) printf '%s ' "$extra" ;; esac
    done
}

held= known=
if [ -f "$state" ]; then
    known=$(sed -n 1p "$state")
    held=$(sed -n 2p "$state")
fi
now=$(fingerprint)

# Another interpreter than .venv's, asked for by name, or a .venv whose interpreter is gone: start afresh.
if [ -d "$venv" ]; then
    has=$(version_of "$venv/bin/python")
    if [ "$has" = none ] || { [ -n "${PYTHON:-}" ] && [ "$has" != "$(version_of "$(find_python)")" ]; }; then
        rm -rf "$venv"
        held= known=
    fi
fi

wanted=$(missing "$@")
if [ -x "$venv/bin/python" ] && [ "$known" = "$now" ] && [ -z "$wanted" ]; then
    exit 0
fi

began=$(date +%s)
if [ ! -x "$venv/bin/python" ]; then
    python=$(find_python)
    "$python" -m venv "$venv"
fi
all=$(printf '%s %s' "$held" "$wanted" | xargs)
list=$(printf '%s' "$all" | tr ' ' ',')
printf 'unfinished\n%s\n' "$all" >"$state"
echo "setting up .venv: shardmill${list:+[$list]} on Python $(version_of "$venv/bin/python") (docs/install.md says what each extra costs)"
# One command for everything: pip takes the torchvision that fits the pinned torch only when it sees both at once.
"$venv/bin/python" -m pip install -qq --disable-pip-version-check --constraint constraints.txt --editable ".${list:+[$list]}"
printf '%s\n%s\n' "$now" "$all" >"$state"
megabytes=$(du -sm "$venv" | cut -f1)
torch=$("$venv/bin/python" -c 'from importlib.metadata import version; print(", torch " + version("torch"))' 2>/dev/null || true)
echo "set-up took $(($(date +%s) - began)) s; .venv is $megabytes MB$torch"
