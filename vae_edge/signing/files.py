"""Names of the files in a bundle that signatures are about; on their own, for whoever opens a bundle needs no more."""

SIGNATURE_FILE = "model.sig"
LOCAL_FILE = "local.json"
"""The thresholds that were fitted again on a device: see `vae_edge.signing.local_record`."""
OUTSIDE = (SIGNATURE_FILE, LOCAL_FILE)
"""The files of a bundle that its signature does not cover."""
PROVENANCE_FILE = "provenance.json"
