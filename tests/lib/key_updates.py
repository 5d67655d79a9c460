"""key_updates.py PORT CERT KEY SECONDS: a TLS 1.3 client (OpenSSL's library) that sends KeyUpdate messages on and on.

Says "sending" once it does. Python's ssl cannot send them, and openssl s_client only one a line it reads.
"""
import ctypes
import socket
import sys
import time

SSL_FILETYPE_PEM = 1
SSL_KEY_UPDATE_NOT_REQUESTED = 0


def main(port, cert, key, seconds):
    lib = ctypes.CDLL("libssl.so.3")
    pointer = ctypes.c_void_p
    for name in ("SSL_CTX_new", "TLS_client_method", "SSL_new"):
        getattr(lib, name).restype = pointer
    ctx = pointer(lib.SSL_CTX_new(pointer(lib.TLS_client_method())))
    assert lib.SSL_CTX_use_certificate_file(ctx, cert.encode(), SSL_FILETYPE_PEM) == 1
    assert lib.SSL_CTX_use_PrivateKey_file(ctx, key.encode(), SSL_FILETYPE_PEM) == 1
    with socket.create_connection(("127.0.0.1", int(port))) as s:
        s.settimeout(None)
        tls = pointer(lib.SSL_new(ctx))
        lib.SSL_set_fd(tls, s.fileno())
        assert lib.SSL_connect(tls) == 1
        end = time.monotonic() + float(seconds)
        sent = 0
        while time.monotonic() < end:
            assert lib.SSL_key_update(tls, SSL_KEY_UPDATE_NOT_REQUESTED) == 1
            if lib.SSL_do_handshake(tls) != 1:
                break
            sent += 1
            if sent == 1000:
                print("sending", flush=True)


main(*sys.argv[1:])
