# ./viw fmt: clang-format, clang-tidy and cppcheck on what changed, shellcheck on every script. Sourced by ./viw.

fmt_scripts() {
	local scripts
	mapfile -t scripts < <(git grep -lIE '^#!/bin/(ba)?sh' -- ':!*.py' ':!*.md')
	say "shellcheck: ${#scripts[@]} scripts"
	shellcheck "${scripts[@]}" && shellcheck -s bash tools/*.sh
}

# fmt_main [--check] [--all] [base]: what differs from base (default: where this branch left main,
# else the last commit) or is not committed; --check changes nothing and fails when something is off.
fmt_main() {
	local check='' all='' base='' word files=() sources=() bad=0
	for word in "$@"; do
		case $word in
		--check) check=1 ;;
		--all) all=1 ;;
		*)
			base=$(git rev-parse -q --verify --end-of-options "$word^{commit}") ||
				args_refused "$word" 'fmt [--check] [--all] [base commit]'
			;;
		esac
	done
	packages_need build fmt
	fmt_scripts || bad=1
	if [ -n "$all" ]; then
		mapfile -t files < <(git ls-files '*.c' '*.h')
	else
		[ -n "$base" ] || base=$(git merge-base HEAD main 2>/dev/null) || base=HEAD
		[ "$base" != "$(git rev-parse HEAD)" ] || base=$(git rev-parse -q --verify HEAD~1 || git rev-parse HEAD)
		mapfile -t files < <({
			git diff --name-only --diff-filter=d "$base" -- '*.c' '*.h'
			git ls-files --others --exclude-standard '*.c' '*.h'
		} | sort -u)
	fi
	if [ ${#files[@]} = 0 ]; then
		note "no C file changed"
		return $bad
	fi
	say "clang-format: ${#files[@]} files"
	if [ -n "$check" ]; then
		clang-format --dry-run -Werror "${files[@]}" || bad=1
	else
		clang-format -i "${files[@]}"
	fi
	for word in "${files[@]}"; do [[ $word == *.c && $word != tests/* ]] && sources+=("$word"); done
	if [ ${#sources[@]} -gt 0 ]; then
		# clang-tidy reads how each file is compiled; Clang's own build, so that it knows every flag.
		[ -f build/clang/build.ninja ] || cmake -S . -B build/clang -G Ninja -DCMAKE_C_COMPILER=clang \
			-DCMAKE_BUILD_TYPE=Debug -DVIW_TESTS=ON >/dev/null
		cmake -S . -B build/clang -DCMAKE_EXPORT_COMPILE_COMMANDS=ON >/dev/null
		say "clang-tidy: ${#sources[@]} files"
		printf '%s\0' "${sources[@]}" | xargs -0 -n 4 -P "$(jobs_n)" clang-tidy --quiet -p build/clang 2>/dev/null || bad=1
		say "cppcheck: ${#sources[@]} files"
		cppcheck --quiet -j "$(jobs_n)" --std=c11 --enable=warning,performance,portability --inline-suppr \
			--suppress=missingInclude --suppress=uninitvar:lib/verbs/args.c \
			--suppress=invalidFunctionArgBool:lib/verbs/redact.c --error-exitcode=1 -Ilib "${sources[@]}" || bad=1
	fi
	return $bad
}
