# ./viw test, fuzz, bench, chaos. Sourced by ./viw.

TEST_PASSED=0
TEST_FAILED=0

# Adds a JUnit file's counts (ctest and pytest both write one) to the sums.
test_count() {
	local file=$1 tests=0 failures=0 errors=0 skipped=0 attr
	[ -s "$file" ] || {
		TEST_FAILED=$((TEST_FAILED + 1)) # it broke before it could report
		return
	}
	for attr in tests failures errors skipped; do
		printf -v "$attr" '%s' "$(grep -o '<testsuite [^>]*>' <(tr '\n\t' '  ' <"$file") | grep -o " $attr=\"[0-9]*\"" |
			tr -dc '0-9\n' | awk '{s += $1} END {print s + 0}')"
	done
	TEST_FAILED=$((TEST_FAILED + failures + errors))
	TEST_PASSED=$((TEST_PASSED + tests - failures - errors - skipped))
}

# A build without a test report of its own counts as one test: -Werror makes a warning a failure.
test_build() {
	local what=$1
	shift
	say "$what"
	if ("$@"); then TEST_PASSED=$((TEST_PASSED + 1)); else TEST_FAILED=$((TEST_FAILED + 1)); fi
}

test_clang_build() {
	[ -f build/clang/build.ninja ] || cmake -S . -B build/clang -G Ninja -DCMAKE_C_COMPILER=clang \
		-DCMAKE_BUILD_TYPE=Debug -DVIW_TESTS=ON >/dev/null || return 1
	ninja -C build/clang -j "$(jobs_n)" --quiet
}

# test_pytest LANE paths…: with the options of test_main; an empty LANE holds all tests. Failed tests (1) are in its
# report, a lane without a test (5) is none; ended in any other way it is not to be trusted: a failure.
test_pytest() {
	local lane=$1 late=''
	shift
	case $lane in first | second) late=$report/late ;; esac
	as_root env VIW_TEST_LATE="$late" PYTHONDONTWRITEBYTECODE=1 VIW_BIN="${VIW_BIN:-$VIW_ROOT/build/dev/bin}" VIW_TEST_LANE="$lane" /usr/bin/python3 -m pytest \
		-c tests/pytest.ini --rootdir "$VIW_ROOT" --junit-xml="$report/${lane:-all}.xml" "${options[@]}" "$@" || case $? in 1 | 5) ;; *) return 1 ;; esac
}

# The lane $1 was: without a report test_count counts it.
test_broke() {
	echo "viw: pytest did not come to its end (lane: $1)" >&2
	[ ! -s "$report/$1.xml" ] || TEST_FAILED=$((TEST_FAILED + 1))
}

# A whole run: two lanes side by side, since most tests wait more than they work, then one alone. Which test is
# in which lane: tests/conftest.py.
test_lanes() {
	local lane
	as_root true # a password is asked for before there are two who could ask
	test_pytest second "$@" >"$report/second.log" 2>&1 &
	test_pytest first "$@" || test_broke first
	wait $! || test_broke second
	cat "$report/second.log"
	test_pytest last "$@" || test_broke last
	for lane in first second last; do test_count "$report/$lane.xml"; done
	test_late
}

# A few tests of the first two lanes whose only fault was that something came too late run once more, alone; what
# passes then is named above the verdict. Any other failure, and any in the last lane, stays what it is.
test_late() {
	local late=() failed=$TEST_FAILED passed=$TEST_PASSED
	[ -s "$report/late" ] && mapfile -t late < <(sort -u "$report/late")
	[ ${#late[@]} -gt 0 ] && [ ${#late[@]} -le 3 ] && [ ${#late[@]} = "$failed" ] || return 0
	! grep -q '^wrong ' "$report/late" || return 0
	late=("${late[@]#late }")
	say "Too late beside other tests, now alone"
	printf '  %s\n' "${late[@]}"
	TEST_FAILED=0 TEST_PASSED=0 # of these alone
	test_pytest '' "${late[@]}" || test_broke all
	test_count "$report/all.xml"
	if [ $TEST_FAILED = 0 ] && [ $TEST_PASSED = ${#late[@]} ]; then
		say "Passed only alone: a race or a bound to be mended"
		printf '  %s\n' "${late[@]}"
		failed=0 passed=$((passed + TEST_PASSED))
	fi
	TEST_FAILED=$failed TEST_PASSED=$passed
}

# test_main [-k expression] [paths…]: paths choose pytest files, -k also chooses C unit tests.
test_main() {
	local expression='' paths=() options=() whole=no
	while [ $# -gt 0 ]; do
		case $1 in
		-k)
			[ -n "${2-}" ] || args_refused -k 'test [-k expression] [paths]'
			expression=$2
			options+=(-k "$expression")
			shift
			;;
		-*) options+=("$1") ;;
		*) paths+=("$1") ;;
		esac
		shift
	done
	packages_need build run test containers
	local began=$SECONDS
	report=$(mktemp -d)
	trap 'exit 130' INT TERM HUP # else what was interrupted goes on with the next lane
	trap 'wait; as_root rm -rf "$report"' EXIT
	test_build "Build: GCC with AddressSanitizer and UBSan (build/dev)" build_preset dev
	[ $TEST_FAILED = 0 ] || test_verdict
	if [ ${#paths[@]} -gt 0 ] || [ -n "$expression" ]; then
		TEST_PASSED=0 # the builds count in a whole run only
	else
		whole=yes
		test_build "Build: Clang, no warnings (build/clang)" test_clang_build
		test_build "Build: release, no warnings (build/release)" build_preset release
		test_build "Build: crash points for tests/chaos (build/chaos)" build_preset chaos
	fi
	if [ ${#paths[@]} = 0 ]; then
		say "Unit tests (C)"
		ctest --test-dir build/dev -j "$(jobs_n)" --timeout 120 --output-on-failure --output-junit "$report/ctest.xml" \
			${expression:+-R "$expression"} || true
		test_count "$report/ctest.xml"
		paths=(tests/unit tests/integration tests/e2e tests/chaos)
	fi
	say "Source, integration and end-to-end tests"
	if [ "$whole" = yes ]; then
		test_lanes "${paths[@]}"
	else
		test_pytest '' "${paths[@]}" || test_broke all
		test_count "$report/all.xml"
	fi
	echo "took $((SECONDS - began)) s"
	test_verdict
}

test_verdict() {
	echo "$TEST_PASSED passed, $TEST_FAILED failed"
	[ $TEST_FAILED = 0 ] && [ $TEST_PASSED -gt 0 ]
	exit
}

fuzz_main() {
	packages_need build fuzz
	exec tests/fuzz/run "$@"
}

bench_main() {
	[ -x bench/run ] || die "bench/run is missing"
	packages_need build run bench
	build_preset release
	exec bench/run "$@"
}

chaos_main() {
	packages_need build run test
	as_root tests/chaos/run "$@"
}
