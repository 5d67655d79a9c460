/* telemetry-writer: hellos, telemetry and agent events to rows. */
#pragma once

struct telemetry_settings;
/* Runs until a signal; returns the exit code. */
int telemetry_writer_run(const struct telemetry_settings *cfg);
