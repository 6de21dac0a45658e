#!/usr/bin/env bash
# Gathers the header libraries that the CUDA build needs into a folder, for a machine without packages.
#   dev/carry.sh FOLDER        then, there: make BACKEND=cuda DEPS=FOLDER
set -euo pipefail
out=${1:?usage: dev/carry.sh FOLDER}
mkdir -p "$out/include"
for library in catch2 CLI nlohmann; do
    [ -d "/usr/include/$library" ] || { echo "carry: /usr/include/$library is missing: run make deps first" >&2; exit 1; }
    cp -rT "/usr/include/$library" "$out/include/$library"
done
du -sh "$out" | cut -f1 | xargs echo "carried:"
