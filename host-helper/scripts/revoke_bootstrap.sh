#!/bin/bash
# revoke_bootstrap. argv: the bundle's id.
. "${0%/*}/common.sh"
[ -e "$BOOTSTRAP_DIR/$1.json" ] || fail "no bootstrap $1" 2
rm -f -- "$BOOTSTRAP_DIR/$1.json"
echo "revoked $1"
