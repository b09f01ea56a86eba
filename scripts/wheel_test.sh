#!/bin/sh
# Builds the wheel and uses it in an environment without the sources: the packages are ours, typed and whole, the command answers.
set -eu

root=$(pwd)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

# Built from a copy, so that no left-over of the folder (build/, an egg-info with an old file list) gets in.
git archive HEAD | tar -x -C "$work" --one-top-level=source
.venv/bin/python -m build --wheel --outdir "$work" "$work/source" >"$work/build.log" 2>&1 || { cat "$work/build.log"; exit 1; }

# The dependencies are .venv's: its site-packages are added by a .pth file, whose own .pth files (the editable install) Python passes over.
.venv/bin/python -m venv --without-pip "$work/clean"
site=$("$work/clean/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
.venv/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))' >"$site/dependencies.pth"
.venv/bin/python -m pip --python "$work/clean/bin/python" install --quiet --no-deps --no-index "$work"/*.whl

cd "$work"
"$work/clean/bin/python" "$root/scripts/wheel_test.py" "$work"/*.whl
"$work/clean/bin/shardmill" --help >/dev/null
"$work/clean/bin/shardmill" stages >/dev/null
echo "wheel: $(basename "$work"/*.whl), $(du -k "$work"/*.whl | cut -f1) KB, imported from where it was installed"
