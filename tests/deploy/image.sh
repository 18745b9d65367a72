#!/usr/bin/env bash
# Builds deploy/Dockerfile for real and runs what comes out, without a container
# engine: buildah in a chroot. The two images that the Dockerfile names are made
# here, from the distribution's packages and this machine's Rust toolchain, so
# no registry of images is asked. Takes a whole release build; with TWICE=1 another one,
# which has to make the same binary in another folder.
set -euo pipefail
cd "$(dirname "$0")/../.."
root=$PWD
work=$root/target/image-check
mkdir -p "$work"

say() { printf 'image check: %s\n' "$*" >&2; }
fail() { say "$*"; exit 1; }
[ "$(id -u)" = 0 ] || fail "runs as root alone: debootstrap and chroot need it"
for tool in buildah debootstrap rustc; do
  command -v "$tool" >/dev/null || fail "$tool is not installed: tests/install-tools.sh image"
done

export STORAGE_DRIVER=vfs BUILDAH_ISOLATION=chroot
bud() { buildah --root "$work/storage" --runroot "$work/run" "$@"; }
base_of() { sed -n "s/^ARG $1=//p" deploy/Dockerfile; }

# An image of that name, of a folder that debootstrap made; with a toolchain as rust's own has it.
provide() {
  local name=$1 folder=$2 container
  shift 2
  bud images --quiet "$name" 2>/dev/null | grep -q . && return
  say "making $name"
  container=$(bud from scratch)
  bud add --quiet "$container" "$folder" / >/dev/null
  [ $# = 0 ] || bud add --quiet "$container" "$1" /usr/local >/dev/null
  [ $# = 0 ] || bud config --env CARGO_HOME=/usr/local/cargo "$container"
  bud config --env PATH=/usr/local/bin:/usr/local/sbin:/usr/bin:/usr/sbin:/bin:/sbin --cmd bash "$container"
  bud commit --quiet --rm "$container" "docker.io/library/$name" >/dev/null
}
system() {
  local folder=$work/$1
  shift
  [ -e "$folder.done" ] && return
  rm -rf "$folder"
  say "debootstrap into $folder"
  debootstrap --variant=minbase "$@" bookworm "$folder" >"$folder.log"
  rm -rf "$folder"/var/cache/apt/archives/*.deb
  touch "$folder.done"
}
system runtime
# No more than rust's own image has.
system build --include=gcc,g++,make,perl,pkg-config,ca-certificates
toolchain=$work/toolchain
if [ ! -e "$toolchain.done" ]; then
  mkdir -p "$toolchain"
  sysroot=$(rustc --print sysroot)
  tar -C "$sysroot" --exclude=./share --exclude=./lib/rustlib/src -cf - . | tar -C "$toolchain" -xf -
  touch "$toolchain.done"
fi
provide "$(base_of RUNTIME_IMAGE)" "$work/runtime"
provide "$(base_of BUILD_IMAGE)" "$work/build" "$toolchain"

# What is changed here meanwhile is in neither build.
sources=$work/sources
rm -rf "$sources"
mkdir "$sources"
tar --exclude=./target --exclude=./.git -cf - . | tar -C "$sources" -xf -

# Crates come from this machine's cache where they are there.
crates=${CARGO_HOME:-$HOME/.cargo}/registry
mkdir -p "$crates"
built() {
  local dockerfile=$1 cargo_home=$2
  shift 2
  bud bud --pull-never --isolation chroot --format docker --volume "$crates:$cargo_home/registry" \
    --file "$dockerfile" "$@" "$sources"
}
say "building the image: a whole release build"
built "$sources/deploy/Dockerfile" /usr/local/cargo --tag callvault-check

say "looking at the image"
inspected=$(bud inspect --type image callvault-check)
configured() { python3 -c 'import json,sys; print(json.dumps(json.load(sys.stdin)["Docker"]["config"].get(sys.argv[1])))' "$1" <<<"$inspected"; }
[ "$(configured User)" = '"65532:65532"' ] || fail "the user is $(configured User)"
[ "$(configured Entrypoint)" = '["callvault"]' ] || fail "the entry point is $(configured Entrypoint)"
[ "$(configured Cmd)" = '["serve"]' ] || fail "the command is $(configured Cmd)"
[ "$(configured StopSignal)" = '"SIGTERM"' ] || fail "the stop signal is $(configured StopSignal)"
[ "$(configured Healthcheck)" != null ] || fail "there is no health check"

container=$(bud from --pull-never callvault-check)
pid=
end() { [ -z "$pid" ] || inside touch end || true; bud rm "$container" >/dev/null 2>&1 || true; }
trap end EXIT
inside() { bud run "$container" -- "$@"; }

[ "$(inside id -u)" = 65532 ] || fail "it runs as $(inside id -u)"
inside callvault --version
say "the whole journey of a recording, inside"
inside callvault demo --once >"$work/demo.log" || { cat "$work/demo.log"; fail "the demo does not end well"; }

port=$(python3 -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])')
bud config --env "CALLVAULT_LISTEN=0.0.0.0:$port" --env CALLVAULT_DRAIN=0s "$container"
say "the service, asked for its health by the image's own check"
mapfile -t check < <(configured Healthcheck | python3 -c 'import json,sys; print(*json.load(sys.stdin)["Test"][1:], sep="\n")')
! inside "${check[@]}" || fail "it is healthy before it runs"
# Signals do not reach through buildah: a shell inside ends the service when it is told to.
# shellcheck disable=SC2016 # expanded inside
inside bash -c 'callvault serve & service=$!; while [ ! -e end ]; do sleep 0.1; done; kill -TERM $service; wait $service' \
  >"$work/serve.log" 2>&1 &
pid=$!
for attempt in $(seq 100); do
  if inside "${check[@]}" 2>/dev/null; then break; fi
  kill -0 "$pid" || { cat "$work/serve.log"; fail "the service ended"; }
  [ "$attempt" -lt 100 ] || { cat "$work/serve.log"; fail "the service is never healthy"; }
  sleep 0.2
done
address=$(python3 -c 'import socket; s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); s.connect(("192.0.2.1", 9)); print(s.getsockname()[0])' 2>/dev/null || echo 127.0.0.1)
python3 -c 'import sys, urllib.request as u; print(u.build_opener(u.ProxyHandler({})).open(f"http://{sys.argv[1]}:{sys.argv[2]}/readyz").read().decode())' "$address" "$port"
inside touch end
wait "$pid" || fail "it does not end with 0 on SIGTERM"
pid=
binary=$(bud mount "$container")/usr/local/bin/callvault
for folder in /usr/local/cargo /root/ /src/src/ /src/target/ "$root"; do
  ! grep -aqF "$folder" "$binary" || fail "the binary tells that it was built in $folder"
done
if [ "${TWICE:-}" = 1 ]; then
  say "building it again: later, and elsewhere"
  sed 's,^WORKDIR /src$,WORKDIR /elsewhere/callvault\nENV CARGO_HOME=/elsewhere/cargo,' "$sources/deploy/Dockerfile" >"$work/Dockerfile"
  built "$work/Dockerfile" /elsewhere/cargo --target build --tag callvault-check-again
  again=$(bud from --pull-never callvault-check-again)
  cmp "$binary" "$(bud mount "$again")/out/usr/local/bin/callvault" || fail "the same sources made another binary"
  bud rm "$again" >/dev/null
  say "it is the same, byte for byte: $(sha256sum <"$binary" | cut -d' ' -f1)"
fi
size=$(stat -c %s "$binary")
[ "$size" -lt $((64 << 20)) ] || fail "the binary has $((size >> 20)) MiB: something large came in"
say "all holds; the binary is $((size >> 20)) MiB, over what debian:bookworm-slim has"
