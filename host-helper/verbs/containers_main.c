/* host-helper-containers: the verbs that ask the container engine. */
#include "builtin.h"

static const struct builtin table[] = {
    {"list_containers", builtin_list_containers, false},
    {"spawn_container", builtin_spawn_container, false},
    {"stop_container", builtin_stop_container, false},
    {VERBS_CONTAINER_METRICS, builtin_container_metrics, true},
};

int main(int argc, char **argv)
{
	return builtin_main(VERBS_CONTAINERS_PROGRAM, table, ARRAY_LEN(table), argc, argv);
}
