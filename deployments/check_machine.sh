#!/bin/sh
# Say in one line what this machine lacks, before minutes are spent on installing.
#   sh deployments/check_machine.sh PYTHON
python=$1
fail() {
    echo "make: $1" >&2
    exit 1
}
other="install Python 3.11 or later, or name one that is there: make PYTHON=/path/to/python3"

command -v "$python" >/dev/null || fail "there is no program '$python': $other"
version=$("$python" -c 'import sys; print("%d.%d" % sys.version_info[:2])') || fail "'$python' does not run: $other"
"$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || fail "'$python' is Python $version: $other"
"$python" -c 'import ensurepip, venv' 2>/dev/null || fail "'$python' lacks the modules venv and ensurepip: install them (Debian, Ubuntu: apt install python$version-venv)"
command -v git >/dev/null || fail "there is no git: install it (Debian, Ubuntu: apt install git)"
