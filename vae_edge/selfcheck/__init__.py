"""`vae-edge selfcheck`: what works on this device, compared with stored answers, in one file to send."""
