#!/bin/sh
# The demo's PostgreSQL: a cluster in /data at the first start, then the server.
set -eu
bin=$(echo /usr/lib/postgresql/*/bin)
until [ -e /run/secrets/postgres_password ]; do sleep 0.2; done # setup.sh makes it
if [ ! -e /data/cluster ]; then
	rm -rf /data/new
	"$bin/initdb" -D /data/new -U postgres -A scram-sha-256 --auth-local=trust \
		--pwfile=/run/secrets/postgres_password -E UTF8 --locale=C.UTF-8 >/dev/null
	echo 'host all all all scram-sha-256' >>/data/new/pg_hba.conf
	mv /data/new /data/cluster
fi
exec "$bin/postgres" -D /data/cluster -c listen_addresses='*' -c unix_socket_directories=/tmp
