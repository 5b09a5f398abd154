#!/usr/bin/env bash
# Write *_pb2.py and *_pb2.pyi beside the .proto files; the results are committed.
#
# The generator is pinned to protoc 26.1 (protobuf 5.26): the last one whose output does not refuse protobuf
# runtimes older than itself, so the wheel works with every runtime from 5.27 on. Names are rooted at the package
# (.links/), because a file "types/mount.proto" would become a module that shadows Python's own "types".
#
# usage: generate.sh [PATH-UNDER-ROOT.proto ...]     default: all of this folder
set -euo pipefail
cd "$(dirname "$0")/../../.."
root=${PROTO_ROOT:-.links}
tools=$(mktemp -d)
trap 'rm -rf "$tools"' EXIT
python3 -m venv "$tools/venv"
"$tools/venv/bin/pip" install --quiet 'grpcio-tools==1.65.5' 'setuptools<81'
if [ $# -eq 0 ]; then
    set -- fastpull/fuse_client/snapshotter/pb/mount.proto fastpull/fuse_client/snapshotter/pb/snapshots.proto
fi
"$tools/venv/bin/python" -m grpc_tools.protoc -I "$root" --python_out="$root" --pyi_out="$root" "$@"
