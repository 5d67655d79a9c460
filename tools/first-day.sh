# ./viw first-day: docs/first-day.md, by doing it: two bare Debian machines, the packages of the last commit.
# Sourced by ./viw.

first_day_main() {
	[ "${1-}" = --debs ] && [ -n "${2-}" ] || args_only 'first-day [--debs FOLDER]' -- "$@"
	packages_need build run test package debian
	local release work root=${VIW_DEBIAN_DIR:-/var/tmp/viworks-debian}/first-day
	release=$(. /etc/os-release && echo "$VERSION_CODENAME")
	work=$(mktemp -d)
	trap 'as_root rm -rf "$work"; exit 130' INT TERM HUP
	if [ "${1-}" = --debs ]; then
		mkdir "$work/a" && cp "$2"/*.deb "$work/a/"
	else
		say "Building packages"
		package_build "$work/a" env DEB_BUILD_OPTIONS="parallel=$(jobs_n)"
	fi
	package_next "$work/a" "$work/next"
	[ -e "$root/etc/debian_version" ] || debian_bootstrap "$release" "$root" --include=systemd-sysv,dbus,iproute2
	as_root rm -f "$root/usr/sbin/policy-rc.d" # machines of their own start what is installed
	as_root rm -rf "$root/debs"
	as_root mkdir "$root/debs"
	as_root cp "$work"/a/*.deb "$root/debs/"
	package_in "$root" sh -c 'apt-get -qq update && apt-get -qq -o APT::Sandbox::User=root -y --download-only install \
		redis-server postgresql /debs/*.deb' >/dev/null
	say "The day"
	as_root env PYTHONDONTWRITEBYTECODE=1 /usr/bin/python3 tools/first_day.py "$root" "$work/a" "$work/next" "$work/first-day.md"
	cp "$work/first-day.md" docs/first-day.md
	as_root rm -rf "$work"
}
