"""Nodes: the engine on a cluster. What runs on a node is under a lease of its owner."""
