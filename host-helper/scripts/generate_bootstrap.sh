#!/bin/bash
# generate_bootstrap: a one-time bundle for a new client, kept on the host. argv: username, ttl.
# The code is in the bundle only: output travels through logs and databases.
. "${0%/*}/common.sh"
user=$1 ttl=$2
mkdir -p "$BOOTSTRAP_DIR"
id=$(cat /proc/sys/kernel/random/uuid)
code=$(head -c 32 /dev/urandom | base64 -w0)
printf '{"id":"%s","username":"%s","code":"%s","expires_at":"%s"}\n' "$id" "$user" "$code" "$(expiry "$ttl")" |
	write_file "$BOOTSTRAP_DIR/$id.json" 0600
echo "bootstrap $id for $user until $(expiry "$ttl")"
