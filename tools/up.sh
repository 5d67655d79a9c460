# ./viw up and its companions. Sourced by ./viw.
#
# Everything lives under .run, a link to a root-owned directory of this tree's own (the helper runs
# only what nobody but root can change, and other users must be able to pass through to theirs):
#   redis/ pg/        data and sockets            log/ pid/    one file a program
#   secret/           made once, 0400             env          what the other words need to connect
#   helper/ verbs.d/ scripts/  root's             agent/ bin/  the unprivileged agent's
# VIW_UP_DIR names another directory, VIW_PRESET another build (tests use both).

UP_DIR=${VIW_UP_DIR:-/var/lib/viworks-up/$(cksum <<<"$VIW_ROOT" | cut -d' ' -f1)}
UP_PRESET=${VIW_PRESET:-release}
UP_BIN=$VIW_ROOT/build/$UP_PRESET/bin
UP_AGENT_USER=nobody

# ---- starting and ending by pid ----

# pid and start time name one process for good: a recycled pid has another start time.
up_start_time() {
	local stat
	stat=$(cat "/proc/$1/stat" 2>/dev/null) || return 1
	stat=${stat##*) }
	# shellcheck disable=SC2086 # words it is made of
	set -- $stat
	echo "${20}"
}

up_alive() {
	local pid started
	read -r pid started 2>/dev/null <"$UP_DIR/pid/$1" || return 1
	[ "$(up_start_time "$pid")" = "$started" ]
}

# up_spawn NAME USER VAR=value… -- command…: a process in a session of its own, with a clean
# environment, its pid and start time in pid/NAME, its output in log/NAME. USER - is the caller.
up_spawn() {
	local name=$1 user=$2 vars=() run=()
	shift 2
	while [ "$1" != -- ]; do
		vars+=("$1")
		shift
	done
	shift
	[ "$user" = - ] || run=(setpriv "--reuid=$user" "--regid=$(id -g "$user")" --clear-groups)
	[ "$user" = root ] && run=()
	[ -f "$UP_DIR/log/$name" ] && mv -f "$UP_DIR/log/$name" "$UP_DIR/log/$name.1"
	: >"$UP_DIR/log/$name"
	: >"$UP_DIR/pid/$name"
	local start='cd /; stat=$(cat /proc/$$/stat); stat=${stat##*) }; set -f; pid=$1; log=$2; shift 2
		n=0; for f in $stat; do n=$((n + 1)); [ $n = 20 ] && break; done
		echo "$$ $f" >"$pid"; exec "$@" </dev/null >>"$log" 2>&1'
	local cmd=(setsid sh -c "$start" sh "$UP_DIR/pid/$name" "$UP_DIR/log/$name"
		"${run[@]}" env -i "PATH=$PATH" LANG=C.UTF-8 "${vars[@]}" "$@")
	if [ "$user" = - ] || is_root; then
		"${cmd[@]}" &
	else
		sudo -n "${cmd[@]}" </dev/null &
	fi
	disown $!
}

# up_end NAME: asks it to stop, insists after 10 s. The order of ends is up_stop's.
up_end() {
	local name=$1 pid started signal=TERM kill=kill i
	up_alive "$name" || {
		rm -f "$UP_DIR/pid/$name"
		return 0
	}
	read -r pid started <"$UP_DIR/pid/$name"
	[ "$name" = postgres ] && signal=INT # fast shutdown
	[ "$(stat -c %u "/proc/$pid")" = "$(id -u)" ] || kill="as_root kill"
	$kill -s "$signal" "$pid" 2>/dev/null || true
	for ((i = 0; i < 500; i++)); do
		up_alive "$name" || break
		sleep 0.02
	done
	if up_alive "$name"; then
		note "$name did not stop in 10 s; killed"
		$kill -s KILL "$pid" 2>/dev/null || true
	fi
	rm -f "$UP_DIR/pid/$name"
}

UP_ALL=(gateway-agent agent-bridge telemetry-writer results-writer host-helper redis postgres)

up_stop() {
	local IFS=$' \t\n' name # an interrupt may come while a `read` has another one
	for name in "${UP_ALL[@]}"; do up_end "$name"; done
}

# up_wait SECONDS NAME WHAT command…: until the command succeeds; when NAME dies or time is up, says
# so with the end of its log.
up_wait() {
	local seconds=$1 name=$2 what=$3 i
	shift 3
	for ((i = 0; i < seconds * 50; i++)); do
		"$@" >/dev/null 2>&1 && return 0
		# Just spawned: it has not written its pid yet.
		if [ -s "$UP_DIR/pid/$name" ] && ! up_alive "$name"; then
			up_fail "$name ended while we waited for: $what" "$name"
		fi
		sleep 0.02
	done
	up_fail "not within $seconds s: $what" "$name"
}

up_fail() {
	printf 'viw: %s\n' "$1" >&2
	if [ -n "${2-}" ] && [ -s "$UP_DIR/log/$2" ]; then
		printf 'viw: the end of %s:\n' ".run/log/$2" >&2
		tail -n 15 "$UP_DIR/log/$2" >&2
	fi
	exit 1
}

# ---- laying out .run ----

up_own() { # up_own USER MODE directory…
	local user=$1 mode=$2
	shift 2
	[ "$user" = - ] && user=$(id -un)
	if is_root || [ "$user" != "$(id -un)" ] || [ ! -O "${1%/*}" ]; then
		as_root install -d -o "$user" -g "$(id -g "$user")" -m "$mode" "$@"
	else
		install -d -m "$mode" "$@"
	fi
}

up_secret() { # up_secret file: 32 random bytes as hex, made once
	[ -s "$1" ] || (umask 277 && od -An -N32 -tx1 /dev/urandom | tr -d ' \n' >"$1")
}

up_layout() {
	local pg_user=-
	is_root && pg_user=postgres
	if [ ! -d "$UP_DIR/secret" ]; then
		up_own root 755 "$UP_DIR"
		up_own - 755 "$UP_DIR"/{log,pid}
		up_own - 700 "$UP_DIR"/{redis,secret}
		up_own $pg_user 700 "$UP_DIR/pg"
		up_own $UP_AGENT_USER 700 "$UP_DIR/agent"
		up_own root 700 "$UP_DIR/helper"
		up_own root 755 "$UP_DIR"/{bin,verbs.d,scripts,socket}
	fi
	if [ -z "${VIW_UP_DIR-}" ]; then
		[ -L .run ] || [ ! -e .run ] || die ".run is in the way: it should be a link to $UP_DIR"
		ln -sfn "$UP_DIR" .run
	fi
	up_secret "$UP_DIR/secret/shared"
	up_secret "$UP_DIR/secret/helper"
	up_secret "$UP_DIR/secret/admin"
	[ -s "$UP_DIR/secret/admin.header" ] ||
		(umask 277 && printf 'Authorization: Bearer %s\n' "$(cat "$UP_DIR/secret/admin")" >"$UP_DIR/secret/admin.header")
	# Copies for those who cannot or must not read ours. The agent's program too: the tree may be
	# where only its owner may look. And the helper's: it starts nothing that is not root's own.
	local id
	id=$(id -u $UP_AGENT_USER)
	as_root sh -c 'set -eu; d=$1 uid=$2 gid=$3 bin=$4 tree=$5
		install -o root -g root -m 400 $d/secret/helper $d/helper/secret
		install -o $uid -g $gid -m 400 $d/secret/helper $d/agent/helper.secret
		install -o $uid -g $gid -m 400 $d/secret/shared $d/agent/shared.secret
		for p in gateway-agent host-helper host-helper-verbs host-helper-containers; do
			cmp -s "$bin/$p" $d/bin/$p || install -m 755 "$bin/$p" $d/bin/$p
		done
		install -m 755 "$tree"/demo/leave_note.sh $d/scripts/
		sed "s|@DIR@|$d|" "$tree"/demo/leave_note.json >$d/verbs.d/leave_note.json
		chmod 644 $d/verbs.d/leave_note.json' \
		sh "$UP_DIR" "$id" "$(id -g $UP_AGENT_USER)" "$UP_BIN" "$VIW_ROOT"
}

up_port() { # up_port WISH: that port of 127.0.0.1, or the next one nobody listens on
	local port=$1
	while (exec 3<>"/dev/tcp/127.0.0.1/$port") 2>/dev/null; do port=$((port + 1)); done
	echo "$port"
}

# ---- the programs ----

up_start_stores() {
	UP_REDIS_CLI=(redis-cli -s "$UP_DIR/redis/s")
	UP_REDIS_URL=unix://$UP_DIR/redis/s
	if [ -n "${VIW_REDIS_URL-}" ]; then
		UP_REDIS_URL=$VIW_REDIS_URL
		UP_REDIS_CLI=(redis-cli --no-auth-warning -u "$VIW_REDIS_URL")
		[[ $VIW_REDIS_URL == unix://* ]] && UP_REDIS_CLI=(redis-cli -s "${VIW_REDIS_URL#unix://}")
	else
		up_spawn redis - -- redis-server --port 0 --unixsocket "$UP_DIR/redis/s" --unixsocketperm 700 \
			--dir "$UP_DIR/redis" --appendonly yes --appendfsync everysec --save '' \
			--maxmemory-policy noeviction
	fi
	if [ -n "${VIW_DATABASE_URL-}" ]; then
		UP_DATABASE_URL=$VIW_DATABASE_URL
		UP_TELEMETRY_URL=$VIW_DATABASE_URL UP_RESULTS_URL=$VIW_DATABASE_URL
	else
		local pg user=-
		pg=$(pg_bin)
		is_root && user=postgres
		UP_DATABASE_URL="postgresql://viw@/viw?host=$UP_DIR/pg"
		UP_TELEMETRY_URL="postgresql://viw_up_telemetry@/viw?host=$UP_DIR/pg"
		UP_RESULTS_URL="postgresql://viw_up_results@/viw?host=$UP_DIR/pg"
		if [ ! -s "$UP_DIR/pg/data/PG_VERSION" ]; then
			note "making a PostgreSQL cluster in .run/pg"
			up_as $user "$pg/initdb" -D "$UP_DIR/pg/data" -U viw -A trust -E UTF8 --locale=C.UTF-8 --no-sync \
				>"$UP_DIR/log/initdb" 2>&1 || up_fail "initdb failed" initdb
		fi
		up_spawn postgres $user -- "$pg/postgres" -D "$UP_DIR/pg/data" -k "$UP_DIR/pg" -h '' \
			-c log_min_messages=warning
	fi
}

up_as() { # up_as USER command…
	local user=$1
	shift
	if [ "$user" = - ]; then
		"$@"
	else
		(cd / && as_root setpriv "--reuid=$user" "--regid=$(id -g "$user")" --clear-groups "$@")
	fi
}

up_sql() { psql -X -q -A -t -v ON_ERROR_STOP=1 "$UP_DATABASE_URL" "$@"; }

up_prepare_stores() {
	local name=redis
	[ -n "${VIW_REDIS_URL-}" ] && name=given-redis
	up_wait 10 $name "Redis answers PING" "${UP_REDIS_CLI[@]}" ping
	if [ -z "${VIW_DATABASE_URL-}" ]; then
		local server="postgresql://viw@/postgres?host=$UP_DIR/pg"
		up_wait 30 postgres "PostgreSQL accepts connections" psql -X -q -c '' "$server"
		[ "$(psql -X -A -t -c "SELECT 1 FROM pg_database WHERE datname = 'viw'" "$server")" = 1 ] ||
			psql -X -q -c 'CREATE DATABASE viw' "$server"
	else
		up_wait 10 given-postgres "PostgreSQL accepts connections" psql -X -q -c '' "$UP_DATABASE_URL"
	fi
	VIW_BIN=$UP_BIN sql/migrate "$UP_DATABASE_URL" >"$UP_DIR/log/migrate" 2>&1 ||
		up_fail "migration failed" migrate
	[ -n "${VIW_DATABASE_URL-}" ] || up_sql >/dev/null 2>>"$UP_DIR/log/migrate" <<-'SQL' || up_fail "roles" migrate
		SELECT format('CREATE ROLE %I LOGIN IN ROLE %I', r[1], r[2])
		FROM (VALUES (ARRAY['viw_up_telemetry', 'viw_telemetry_writer']),
			(ARRAY['viw_up_results', 'viw_results_writer'])) AS v (r)
		WHERE NOT EXISTS (SELECT FROM pg_roles WHERE rolname = r[1]) \gexec
	SQL
}

up_start_helper() {
	up_spawn host-helper root \
		HOST_HELPER_SOCKET="$UP_DIR/socket/helper.sock" HOST_HELPER_SECRET_FILE="$UP_DIR/helper/secret" \
		HOST_HELPER_VERBS_DIR="$UP_DIR/verbs.d" HOST_HELPER_STATE_DIR="$UP_DIR/helper" \
		HOST_HELPER_ALLOWED_UIDS="$(id -u $UP_AGENT_USER)" \
		HOST_HELPER_SOCKET_GROUP="$(id -g $UP_AGENT_USER)" -- "$UP_DIR/bin/host-helper"
}

up_start_programs() {
	UP_PORT=$(up_port 8082)
	UP_PORT_T=$(up_port $((UP_PORT + 1)))
	UP_PORT_R=$(up_port $((UP_PORT_T + 1)))
	UP_AGENT_ID=$(uname -n | tr -c 'A-Za-z0-9._\n-' - | cut -c1-64)
	[[ $UP_AGENT_ID =~ ^[A-Za-z0-9] ]] || UP_AGENT_ID=gateway-1
	UP_HTTP=http://127.0.0.1:$UP_PORT
	up_write_env
	up_spawn agent-bridge - AGENT_BRIDGE_ID=bridge-1 AGENT_BRIDGE_BIND="127.0.0.1:$UP_PORT" \
		AGENT_BRIDGE_SHARED_SECRET_FILE="$UP_DIR/secret/shared" \
		AGENT_BRIDGE_ADMIN_TOKEN_FILE="$UP_DIR/secret/admin" AGENT_BRIDGE_REDIS_URL="$UP_REDIS_URL" \
		AGENT_BRIDGE_VERBS_DIR="$UP_DIR/verbs.d" AGENT_BRIDGE_DRAIN_S=1 -- "$UP_BIN/agent-bridge"
	up_spawn telemetry-writer - TELEMETRY_WRITER_REDIS_URL="$UP_REDIS_URL" \
		TELEMETRY_WRITER_DATABASE_URL="$UP_TELEMETRY_URL" \
		TELEMETRY_WRITER_INTERNAL_BIND="127.0.0.1:$UP_PORT_T" -- "$UP_BIN/telemetry-writer"
	up_spawn results-writer - RESULTS_WRITER_REDIS_URL="$UP_REDIS_URL" \
		RESULTS_WRITER_DATABASE_URL="$UP_RESULTS_URL" RESULTS_WRITER_VERBS_DIR="$UP_DIR/verbs.d" \
		RESULTS_WRITER_INTERNAL_BIND="127.0.0.1:$UP_PORT_R" -- "$UP_BIN/results-writer"
	up_wait 10 host-helper "the helper's socket is there" test -S "$UP_DIR/socket/helper.sock"
	up_wait 10 agent-bridge "the bridge is ready" up_ready "$UP_PORT" /internal/agent/_readyz
	up_wait 10 telemetry-writer "telemetry-writer is ready" up_ready "$UP_PORT_T" /_readyz
	up_wait 10 results-writer "results-writer is ready" up_ready "$UP_PORT_R" /_readyz
	up_spawn gateway-agent $UP_AGENT_USER VIW_AGENT_ID="$UP_AGENT_ID" VIW_AGENT_SITE=here \
		VIW_AGENT_BACKEND_URL="ws://127.0.0.1:$UP_PORT/agent/ws" \
		VIW_AGENT_SHARED_SECRET_FILE="$UP_DIR/agent/shared.secret" \
		VIW_AGENT_HELPER_SOCKET="$UP_DIR/socket/helper.sock" \
		VIW_AGENT_HELPER_SECRET_FILE="$UP_DIR/agent/helper.secret" \
		VIW_AGENT_STATE_DIR="$UP_DIR/agent" VIW_AGENT_FEATURE_EXEC_ENABLE=true \
		VIW_AGENT_TELEMETRY_INTERVAL_S=2 -- "$UP_DIR/bin/gateway-agent" run
}

up_ready() { curl -fsS -m 2 -o /dev/null "http://127.0.0.1:$1$2"; }

# What psql, redis, viwctl, logs and dead-letters read from another terminal.
up_write_env() {
	{
		printf 'UP_DATABASE_URL=%q\nUP_REDIS_URL=%q\nUP_HTTP=%q\nUP_AGENT_ID=%q\n' \
			"$UP_DATABASE_URL" "$UP_REDIS_URL" "$UP_HTTP" "$UP_AGENT_ID"
		printf 'UP_REDIS_CLI=('
		printf '%q ' "${UP_REDIS_CLI[@]}"
		echo ')'
	} >"$UP_DIR/log/env.new"
	chmod 600 "$UP_DIR/log/env.new"
	mv "$UP_DIR/log/env.new" "$UP_DIR/log/env"
}

up_read_env() {
	[ -r "$UP_DIR/log/env" ] || die "nothing was started here yet: ./viw up"
	# shellcheck disable=SC1091 # written by up_write_env
	source "$UP_DIR/log/env"
	up_alive agent-bridge || echo "viw: what \`up\` started does not run now" >&2
}

# ---- two commands, and what comes of them ----

up_send() { # up_send COMMAND PARAMS: what a backend does; prints the correlation_id
	local id
	id=$(cat /proc/sys/kernel/random/uuid)
	"${UP_REDIS_CLI[@]}" XADD viw.commands '*' correlation_id "$id" agent_id "$UP_AGENT_ID" \
		command "$1" params "$2" issued_by_admin_id viw-up >/dev/null || up_fail "XADD was refused" redis
	echo "$id"
}

# One line an event since the start, read from PostgreSQL: key, time, words.
up_events() {
	up_sql -F $'\t' -v agent="$UP_AGENT_ID" -v since="$UP_SINCE" <<-'SQL'
		WITH c AS (SELECT *, left(correlation_id, 8) || ' ' || rpad(coalesce(command, '?'), 18) AS name
			FROM agent_commands WHERE agent_id = :'agent' AND queued_at >= to_timestamp(:'since')),
		e (at, rank, key, line) AS (
			SELECT connected_at, 0, 's' || conn_id, 'gateway    ' || agent_id || ' connected, epoch ' || epoch
				FROM agent_sessions WHERE agent_id = :'agent' AND connected_at >= to_timestamp(:'since')
			UNION ALL SELECT queued_at, 1, 'q' || correlation_id, 'command    ' || name || ' queued' FROM c
			UNION ALL SELECT offered_at, 2, 'o' || correlation_id, 'command    ' || name || ' offered to the agent'
				FROM c WHERE offered_at IS NOT NULL
			UNION ALL SELECT accepted_at, 3, 'a' || correlation_id, 'command    ' || name || ' accepted'
				FROM c WHERE accepted_at IS NOT NULL
			UNION ALL SELECT completed_at, 4, 'd' || correlation_id, 'command    ' || name || ' ' || status ||
				coalesce(' after ' || round(1000 * extract(epoch FROM completed_at - queued_at)) || ' ms', '')
				FROM c WHERE completed_at IS NOT NULL
			UNION ALL SELECT r.recorded_at, 5, 'r' || r.correlation_id, 'result row ' || c.name || ' ' || r.status ||
				coalesce(', rc ' || r.rc, '') || coalesce(', ran ' || r.duration_ms || ' ms', '') ||
				coalesce(', ' || r.error_code || ': ' || r.error_msg, '') ||
				coalesce(': ' || left(regexp_replace(r.stdout_redacted, '\s+', ' ', 'g'), 160), '')
				FROM agent_command_results r JOIN c USING (correlation_id))
		SELECT key, to_char(at, 'HH24:MI:SS.MS'), line FROM e ORDER BY at, rank, key
	SQL
}

# The gateway's row and its newest figures, one line.
up_figures() {
	up_sql -v agent="$UP_AGENT_ID" -v since="$UP_SINCE" <<-'SQL'
		SELECT format('%s  telemetry  %s is %s: cpu %s %%, memory %s %%, disk %s %%, load %s, frame %s',
			to_char(s.ts, 'HH24:MI:SS.MS'), g.agent_id, g.status, coalesce(round(s.cpu_pct::numeric, 1)::text, '?'),
			round(s.mem_pct::numeric, 1), round(s.disk_pct::numeric, 1), round(s.load1::numeric, 2), s.seq)
		FROM os_gateways g JOIN os_gateway_status s USING (agent_id)
		WHERE g.agent_id = :'agent' AND g.status = 'online' AND s.updated_at >= to_timestamp(:'since')
	SQL
}

up_watch() {
	local deadline=$((SECONDS + 30)) key at line figures last='' frames=0 hinted=''
	declare -A seen=()
	while :; do
		while IFS=$'\t' read -r key at line; do
			[ -z "$key" ] || [ -n "${seen[$key]-}" ] && continue
			seen[$key]=1
			[ -t 1 ] && printf '\r\033[K'
			printf '  %s  %s\n' "$at" "$line"
		done < <(up_events)
		figures=$(up_figures)
		if [ -n "$figures" ] && [ "$figures" != "$last" ]; then
			last=$figures
			frames=$((frames + 1))
			# On a terminal one line that changes in place; the first few as lines elsewhere.
			if [ -t 1 ]; then
				printf '\r\033[K  %s' "$figures"
			elif [ $frames -le 3 ]; then
				printf '  %s\n' "$figures"
			fi
		fi
		if [ -n "${seen[r$UP_CID_READ]-}" ] && [ -n "${seen[r$UP_CID_RUN]-}" ] && [ $frames -ge 2 ] && [ -z "$hinted" ]; then
			hinted=1
			[ -t 1 ] && echo
			up_verdict
			[ -n "$UP_ONCE" ] && return 0
			up_hints
		fi
		[ -n "$hinted" ] || [ $SECONDS -lt $deadline ] || up_explain
		for key in "${UP_ALL[@]}"; do
			[ -f "$UP_DIR/pid/$key" ] && ! up_alive "$key" && up_fail "$key ended" "$key"
		done
		sleep 0.2
	done
}

up_verdict() {
	local bad
	bad=$(up_sql -v a="$UP_CID_READ" -v b="$UP_CID_RUN" <<-'SQL'
		SELECT string_agg(command || ' is ' || status || coalesce(' (' || error_code || ': ' || error_msg || ')', ''), '; ')
		FROM agent_command_results WHERE correlation_id IN (:'a', :'b') AND status <> 'done'
	SQL
	)
	[ -z "$bad" ] || up_fail "a command did not end well: $bad" gateway-agent
	say "Both commands are done; their rows are in PostgreSQL."
}

up_explain() {
	local what
	what=$(up_sql -v a="$UP_CID_READ" -v b="$UP_CID_RUN" <<-'SQL'
		SELECT coalesce(string_agg(command || ' is ' || status, ', '), 'no command reached PostgreSQL')
		FROM agent_commands WHERE correlation_id IN (:'a', :'b')
	SQL
	)
	[ -n "$(up_figures)" ] || what="$what; no telemetry"
	up_fail "no results within 30 s: $what" gateway-agent
}

up_hints() {
	# The user's own URLs may hold passwords: shown by name.
	local cli=${UP_REDIS_CLI[*]} db="'$UP_DATABASE_URL'"
	[ -z "${VIW_REDIS_URL-}" ] || cli='redis-cli -u "$VIW_REDIS_URL"'
	[ -z "${VIW_DATABASE_URL-}" ] || db='"$VIW_DATABASE_URL"'
	cat <<-TEXT

		Try from another terminal:
		  $cli XADD viw.commands '*' correlation_id note-$RANDOM agent_id $UP_AGENT_ID command leave_note params '{"text":"hello"}'
		  psql $db -c 'SELECT correlation_id, command, status, rc, stdout_redacted FROM agent_command_results ORDER BY id DESC LIMIT 5'
		  curl -s -H @$UP_DIR/secret/admin.header $UP_HTTP/internal/agent/agents
		  curl -s -H @$UP_DIR/secret/admin.header $UP_HTTP/agent/telemetry/$UP_AGENT_ID/latest
		  ./viw viwctl doctor · ./viw logs · ./viw psql · ./viw redis · ./viw dead-letters · ./viw down

		Ctrl-C ends what this started. What happens from now on shows here.

	TEXT
}

# ---- the words ----

up_main() {
	args_only 'up [--once]' --once -- "$@"
	UP_ONCE=${1:+1}
	as_root true # before a minute of building
	packages_need build run
	local began built=''
	began=$(date +%s%N)
	[ -x "$UP_BIN/agent-bridge" ] || {
		built=1
		say "Building (preset $UP_PRESET; about a minute)"
	}
	build_preset "$UP_PRESET"
	exec 9>"/tmp/viw-up.$(cksum <<<"$UP_DIR" | cut -d' ' -f1).$(id -u)"
	flock -n 9 || die "already running (./viw down stops it)"
	local start
	start=$(date +%s%N)
	up_layout
	up_stop # what an up that was killed left behind
	echo "$$ $(up_start_time $$)" >"$UP_DIR/pid/up"
	trap 'exit 130' INT TERM HUP PIPE
	trap 'trap - EXIT; trap "" INT TERM HUP PIPE; echo; note "stopping"; up_stop; rm -f "$UP_DIR/pid/up"' EXIT
	[ -z "$built" ] || note "built in $(((start - began) / 1000000000)) s"
	UP_SINCE=$(date +%s.%N)
	up_start_stores
	up_start_helper
	up_prepare_stores
	up_start_programs
	say "Everything runs, after $((($(date +%s%N) - start) / 1000000)) ms. What PostgreSQL holds:"
	UP_CID_READ=$(up_send get_system_health '{}')
	UP_CID_RUN=$(up_send leave_note '{"text":"the spine stands"}')
	up_watch
}

up_down() {
	args_only 'down [--wipe]' --wipe -- "$@"
	local name n=0 pid started
	for name in "${UP_ALL[@]}"; do up_alive "$name" && n=$((n + 1)); done
	if up_alive up; then # it ends what it started
		read -r pid started <"$UP_DIR/pid/up"
		kill "$pid"
		for ((i = 0; i < 1500; i++)); do
			up_alive up || break
			sleep 0.02
		done
	fi
	[ ! -d "$UP_DIR/pid" ] || up_stop
	note "stopped $n programs"
	if [ "${1-}" = --wipe ]; then
		as_root rm -rf -- "$UP_DIR"
		rm -f .run
		note "data of this tree's \`up\` removed"
	fi
}

up_logs() {
	[ -d "$UP_DIR/log" ] || die "nothing was started here yet: ./viw up"
	local files=() name
	for name in "$@"; do
		[ -f "$UP_DIR/log/$name" ] || die "no log of $name; there are: $(cd "$UP_DIR/log" && ls | tr '\n' ' ')"
		files+=("$UP_DIR/log/$name")
	done
	if [ $# = 0 ]; then
		for name in "${UP_ALL[@]}"; do [ -f "$UP_DIR/log/$name" ] && files+=("$UP_DIR/log/$name"); done
	fi
	[ ${#files[@]} -gt 0 ] || die "nothing was started here yet: ./viw up"
	exec tail -n 20 -F "${files[@]}"
}

up_psql() {
	up_read_env
	exec psql "$UP_DATABASE_URL" "$@"
}

up_redis() {
	up_read_env
	exec "${UP_REDIS_CLI[@]}" "$@"
}

up_viwctl() {
	up_read_env
	exec env VIWCTL_DATABASE_URL="$UP_DATABASE_URL" VIWCTL_REDIS_URL="$UP_REDIS_URL" VIWCTL_BRIDGE_URL="$UP_HTTP" \
		VIWCTL_ADMIN_TOKEN_FILE="$UP_DIR/secret/admin" VIWCTL_VERBS_DIR="$UP_DIR/verbs.d" "$UP_BIN/viwctl" "$@"
}

up_dead_letters() { up_viwctl dead-letters "${@:-list}"; }
