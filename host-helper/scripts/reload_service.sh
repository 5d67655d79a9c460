#!/bin/bash
# reload_service: one of the units viworks.conf names in RELOADABLE. argv: unit.
. "${0%/*}/common.sh"
for unit in $RELOADABLE; do
	if [ "$unit" = "$1" ]; then
		systemctl reload-or-restart -- "$unit"
		echo "reloaded $unit: $(systemctl is-active -- "$unit")"
		exit 0
	fi
done
fail "$1 is not in RELOADABLE" 2
