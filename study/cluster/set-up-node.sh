#!/usr/bin/env bash
# Sets up a machine that `ray up` has started: bash set-up-node.sh LIBRARY CLIENT
#
# LIBRARY reads the bucket (s3fs, gcsfs), CLIENT starts machines (boto3, google-api-python-client). The first machine, the
# head, installs the packages, about 5 GB, and keeps a copy of the result in the bucket; workers unpack that copy. What is
# there already is not done again.
set -euo pipefail
library=$1 client=$2

cat >> ~/study.env <<'END'
export PATH=$HOME/study-env/bin:$PATH RAY_AUTH_MODE=token RAY_USAGE_STATS_ENABLED=0
export RAY_memory_monitor_refresh_ms=0 RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO=1
END
grep -q study.env ~/.bashrc || echo '. ~/study.env' >> ~/.bashrc
# shellcheck source=/dev/null
. ~/study.env

# bucket has URI | bucket get URI PATH | bucket put URI PATH
bucket() {
  python -c '
import sys, fsspec
verb, uri, *local = sys.argv[1:]
files, path = fsspec.url_to_fs(uri)
if verb == "has":
    sys.exit(not files.exists(path))
elif verb == "put":
    files.put_file(*local, path)
elif files.isdir(path):
    files.get(path + "/", *local, recursive=True)
else:
    files.get_file(path, *local)
' "$@"
}

install() { pip install --quiet --no-cache-dir -c ~/study/constraints.txt "$@"; }

[ -d ~/study ] || git clone --quiet "$REPOSITORY" ~/study
git -C ~/study fetch --quiet --tags
git -C ~/study checkout --quiet --detach "$VERSION" # results are recorded with the commit that computed them

[ -d ~/study-env ] || python3 -m venv --without-pip ~/study-env
[ -x ~/study-env/bin/pip ] || curl -sSf https://bootstrap.pypa.io/get-pip.py | python - --quiet
name=$(git -C ~/study rev-parse HEAD)-python$(python -c 'import sysconfig; print(sysconfig.get_python_version())')
if [ "$(cat ~/study-env/name 2> /dev/null)" != "$name" ]; then
  install "$library"
  copy=$BUCKET_URI/installed/$name.tar.gz
  packed=$(mktemp)
  if bucket has "$copy"; then
    bucket get "$copy" "$packed"
    tar -C ~ -xzf "$packed"
  else
    install -e "$HOME/study[${library%fs}]" 'ray[default]' "$client"
    echo "$name" > ~/study-env/name
    tar -C ~ -I 'gzip -1' -cf "$packed" study-env
    bucket put "$copy" "$packed"
  fi
  rm "$packed"
fi

[ -z "$DATA" ] || bucket get "$DATA" ~/data/
