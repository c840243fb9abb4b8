"""The company's certificate authority: its folder, certificates, lists, signer."""
