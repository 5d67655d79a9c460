-- viw: no transaction
-- The last failed, unknown, rejected ones, which are few among all.
CREATE INDEX CONCURRENTLY IF NOT EXISTS agent_command_results_not_done
	ON agent_command_results (status, id DESC) WHERE status <> 'done';
