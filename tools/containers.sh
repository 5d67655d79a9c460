# ./viw images and demo: the programs as containers, with Docker or podman. Sourced by ./viw.
#
# VIW_ENGINE (docker, podman) chooses where both are there; VIW_BASE_IMAGE is the Debian 12 image to
# build on, by default Docker Hub's.

CONTAINERS_TARGETS=(agent-bridge telemetry-writer results-writer tools gateway-agent)
CONTAINERS_DEMO_TARGETS=(demo-redis demo-postgres demo-setup)
CONTAINERS_PROJECT=viworks-demo
CONTAINERS_FILE=compose/docker-compose.demo.yml

# Sets ENGINE and COMPOSE; installs podman and podman-compose where there is no engine at all.
containers_engine() {
	ENGINE=${VIW_ENGINE-}
	[ -n "$ENGINE" ] || { docker info >/dev/null 2>&1 && ENGINE=docker; } || ENGINE=podman
	if [ "$ENGINE" = docker ]; then
		COMPOSE=(docker compose)
		docker compose version >/dev/null 2>&1 || COMPOSE=(docker-compose)
	else
		packages_need containers
		COMPOSE=(podman-compose)
		# podman runs health checks from systemd's timers; elsewhere we ask for each ourselves.
		[ -d /run/systemd/system ] || export DISABLE_HC_SYSTEMD=true
	fi
	COMPOSE+=(-p "$CONTAINERS_PROJECT" -f "$CONTAINERS_FILE")
	command -v "${COMPOSE[0]}" >/dev/null || die "${COMPOSE[0]} is missing (or set VIW_ENGINE)"
}

# images_build TARGET…, all on one base; IMAGES_OPTIONS holds what is common.
images_build() {
	local target
	for target; do
		printf '  %-18s ' "$target"
		"$ENGINE" build --network host "${IMAGES_OPTIONS[@]}" -f compose/Dockerfile --target "$target" \
			-t "viworks/$target" . >"$IMAGES_LOG" 2>&1 || {
			tail -n 30 "$IMAGES_LOG" >&2
			die "building $target failed"
		}
		"$ENGINE" image inspect --format '{{.Size}}' "viworks/$target" | awk '{printf "%.0f MB\n", $1 / 1e6}'
	done
}

# images [--prebuilt] [target…]. --prebuilt takes build/release/bin (./viw build) as it is, instead of compiling
# in a container: right where this machine runs the same Debian as the base image.
images_main() {
	local prebuilt='' targets=() began=$SECONDS known=" ${CONTAINERS_TARGETS[*]} ${CONTAINERS_DEMO_TARGETS[*]} "
	while [ $# -gt 0 ]; do
		case $1 in
		--prebuilt) prebuilt=1 ;;
		*)
			[[ $known == *" $1 "* ]] || args_refused "$1" "images [--prebuilt] [target…]; targets:$known"
			targets+=("$1")
			;;
		esac
		shift
	done
	[ ${#targets[@]} -gt 0 ] || targets=("${CONTAINERS_TARGETS[@]}" "${CONTAINERS_DEMO_TARGETS[@]}")
	containers_engine
	IMAGES_OPTIONS=()
	[ "$ENGINE" != podman ] || IMAGES_OPTIONS+=(--format docker) # else podman forgets HEALTHCHECK
	[ -z "${VIW_BASE_IMAGE-}" ] || IMAGES_OPTIONS+=(--build-arg "BASE=$VIW_BASE_IMAGE")
	IMAGES_WORK=$(mktemp -d)
	IMAGES_LOG=$IMAGES_WORK/log
	trap 'rm -rf "$IMAGES_WORK"' EXIT
	if [ -n "$prebuilt" ]; then
		[ -x build/release/bin/agent-bridge ] || die "nothing is built yet: ./viw build"
		local bin=$IMAGES_WORK/tree/src/build/release/bin
		install -d "$bin"
		install -s build/release/bin/* "$bin/"
		IMAGES_OPTIONS+=(--build-context "build=$IMAGES_WORK/tree")
	fi
	say "Building images with $ENGINE"
	images_build "${targets[@]}"
	echo "took $((SECONDS - began)) s"
}

# ---- the demo ----

demo_id() { # demo_id SERVICE: its container
	"$ENGINE" ps -aq --filter "label=com.docker.compose.project=$CONTAINERS_PROJECT" \
		--filter "label=com.docker.compose.service=$1" | head -n 1
}

demo_exec() { # demo_exec SERVICE command…
	"$ENGINE" exec "$(demo_id "$1")" "${@:2}"
}

demo_healthy() {
	local id
	id=$(demo_id "$1")
	[ -n "$id" ] || return 1
	if [ "$ENGINE" = podman ]; then
		podman healthcheck run "$id" >/dev/null 2>&1
	else
		[ "$(docker inspect --format '{{.State.Health.Status}}' "$id")" = healthy ]
	fi
}

demo_sql() { demo_exec postgres psql -X -q -At -h /tmp -U postgres -d viw -c "$1"; }

demo_online() { [ "$(demo_sql "SELECT status FROM os_gateways WHERE agent_id = 'demo-1'" 2>/dev/null)" = online ]; }

demo_done() { DEMO_ROW=$(demo_sql "SELECT status || ', rc ' || rc || ', stdout: ' || stdout_redacted
	FROM agent_command_results WHERE correlation_id = '$1'") && [ -n "$DEMO_ROW" ]; }

# demo_wait SECONDS SERVICE what command…
demo_wait() {
	local seconds=$1 service=$2 what=$3 end
	shift 3
	end=$((SECONDS + seconds))
	until "$@"; do
		[ $SECONDS -lt $end ] || {
			grep -i error "$DEMO_LOG" >&2 || true # podman-compose exits 0 when a container does not start
			"$ENGINE" logs --tail 20 "$(demo_id "$service")" >&2 || true
			die "not within $seconds s: $what (above: the end of $service's log)"
		}
		sleep 0.2
	done
	note "$what"
}

demo_up() {
	local service target missing=() id
	for target in "${CONTAINERS_TARGETS[@]}" "${CONTAINERS_DEMO_TARGETS[@]}"; do
		"$ENGINE" image inspect "viworks/$target" >/dev/null 2>&1 || missing+=("$target")
	done
	[ ${#missing[@]} = 0 ] || (images_main "${missing[@]}")
	say "Starting it: ${COMPOSE[*]} up -d"
	"${COMPOSE[@]}" up -d >"$DEMO_LOG" 2>&1 || { tail -n 30 "$DEMO_LOG" >&2; die "it did not start"; }
	for service in redis postgres agent-bridge telemetry-writer results-writer gateway-agent; do
		demo_wait 60 "$service" "$service is healthy" demo_healthy "$service"
	done
	demo_wait 20 telemetry-writer "gateway demo-1 is online in PostgreSQL" demo_online
	id=demo-$(cat /proc/sys/kernel/random/uuid)
	say "A command, as a backend sends it: XADD viw.commands … command ECHO"
	demo_exec redis redis-cli XADD viw.commands '*' correlation_id "$id" agent_id demo-1 command ECHO \
		params '{"message":"the spine stands"}' issued_by_admin_id viw-demo >/dev/null
	demo_wait 20 results-writer "its row is in agent_command_results" demo_done "$id"
	note "$DEMO_ROW"
}

demo_hints() {
	cat <<-TEXT

		Try:
		  $ENGINE exec $(demo_id redis) redis-cli XADD viw.commands '*' correlation_id hello-1 agent_id demo-1 command ECHO params '{"message":"hello"}'
		  $ENGINE exec $(demo_id postgres) psql -h /tmp -U postgres -d viw -c 'SELECT * FROM agent_command_results'
		  ${COMPOSE[*]} logs
		  ./viw demo --down     stops it and forgets its data
	TEXT
}

demo_down() {
	say "Stopping it: ${COMPOSE[*]} down -v"
	# podman-compose 1.0.3 ignores stop_grace_period.
	"${COMPOSE[@]}" down -v -t 30 >"$DEMO_LOG" 2>&1 || { tail -n 30 "$DEMO_LOG" >&2; die "it did not stop"; }
	# podman-compose 1.0.3 leaves its networks behind.
	[ "$ENGINE" = docker ] || podman network rm "${CONTAINERS_PROJECT}_stores" "${CONTAINERS_PROJECT}_agents" >/dev/null 2>&1 || true
}

# demo [--once|--down]
demo_main() {
	args_only 'demo [--once|--down]' --once --down -- "$@"
	containers_engine
	DEMO_LOG=$(mktemp)
	trap 'rm -f "$DEMO_LOG"' EXIT
	case ${1-} in
	--down) demo_down ;;
	--once)
		demo_up
		demo_down
		;;
	*)
		demo_up
		demo_hints
		;;
	esac
}
