# Sourced by the other scripts: printing, packages, building, guest files. Each step says what it does and
# how long it took, and does nothing when its result is there already.
# shellcheck shell=bash

set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

export WRENN_DIR="${WRENN_DIR:-$PWD/.wrenn}"
export CARGO_TERM_PROGRESS_WHEN="${CARGO_TERM_PROGRESS_WHEN:-never}"
TARGET="${CARGO_TARGET_DIR:-$PWD/target}"
BIN="$TARGET/release"
GUEST_TRIPLE="$(uname -m)-unknown-linux-gnu"
GUEST_BIN="$TARGET/$GUEST_TRIPLE/guest"

# What the agent and the image builder run; the tests add two servers that they start themselves, a browser for the SDK,
# and the compiler of the gRPC contracts.
HOST_PACKAGES=(qemu-system-x86 nftables iproute2 xfsprogs e2fsprogs mmdebstrap zstd ca-certificates curl jq)
TEST_PACKAGES=(postgresql redis-server chromium protobuf-compiler)

die() {
    printf 'error: %s\n' "$*" >&2
    exit 1
}

say() { printf '%s\n' "$*" >&2; }

# step NAME COMMAND…: runs it with its output in a log, shown when it fails.
step() {
    local name=$1 log started
    shift
    mkdir -p "$WRENN_DIR/logs"
    log="$WRENN_DIR/logs/step.log"
    started=$(date +%s%N)
    printf '  %-34s' "$name" >&2
    if "$@" >"$log" 2>&1; then
        printf 'done  %6.1f s\n' "$(elapsed "$started")" >&2
    else
        printf 'FAILED\n' >&2
        tail -n 60 "$log" >&2
        die "step \`$name\` failed: its whole output is in $log"
    fi
}

# elapsed START_NS: seconds since then, with one decimal and more.
elapsed() { awk -v a="$1" -v b="$(date +%s%N)" 'BEGIN { printf "%.3f", (b - a) / 1e9 }'; }

require_machine() {
    [ "$(id -u)" = 0 ] || die "capsules need root (network namespaces, loop devices): run this as root"
    [ "$(uname -s)" = Linux ] && [ "$(uname -m)" = x86_64 ] || die "this needs Linux on x86-64; here is $(uname -sm)"
    command -v apt-get >/dev/null || die "this needs Debian 12 (apt-get was not found)"
    command -v cargo >/dev/null || die "cargo was not found: install Rust 1.95 or newer"
    command -v cc >/dev/null || die "no C linker was found: apt-get install gcc"
    local have want=1.95.0
    have=$(rustc --version | awk '{print $2}')
    [ "$(printf '%s\n%s\n' "$want" "$have" | sort -V | head -n1)" = "$want" ] || die "Rust $want or newer is needed, here is $have: run \`rustup update\`"
}

# install_packages NAME…: those that are missing.
install_packages() {
    local missing=() name
    for name in "$@"; do
        [ "$(dpkg-query -W -f '${db:Status-Status}' "$name" 2>/dev/null)" = installed ] || missing+=("$name")
    done
    [ ${#missing[@]} -eq 0 ] && return 0
    export DEBIAN_FRONTEND=noninteractive
    apt-get update -q
    # A service that a package would start has no place here: what needs a database starts its own.
    local policy=/usr/sbin/policy-rc.d made=
    if [ ! -e "$policy" ]; then
        printf '#!/bin/sh\nexit 101\n' >"$policy"
        chmod +x "$policy"
        made=1
    fi
    local result=0
    apt-get install -q -y --no-install-recommends "${missing[@]}" || result=$?
    [ -z "$made" ] || rm -f "$policy"
    return "$result"
}

# Of the whole workspace, so that the dependencies have the same features as in the tests and are built once.
build_host() { cargo build --release --workspace --bin wrenn-api --bin wrenn-agent --bin wrenn-rootfs --locked; }

build_guest() {
    RUSTFLAGS='-C target-feature=+crt-static -C relocation-model=static' \
        cargo build -p wrenn-envd -p wrenn-init --bins --profile guest --target "$GUEST_TRIPLE" --locked
}

# Side by side: each has stretches in which only one processor has something to do.
build() {
    local guest result=0
    build_guest &
    guest=$!
    build_host || result=$?
    wait "$guest" || result=$?
    return "$result"
}

# image NAME: of a built-in template, cached by its inputs.
image() { step "image $1" "$BIN/wrenn-rootfs" build "$1" --envd "$GUEST_BIN/wrenn-envd" --init "$GUEST_BIN/wrenn-init"; }

# What every capsule needs, cached likewise.
guest_files() {
    step "guest kernel" "$BIN/wrenn-rootfs" kernel --init "$GUEST_BIN/wrenn-init"
    image minimal
}

# prepare_programs PACKAGE…: what runs on the host.
prepare_programs() {
    require_machine
    step "packages" install_packages "$@"
    step "build" build
}

# prepare PACKAGE…: the same with what runs in guests.
prepare() {
    prepare_programs "$@"
    guest_files
}
