#!/bin/bash
# tools/man.sh OUT_DIR BIN_DIR: a manual page per program, from its own --help, so that it cannot
# say something else than the program does.
set -euo pipefail
out=$1 bin=$2
mkdir -p "$out"

# program|section|one line
PAGES='
agent-bridge|8|WebSocket connections of gateway agents
telemetry-writer|8|streams of telemetry into PostgreSQL
results-writer|8|commands and their results into PostgreSQL
viw-migrate|8|bring a database to the schema of the writers
gateway-agent|8|the agent of a site
host-helper|8|the privileged helper of a site
host-helper-verbs|8|built-in verbs of host-helper that look at the host
host-helper-containers|8|built-in verbs of host-helper that ask the container engine
viwctl|1|see and steer a fleet of gateways
'

troff_text() { # stdin as literal lines
	fold -s -w 90 | sed -e 's/\\/\\e/g' -e "s/^\([.']\)/\\\\\&\1/" -e 's/-/\\-/g'
}

section() { # NAME, stdin is its text
	printf '.SH %s\n.nf\n' "$1"
	troff_text
	printf '.fi\n'
}

viwctl_sections() { # its words with their options, its exit codes
	local word help
	help=$("$bin/viwctl" help)
	sed -n 's/^  \([a-z][a-z-]*\) .*/\1/p' <<<"$help" | while read -r word; do
		sed -n "s/^  $word  *\(.*\)/\1:/p" <<<"$help"
		"$bin/viwctl" "$word" --help
		echo
	done | section WORDS
	sed -n '/^Exit codes:/,$ { /^ /p }' <<<"$help" | section 'EXIT STATUS'
}

while IFS='|' read -r program section line; do
	[ -n "$program" ] && [ -x "$bin/$program" ] || continue
	{
		printf '.TH %s %s "" "ViWorkS Gateway" ""\n' "${program^^}" "$section"
		printf '.SH NAME\n%s \\- %s\n' "$program" "$line"
		"$bin/$program" --help | section DESCRIPTION
		if [ "$program" = viwctl ]; then
			viwctl_sections
		else
			printf '.SH EXIT STATUS\n0 clean stop, 78 configuration, 69 a needed service refused, 71 system error.\n'
		fi
	} >"$out/$program.$section"
done <<<"$PAGES"
