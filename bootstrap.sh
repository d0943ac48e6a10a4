#!/usr/bin/env bash
# Make .venv what requirements.lock says, on Linux x86-64 with Python and a C compiler and nothing else.
#
#   ./bootstrap.sh        make or mend the environment; a fraction of a second when nothing has changed
#   ./bootstrap.sh uv     only fetch uv, the installer
#
# PYTHON=/path/to/python3.12 chooses the interpreter. What is missing is named in one line on stderr, exit 1.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"

COLOR_SUMS=preprocess/images/color_sums.c
UV_VERSION=0.13.9
UV_HASH=sha256:d7f459fe4fd247d830351c75686d3996ace3c6f3f728eb0e85a30b7ada0cef19  # the wheel for Linux x86-64
STAMP=.venv/.bootstrapped
export UV_PYTHON_DOWNLOADS=never

say() { printf 'bootstrap: %s\n' "$1" >&2; }
fail() { say "$1"; exit 1; }

# Whom to ask for a missing system package: `install_command DEBIAN-NAMES FEDORA-NAMES` prints the one command.
install_command() {
    local sudo=""
    [ "$(id -u)" -eq 0 ] || sudo="sudo "
    if command -v dnf >/dev/null; then
        echo "${sudo}dnf install -y $2"
    else
        echo "${sudo}apt-get install -y $1"
    fi
}

check_platform() {
    local platform
    platform="$(uname -s) $(uname -m)"
    [ "$platform" = "Linux x86_64" ] || fail "this is $platform; the wheels of DALI and torch need Linux x86_64"
}

# Sets `python` (the interpreter itself, not a venv's link to it) and `python_version`.
find_python() {
    local candidate found=() described
    local -a candidates=(python3 python3.13 python3.12 python3.11 python3.14)
    if [ -n "${PYTHON:-}" ]; then
        candidates=("$PYTHON")
    elif [ -f "$STAMP" ]; then
        candidates=(.venv/bin/python "${candidates[@]}")  # whoever chose one with PYTHON= keeps it
    fi
    for candidate in "${candidates[@]}"; do
        described="$("$candidate" -c 'import os, platform, sys
supported = (3, 11) <= sys.version_info[:2] < (3, 15)
print(int(supported), platform.python_version(), os.path.realpath(sys._base_executable))' 2>/dev/null)" || continue
        read -r supported python_version python <<<"$described"
        [ "$supported" = 1 ] && return
        found+=("$candidate is $python_version")
    done
    [ "${#found[@]}" -gt 0 ] || found=("no ${PYTHON:-python3} that runs")
    fail "needs Python 3.11 to 3.14, found $(IFS=,; echo "${found[*]}"): name another with make PYTHON=/path/to/python3.12"
}

fetch_uv() {
    [ "$(.uv/bin/uv --version 2>/dev/null)" = "uv $UV_VERSION (x86_64-unknown-linux-gnu)" ] && return
    "$python" -m pip --version >/dev/null 2>&1 ||
        fail "$python has no pip, which fetches uv: $(install_command python3-pip python3-pip)"
    say "fetching uv $UV_VERSION into .uv"
    rm -rf .uv/bin .uv/new
    echo "uv==$UV_VERSION --hash=$UV_HASH" >.uv/requirement.txt
    # PIP_USER=0: a pip set to install for the user refuses --target.
    PIP_USER=0 "$python" -m pip install --quiet --disable-pip-version-check --root-user-action ignore \
        --no-deps --only-binary :all: --target .uv/new -r .uv/requirement.txt || fail "pip could not fetch uv $UV_VERSION, see above"
    mv .uv/new/bin .uv/bin
    rm -rf .uv/new
}

# True when a C program that includes $1 compiles (and links with the libraries that follow).
compiles() {
    local program=$1
    shift
    ${CC:-cc} -x c -o /dev/null - "$@" <<<"$program" >/dev/null 2>&1
}

# pillow-simd is the one package that is built here: what it needs is looked for by building against it.
check_build_tools() {
    local image_libraries=$'#include <stdio.h>\n#include <jpeglib.h>\n#include <zlib.h>\nint main(void){return !zlibVersion();}'
    local python_headers
    compiles 'int main(void){return 0;}' ||
        fail "needs a C compiler to build pillow-simd, '${CC:-cc}' does not work: $(install_command "gcc libc6-dev" "gcc glibc-devel")"
    ${CXX:-c++} -x c++ -o /dev/null - <<<'int main() { return 0; }' >/dev/null 2>&1 ||
        say "warning: no C++ compiler ('${CXX:-c++}' does not work): what torch would compile runs uncompiled"
    python_headers="$("$python" -c 'import sysconfig; print(sysconfig.get_path("include"))')"
    if ! compiles "$image_libraries" -ljpeg -lz; then
        install_or_fail "libjpeg and zlib headers" "libjpeg-dev zlib1g-dev" "libjpeg-turbo-devel zlib-devel"
        compiles "$image_libraries" -ljpeg -lz || fail "libjpeg and zlib headers are installed, but ${CC:-cc} does not find them"
    fi
    if ! compiles $'#include <Python.h>\nint main(void){return 0;}' "-I$python_headers"; then
        install_or_fail "the headers of $python" "python${python_version%.*}-dev" "python${python_version%.*}-devel"
        compiles $'#include <Python.h>\nint main(void){return 0;}' "-I$python_headers" ||
            fail "$python has no Python.h in $python_headers: name another with make PYTHON=/path/to/python3.12"
    fi
}

# `install_or_fail WHAT DEBIAN-NAMES FEDORA-NAMES`: root on Debian installs, everybody else is told the command.
install_or_fail() {
    if [ "$(id -u)" -ne 0 ] || ! command -v apt-get >/dev/null; then
        fail "pillow-simd needs $1: $(install_command "$2" "$3")"
    fi
    say "installing $1: apt-get install -y $2"
    # The package lists of a fresh image are empty, or older than what the mirror still has.
    # shellcheck disable=SC2086
    DEBIAN_FRONTEND=noninteractive apt-get install -y -qq $2 >/dev/null 2>&1 ||
        { apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq $2 >/dev/null; } ||
        fail "pillow-simd needs $1, and this failed: apt-get update && apt-get install -y $2"
}

# `has_library NAME`: headers and libraries with which pillow-simd reads a format; it needs libavif 1.0.
has_library() {
    case $1 in
        webp) compiles $'#include <webp/encode.h>\n#include <webp/mux.h>\n#include <webp/demux.h>\nint main(void){return 0;}' -lwebp -lwebpmux -lwebpdemux ;;
        tiff) compiles $'#include <tiff.h>\nint main(void){return 0;}' -ltiff ;;
        avif) compiles $'#include <avif/avif.h>\n#if AVIF_VERSION_MAJOR < 1\n#error\n#endif\nint main(void){return 0;}' -lavif ;;
    esac
}

# True for root on Debian, if the version there will do.
may_install() {
    [ "$(id -u)" -eq 0 ] && command -v apt-get >/dev/null &&
        { [ "$1" != avif ] || apt-cache show libavif-dev 2>/dev/null | grep -q '^Version: [1-9]'; }
}

# Sets `formats` to what pillow-simd will read beyond JPEG and PNG. Root on Debian installs what is missing; everybody
# else is told the command, once: these formats are not needed by all.
find_image_formats() {
    local name missing=() debian fedora
    local -A packages=([webp]="libwebp-dev libwebp-devel" [tiff]="libtiff-dev libtiff-devel" [avif]="libavif-dev libavif-devel")
    formats=""
    for name in webp tiff avif; do
        if ! has_library "$name" && may_install "$name"; then
            say "installing ${packages[$name]% *}, to read ${name^^}: apt-get install -y ${packages[$name]% *}"
            DEBIAN_FRONTEND=noninteractive apt-get install -y -qq "${packages[$name]% *}" >/dev/null 2>&1 ||
                { apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq "${packages[$name]% *}"; } >/dev/null 2>&1 || true
        fi
        if has_library "$name"; then formats+=" $name"; else missing+=("$name"); fi
    done
    [ "${#missing[@]}" -eq 0 ] && return
    for name in "${missing[@]}"; do
        debian+="${debian:+ }${packages[$name]% *}"
        fedora+="${fedora:+ }${packages[$name]#* }"
    done
    say "warning: images in ${missing[*]^^} (compressed ones, if TIFF; AVIF needs libavif 1.0) will not be readable; to change that: $(install_command "$debian" "$fedora"), then ./bootstrap.sh"
}

# Prints those headers that are there, where the packages of distributions put them: a look that takes no compiler.
list_format_headers() {
    local header
    for header in /usr/include/{,x86_64-linux-gnu/}{webp/encode.h,tiff.h,avif/avif.h}; do
        [ ! -e "$header" ] || echo "$header"
    done
}

# uv keeps the wheels that it builds, and CC is no part of the key under which it finds them again: a wheel with AVX2
# would be handed to a machine without it that shares the cache. A setting of the build is part of the key
# (pillow-simd ignores settings that it does not know), so each instruction set, and each set of formats, has its own wheel.
# Bytecode is compiled once, here: a Ray Train run starts a dozen processes, and each would compile torch, Ray and MLflow
# where it may not write, or is told not to (PYTHONDONTWRITEBYTECODE).
install_packages() {
    local flags="" name settings=()
    [ "$1" = avx2 ] && flags=" -mavx2"
    for name in webp tiff avif; do
        [[ " $2 " == *" $name "* ]] && settings+=(--config-settings-package "pillow-simd:$name=enable") ||
            settings+=(--config-settings-package "pillow-simd:$name=disable")
    done
    say "installing what requirements.lock names"
    PYC_INVALIDATION_MODE=CHECKED_HASH CC="${CC:-cc}$flags" .uv/bin/uv pip sync --python .venv/bin/python --require-hashes --compile-bytecode \
        --build-constraints requirements.lock --require-build-hashes --preview-features build-dependency-hashes \
        --config-settings-package "pillow-simd:instruction-set=$1" "${settings[@]}" requirements.lock
}

# The colour statistics' inner loop, as a module of the environment. Moved into place: a running build may have it loaded.
build_extension() {
    local include module
    { read -r include; read -r module; } < <(.venv/bin/python -c 'import sysconfig as config
print(config.get_path("include"), config.get_path("platlib") + "/twotower_color_sums" + config.get_config_var("EXT_SUFFIX"), sep="\n")')
    say "compiling $COLOR_SUMS"
    ${CC:-cc} -O3 -shared -fPIC "-I$include" "$COLOR_SUMS" -o "$module.new" </dev/null || fail "${CC:-cc} could not compile $COLOR_SUMS, see above"
    mv "$module.new" "$module"
}

digest_contents() {
    { cat requirements.lock pyproject.toml bootstrap.sh "$COLOR_SUMS"; list_format_headers; } | sha256sum
}

main() {
    check_platform
    mkdir -p .uv
    exec 9>.uv/lock
    flock 9  # two makes at once: the second one waits, then finds everything done
    find_python
    if [ "${1:-}" = uv ]; then
        fetch_uv
        return
    fi

    local simd=sse4 identity contents previous formats found
    grep -qw avx2 /proc/cpuinfo && simd=avx2
    # What the environment must be made anew for, and what it can be brought up to date for.
    identity="$(readlink -f .venv) | $python | $python_version | pillow-simd for $simd"
    contents="$(digest_contents)"
    found="$(cat "$STAMP" 2>/dev/null || true)"
    [[ "$found" == "$identity with "*$'\n'"$contents" ]] && return

    check_build_tools
    fetch_uv
    find_image_formats
    identity+=" with$formats "
    contents="$(digest_contents)"
    # Without its stamp an environment is not whole, whatever interrupts the next steps: it will be made anew.
    previous="$(head -n 1 "$STAMP" 2>/dev/null || true)"
    rm -f "$STAMP"
    if [ "$previous" != "$identity" ]; then
        say "making .venv with $python ($python_version)"
        rm -rf .venv
        .uv/bin/uv venv --quiet --no-project --python "$python" .venv
    fi
    install_packages "$simd" "$formats"
    build_extension
    printf '%s\n%s\n' "$identity" "$contents" >"$STAMP.new"
    mv "$STAMP.new" "$STAMP"
    say "the environment is ready"
}

main "$@"
