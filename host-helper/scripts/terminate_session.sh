#!/bin/bash
# terminate_session: tells OpenVPN's management interface to drop a user. argv: username.
. "${0%/*}/common.sh"
exec 3<>"/dev/tcp/${OPENVPN_MANAGEMENT%:*}/${OPENVPN_MANAGEMENT##*:}" || fail "management interface $OPENVPN_MANAGEMENT does not answer" 3
printf 'kill %s\n' "$1" >&3
while read -r -t 10 line <&3; do
	line=${line%$'\r'}
	case $line in
	SUCCESS:*) echo "${line#SUCCESS: }"; exit 0 ;;
	ERROR:*) fail "${line#ERROR: }" 2 ;;
	esac
done
fail "no answer from $OPENVPN_MANAGEMENT" 3
