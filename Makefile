# Names operators know, each one line over ./viw (`./viw help`).
.PHONY: help up down test $(foreach p,agent-bridge telemetry-writer results-writer,$(p)-build $(p)-up $(p)-logs)

help: ; @./viw help
up: ; ./viw up
down: ; ./viw down
test: ; ./viw test
agent-bridge-build telemetry-writer-build results-writer-build: %-build: ; ./viw build release $*
agent-bridge-up telemetry-writer-up results-writer-up: %-up: ; ./viw run $*
agent-bridge-logs telemetry-writer-logs results-writer-logs: %-logs: ; ./viw logs $*
