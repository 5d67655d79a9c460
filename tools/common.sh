# What every word of ./viw may use: messages, root, builds. Sourced; VIW_ROOT is the tree.

say() { printf '\033[1m%s\033[0m\n' "$*" | if [ -t 1 ]; then cat; else sed 's/\x1b\[[0-9;]*m//g'; fi; }
note() { printf '  %s\n' "$*"; }
die() {
	printf 'viw: %s\n' "$*" >&2
	exit 1
}

# args_only USAGE KNOWN… -- ARGUMENT…: refuses an argument that is none of the known ones.
args_only() {
	local usage=$1 known=' ' word
	while shift && [ "$1" != -- ]; do known+="$1 "; done
	shift
	for word; do [[ $known == *" $word "* ]] || args_refused "$word" "$usage"; done
}

args_refused() {
	if [ -n "$1" ]; then printf "viw: '%s' is not understood" "$1"; else printf 'viw: a word is missing'; fi >&2
	printf '; usage: ./viw %s\n' "$2" >&2
	exit 64
}

is_root() { [ "$(id -u)" = 0 ]; }

# Runs a command as root: directly, or through sudo.
as_root() {
	if is_root; then
		"$@"
	else
		command -v sudo >/dev/null || die "this needs root: run it as root, or install sudo and let $(id -un) use it"
		sudo "$@"
	fi
}

jobs_n() { nproc 2>/dev/null || echo 2; }

# Postgres' programs are not in PATH on Debian.
pg_bin() {
	local d
	d=$(ls -d /usr/lib/postgresql/*/bin 2>/dev/null | sort -V | tail -1)
	[ -n "$d" ] || die "PostgreSQL is not installed: apt-get install postgresql"
	echo "$d"
}

build_main() {
	local preset=${1:-release}
	build_presets | grep -qxe "$preset" || args_refused "$preset" "build [$(build_presets | paste -sd '|')] [target…]"
	case $preset in
	release) packages_need build ;;
	fuzz) packages_need build fuzz ;;
	*) packages_need build test ;;
	esac
	build_preset "$preset" "${@:2}"
}

build_presets() { sed -n 's/^ *{"name": "\([a-z]*\)", "inherits": .*/\1/p' CMakePresets.json; }

RUN_PROGRAMS='agent-bridge telemetry-writer results-writer gateway-agent host-helper viwctl viw-migrate'

run_main() {
	[[ " $RUN_PROGRAMS " == *" ${1:-?} "* ]] || args_refused "${1-}" "run NAME [arguments]; names: $RUN_PROGRAMS"
	packages_need build run
	build_preset release "$1"
	exec "build/release/bin/$1" "${@:2}"
}

# Configures once, builds always (ninja does nothing when nothing changed), and one at a time: two would tread on
# each other's files.
build_preset() {
	mkdir -p build
	{
		flock -n 8 || {
			note "build/$1 is being built by somebody else; waiting"
			flock 8
		}
		build_alone "$@"
	} 8>"build/.$1.lock"
}

build_alone() {
	local preset=$1
	shift
	[ -f "build/$preset/build.ninja" ] || cmake --preset "$preset" >"/tmp/viw-cmake.$$" 2>&1 || {
		cat "/tmp/viw-cmake.$$" >&2
		rm -f "/tmp/viw-cmake.$$"
		die "cmake --preset $preset failed"
	}
	rm -f "/tmp/viw-cmake.$$"
	if [ -t 1 ]; then
		ninja -C "build/$preset" -j "$(jobs_n)" "$@" || die "the build failed"
	else
		ninja -C "build/$preset" -j "$(jobs_n)" --quiet "$@" | { grep -v '^ninja: no work to do' || true; } ||
			die "the build failed"
	fi
}
