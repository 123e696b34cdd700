"""What a message does to the state."""
