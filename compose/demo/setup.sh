#!/bin/sh
# The demo's one-shot: at the first start secrets, CA and certificates, each program's in a volume of
# its own; at every start migrations and login roles. Then the programs that wait for `ready` go on.
set -eu
umask 077
cd /secrets
agent=demo-1

random() { od -An -N32 -tx1 /dev/urandom | tr -d ' \n'; }

# to FILE DIR…: standard input becomes DIR/FILE in each, whole or not at all.
to() {
	# shellcheck disable=SC3043 # dash has it
	local name="$1" d
	shift
	cat >ca/new
	for d; do
		cp ca/new "$d/.$name"
		mv -f "$d/.$name" "$d/$name"
	done
	rm ca/new
}

if [ ! -e ca/made ]; then
	rm -rf ca/clients ca/server.* "ca/$agent"
	random | to shared_secret agent-bridge gateway-agent
	random | to admin_token agent-bridge
	# The bridge's own certificate, trusted by the agent as it is.
	openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 3650 -subj /CN=agent-bridge \
		-addext 'subjectAltName=DNS:agent-bridge,DNS:localhost' -keyout ca/server.key -out ca/server.crt 2>/dev/null
	to server.key agent-bridge <ca/server.key
	to server.crt agent-bridge gateway-agent <ca/server.crt
	export VIWCTL_CA_DIR=/secrets/ca/clients
	mkdir -p "$VIWCTL_CA_DIR"
	viwctl enroll --init-ca
	viwctl enroll "$agent" --out "ca/$agent"
	to client_ca.crt agent-bridge <ca/clients/ca.crt
	to agent.key gateway-agent <"ca/$agent/agent.key"
	to agent.crt gateway-agent <"ca/$agent/agent.crt"
	for role in telemetry results; do
		random >ca/password
		to password ca/ <ca/password
		printf 'postgresql://viw_demo_%s:%s@postgres/viw' "$role" "$(cat ca/password)" | to database_url "$role-writer"
	done
	random | to postgres_password postgres
	: >ca/made
fi

PGPASSWORD=$(cat postgres/postgres_password)
export PGPASSWORD PGCONNECT_TIMEOUT=2
host=postgres
until psql -X -q -h $host -U postgres -c '' 2>/dev/null; do sleep 0.2; done
[ -n "$(psql -X -At -h $host -U postgres -c "SELECT 1 FROM pg_database WHERE datname = 'viw'")" ] ||
	psql -X -q -h $host -U postgres -c 'CREATE DATABASE viw'
VIW_DATABASE_URL="postgresql://postgres@$host/viw" viw-migrate
for role in telemetry results; do
	password=$(sed 's/.*:\([0-9a-f]*\)@.*/\1/' "$role-writer/database_url")
	psql -X -q -v ON_ERROR_STOP=1 -h $host -U postgres -d viw -v role="viw_demo_$role" -v group="viw_${role}_writer" -v password="$password" <<-'SQL'
		SELECT format('CREATE ROLE %I LOGIN IN ROLE %I', :'role', :'group')
			WHERE NOT EXISTS (SELECT FROM pg_roles WHERE rolname = :'role') \gexec
		ALTER ROLE :"role" PASSWORD :'password';
	SQL
done

for d in agent-bridge telemetry-writer results-writer gateway-agent; do : >"$d/ready"; done
echo 'secrets, certificates, schema and roles are in place'
