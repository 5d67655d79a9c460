-- Gateways, their last figures, their figures per minute, their connections, their events.
-- Ids sort as bytes (COLLATE "C"), as the writers sort them before they lock rows.

CREATE TABLE os_gateways (
	agent_id text COLLATE "C" PRIMARY KEY CHECK (agent_id ~ '^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$'),
	display_name text,
	hostname text,
	site text,
	labels jsonb,
	version text,
	capabilities jsonb,
	supported_verbs jsonb,
	status text NOT NULL DEFAULT 'expected'
		CHECK (status IN ('expected', 'online', 'offline', 'decommissioned')),
	bridge_id text,
	conn_id text,
	epoch bigint,
	ip text,
	first_seen timestamptz,
	last_seen timestamptz,
	reported_site text,
	reported_labels jsonb,
	disconnected_epoch bigint
);
COMMENT ON COLUMN os_gateways.site IS 'follows what the agent reports until somebody writes another value here';
COMMENT ON COLUMN os_gateways.labels IS 'follows what the agent reports until somebody writes another value here';
COMMENT ON COLUMN os_gateways.disconnected_epoch IS 'newest connection known to have ended by an event, not by a lapsed lease';
CREATE INDEX os_gateways_by_status ON os_gateways (status, agent_id);
CREATE INDEX os_gateways_online_by_bridge ON os_gateways (bridge_id) WHERE status = 'online';

CREATE TABLE os_gateway_status (
	agent_id text COLLATE "C" PRIMARY KEY,
	cpu_pct double precision,
	mem_pct double precision,
	disk_pct double precision,
	load1 double precision,
	load5 double precision,
	load15 double precision,
	containers_running integer,
	services jsonb,
	metrics jsonb NOT NULL,
	epoch bigint NOT NULL,
	seq bigint NOT NULL,
	ts timestamptz NOT NULL,
	updated_at timestamptz NOT NULL DEFAULT now()
) WITH (fillfactor = 60, autovacuum_vacuum_scale_factor = 0.05);
COMMENT ON COLUMN os_gateway_status.seq IS '-1 when the agent sends none';

-- One row per agent and minute. Sums and counts make merging exact; seen holds one number a sample
-- (seq and offset in the minute), so that a batch applied twice counts once.
CREATE TABLE os_gateway_metrics (
	agent_id text COLLATE "C" NOT NULL,
	bucket timestamptz NOT NULL,
	samples integer NOT NULL,
	cpu_sum double precision NOT NULL, cpu_n integer NOT NULL, cpu_max double precision,
	mem_sum double precision NOT NULL, mem_n integer NOT NULL, mem_max double precision,
	disk_sum double precision NOT NULL, disk_n integer NOT NULL, disk_max double precision,
	load1_sum double precision NOT NULL, load1_n integer NOT NULL, load1_max double precision,
	cpu_avg double precision GENERATED ALWAYS AS (cpu_sum / NULLIF(cpu_n, 0)) STORED,
	mem_avg double precision GENERATED ALWAYS AS (mem_sum / NULLIF(mem_n, 0)) STORED,
	disk_avg double precision GENERATED ALWAYS AS (disk_sum / NULLIF(disk_n, 0)) STORED,
	load1_avg double precision GENERATED ALWAYS AS (load1_sum / NULLIF(load1_n, 0)) STORED,
	seen bigint[] NOT NULL,
	PRIMARY KEY (agent_id, bucket)
) PARTITION BY RANGE (bucket);

CREATE TABLE agent_sessions (
	conn_id text COLLATE "C" PRIMARY KEY,
	agent_id text COLLATE "C" NOT NULL,
	bridge_id text,
	epoch bigint NOT NULL,
	ip text,
	connected_at timestamptz,
	last_heartbeat_at timestamptz,
	disconnected_at timestamptz,
	close_reason text
) WITH (fillfactor = 80);
COMMENT ON COLUMN agent_sessions.last_heartbeat_at IS 'last frame stored from this connection, to within 15 s';
CREATE INDEX agent_sessions_by_agent ON agent_sessions (agent_id, epoch DESC);
CREATE INDEX agent_sessions_open ON agent_sessions (bridge_id, epoch) WHERE disconnected_at IS NULL;
CREATE INDEX agent_sessions_ended ON agent_sessions (disconnected_at) WHERE disconnected_at IS NOT NULL;

-- Append-only. The stream entry's id makes a replayed entry one row.
CREATE TABLE agent_events (
	at timestamptz NOT NULL,
	entry_id text NOT NULL,
	agent_id text COLLATE "C" NOT NULL,
	event text NOT NULL,
	reason text,
	conn_id text,
	bridge_id text,
	epoch bigint,
	ip text,
	frame jsonb,
	PRIMARY KEY (at, entry_id)
) PARTITION BY RANGE (at);
CREATE INDEX agent_events_by_agent ON agent_events (agent_id, at DESC, entry_id DESC);

CREATE FUNCTION viw_refuse_change() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
	RAISE EXCEPTION '% is append-only', TG_TABLE_NAME USING ERRCODE = 'VW001';
END
$$;
CREATE TRIGGER agent_events_append_only BEFORE UPDATE OR DELETE ON agent_events
	FOR EACH ROW EXECUTE FUNCTION viw_refuse_change();

-- The owner of the day partitions. public's CREATE is lent for the length of the change only.
GRANT CREATE ON SCHEMA public TO viw_retention;
ALTER TABLE os_gateway_metrics OWNER TO viw_retention;
ALTER TABLE agent_events OWNER TO viw_retention;

-- Makes the missing day partitions of a table, first_day to last_day (UTC). Attached rather than
-- created in place: that takes SHARE UPDATE EXCLUSIVE on the parent, so writers go on meanwhile.
-- Returns how many were made.
CREATE FUNCTION viw_make_partitions(parent text, first_day date, last_day date) RETURNS integer
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, public, pg_temp AS $$
DECLARE
	day date := first_day;
	child text;
	made integer := 0;
BEGIN
	IF parent NOT IN ('os_gateway_metrics', 'agent_events') THEN
		RAISE EXCEPTION 'no day partitions for table %', parent USING ERRCODE = '22023';
	END IF;
	IF last_day - first_day > 400 THEN
		RAISE EXCEPTION 'more than 400 days asked for' USING ERRCODE = '22023';
	END IF;
	-- Two writers may ask at once.
	PERFORM pg_advisory_xact_lock(hashtext('viw_make_partitions'));
	WHILE day <= last_day LOOP
		child := parent || '_' || to_char(day, 'YYYYMMDD');
		IF to_regclass(format('viw_partitions.%I', child)) IS NULL THEN
			EXECUTE format('CREATE TABLE viw_partitions.%I (LIKE public.%I INCLUDING ALL)', child, parent);
			EXECUTE format('ALTER TABLE public.%I ATTACH PARTITION viw_partitions.%I '
				'FOR VALUES FROM (%L) TO (%L)', parent, child,
				day::text || ' 00:00:00+00', (day + 1)::text || ' 00:00:00+00');
			made := made + 1;
		END IF;
		day := day + 1;
	END LOOP;
	RETURN made;
END
$$;
ALTER FUNCTION viw_make_partitions(text, date, date) OWNER TO viw_retention;
REVOKE CREATE ON SCHEMA public FROM viw_retention;
REVOKE ALL ON FUNCTION viw_make_partitions(text, date, date) FROM PUBLIC;
GRANT EXECUTE ON FUNCTION viw_make_partitions(text, date, date) TO viw_telemetry_writer;

SELECT viw_make_partitions('os_gateway_metrics', d - 1, d + 3), viw_make_partitions('agent_events', d - 1, d + 3)
FROM (SELECT (now() AT TIME ZONE 'UTC')::date AS d) AS today;

-- What exists, for retention and for the watermark of partitions ahead.
CREATE VIEW viw_partition_days AS
SELECT p.relname AS parent, c.relname AS child,
	to_date(right(c.relname, 8), 'YYYYMMDD') AS day,
	i.inhrelid IS NOT NULL AS attached, COALESCE(i.inhdetachpending, false) AS detach_pending
FROM pg_class c
JOIN pg_namespace n ON n.oid = c.relnamespace AND n.nspname = 'viw_partitions'
JOIN pg_class p ON p.relname = left(c.relname, -9) AND p.relnamespace = 'public'::regnamespace
LEFT JOIN pg_inherits i ON i.inhrelid = c.oid AND i.inhparent = p.oid
WHERE c.relkind = 'r' AND c.relname ~ '_[0-9]{8}$';
GRANT SELECT ON viw_partition_days TO viw_retention;
