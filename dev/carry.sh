#!/usr/bin/env bash
# Gathers the libraries that the CUDA build needs into a folder, for a machine without packages.
#   dev/carry.sh FOLDER        then, there: make BACKEND=cuda DEPS=FOLDER
set -euo pipefail
out=${1:?usage: dev/carry.sh FOLDER}
mkdir -p "$out/include"
for library in catch2 CLI nlohmann; do
    [ -d "/usr/include/$library" ] || { echo "carry: /usr/include/$library is missing: run make deps first" >&2; exit 1; }
    cp -rT "/usr/include/$library" "$out/include/$library"
done
# PCRE2 is more than headers; without it there the program tokenize is left out.
static=$(compgen -G "/usr/lib/*/libpcre2-8.a" | head -n 1 || true)
if [ -n "$static" ] && [ -f /usr/include/pcre2.h ]; then
    mkdir -p "$out/lib"
    cp "$static" "$out/lib/"
    cp /usr/include/pcre2.h "$out/include/"
fi
du -sh "$out" | cut -f1 | xargs echo "carried:"
