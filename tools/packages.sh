# Debian packages: one table says which and why; only what is missing gets installed, and no
# service of theirs is started or left enabled. Sourced by ./viw.

# group|package|why; package@12 is for Debian 12 only.
PACKAGES='
build|gcc|C compiler
build|libc6-dev|C library headers
build|cmake|build description
build|make|for plain `cmake --build`, and the Makefile
build|ninja-build|runs the build
build|pkg-config|finds the libraries
build|libssl-dev|HMAC, SHA-256, TLS, certificates
build|libjansson-dev|JSON of settings, manifests and HTTP bodies
build|libuv1-dev|event loop of bridge and agent
build|libwebsockets-dev|WebSocket and HTTP
build|libhiredis-dev|Redis protocol
build|libpq-dev|PostgreSQL protocol
build|libsystemd-dev|journal, D-Bus, socket activation in the helper
build|libseccomp-dev|syscall filter of the helper
build|libcurl4-openssl-dev|container engine API in the helper
run|libwebsockets-evlib-uv|lets libwebsockets run on the libuv loop
run|redis-server|private Redis of `up` and of tests
run|redis-tools|redis-cli
run|postgresql|private PostgreSQL of `up` and of tests; psql
run|curl|asks the HTTP endpoints
run|procps|process figures
run|util-linux|setpriv, flock, setsid
test|clang|second compiler of the warning check
test|libcmocka-dev|unit tests
test|python3|integration and end-to-end tests
test|python3-pytest|runs them
test|python3-websockets|a WebSocket client we did not write
test|node-ws|wscat, a WebSocket client for the terminal
test|python3-redis|a Redis client we did not write
test|python3-psycopg2|a PostgreSQL client we did not write
test|python3-yaml|reads compose files and manifests
test|python3-jsonschema|checks frames against the generated schema
test|openssl|makes test certificates, TLS client
test|nginx|terminates mTLS in front of the bridge in tests
test|libnginx-mod-stream|passes TLS through to bridges in tests
test|systemd|checks the shipped units
test|prometheus|promtool checks /metrics and alert rules
test|iproute2|brings loopback up in test namespaces
test|zsh|tries the completion of viwctl
test|man-db|judges the manual pages
test|e2fsprogs|chattr: a journal that cannot be written
test|strace|holds system calls back, or makes them fail, in tests
test|libfaketime|moves the clocks of programs in a test
test|user-mode-linux@12|a kernel with cgroup v2 alone, as a program
test|dbus|bus of systemd, in the tests of units
test|docker-compose|checks the compose files, beside podman-compose
test|kubectl@13|renders the Kubernetes manifests
test|git|lists the sources for the source checks
containers|podman|builds and runs images
containers|podman-compose|brings up compose files
containers|crun|runtime of podman
containers|iptables|what netavark opens and closes networks with
containers|netavark|networks of containers
containers|aardvark-dns|names of containers
package|debhelper|builds the packages
package|dpkg-dev|builds the packages
package|lintian|judges them
package|mmdebstrap|bare chroot to install them in
package|git|the files of the last commit
debian|mmdebstrap|a bare Debian of another release
debian|git|the files of this tree
fuzz|clang|libFuzzer
fuzz|libclang-rt-14-dev@12|libFuzzer runtime
fuzz|libclang-rt-19-dev@13|libFuzzer runtime
fmt|clang-format|formatting
fmt|clang-tidy|lint
fmt|cppcheck|lint
fmt|shellcheck|lint of scripts
fmt|git|what changed
bench|python3|drives the measurements
bench|python3-redis|counts what reached Redis
bench|nats-server|measured beside the bridge
bench|mosquitto|measured beside the bridge
bench|nodejs|measured beside the bridge
bench|linux-perf|profile of the bridge
'

# packages_need GROUP…: installs what these groups lack, saying what and why.
packages_need() {
	local group package why row installed missing=() rows=() release
	command -v dpkg-query >/dev/null || die "this is not Debian: install by hand what the table in tools/packages.sh lists"
	release=$(. /etc/os-release && echo "${VERSION_ID:-13}")
	while IFS='|' read -r group package why; do
		[[ $package != *@* || ${package#*@} = "$release" ]] || continue
		package=${package%@*}
		[[ -n $package && " $* " == *" $group "* && " ${missing[*]-} " != *" $package "* ]] || continue
		missing+=("$package")
		rows+=("$package|$why")
	done <<<"$PACKAGES"
	installed=$(dpkg-query -W -f '${Package} ${db:Status-Status}\n' "${missing[@]}" 2>/dev/null | sed -n 's/ installed$//p' | tr '\n' ' ') || true
	missing=()
	for row in "${rows[@]}"; do
		package=${row%%|*}
		[[ " $installed" == *" $package "* ]] && continue
		[ ${#missing[@]} -gt 0 ] || say "Missing Debian packages, to be installed:"
		printf '  %-24s %s\n' "$package" "${row#*|}"
		missing+=("$package")
	done
	[ ${#missing[@]} = 0 ] || packages_install "${missing[@]}"
}

# Installs with a policy that forbids starting services (invoke-rc.d asks it), and disables at the
# next boot the services that came with packages of ours; the machine's own are left alone.
packages_install() {
	local script began=$SECONDS
	note "(apt-get says nothing meanwhile; from nothing it takes a minute or two)"
	script=$(mktemp)
	cat >"$script" <<'ROOT'
set -eu
export DEBIAN_FRONTEND=noninteractive LC_ALL=C.UTF-8
policy=/usr/sbin/policy-rc.d made='' cluster=''
trap 'rm -f "$made" "$cluster" "$log"' EXIT
log=$(mktemp)
if [ ! -e $policy ]; then
	printf '#!/bin/sh\nexit 101\n' >$policy
	chmod 755 $policy
	made=$policy
fi
# One apt-get, after those of others: of the machine's own updates, often just after its start.
apt() {
	local try
	for try in $(seq 60); do
		apt-get -q -o DPkg::Lock::Timeout=120 "$@" >>"$log" 2>&1 && return
		tail -n 3 "$log" | grep -q 'Could not get lock /var/lib/apt' || return 1
		[ "$try" != 1 ] || echo "  (waiting for another apt-get)"
		sleep 2
	done
	return 1
}
told() { "$@" || { tail -n 30 "$log" >&2; exit 1; }; }
[ -n "$(find /var/lib/apt/lists -name '*_Packages*' -mmin -1440 -print -quit 2>/dev/null)" ] || told apt update
# No cluster of its own for a PostgreSQL that only brings its programs.
if [ ! -e /etc/postgresql-common/createcluster.conf ]; then
	mkdir -p /etc/postgresql-common/createcluster.d
	cluster=/etc/postgresql-common/createcluster.d/viworks.conf
	echo 'create_main_cluster = false' >$cluster
fi
apt -y --no-install-recommends install "$@" || {
	told apt update
	told apt -y --no-install-recommends install "$@"
}
if command -v systemctl >/dev/null; then
	for unit in redis-server postgresql nginx prometheus mosquitto nats-server; do
		case " $* " in *" $unit "*) systemctl --quiet disable "$unit" >/dev/null 2>&1 || true ;; esac
	done
fi
ROOT
	as_root bash "$script" "$@" || {
		rm -f "$script"
		die "installing packages failed (above is the end of what apt-get said)"
	}
	rm -f "$script"
	note "installed in $((SECONDS - began)) s"
}
