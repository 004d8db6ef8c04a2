"""What a bundle holds: its parts, their description, their origin."""
