"""What runs before a run: the interview, the first configuration, the check, the demo's rows."""
