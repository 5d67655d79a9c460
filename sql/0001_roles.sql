-- Roles. They belong to the whole server, so they may exist already from another database of it.
-- They cannot log in: grant them to login roles of your own.
--
--   viw_telemetry_writer  what telemetry-writer does
--   viw_results_writer    what results-writer does
--   viw_reader            reads everything an admin page shows
--   viw_operator          viw_reader, names gateways, declares an agent lost
--   viw_retention         owns the day partitions; a writer becomes it (SET ROLE) only to make and
--                         drop them, which is why viw_telemetry_writer does not inherit it
DO $$
DECLARE
	r record;
BEGIN
	FOR r IN SELECT * FROM (VALUES
		('viw_telemetry_writer', 'NOINHERIT'), ('viw_results_writer', 'INHERIT'),
		('viw_reader', 'INHERIT'), ('viw_operator', 'INHERIT'), ('viw_retention', 'INHERIT')
	) AS v (name, inherits) LOOP
		BEGIN
			EXECUTE format('CREATE ROLE %I NOLOGIN %s', r.name, r.inherits);
		EXCEPTION WHEN duplicate_object OR unique_violation THEN
			NULL;
		END;
	END LOOP;
END
$$;

DO $$
BEGIN
	-- A role that is no superuser can only give a table to a role it is a member of.
	IF NOT (SELECT rolsuper FROM pg_roles WHERE rolname = current_user) THEN
		EXECUTE format('GRANT viw_retention TO %I', current_user);
	END IF;
	IF NOT pg_has_role('viw_telemetry_writer', 'viw_retention', 'MEMBER') THEN
		GRANT viw_retention TO viw_telemetry_writer;
	END IF;
	IF NOT pg_has_role('viw_operator', 'viw_reader', 'MEMBER') THEN
		GRANT viw_reader TO viw_operator;
	END IF;
END
$$;

-- Where day partitions live, so that their owner needs no right to create in public.
CREATE SCHEMA viw_partitions AUTHORIZATION viw_retention;
GRANT USAGE ON SCHEMA viw_partitions TO viw_telemetry_writer, viw_results_writer, viw_reader;
GRANT USAGE ON SCHEMA public TO viw_telemetry_writer, viw_results_writer, viw_reader, viw_retention;
