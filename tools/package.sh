# ./viw package: Debian packages of this tree's last commit, in dist/. Sourced by ./viw.
# --check: builds twice and compares the bytes, runs lintian, installs, upgrades, removes and purges
# in a chroot.

# Builds HEAD below $1; its packages end there. What comes after runs it: `env TZ=…`.
package_build() {
	local dir=$1
	shift
	mkdir -p "$dir/src"
	git archive HEAD | tar -x -C "$dir/src"
	(cd "$dir/src" && "$@" dpkg-buildpackage -b -us -uc >"$dir/log" 2>&1) ||
		{ tail -20 "$dir/log" >&2; die "dpkg-buildpackage failed; all of it: $dir/log"; }
	rm -f "$dir"/*-dbgsym_*.deb
}

# The packages in $1 again in $2 under the next version's number: what an upgrade needs. $3: a line that its
# settings have more.
package_next() {
	local deb tree file
	mkdir -p "$2"
	for deb in "$1"/*.deb; do
		tree=$(mktemp -d)
		dpkg-deb -R "$deb" "$tree"
		sed -i 's/^Version: .*/&+next/' "$tree/DEBIAN/control"
		for file in "$tree"/etc/viworks/*.env; do [ -z "${3-}" ] || [ ! -e "$file" ] || echo "$3" >>"$file"; done
		dpkg-deb --root-owner-group -b "$tree" "$2/$(basename "${deb/_amd64/+next_amd64}")" >/dev/null
		rm -rf "$tree"
	done
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
	echo 'Dpkg::Use-Pty "0";' | as_root tee "$1/etc/apt/apt.conf.d/99viw" >/dev/null # there is no /dev/pts
}

# Runs a command in the chroot $1, with a /proc of its own that goes with it.
package_in() {
	# shellcheck disable=SC2016
	as_root unshare --mount --propagation private sh -c 'mount -t proc proc "$0/proc" &&
		exec chroot "$0" env DEBIAN_FRONTEND=noninteractive LC_ALL=C.UTF-8 "$@"' "$@"
}

# Install, change conffiles and secrets, upgrade, remove, purge; what must be there at each step.
package_cycle() {
	local root=$1 debs=$2 program version file
	package_next "$debs" "$debs/next" '# Of the next version.'
	as_root mkdir -p "$root/debs"
	as_root cp -r "$debs"/*.deb "$debs/next" "$root/debs/"
	say "Install, upgrade with a changed setting, remove, purge"
	package_in "$root" sh -c 'apt-get -qq update && apt-get -qq -o APT::Sandbox::User=root install -y --no-install-recommends /debs/*.deb' >/dev/null
	for program in agent-bridge telemetry-writer results-writer gateway-agent host-helper host-helper-verbs host-helper-containers viwctl; do
		package_in "$root" "$program" --version >/dev/null || die "$program does not start"
	done
	package_in "$root" host-helper --check-config 2>&1 | grep 'built in' && die "the helper does not trust its own programs"
	for file in bash-completion/completions/viwctl zsh/vendor-completions/_viwctl viworks/sql/0001_roles.sql; do
		[ -s "$root/usr/share/$file" ] || die "/usr/share/$file is not installed"
	done
	package_in "$root" getent passwd viworks-agent viworks-bridge viworks-writer >/dev/null || die "users are missing"
	echo 'AGENT_BRIDGE_MAX_CONN=7' | as_root tee "$root/etc/viworks/agent-bridge.env" >/dev/null
	package_in "$root" sh -c 'cd /etc/viworks && stat -c "%a %U %s" agent-bridge.shared-secret agent-bridge.admin-token' |
		grep -cx '400 root 6[45]' | grep -qx 2 || die "the bridge's secrets are not made, or are open to others"
	package_in "$root" sh -c 'sha256sum /etc/viworks/agent-bridge.* >/before'
	package_in "$root" sh -c 'apt-get -qq -o Dpkg::Options::=--force-confold install -y /debs/next/*.deb' >/dev/null
	version=$(package_in "$root" dpkg-query -W -f '${Version}\n' 'viworks-*' viwctl | sort -u)
	[[ $version == *+next ]] || die "not upgraded: $version"
	package_in "$root" sha256sum --quiet -c /before || die "an upgrade changed a setting or a secret"
	grep -q MAX_CONN=7 "$root/etc/viworks/agent-bridge.env" || die "an upgrade lost a changed setting"
	grep -q 'Of the next version' "$root/etc/viworks/results-writer.env" || die "an upgrade kept settings that nobody changed"
	package_in "$root" apt-get -qq remove -y 'viworks-*' viwctl >/dev/null
	package_in "$root" sha256sum --quiet -c /before || die "remove took settings or secrets"
	[ ! -e "$root/usr/bin/agent-bridge" ] || die "remove left a program"
	package_in "$root" dpkg --purge viworks-agent-bridge viworks-workers viworks-gateway-agent viworks-host-helper viwctl >/dev/null 2>&1
	package_left "$root"
	echo "  installed, upgraded, removed and purged"
}

# What a purge left behind of ours: nothing but the users, whom files of theirs may outlive.
package_left() {
	local left
	left=$(package_in "$1" find / -xdev \( -path /proc -o -path /debs -o -path /var/lib/apt -o -path /var/cache -o -path /var/log \) -prune \
		-o \( -iname '*viworks*' -o -name '*agent-bridge*' -o -name 'viw*' \) -print | grep -v '^/usr/lib/sysusers.d') || true
	[ -z "$left" ] || die "purge left: $left"
}

package_main() {
	args_only 'package [--check]' --check -- "$@"
	[ "${1-}" != --check ] || as_root true # before two builds
	packages_need build package
	git diff --quiet HEAD || echo "note: packages hold the last commit, not what is changed since" >&2
	local work
	work=$(mktemp -d)
	trap 'as_root rm -rf "$work"; exit 130' INT TERM HUP
	say "Building packages"
	package_build "$work/a" env DEB_BUILD_OPTIONS="parallel=$(jobs_n)"
	mkdir -p dist
	rm -f dist/*.deb
	cp "$work"/a/*.deb dist/
	if [ "${1-}" = --check ]; then
		say "Building them again: another folder, later, another time zone and umask, one job"
		(umask 077 && package_build "$work/another/folder/b" env DEB_BUILD_OPTIONS=parallel=1 TZ=Pacific/Kiritimati LC_ALL=C.UTF-8)
		for deb in "$work"/another/folder/b/*.deb; do
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
