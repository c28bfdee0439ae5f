"""The command line: every command lives here."""
