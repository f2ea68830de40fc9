"""Servers: an application of the user's, and the servers of others that a cluster's worker hands its listener to."""
