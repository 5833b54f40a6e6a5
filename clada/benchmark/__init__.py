"""Times the ops and whole models against what else would run them, in one process; nothing imports it."""
