-- Each role holds what it needs and no more; tests/integration tries what it must not do.
REVOKE ALL ON os_gateways, os_gateway_status, os_gateway_metrics, agent_sessions, agent_events,
	agent_commands, agent_command_results, agent_command_late_results, dead_letters,
	agent_lost_declarations FROM PUBLIC;

GRANT SELECT, INSERT ON os_gateways TO viw_telemetry_writer;
GRANT UPDATE (hostname, site, labels, version, capabilities, supported_verbs, status, bridge_id, conn_id,
	epoch, ip, first_seen, last_seen, reported_site, reported_labels, disconnected_epoch)
	ON os_gateways TO viw_telemetry_writer;
GRANT SELECT, INSERT, UPDATE ON os_gateway_status, os_gateway_metrics TO viw_telemetry_writer;
GRANT SELECT, INSERT, UPDATE, DELETE ON agent_sessions TO viw_telemetry_writer;
GRANT SELECT, INSERT ON agent_events TO viw_telemetry_writer;
GRANT SELECT, INSERT, DELETE ON dead_letters TO viw_telemetry_writer;
GRANT SELECT ON viw_partition_days TO viw_telemetry_writer, viw_reader;

GRANT SELECT, INSERT, UPDATE ON agent_commands TO viw_results_writer;
GRANT SELECT, INSERT ON agent_command_results, agent_command_late_results TO viw_results_writer;
GRANT SELECT, INSERT, DELETE ON dead_letters TO viw_results_writer;
GRANT SELECT ON agent_lost_declarations TO viw_results_writer;
GRANT EXECUTE ON FUNCTION viw_purge_commands(integer, integer) TO viw_results_writer;

GRANT SELECT ON os_gateways, os_gateway_status, os_gateway_metrics, agent_sessions, agent_events,
	agent_commands, agent_command_results, agent_command_late_results, dead_letters,
	agent_lost_declarations, schema_migrations TO viw_reader;

GRANT INSERT (agent_id, display_name, site, labels, status) ON os_gateways TO viw_operator;
GRANT UPDATE (display_name, site, labels, status) ON os_gateways TO viw_operator;
GRANT EXECUTE ON FUNCTION viw_declare_lost(text) TO viw_operator;
