"""What two hosts tell each other, and the authenticated channel that carries it."""
