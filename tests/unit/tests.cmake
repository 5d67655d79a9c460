# viw_unit_test(module DEPS lib …), sorted by module
viw_unit_test(json_scan DEPS wire LINKS PkgConfig::jansson)
viw_unit_test(wire DEPS wire LINKS PkgConfig::jansson)
