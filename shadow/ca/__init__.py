"""A private certificate authority: its folder, certificates, revocation lists, and signer."""
