-- Purging reads what it deletes and no more: with generic plans the ids are looked up one by one,
-- where a join with as many rows as `most` allows would read whole tables each time.
CREATE OR REPLACE FUNCTION viw_purge_commands(days integer, most integer) RETURNS bigint
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, public, pg_temp
SET plan_cache_mode = force_generic_plan AS $$
DECLARE
	ids text[];
	gone bigint;
BEGIN
	IF days < 9 THEN
		RAISE EXCEPTION 'commands are kept at least 9 days' USING ERRCODE = '22023';
	END IF;
	ids := ARRAY(SELECT correlation_id FROM agent_commands
		WHERE completed_at < now() - make_interval(days => days)
		ORDER BY completed_at LIMIT most FOR UPDATE SKIP LOCKED);
	DELETE FROM agent_command_results WHERE correlation_id = ANY (ids);
	DELETE FROM agent_command_late_results WHERE correlation_id = ANY (ids);
	DELETE FROM agent_commands WHERE correlation_id = ANY (ids);
	GET DIAGNOSTICS gone = ROW_COUNT;
	RETURN gone;
END
$$;
