"""Who may live: the source's and the destination's machine, their lease and history."""
