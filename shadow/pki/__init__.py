"""Who is who: certificates, keys, revocation lists, expiry, and a robot's request to a signer."""
