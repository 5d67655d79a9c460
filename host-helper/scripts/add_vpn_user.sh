#!/bin/bash
# create_openvpn_user. argv: username, source_ip, timeout; stdin: userpass, key, hmac_key (the last two may be empty).
. "${0%/*}/common.sh"
user=$1 source=$2 timeout=$3
IFS= read -r pass
IFS= read -r key || true
IFS= read -r hmac || true
mkdir -p "$OPENVPN_DIR/users" "$OPENVPN_DIR/ccd"
lock "$OPENVPN_DIR/users"
[ ! -e "$OPENVPN_DIR/users/$user" ] || fail "user $user exists" 17
keep_others "$OPENVPN_DIR/ccd/$user" "$FWKNOP_DIR/$user.conf"
hash=$(printf '%s\n' "$pass" | hash_password)
printf '%s:%s:%s:%s\n' "$user" "$hash" "$source" "$(expiry "$timeout")" |
	write_file "$OPENVPN_DIR/users/$user" 0600
echo "$MADE" | write_file "$OPENVPN_DIR/ccd/$user" 0644
[ -z "$key" ] || fwknop_stanza "$user" "$source" "$timeout" "$key" "$hmac"
echo "created $user for $source until $(expiry "$timeout")"
