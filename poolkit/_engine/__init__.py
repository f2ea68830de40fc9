"""Engine: drives one pool: its inbox, its lock, the supervisor thread, the callback thread, and who reads the links."""
