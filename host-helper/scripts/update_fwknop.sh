#!/bin/bash
# update_fwknop: a user's access stanza. argv: username, source_ip, timeout; stdin: key, hmac_key (may be empty).
. "${0%/*}/common.sh"
IFS= read -r key
IFS= read -r hmac || true
mkdir -p "$FWKNOP_DIR"
lock "$FWKNOP_DIR/access"
fwknop_stanza "$1" "$2" "$3" "$key" "$hmac"
echo "access of $1 from $2 for $3 s"
