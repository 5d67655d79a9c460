-- viw: no transaction
-- What failed lately, for the on-call. Rows come in order of time, so a few kilobytes are enough.
CREATE INDEX CONCURRENTLY IF NOT EXISTS agent_command_results_by_time
	ON agent_command_results USING brin (recorded_at) WITH (pages_per_range = 32, autosummarize = on);
