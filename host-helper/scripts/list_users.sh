#!/bin/bash
# list_users: one line each, "panel NAME" or "vpn NAME SOURCE UNTIL".
. "${0%/*}/common.sh"
awk -F: '$5 == "viworks panel" {print "panel " $1}' "$ROOT/etc/passwd"
if [ -d "$OPENVPN_DIR/users" ]; then
	find "$OPENVPN_DIR/users" -maxdepth 1 -type f ! -name '.*' | sort | while read -r f; do
		IFS=: read -r name _ rest <"$f"
		source=${rest%:*:*:*} until=${rest#"$source:"}
		echo "vpn $name $source $until"
	done
fi
