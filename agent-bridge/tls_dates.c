/* See tls_dates.h. */
#include "tls_dates.h"

#include <stdint.h>
#include <stdio.h>

#include "base/buf.h"
#include "base/clock.h"
#include "base/file.h"
#include "base/log.h"
#include "crypto/x509.h"

enum { PEM_MAX_BYTES = 1 << 20 };

bool tls_dates_fault(const char *path, char *out, size_t cap)
{
	char when[CLOCK_RFC3339_LEN + 1];
	struct x509_st *cert = NULL;
	struct cert_info info;
	struct buf pem;
	bool fault = false;

	buf_init(&pem, PEM_MAX_BYTES);
	if (file_read(path, &pem) == 0 && cert_from_pem(pem.data, pem.len, &cert) == 0 &&
	    cert_info_from_x509(cert, &info) == 0) {
		int64_t now_ms = clock_wall_ms();
		bool over = info.not_after_ms < now_ms;

		fault = over || info.not_before_ms > now_ms;
		clock_format_rfc3339(over ? info.not_after_ms : info.not_before_ms, when);
		if (fault)
			(void)snprintf(
			    out, cap,
			    "%s: %s %s by this host's clock: no agent accepts it; replace it", path,
			    over ? "was valid until" : "is not valid before", when);
	}
	cert_free(cert);
	buf_fini(&pem);
	return fault;
}

void tls_dates_warn(const char *path)
{
	char why[512];

	if (path && tls_dates_fault(path, why, sizeof(why)))
		LOG_WARN(FIELDS(.event = "cert_expiry", .setting = "AGENT_BRIDGE_TLS_CERT"), "%s",
			 why);
}
