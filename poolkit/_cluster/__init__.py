"""The owner's half of a cluster: what it binds, accepts, starts and passes on."""
