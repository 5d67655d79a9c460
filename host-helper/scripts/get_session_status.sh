#!/bin/bash
# get_session_status: sessions of one user in OpenVPN's status file (status-version 2). argv: username.
. "${0%/*}/common.sh"
[ -r "$OPENVPN_STATUS" ] || fail "$OPENVPN_STATUS cannot be read: is OpenVPN running?" 3
awk -F, -v user="$1" '
	$1 == "CLIENT_LIST" && $2 == user {
		n++
		print "session " $2 " from " $3 " address " $4 " received " $6 " sent " $7 " since " $8
	}
	END { if (!n) print "no session" }' "$OPENVPN_STATUS"
