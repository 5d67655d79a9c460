# ./viw debian RELEASE [command…]: another Debian release, bare, in a chroot; this tree is copied into it (what is not
# committed too) and the command runs there, by default `./viw test`. Sourced by ./viw.
# The chroot stays in /var/tmp/viworks-debian/RELEASE (VIW_DEBIAN_DIR), with its packages and builds: the second run
# is quick. It shares this machine's network, and nothing else.

debian_main() {
	local release=${1-} dir
	[[ $release =~ ^[a-z]+$ ]] || args_refused "$release" 'debian RELEASE [command…], as in: ./viw debian trixie'
	shift
	[ $# -gt 0 ] || set -- ./viw test
	packages_need debian
	dir=${VIW_DEBIAN_DIR:-/var/tmp/viworks-debian}/$release
	[ -e "$dir/etc/debian_version" ] || debian_bootstrap "$release" "$dir"
	debian_copy "$dir"
	say "Debian $(as_root cat "$dir/etc/debian_version"): $*"
	debian_in "$dir" "$@"
}

debian_bootstrap() {
	local release=$1 dir=$2
	shift 2
	say "A bare Debian $release in $dir"
	as_root mkdir -p "${dir%/*}"
	as_root rm -rf "$dir.new"
	as_root mmdebstrap --variant=minbase --quiet "$@" "$release" "$dir.new" || die "mmdebstrap failed"
	printf '#!/bin/sh\nexit 101\n' | as_root tee "$dir.new/usr/sbin/policy-rc.d" >/dev/null
	as_root chmod 755 "$dir.new/usr/sbin/policy-rc.d"
	as_root mv "$dir.new" "$dir"
}

# The files git knows, as they are now, with their times (so that only what changed is built again), and a
# repository of their own with one commit: what the source checks and ./viw package ask.
debian_copy() {
	local tree=$1/viworks list
	list=$(mktemp)
	git ls-files -z >"$list"
	as_root mkdir -p "$tree"
	as_root find "$tree" -mindepth 1 -maxdepth 1 ! -name build -exec rm -rf {} +
	tar -c --null --ignore-failed-read --owner=0 --group=0 -T "$list" 2>/dev/null | as_root tar -x -C "$tree"
	rm -f "$list"
	as_root env HOME=/nonexistent git -C "$tree" init -q -b main
	as_root env HOME=/nonexistent git -C "$tree" add -A
	as_root env HOME=/nonexistent git -C "$tree" -c user.name=viw -c user.email=viw@localhost -c gc.auto=0 \
		commit -q -m "The tree of $(git rev-parse --short HEAD)"
}

# Runs a command in the chroot $1, at the copy of the tree, with processes, mounts and names of its own.
debian_in() {
	as_root unshare -m -p -u -i --fork --kill-child --propagation private bash -c '
		set -e
		root=$1; shift
		mount --bind "$root" "$root"
		mount -t proc proc "$root/proc"
		mount --rbind /sys "$root/sys"
		mount -t tmpfs -o mode=755 dev "$root/dev"
		for d in null zero full random urandom tty; do : >"$root/dev/$d"; mount --bind "/dev/$d" "$root/dev/$d"; done
		mkdir "$root/dev/pts" "$root/dev/shm"
		mount -t devpts -o newinstance,ptmxmode=0666,mode=620 devpts "$root/dev/pts"
		ln -s pts/ptmx "$root/dev/ptmx"
		mount -t tmpfs -o mode=1777 shm "$root/dev/shm"
		ln -s /proc/self/fd "$root/dev/fd"
		for n in 0 1 2; do ln -s "/proc/self/fd/$n" "$root/dev/std$(set -- in out err; shift $n; echo "$1")"; done
		cp -L /etc/resolv.conf "$root/etc/resolv.conf"
		hostname debian
		exec chroot "$root" env -i HOME=/root PATH=/usr/sbin:/usr/bin:/sbin:/bin TERM="${TERM:-dumb}" LANG=C.UTF-8 \
			bash -c "cd /viworks && exec \"\$@\"" bash "$@"' bash "$@"
}
