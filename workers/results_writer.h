/* results-writer: commands, their events, their results and what bridges refused, to rows. */
#pragma once

struct results_settings;
/* Runs until a signal; returns the exit code. */
int results_writer_run(const struct results_settings *cfg);
