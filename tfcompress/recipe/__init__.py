"""Which layers get which techniques, in Python and as YAML."""
