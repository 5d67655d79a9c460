# viw_unit_test(module DEPS lib …), sorted by module
