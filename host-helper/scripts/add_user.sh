#!/bin/bash
# create_panel_user: a login without a shell. argv: username; stdin: userpass.
. "${0%/*}/common.sh"
user=$1
IFS= read -r pass
args=()
[ -z "$ROOT" ] || args=(-R "$ROOT")
useradd "${args[@]}" --no-create-home --shell /usr/sbin/nologin --comment "viworks panel" -- "$user"
printf '%s:%s\n' "$user" "$pass" | chpasswd "${args[@]}" --crypt-method SHA512 || {
	userdel "${args[@]}" -- "$user"
	fail "the password could not be set; the user was removed"
}
echo "created $user"
