# viw_fuzz(target DEPS lib …), sorted by target
viw_fuzz(frame DEPS wire LINKS PkgConfig::jansson)
viw_fuzz(helper_msg DEPS wire)
viw_fuzz(json_diff DEPS wire LINKS PkgConfig::jansson)
viw_fuzz(manifest DEPS verbs)
viw_fuzz(redact DEPS verbs)
viw_fuzz(settings DEPS base)
viw_fuzz(text DEPS base crypto)
