#!/bin/sh
# agent-rootfs.sh BINARY DEST: the whole root file system of the gateway-agent image: the program, the
# libraries it loads, nothing else (no shell, no package manager).
set -eu
bin=$1 dest=$2
mkdir -p "$dest/usr/bin" "$dest/tmp" "$dest/etc/ssl" "$dest/run/viworks" "$dest/var/lib"
cp "$bin" "$dest/usr/bin/gateway-agent"
if command -v strip >/dev/null; then strip "$dest/usr/bin/gateway-agent"; fi

# libwebsockets loads its libuv part by name at run time.
plugin=$(ls /usr/lib/*/libwebsockets-evlib_uv.so)
{ ldd "$bin"; ldd "$plugin"; echo "x => $plugin (0)"; } |
	sed -n 's/.*=> \(\/[^ ]*\) .*/\1/p; s/^[[:space:]]*\(\/[^ ]*ld-linux[^ ]*\) .*/\1/p' | sort -u |
	while read -r lib; do
		mkdir -p "$dest$(dirname "$lib")"
		cp -L "$lib" "$dest$lib"
	done
printf 'nobody:x:65534:65534:nobody:/:/\n' > "$dest/etc/passwd"
printf 'nogroup:x:65534:\n' > "$dest/etc/group"
printf 'hosts: files dns\n' > "$dest/etc/nsswitch.conf"
chmod 1777 "$dest/tmp"
