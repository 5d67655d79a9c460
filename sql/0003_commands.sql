-- Commands, what came of them, and what could not be stored.

CREATE TABLE agent_commands (
	correlation_id text COLLATE "C" PRIMARY KEY
		CHECK (correlation_id ~ '^[A-Za-z0-9][A-Za-z0-9._:-]{0,127}$'),
	agent_id text COLLATE "C" NOT NULL,
	command text,
	params jsonb,
	status text NOT NULL CHECK (status IN ('queued', 'offered', 'accepted',
		'done', 'failed', 'expired', 'cancelled', 'rejected', 'unknown')),
	issued_by_admin_id text,
	issued_at timestamptz,
	expires_at timestamptz,
	queued_at timestamptz,
	offered_at timestamptz,
	accepted_at timestamptz,
	completed_at timestamptz,
	entry_id text,
	result_entry text,
	params_masked boolean,
	signed boolean,
	requeued_at timestamptz,
	CHECK ((completed_at IS NOT NULL) = (status NOT IN ('queued', 'offered', 'accepted')))
) WITH (fillfactor = 75);
COMMENT ON COLUMN agent_commands.entry_id IS 'newest viw.commands entry of this command';
COMMENT ON COLUMN agent_commands.result_entry IS 'viw.command_results entry that ended it; any other is late evidence';
COMMENT ON COLUMN agent_commands.params_masked IS 'params lost a secret here, so the command cannot be queued again from this row';
COMMENT ON COLUMN agent_commands.requeued_at IS 'last time Redis had lost it and it was queued, or cancelled, again';
CREATE INDEX agent_commands_by_agent ON agent_commands (agent_id, issued_at DESC, correlation_id DESC);
CREATE INDEX agent_commands_by_issuer
	ON agent_commands (issued_by_admin_id, issued_at DESC, correlation_id DESC);
CREATE INDEX agent_commands_open ON agent_commands (correlation_id)
	WHERE status IN ('queued', 'offered', 'accepted');
CREATE INDEX agent_commands_completed ON agent_commands (completed_at)
	WHERE completed_at IS NOT NULL;

-- A terminal row never changes. What was not known yet when it ended may still be filled in.
CREATE FUNCTION viw_guard_terminal() RETURNS trigger LANGUAGE plpgsql AS $$
DECLARE
	was jsonb := to_jsonb(OLD);
	key text;
	value jsonb;
BEGIN
	FOR key, value IN SELECT * FROM jsonb_each(to_jsonb(NEW)) LOOP
		IF value IS DISTINCT FROM was -> key AND was -> key <> 'null'::jsonb THEN
			RAISE EXCEPTION 'command % is %: % cannot change', OLD.correlation_id, OLD.status, key
				USING ERRCODE = 'VW001';
		END IF;
	END LOOP;
	RETURN NEW;
END
$$;
CREATE TRIGGER agent_commands_terminal BEFORE UPDATE ON agent_commands FOR EACH ROW
	WHEN (OLD.status NOT IN ('queued', 'offered', 'accepted'))
	EXECUTE FUNCTION viw_guard_terminal();

CREATE TABLE agent_command_results (
	id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
	correlation_id text COLLATE "C" NOT NULL UNIQUE,
	agent_id text COLLATE "C" NOT NULL,
	command text,
	status text NOT NULL CHECK (status IN ('done', 'failed', 'expired', 'cancelled', 'rejected', 'unknown')),
	rc integer,
	stdout_redacted text,
	stderr_redacted text,
	started_at timestamptz,
	finished_at timestamptz,
	duration_ms bigint,
	truncated jsonb,
	error_code text,
	error_msg text,
	issued_by_admin_id text,
	recorded_at timestamptz NOT NULL DEFAULT now(),
	source text,
	entry_id text
);
CREATE INDEX agent_command_results_by_agent ON agent_command_results (agent_id, id DESC);
CREATE TRIGGER agent_command_results_final BEFORE UPDATE ON agent_command_results
	FOR EACH ROW EXECUTE FUNCTION viw_refuse_change();

-- Evidence after the terminal row. One row an entry, however often it is read.
CREATE TABLE agent_command_late_results (
	id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
	correlation_id text COLLATE "C" NOT NULL,
	agent_id text COLLATE "C" NOT NULL,
	command text,
	status text NOT NULL,
	rc integer,
	stdout_redacted text,
	stderr_redacted text,
	started_at timestamptz,
	finished_at timestamptz,
	duration_ms bigint,
	truncated jsonb,
	error_code text,
	error_msg text,
	issued_by_admin_id text,
	recorded_at timestamptz NOT NULL DEFAULT now(),
	source text,
	entry_id text NOT NULL UNIQUE
);
CREATE INDEX agent_command_late_results_by_command ON agent_command_late_results (correlation_id, id);

CREATE TABLE dead_letters (
	id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
	stream text NOT NULL,
	entry_id text NOT NULL,
	reason text NOT NULL,
	payload bytea NOT NULL,
	at timestamptz NOT NULL DEFAULT now(),
	format text NOT NULL DEFAULT 'raw' CHECK (format IN ('raw', 'fields')),
	masked boolean NOT NULL DEFAULT false,
	detail text,
	UNIQUE (stream, entry_id)
);
COMMENT ON COLUMN dead_letters.format IS
	'fields: the whole entry as RESP bulk strings (field, value, …), can be put back; raw: the refused bytes alone';
COMMENT ON COLUMN dead_letters.masked IS 'secrets were masked in the payload, so it cannot be put back';
CREATE INDEX dead_letters_by_age ON dead_letters (at);

-- An operator says: this agent will not come back. results-writer closes what it was to run,
-- first in Redis, then here as `unknown`. Commands issued later are not touched.
CREATE TABLE agent_lost_declarations (
	agent_id text COLLATE "C" PRIMARY KEY,
	declared_at timestamptz NOT NULL,
	declared_by text NOT NULL
);
CREATE FUNCTION viw_declare_lost(agent text) RETURNS bigint
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, public, pg_temp AS $$
BEGIN
	IF agent !~ '^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$' THEN
		RAISE EXCEPTION 'not an agent id' USING ERRCODE = '22023',
			HINT = 'letters, digits, dot, underscore, hyphen; at most 64';
	END IF;
	INSERT INTO agent_lost_declarations VALUES (agent, now(), session_user)
	ON CONFLICT (agent_id) DO UPDATE SET declared_at = now(), declared_by = session_user;
	RETURN (SELECT count(*) FROM agent_commands
		WHERE agent_id = agent AND status IN ('queued', 'offered', 'accepted'));
END
$$;
COMMENT ON FUNCTION viw_declare_lost IS 'Declares an agent lost; returns how many of its commands will end as unknown';
REVOKE ALL ON FUNCTION viw_declare_lost(text) FROM PUBLIC;

-- Deletes at most `most` commands with their results that ended more than `days` ago. Never
-- younger than 9 days: ids are remembered 8.
CREATE FUNCTION viw_purge_commands(days integer, most integer) RETURNS bigint
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, public, pg_temp AS $$
DECLARE
	gone bigint;
BEGIN
	IF days < 9 THEN
		RAISE EXCEPTION 'commands are kept at least 9 days' USING ERRCODE = '22023';
	END IF;
	WITH old AS (
		DELETE FROM agent_commands WHERE correlation_id IN (
			SELECT correlation_id FROM agent_commands
			WHERE completed_at < now() - make_interval(days => days)
			ORDER BY completed_at LIMIT most FOR UPDATE SKIP LOCKED)
		RETURNING correlation_id
	), results AS (
		DELETE FROM agent_command_results r USING old WHERE r.correlation_id = old.correlation_id
	), late AS (
		DELETE FROM agent_command_late_results l USING old WHERE l.correlation_id = old.correlation_id
	)
	SELECT count(*) INTO gone FROM old;
	RETURN gone;
END
$$;
REVOKE ALL ON FUNCTION viw_purge_commands(integer, integer) FROM PUBLIC;
