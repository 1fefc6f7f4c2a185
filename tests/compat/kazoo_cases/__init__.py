"""The cases of the kazoo suite, one module per field; see `bench` for how they are written."""
