/* What Redis refuses for good while it takes the rest: each told by itself. */
#include "store_internal.h"

#include "base/log.h"

static const struct {
	const char *stream, *detail;
	unsigned lines_a_minute; /* two where two causes may alternate, six of offers */
	const char *msg;
} refusals[] = {
    [STORE_REFUSED_TELEMETRY] = {"telemetry", NULL, 1,
				 "Redis refuses telemetry for good; it is dropped"},
    [STORE_REFUSED_LEADING] = {"commands", "lease", 2,
			       "Redis refuses the router's lease: this bridge routes nothing until "
			       "it does not"},
    [STORE_REFUSED_ROUTING] = {"commands", "route", 2,
			       "Redis refuses the commands' stream: nothing is routed until it "
			       "does not"},
    [STORE_REFUSED_ENDING] = {"commands", "expire", 2,
			      "Redis refuses to end what is past its time: it stays open until it "
			      "does not"},
    [STORE_REFUSED_CLAIM] = {NULL, "claim", 2,
			     "Redis refuses to say whose an agent is: none can be served"},
    [STORE_REFUSED_OFFER] = {NULL, "offer", 6, "Redis refuses to say what waits for this agent"},
    [STORE_REFUSED_CHECK] = {NULL, "check", 1,
			     "Redis refuses to say whose the agents are: who is another bridge's "
			     "stays"},
    [STORE_REFUSED_LEASE] = {NULL, "bridge", 1,
			     "Redis refuses this bridge's lease: others take it for dead, and its "
			     "agents get their commands late"},
    [STORE_REFUSED_WAKE] = {NULL, "wake", 1,
			    "Redis refuses the hints of other bridges: commands come up to five "
			    "seconds late"},
    [STORE_REFUSED_POST] = {NULL, "post", 1, "Redis refuses commands posted over HTTP"},
};
_Static_assert(ARRAY_LEN(refusals) == STORE_REFUSALS, "each has its line");

void store_tell_refused(struct store *s, enum store_refused what, const char *agent,
			const struct redis_reply *reply)
{
	long left_out;

	if (!redis_error_is_lasting(redis_error_class(reply)))
		return;
	left_out = log_limit_pass(&s->refused[what], refusals[what].lines_a_minute);
	if (left_out >= 0)
		LOG_ERROR(FIELDS(.event = "redis_refused", .stream = refusals[what].stream,
				 .detail = refusals[what].detail, .agent_id = agent,
				 .error = redis_str(reply).p, .has_count = left_out > 0,
				 .count = left_out),
			  "%s", refusals[what].msg);
}

void store_note_refused(struct store *s, enum store_refused what, const char *agent,
			const struct redis_reply *reply)
{
	store_note_passing(s, redis_error_class(reply));
	store_tell_refused(s, what, agent, reply);
}
