"""Who is who: certificates, keys, lists of revoked ones, expiry, and what a robot asks a signer."""
