# ./viw package: Debian packages of this tree's last commit, in dist/. Sourced by ./viw.
# --check: builds twice and compares the bytes, runs lintian, installs, upgrades, removes and purges
# in a chroot.

# Builds HEAD below $1; its packages end there. The link-time optimizer orders symbols by the path it
# works in, so two builds give the same bytes in the same folder (.buildinfo names it), not in any.
package_build() {
	local dir=$1
	mkdir -p "$dir/src"
	git archive HEAD | tar -x -C "$dir/src"
	(cd "$dir/src" && DEB_BUILD_OPTIONS="parallel=$(jobs_n)" dpkg-buildpackage -b -us -uc >"$dir/log" 2>&1) ||
		{ tail -20 "$dir/log" >&2; die "dpkg-buildpackage failed; all of it: $dir/log"; }
	rm -f "$dir"/*-dbgsym_*.deb
}

package_lintian() {
	local found
	found=$(lintian --tag-display-limit 0 --allow-root "$@" 2>&1 | grep -v '^running with root') || true
	[ -z "$found" ] || { printf '%s\n' "$found" >&2; die "lintian is not silent"; }
	echo "  lintian is silent"
}

# A bare Debian of this release in $1.
package_chroot() {
	say "A bare chroot"
	local sources=()
	for file in /etc/apt/sources.list /etc/apt/sources.list.d/debian.sources; do
		[ ! -s "$file" ] || sources+=("$file")
	done
	as_root mmdebstrap --variant=minbase --quiet "$(. /etc/os-release && echo "$VERSION_CODENAME")" "$1" \
		"${sources[@]}" >/dev/null
	printf '#!/bin/sh\nexit 101\n' | as_root tee "$1/usr/sbin/policy-rc.d" >/dev/null
	as_root chmod 755 "$1/usr/sbin/policy-rc.d"
}

# Runs a command in the chroot $1, with a /proc of its own that goes with it.
package_in() {
	# shellcheck disable=SC2016
	as_root unshare --mount --propagation private sh -c 'mount -t proc proc "$0/proc" &&
		exec chroot "$0" env DEBIAN_FRONTEND=noninteractive LC_ALL=C.UTF-8 "$@"' "$@"
}

# Install, change a conffile, install again, remove, purge; what must be there at each step.
package_cycle() {
	local root=$1 debs=$2 program
	as_root mkdir -p "$root/debs"
	as_root cp "$debs"/*.deb "$root/debs/"
	say "Install, upgrade with a changed setting, remove, purge"
	package_in "$root" sh -c 'apt-get -qq update && apt-get -qq -o APT::Sandbox::User=root install -y --no-install-recommends /debs/*.deb' >/dev/null
	for program in agent-bridge telemetry-writer results-writer gateway-agent host-helper viwctl; do
		package_in "$root" "$program" --version >/dev/null || die "$program does not start"
	done
	package_in "$root" getent passwd viworks-agent viworks-bridge viworks-writer >/dev/null || die "users are missing"
	echo 'AGENT_BRIDGE_MAX_CONN=7' | as_root tee "$root/etc/viworks/agent-bridge.env" >/dev/null
	package_in "$root" sh -c 'apt-get -qq install -y --reinstall /debs/*.deb' >/dev/null
	grep -q MAX_CONN=7 "$root/etc/viworks/agent-bridge.env" || die "an upgrade lost a changed setting"
	package_in "$root" apt-get -qq remove -y 'viworks-*' viwctl >/dev/null
	[ -e "$root/etc/viworks/agent-bridge.env" ] || die "remove took the settings"
	package_in "$root" dpkg --purge viworks-agent-bridge viworks-workers viworks-gateway-agent viworks-host-helper >/dev/null
	[ ! -e "$root/etc/viworks/agent-bridge.env" ] && [ ! -e "$root/usr/bin/agent-bridge" ] || die "purge left files"
	echo "  installed, upgraded, removed and purged"
}

package_main() {
	packages_need build package
	git diff --quiet HEAD || echo "note: packages hold the last commit, not what is changed since" >&2
	local work
	work=$(mktemp -d)
	say "Building packages"
	package_build "$work/a"
	mkdir -p dist
	rm -f dist/*.deb
	cp "$work"/a/*.deb dist/
	if [ "${1-}" = --check ]; then
		say "Building them again"
		rm -rf "$work/a"
		package_build "$work/a"
		for deb in "$work"/a/*.deb; do
			cmp "$deb" "dist/${deb##*/}" || die "${deb##*/}: two builds differ"
		done
		echo "  the same bytes"
		package_lintian "$work"/a/*.deb
		package_chroot "$work/root"
		package_cycle "$work/root" "$work/a"
	fi
	as_root rm -rf "$work"
	ls -l dist/*.deb
}
