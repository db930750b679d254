"""Several processes that train one run: their ranks, their rendezvous, and their status."""
