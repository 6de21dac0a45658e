#!/usr/bin/env bash
# Installs what the build needs and the machine lacks: Debian and Ubuntu packages, by name. Prints nothing when all is there.
set -euo pipefail

missing=()
need() {  # need PATTERN PACKAGE: a file that shows that the package is there
    compgen -G "$1" > /dev/null || missing+=("$2")
}
command -v g++ > /dev/null || missing+=(g++)
command -v python3 > /dev/null || missing+=(python3)
need "/usr/include/catch2/catch.hpp" catch2
need "/usr/include/CLI/CLI.hpp" libcli11-dev
need "/usr/include/nlohmann/json.hpp" nlohmann-json3-dev
need "/usr/lib/*/openblas-openmp/libopenblas.so" libopenblas-openmp-dev
need "/usr/include/pcre2.h" libpcre2-dev
need "/usr/include/boost/context/detail/fcontext.hpp" libboost-context-dev
need "/usr/lib/*/libboost_context.so" libboost-context-dev
command -v mpicxx > /dev/null || missing+=(libopenmpi-dev)
command -v mpirun > /dev/null || missing+=(openmpi-bin)
command -v xz > /dev/null || missing+=(xz-utils)

[ ${#missing[@]} -eq 0 ] && exit 0
if ! command -v apt-get > /dev/null; then
    echo "missing: ${missing[*]} (Debian names): install them with this system's package manager, then run make again" >&2
    exit 1
fi
sudo=""
if [ "$(id -u)" -ne 0 ]; then
    command -v sudo > /dev/null || { echo "missing: ${missing[*]}; run as root: apt-get install ${missing[*]}" >&2; exit 1; }
    sudo=sudo
fi
echo "installing: ${missing[*]}"
$sudo apt-get update -qq
DEBIAN_FRONTEND=noninteractive $sudo apt-get install -y -qq --no-install-recommends "${missing[@]}" > /dev/null
