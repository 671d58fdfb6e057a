"""Signed bundles: who made a bundle, and that nothing in it was changed since. See SIGNING.md.

A signature is one of the OpenSSF model signing specification (https://github.com/ossf/model-signing-spec): a Sigstore
bundle with a DSSE envelope around an in-toto statement that lists the SHA-256 of every file. `vae-edge sign` makes it
with the package `model-signing`; a device checks it with the modules here, which need `cryptography` alone, and only
where keys are trusted.
"""
