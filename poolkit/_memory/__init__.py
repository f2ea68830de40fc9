"""Memory: what processes share: blocks of an arena for large values, buffers and arrays of users, descriptors."""
