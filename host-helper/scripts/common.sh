# Sourced by every script here. Settings come from viworks.conf beside this file, when it exists: same folder,
# same owner, so nobody but root can set them. The helper passes an empty environment.
set -euo pipefail
umask 077

ROOT=                                   # users are made in this tree; empty: the host's own
OPENVPN_DIR=/etc/openvpn/server
OPENVPN_STATUS=/run/openvpn/server.status
OPENVPN_MANAGEMENT=127.0.0.1:7505
FWKNOP_DIR=/etc/fwknop/access.d
FWKNOP_RELOAD=                          # a command; empty: none
BOOTSTRAP_DIR=/var/lib/viworks/bootstrap
RELOADABLE="openvpn-server@server.service fwknop-server.service nginx.service"

HERE=${BASH_SOURCE[0]%/*}
[ ! -f "$HERE/viworks.conf" ] || . "$HERE/viworks.conf"

fail() {
	echo "$1" >&2
	exit "${2:-1}"
}

# write_file PATH MODE < text: whole or not at all. What a kill leaves half written is hidden: no user's name begins with a dot.
write_file() {
	local tmp
	tmp=$(mktemp "${1%/*}/.${1##*/}.XXXXXX")
	cat >"$tmp"
	chmod "$2" "$tmp"
	sync -d "$tmp"
	mv -f -- "$tmp" "$1"
}

# Files made here begin with this line; others, an operator's, are never replaced or removed.
MADE="# made by viworks"

ours() {
	local first=
	[ ! -f "$1" ] || read -r first <"$1" || true
	[ "$first" = "$MADE" ]
}

# keep_others PATH…: ends unless each is absent or ours.
keep_others() {
	local f
	for f in "$@"; do
		[ ! -e "$f" ] || ours "$f" || fail "$f is not made by viworks; it is left as it is" 17
	done
}

# One at a time over files that several verbs share. The lock goes with the process.
lock() {
	exec 9>"$1.lock"
	flock -w 20 9 || fail "another run holds $1.lock" 75
}

expiry() {
	date -u -d "@$(($(date +%s) + $1))" +%Y-%m-%dT%H:%M:%SZ
}

hash_password() {
	openssl passwd -6 -stdin
}

# fwknop_stanza USER SOURCE TIMEOUT KEY HMAC_KEY: one access stanza, keys by standard input only.
fwknop_stanza() {
	mkdir -p "$FWKNOP_DIR"
	keep_others "$FWKNOP_DIR/$1.conf"
	{
		echo "$MADE"
		echo "SOURCE $2"
		echo "REQUIRE_USERNAME $1"
		echo "FW_ACCESS_TIMEOUT $3"
		echo "KEY_BASE64 $4"
		[ -z "$5" ] || echo "HMAC_KEY_BASE64 $5"
	} | write_file "$FWKNOP_DIR/$1.conf" 0600
	[ -z "$FWKNOP_RELOAD" ] || $FWKNOP_RELOAD
}
