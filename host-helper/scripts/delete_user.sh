#!/bin/bash
# delete_user: the panel login, the VPN user and its access stanza, whichever exist. argv: username.
. "${0%/*}/common.sh"
user=$1
args=()
[ -z "$ROOT" ] || args=(-R "$ROOT")
found=0
[ ! -d "$OPENVPN_DIR" ] || lock "$OPENVPN_DIR/users" # not while one is being made
# Only users that create_panel_user made: never a system account.
if grep -q "^${user//./\\.}:[^:]*:[0-9]*:[0-9]*:viworks panel:" "$ROOT/etc/passwd"; then
	userdel "${args[@]}" -- "$user"
	found=1
fi
if [ -e "$OPENVPN_DIR/users/$user" ]; then
	rm -f -- "$OPENVPN_DIR/users/$user"
	found=1
fi
for f in "$OPENVPN_DIR/ccd/$user" "$FWKNOP_DIR/$user.conf"; do
	if ours "$f"; then
		rm -f -- "$f"
		found=1
	fi
done
[ -z "$FWKNOP_RELOAD" ] || $FWKNOP_RELOAD
[ $found = 1 ] || fail "no user $user" 2
echo "deleted $user"
