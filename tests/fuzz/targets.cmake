# viw_fuzz(target DEPS lib …), sorted by target
