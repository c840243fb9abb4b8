"""One TLS connection: context, handshake, the kernel's TLS or OpenSSL's, channel, HELLO."""
