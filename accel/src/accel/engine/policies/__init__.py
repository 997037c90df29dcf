"""One module per architecture, each with its ``POLICY``. Nothing else here or elsewhere in the core
knows an architecture by name."""
