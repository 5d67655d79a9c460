/* The socket: passed by systemd or bound here, and who may connect to it. */
#include <errno.h>
#include <fcntl.h>
#include <grp.h>
#include <pwd.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include "base/log.h"
#include "helper.h"

#define ACCEPT_A_TURN 64

bool listen_uid_allowed(const struct helper *h, uid_t uid)
{
	for (size_t i = 0; i < h->uids; i++)
		if (h->uid[i] == uid)
			return true;
	return false;
}

static int add_uid(struct helper *h, uid_t uid)
{
	uid_t *grown = realloc(h->uid, (h->uids + 1) * sizeof *grown);

	if (!grown)
		return -ENOMEM;
	h->uid = grown;
	h->uid[h->uids++] = uid;
	return 0;
}

int listen_load_uids(struct helper *h)
{
	static const char *const users[] = {"viworks-agent", "viworks"};
	const char *p = h->cfg->allowed_uids;
	int r = 0;

	h->uids = 0;
	if (!p) {
		r = add_uid(h, 0);
		for (size_t i = 0; r == 0 && i < ARRAY_LEN(users); i++) {
			struct passwd *pw = getpwnam(users[i]);
			r = pw ? add_uid(h, pw->pw_uid) : 0;
		}
		return r;
	}
	while (r == 0 && *p) {
		r = add_uid(h, (uid_t)strtoul(p, NULL, 10));
		p += strcspn(p, ",");
		p += *p == ',';
	}
	return r;
}

static void refuse_peer(struct helper *h, int fd, const struct ucred *peer)
{
	struct audit_record rec = {.event = "refused",
				   .code = "peer_not_allowed",
				   .has_peer = true,
				   .uid = peer->uid,
				   .pid = peer->pid};

	if (audit_write(&h->audit, &rec) < 0)
		LOG_ERROR(FIELDS(.event = "audit_failed"), "a refusal could not be recorded");
	audit_counts_add(&h->audit_counts, "*", rec.code);
	LOG_WARN(FIELDS(.event = "peer_refused", .error = "peer_not_allowed", .has_count = true,
			.count = peer->uid),
		 "a peer whose uid is not in HOST_HELPER_ALLOWED_UIDS was refused");
	close(fd);
}

/* Not looked at before the next tick: what waits there would wake us for nothing without end. */
static void pause_listener(struct helper *h)
{
	if (!h->listener_short)
		LOG_WARN(FIELDS(.event = "no_descriptors", .error = strerror(errno)),
			 "connections have to wait");
	h->listener_short = loop_change(&h->loop, &h->listener, 0) == 0;
}

void listen_tick(struct helper *h)
{
	if (h->listener_short && loop_change(&h->loop, &h->listener, EPOLLIN) < 0)
		LOG_ERROR(FIELDS(.event = "no_descriptors"), "connections still have to wait");
}

static void on_listener_ready(struct watch *w, uint32_t events UNUSED)
{
	struct helper *h = CONTAINER_OF(w, struct helper, listener);

	for (int i = 0; i < ACCEPT_A_TURN; i++) {
		struct ucred peer;
		socklen_t n = sizeof peer;
		int fd = accept4(w->fd, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC);
		if (fd < 0) {
			if (errno != EAGAIN && errno != EINTR && errno != ECONNABORTED)
				pause_listener(h);
			return;
		}
		h->listener_short = false;
		if (getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &peer, &n) < 0)
			close(fd);
		else if (!listen_uid_allowed(h, peer.uid))
			refuse_peer(h, fd, &peer);
		else
			conn_accept(h, fd, &peer);
	}
}

/* sd_listen_fds(3) for exactly one socket. -1: none was passed. */
static int passed_socket(void)
{
	const char *pid = getenv("LISTEN_PID"), *n = getenv("LISTEN_FDS");
	int family, type, listening;
	socklen_t len = sizeof family;

	if (!pid || !n || strtol(pid, NULL, 10) != getpid() || strcmp(n, "1") != 0)
		return -1;
	if (getsockopt(3, SOL_SOCKET, SO_DOMAIN, &family, &len) < 0 || family != AF_UNIX)
		return -1;
	len = sizeof type;
	if (getsockopt(3, SOL_SOCKET, SO_TYPE, &type, &len) < 0 || type != SOCK_STREAM)
		return -1;
	len = sizeof listening;
	if (getsockopt(3, SOL_SOCKET, SO_ACCEPTCONN, &listening, &len) < 0 || !listening)
		return -1;
	if (fcntl(3, F_SETFD, FD_CLOEXEC) < 0 || fcntl(3, F_SETFL, O_NONBLOCK) < 0)
		return -1;
	return 3;
}

static gid_t socket_group(const char *name)
{
	char *end;
	unsigned long gid = strtoul(name, &end, 10);

	if (*name && !*end)
		return (gid_t)gid;
	struct group *gr = getgrnam(name);
	if (gr)
		return gr->gr_gid;
	LOG_WARN(FIELDS(.event = "no_socket_group", .setting = "HOST_HELPER_SOCKET_GROUP",
			.detail = name),
		 "no such group; only root can connect");
	return 0;
}

/* The folder must be root's alone; the last part of it is made when missing. */
static int check_parent(const char *path)
{
	char dir[108], why[256];
	size_t n = (size_t)(strrchr(path, '/') - path);

	snprintf(dir, sizeof dir, "%.*s", n ? (int)n : 1, path);
	if (mkdir(dir, 0755) < 0 && errno != EEXIST)
		return -errno;
	int r = trust_check_path(dir, TRUST_DIR, why, sizeof why);
	if (r < 0 && n > 0) {
		LOG_ERROR(FIELDS(.event = "socket_folder", .setting = "HOST_HELPER_SOCKET"), "%s",
			  why);
		return r;
	}
	return 0;
}

/* A socket nobody listens on any more is removed; anything else in the way is an error. */
static int clear_path(const struct sockaddr_un *addr)
{
	struct stat st;

	if (lstat(addr->sun_path, &st) < 0)
		return errno == ENOENT ? 0 : -errno;
	if (!S_ISSOCK(st.st_mode))
		return -EEXIST;
	int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
	if (fd < 0)
		return -errno;
	int r = connect(fd, (const struct sockaddr *)addr, sizeof *addr) == 0 ? -EADDRINUSE : 0;
	close(fd);
	return r == 0 && unlink(addr->sun_path) < 0 ? -errno : r;
}

static int bind_socket(const struct host_helper_settings *cfg)
{
	struct sockaddr_un addr = {.sun_family = AF_UNIX};
	int r, fd;

	snprintf(addr.sun_path, sizeof addr.sun_path, "%s", cfg->socket);
	if ((r = check_parent(cfg->socket)) < 0 || (r = clear_path(&addr)) < 0)
		return r;
	fd = socket(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
	if (fd < 0)
		return -errno;
	mode_t old = umask(0777); /* nobody connects before owner and mode are right */
	if (bind(fd, (struct sockaddr *)&addr, sizeof addr) < 0 ||
	    chown(cfg->socket, 0, socket_group(cfg->socket_group)) < 0 ||
	    chmod(cfg->socket, 0660) < 0 || listen(fd, 128) < 0) {
		r = -errno;
		close(fd);
		fd = r;
	}
	umask(old);
	return fd;
}

int listen_open(struct helper *h)
{
	int fd = passed_socket();

	if (fd < 0)
		fd = bind_socket(h->cfg);
	if (fd < 0)
		return fd;
	h->listener = (struct watch){.fd = fd, .on_ready = on_listener_ready};
	return loop_add(&h->loop, &h->listener, EPOLLIN);
}
