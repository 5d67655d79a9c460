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
viwctl|1|see and steer a fleet of gateways
'

troff_text() { # stdin as literal lines
	sed -e 's/\\/\\e/g' -e "s/^\([.']\)/\\\\\&\1/" -e 's/-/\\-/g'
}

while IFS='|' read -r program section line; do
	[ -n "$program" ] && [ -x "$bin/$program" ] || continue
	{
		printf '.TH %s %s "" "ViWorkS Gateway" ""\n' "${program^^}" "$section"
		printf '.SH NAME\n%s \\- %s\n.SH DESCRIPTION\n.nf\n' "$program" "$line"
		"$bin/$program" --help | fold -s -w 90 | troff_text
		printf '.fi\n'
		if [ "$program" = viwctl ]; then
			printf '.SH WORDS\n.nf\n'
			"$bin/$program" help | fold -s -w 100 | troff_text
			printf '.fi\n'
		fi
		printf '.SH EXIT STATUS\n0 clean stop, 78 configuration, 69 a needed service refused, 71 system error.\n'
	} >"$out/$program.$section"
done <<<"$PAGES"
